"""Converts a saved model from one optimizer to another, on the command line."""

import argparse
import ast
import importlib
import inspect
import json
import os
import pathlib
import sys
import tempfile

import keras

import keras_adafactor
from keras_adafactor.arguments import deserialize
from keras_adafactor.checks import check
from keras_adafactor.checks import check_choice
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.sources import load_checkpoint
from keras_adafactor.sources import opened
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


# Keywords of Keras that mean the same in every optimizer.
CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")  # one at a time
AVERAGES = ("use_ema", "ema_momentum", "ema_overwrite_frequency")
OTHERS = ("loss_scale_factor", "gradient_accumulation_steps")
# In what units a learning rate is; to an optimizer without them, False.
UNITS = ("multiply_by_parameter_scale", "relative_step")
EXCLUDED = "excluded_from_weight_decay"


def convert(source, destination, optimizer, settings, keep_learning_rate=False):
    """Saves a model with another optimizer, in its state.

    The model is compiled with the losses and metrics it had. Nothing is left
    at `destination` unless all of it is.

    Args:
        source: Path of a `.keras` file or an Orbax checkpoint.
        destination: Path of the `.keras` file to write; replaced if it is
            there.
        optimizer: The class of the new optimizer.
        settings: Dict, its arguments. Clipping, averages of weights, the loss
            scale factor and accumulation are those of the old one, unless they
            are here.
        keep_learning_rate: Boolean, whether it has the learning rate of the old
            one too, in the units that has, and the weight decay.

    Returns:
        Tuple of `WarmStartReport` and two dicts of arguments of the old
        optimizer: those that were kept, and those that were not.

    Raises:
        ValueError: If a path is of another kind, the file has no optimizer
            whose state can be carried, or its learning rate cannot be kept.
    """
    source, destination = pathlib.Path(source), pathlib.Path(destination)
    hint = ""
    if source.name.endswith(".weights.h5"):
        hint = (
            ", which says what is in it; a `.weights.h5` file does not: use "
            "`warm_start(model, path, saved_by=keras.optimizers.Adam())`"
        )
    check(
        source.is_dir() or (source.is_file() and source.suffix == ".keras"),
        "source",
        f"the path of a `.keras` file or an Orbax checkpoint that exists{hint}",
        str(source),
    )
    folder = destination.parent
    check(
        destination.suffix == ".keras"
        and folder.is_dir()
        and os.access(folder, os.W_OK),
        "destination",
        "a path that ends in `.keras`, in a directory that exists and may be "
        "written to",
        str(destination),
    )
    model = load_checkpoint(source.absolute())
    old = getattr(model, "optimizer", None)
    kept, left = _arguments_of(
        opened("source", model, str(source)),
        optimizer,
        settings,
        keep_learning_rate,
    )
    _compile_again(model, _made(optimizer, kept | settings))
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
        prefix=".convert-", dir=folder
    ) as temporary:
        written = pathlib.Path(temporary, destination.name)
        model.save(written)
        os.replace(written, destination)
    return report, kept, left


def _arguments_of(old, kind, settings, keep_learning_rate):
    """What an optimizer of another kind has of the arguments of one.

    Args:
        old: The optimizer.
        kind: The class of the other.
        settings: Dict, what is given.
        keep_learning_rate: See `convert`.

    Returns:
        Tuple of two dicts, of those that are kept and those that are not.

    Raises:
        ValueError: If the learning rate is to be kept, and is in units that
            the other does not have.
    """
    config = old.get_config()
    ours = issubclass(kind, UpdateRuleOptimizer)
    names = [*AVERAGES, *OTHERS]
    if not settings.get("use_ema", config["use_ema"]):
        names = [*OTHERS]
    if not settings.keys() & set(CLIPS):
        names += CLIPS
    units = {}
    if keep_learning_rate:
        units = _units_of(old, kind)
        names += ["learning_rate"]
        # Which FAdam divides as it does the gradient.
        fadam = keras_adafactor.FAdam
        if (kind is fadam) == isinstance(old, fadam):
            names += ["weight_decay"]
    if ours and "weight_decay" in (*names, *settings):
        names += [EXCLUDED]
    same = {name: config.get(name) for name in names}
    kept = {n: v for n, v in same.items() if v is not None and v is not False}
    kept = {n: v for n, v in (kept | units).items() if n not in settings}
    left = {
        name: config[name]
        for name in ("learning_rate", "weight_decay", EXCLUDED)
        if config.get(name) and name not in kept | settings
    }
    return kept, left


def _units_of(old, kind):
    """Units of the learning rate of `old`, as arguments of a `kind`."""
    units = {name: getattr(old, name, False) for name in UNITS}
    if isinstance(old, keras.optimizers.Adafactor):
        units["multiply_by_parameter_scale"] = True
    known = inspect.signature(kind).parameters
    check(
        not any(units[name] for name in UNITS if name not in known),
        "keep_learning_rate",
        f"left out: that of {type(old).__name__} is relative, which "
        f"{kind.__name__} has no argument for",
        True,
    )
    return {name: units[name] for name in UNITS if name in known}


def _made(kind, arguments):
    """An optimizer of arguments as they are in a configuration."""
    arguments = dict(arguments)
    undecayed = arguments.pop(EXCLUDED, None)
    optimizer = kind(**{n: deserialize(v) for n, v in arguments.items()})
    if undecayed:
        optimizer.exclude_from_weight_decay(var_names=undecayed)
    return optimizer


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
        name = given.optimizer.lower()
        check_choice("optimizer", name, tuple(OPTIMIZERS))
        settings = dict(map(_setting, given.settings))
        sizes = [_size(given.source)]
        report, kept, left = convert(
            given.source,
            given.destination,
            OPTIMIZERS[name],
            settings,
            given.keep_learning_rate,
        )
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sizes.append(_size(given.destination))
    print(report)
    if kept:
        print(f"kept of {report.source}: {_shown(kept)}")
    if left:
        hint = "" if given.keep_learning_rate else "; see --keep_learning_rate"
        print(f"not kept: {_shown(left)}{hint}")
    print(
        f"{given.source}: {sizes[0]:,} bytes; "
        f"{given.destination}: {sizes[1]:,} bytes"
    )
    return 0


def _shown(arguments):
    """`key=value, ...`; of an object its class."""
    shown = {
        name: value["class_name"] if isinstance(value, dict) else value
        for name, value in arguments.items()
    }
    return ", ".join(
        # A float32 has no more digits.
        f"{name}={value:.6g}" if type(value) is float else f"{name}={value}"
        for name, value in shown.items()
    )


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
        "state it would have had by now, and prints what went where. Clipping, "
        "averages of weights, loss_scale_factor and "
        "gradient_accumulation_steps stay as they are unless they are --set.",
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
        help="arguments of the optimizer: --set learning_rate=0.02 beta_1=0.9; "
        'an object as JSON: --set \'learning_rate={"class_name": '
        '"CosineDecay", "config": {"initial_learning_rate": 0.01, '
        '"decay_steps": 1000}}\'',
    )
    command.add_argument(
        "--keep_learning_rate",
        action="store_true",
        help="keep the learning rate or the schedule, and the weight decay, in "
        "their units: after Adam multiply_by_parameter_scale=False "
        "relative_step=False. With --set beta_1=0.9 adafactor then goes on as "
        "Adam did",
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
    """`key=value` as a pair.

    A value is a Python literal, JSON or, if it is neither, a string.
    """
    key, equals, value = text.partition("=")
    check(key.isidentifier() and equals, "set", "of the form key=value", text)
    for read in (ast.literal_eval, json.loads):
        try:
            return key, _with_module(key, read(value))
        except (ValueError, SyntaxError):
            continue
    return key, value


def _with_module(key, value):
    """Where Keras looks for a schedule that is named by its class alone."""
    if key != "learning_rate" or not isinstance(value, dict):
        return value
    return {"module": "keras.optimizers.schedules"} | value


def _size(path):
    path = pathlib.Path(path)
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
