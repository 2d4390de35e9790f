"""Converts a saved model from one optimizer to another, on the command line."""

import argparse
import ast
import importlib
import os
import pathlib
import sys
import tempfile

import keras

import keras_adafactor
from keras_adafactor.arguments import check
from keras_adafactor.arguments import check_choice
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.warm_start import warm_start

OURS = {
    name.lower(): kind
    for name in keras_adafactor.__all__
    if isinstance(kind := getattr(keras_adafactor, name), type)
    and issubclass(kind, UpdateRuleOptimizer)
    and kind is not UpdateRuleOptimizer
}
# The way back. The name `adafactor` is ours.
KERAS = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "rmsprop": keras.optimizers.RMSprop,
}
OPTIMIZERS = OURS | KERAS


def convert(source, destination, optimizer):
    """Saves a model with another optimizer, in its state.

    The model is compiled with the losses and metrics it had. Nothing is left
    at `destination` unless all of it is.

    Args:
        source: Path of a `.keras` file or an Orbax checkpoint.
        destination: Path of the `.keras` file to write; replaced if it is
            there.
        optimizer: Optimizer, not built.

    Returns:
        `WarmStartReport`.

    Raises:
        ValueError: If a path is of another kind, or the file has no optimizer
            whose state can be carried.
    """
    source, destination = pathlib.Path(source), pathlib.Path(destination)
    check(
        source.is_dir() or (source.is_file() and source.suffix == ".keras"),
        "source",
        "the path of a `.keras` file or an Orbax checkpoint that exists",
        str(source),
    )
    check(
        destination.suffix == ".keras" and destination.parent.is_dir(),
        "destination",
        "a path that ends in `.keras`, in a directory that exists",
        str(destination),
    )
    model = keras.models.load_model(source)
    old = getattr(model, "optimizer", None)
    check(old is not None, "source", "a model that is compiled", str(source))
    _compile_again(model, optimizer)
    check(
        model.optimizer is not old,
        "source",
        "a model whose `compile()` is Keras' own, or that has a "
        "`compile_from_config()` of its own",
        str(source),
    )
    report = warm_start(model, old)
    # In the same directory: a rename within one file system is all or nothing.
    with tempfile.TemporaryDirectory(
        prefix=".convert-", dir=destination.parent
    ) as folder:
        written = pathlib.Path(folder, destination.name)
        model.save(written)
        os.replace(written, destination)
    return report


def _compile_again(model, optimizer):
    """Compiles a model as it was, with another optimizer."""
    config = dict(model.get_compile_config())
    new = keras.saving.serialize_keras_object(optimizer)
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        wrapper = keras.saving.serialize_keras_object(model.optimizer)
        wrapper["config"]["inner_optimizer"] = new
        new = wrapper
    model.compile_from_config(config | {"optimizer": new})


def main(arguments=None):
    """The command. Returns its exit status."""
    given = _parser().parse_args(arguments)
    try:
        for module in given.imports:
            importlib.import_module(module)
        check_choice("optimizer", given.optimizer, tuple(OPTIMIZERS))
        settings = dict(map(_setting, given.settings))
        optimizer = OPTIMIZERS[given.optimizer](**settings)
        sizes = [_size(given.source)]
        report = convert(given.source, given.destination, optimizer)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sizes.append(_size(given.destination))
    print(report)
    print(
        f"{given.source}: {sizes[0]:,} bytes; "
        f"{given.destination}: {sizes[1]:,} bytes"
    )
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m keras_adafactor",
        description="Memory-efficient optimizers for Keras 3.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser(
        "convert",
        help="save a model with another optimizer, in the state of its own",
        description="Saves a model with another optimizer, which has the "
        "state it would have had by now, and prints what went where.",
    )
    command.add_argument("source", help="a .keras file or an Orbax checkpoint")
    command.add_argument(
        "destination", help="the .keras file to write; replaced if it is there"
    )
    command.add_argument(
        "--optimizer",
        required=True,
        help=f"one of {', '.join(OURS)}; or, of Keras, {', '.join(KERAS)}",
    )
    command.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        help="arguments of the optimizer: --set learning_rate=0.02 beta_1=0.9",
    )
    command.add_argument(
        "--import",
        dest="imports",
        nargs="+",
        action="extend",
        default=[],
        metavar="module",
        help="modules to import first, that register what the model is made of",
    )
    return parser


def _setting(text):
    """`key=value` as a pair; a value that is no Python literal is a string."""
    key, equals, value = text.partition("=")
    check(key.isidentifier() and equals, "set", "of the form key=value", text)
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _size(path):
    path = pathlib.Path(path)
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
