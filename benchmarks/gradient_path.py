"""Counts the functions that a gradient passes through in one step.

    KERAS_BACKEND=torch python -m benchmarks.gradient_path

One eager step of one matrix, the second, so that nothing is built. Counted are
calls of Python functions of this package, or of Keras' optimizers for theirs:
how many, how many different functions and modules, and how often one module
calls another. Prints a table.
"""

import pathlib
import sys

import keras
import numpy as np

import keras_adafactor

OURS = ("Lion", "Adafactor", "SOAP")
KERAS = ("Adam", "Adafactor")


def path(optimizer, folder):
    """The calls of one step into files of a folder, as (file, function)."""
    variable = keras.Variable(np.ones((8, 6), "float32"))
    gradient = keras.ops.convert_to_tensor(np.ones((8, 6), "float32"))
    optimizer.apply([gradient], [variable])
    calls = []

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(folder):
            calls.append((frame.f_code.co_filename, frame.f_code.co_qualname))

    sys.setprofile(note)
    try:
        optimizer.apply([gradient], [variable])
    finally:
        sys.setprofile(None)
    return calls


def counts(calls):
    """Calls, functions, modules, switches between modules."""
    modules = [module for module, _ in calls]
    switches = sum(
        one != other for one, other in zip(modules, modules[1:], strict=False)
    )
    return len(calls), len(set(calls)), len(set(modules)), switches


def main():
    ours = str(pathlib.Path(keras_adafactor.__file__).parent)
    theirs = str(pathlib.Path(keras.__file__).parent / "src" / "optimizers")
    rows = [(name, getattr(keras_adafactor, name)(), ours) for name in OURS] + [
        (f"keras.{name}", getattr(keras.optimizers, name)(), theirs)
        for name in KERAS
    ]
    print(
        f"{'optimizer':16} {'calls':>6} {'functions':>10} {'modules':>8} "
        f"{'switches':>9}"
    )
    for name, optimizer, folder in rows:
        calls, functions, modules, switches = counts(path(optimizer, folder))
        print(f"{name:16} {calls:6} {functions:10} {modules:8} {switches:9}")


if __name__ == "__main__":
    main()
