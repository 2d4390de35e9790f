"""A Keras without one of the private names is refused, at import."""

import ast
import functools
import inspect
import pathlib

import keras
import numpy as np
import pytest

import keras_adafactor
from keras_adafactor import private_names
from tests.probe import as_numpy
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model

LIBRARY = pathlib.Path(keras_adafactor.__file__).parent
# Not of Keras: `collections.namedtuple`'s.
PYTHON = {"_replace", "_fields", "_asdict"}
# Of a class that not every Keras has; asked for with a default.
OPTIONAL = {"_optimizer_map"}
HERE = [
    row
    for row in private_names.TABLE
    if row.backend in (None, keras.backend.backend())
]


def owner_of(row):
    package, *path = row.owner.split(".")
    return functools.reduce(getattr, path, __import__(package))


def delete(row, monkeypatch):
    """Takes a name away, from whoever has it."""
    owner = owner_of(row)
    holders = owner.__mro__ if inspect.isclass(owner) else [owner]
    for holder in holders:
        if row.name in vars(holder):
            monkeypatch.delattr(holder, row.name)
    if not inspect.isclass(owner):
        return
    for holder in holders:
        for method in vars(holder).values():
            method = inspect.unwrap(method) if callable(method) else method
            if inspect.isfunction(method):
                code = method.__code__
                names = [
                    "_renamed" if name == row.name else name
                    for name in code.co_names
                ]
                renamed = code.replace(co_names=tuple(names))
                monkeypatch.setattr(method, "__code__", renamed)


@pytest.mark.parametrize("row", HERE, ids=lambda row: row.name)
def test_a_name_that_is_missing_is_an_error_that_names_it(row, monkeypatch):
    private_names.check()
    delete(row, monkeypatch)
    with pytest.raises(ImportError) as raised:
        private_names.check()
    message = str(raised.value)
    assert f"`{row.owner}` has no `{row.name}`" in message
    assert keras.__version__ in message
    assert private_names.TESTED_KERAS in message


def test_import_fails_where_a_name_is_missing(run_python):
    printed = run_python(
        "import keras\n"
        "for cls in keras.optimizers.Optimizer.__mro__:\n"
        "    if '_clip_gradients' in vars(cls):\n"
        "        del cls._clip_gradients\n"
        "try:\n"
        "    import keras_adafactor\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    assert "has no `_clip_gradients`" in printed


def test_every_private_name_in_the_sources_is_in_the_table():
    own, used = set(), {}
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    own.add(name)
                case ast.Attribute(attr=name, ctx=ast.Store()):
                    own.add(name)
                case ast.Name(id=name, ctx=ast.Store()):
                    own.add(name)
                case ast.Attribute(attr=name):
                    used.setdefault(name, path.name)
                case ast.Call(
                    func=ast.Name(id="getattr" | "hasattr"),
                    args=[_, ast.Constant(value=str(name)), *_],
                ):
                    used.setdefault(name, path.name)
    private = {
        name: path
        for name, path in used.items()
        if name.startswith("_") and not name.endswith("__")
    }
    listed = {row.name for row in private_names.TABLE}
    missing = private.keys() - own - listed - PYTHON - OPTIONAL
    assert missing == set()
    # `_accumulated_gradients` is only assigned, the rest of strings in a dict.
    strings = {"_momentums", "_velocities", "_velocity_hats"}
    strings |= {"_average_gradients", "_r", "_c", "_v"}
    public = {row.name for row in private_names.TABLE if row.name[0] != "_"}
    unused = listed - private.keys() - strings - public
    assert unused <= {"_accumulated_gradients"}


def test_no_hook_of_keras_decides_what_a_step_is(monkeypatch):
    """Its own `apply` calls these; another Keras may call others."""

    def fails(*arguments, **keywords):
        raise AssertionError("A hook of Keras was called.")

    for name in (
        "_backend_apply_gradients",
        "_backend_update_step",
        "_apply_weight_decay",
        "_update_model_variables_moving_average",
        "_get_current_learning_rate",
    ):
        for cls in keras.optimizers.Optimizer.__mro__:
            if name in vars(cls):
                monkeypatch.setattr(cls, name, fails)
    optimizer = keras_adafactor.Adafactor(
        keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.9),
        weight_decay=0.1,
        clipnorm=1.0,
        use_ema=True,
        gradient_accumulation_steps=2,
    )
    model = probe_model({"kernel": np.ones((3, 2), "float32")}, optimizer)
    fit(model, gradients(4, {"kernel": (3, 2)}))
    assert int(optimizer.iterations) == 2
    assert (as_numpy(model.trainable_variables[0]) < 1.0).any()
