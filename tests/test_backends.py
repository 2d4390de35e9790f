"""One module for each backend, with the same functions."""

import ast
import pathlib

import numpy as np
import pytest

import keras_adafactor
from keras_adafactor import guards
from keras_adafactor.checks import check_choice
from tests import harness
from tests.probe import as_numpy

SHARED = "one_process"
FOLDER = pathlib.Path(keras_adafactor.__file__).parent / "backends"


def interface(name):
    """Public functions of a module, with the names of their arguments."""
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    found = {}
    for node in tree.body:
        match node:
            case ast.ImportFrom(module=module) if module.endswith(SHARED):
                shared = interface(SHARED)
                found |= {a.name: shared[a.name] for a in node.names}
            case ast.FunctionDef(name=public) if public[0] != "_":
                found[public] = [
                    argument.arg for argument in node.args.args
                ] + [node.args.vararg and node.args.vararg.arg]
            case ast.Assign(targets=[ast.Name(id=public)]) if public[0] != "_":
                found[public] = None
    # A decorator, of TensorFlow's or PyTorch's own or a function.
    found["training_step"] = None
    return found


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_every_backend_has_the_functions_of_tensorflow(name):
    assert interface(name) == interface("tensorflow")


def test_a_guard_is_a_class_and_a_name(monkeypatch):
    """A policy of this file, that skips updates of gradients above 10."""

    class Small(guards.Guard):
        skips_updates = True

        def takes_updates(self, gradients, clipping):
            return [guards.ops.max(g) < 10.0 for g in gradients]

    monkeypatch.setitem(guards.POLICIES, "small", Small())
    assert check_choice("x", "small", tuple(guards.POLICIES)) == "small"
    start = np.ones((3, 2), "float32")
    optimizer = keras_adafactor.Adafactor(skip_nonfinite="small")
    rows = [[np.full((3, 2), size, "float32")] * 2 for size in (1.0, 11.0)]
    rows[1][1] = rows[0][1]
    first, second = harness.values(
        harness.run(optimizer, [start] * 2, rows[:1], harness.MODE)
    )
    optimizer = keras_adafactor.Adafactor(skip_nonfinite="small")
    skipped, taken = harness.values(
        harness.run(optimizer, [start] * 2, rows, harness.MODE)
    )
    np.testing.assert_array_equal(skipped, first)
    assert (taken < second).all()
    assert int(as_numpy(optimizer.skipped_updates)) == 1
