"""Times the first step and a step of a model of many small variables.

    KERAS_BACKEND=tensorflow python -m benchmarks.many_variables

The 253 variables of six encoder and six decoder layers, of width 64 (0.76
million parameters) and 256 (11.3 million). `Adafactor` updates small ones of
one kind together; beside it Keras' Adam, and `Adafactor` with each updated
alone. All run in one process, in turn: read the ratios. Prints a table and
writes `results/many_variables_<backend>.json` beside this file.
"""

import argparse

import keras
import numpy as np

import keras_adafactor
from benchmarks import records
from benchmarks import step_time
from benchmarks import steps

WIDTHS = (64, 256)
MODES = step_time.MODES


def adafactor(largest):
    """A function that makes one; up to a size variables go together."""

    def make():
        optimizer = keras_adafactor.Adafactor()
        optimizer._largest_together = largest
        return optimizer

    return make


def optimizers(sizes):
    found = {
        "keras.Adam": keras.optimizers.Adam,
        "Adafactor": keras_adafactor.Adafactor,
        "Adafactor, each alone": adafactor(0),
    }
    for size in sizes:
        found[f"Adafactor, up to {size}"] = adafactor(size)
    return found


def measure(width, mode, rounds, sizes):
    """A dict for each optimizer: its times and ratios."""
    shapes = step_time.transformer_shapes(width, 4 * width, 4, 1000, layers=6)
    starters = {
        name: lambda weights, gradients, make=make: steps.of_keras(
            make, weights, gradients, mode
        )
        for name, make in optimizers(sizes).items()
    }
    started, first = step_time.start(starters, shapes, mode)
    takers = {name: step.take for name, step in started.items()}
    seconds = step_time.timed(takers, rounds)
    baselines = {"adam": "keras.Adam"}
    return [
        {
            "mode": mode,
            "parameters": sum(int(np.prod(shape)) for shape in shapes),
            "variables": len(shapes),
            "optimizer": name,
            "first_seconds": first[name],
            **row,
        }
        for name, row in step_time.compared(seconds, baselines).items()
    ]


def main():
    name = keras.backend.backend()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS)
    parser.add_argument(
        "--modes", nargs="+", choices=MODES[name], default=MODES[name]
    )
    parser.add_argument(
        "--sizes",
        nargs="*",
        type=int,
        default=[],
        help="more sizes up to which variables are updated together;\n"
        "results are then printed alone",
    )
    options = parser.parse_args()
    rows = []
    for mode in options.modes:
        for width in options.widths:
            rows += measure(width, mode, options.rounds, options.sizes)
    print(f"{'mode':6} {'parameters':>10} {'optimizer':24} first    ms  / Adam")
    for row in rows:
        print(
            f"{row['mode']:6} {row['parameters']:10} {row['optimizer']:24} "
            f"{row['first_seconds']:5.1f} {row['milliseconds']:6.1f} "
            f"{row['over_adam']:6.2f}",
            flush=True,
        )
    if not options.sizes:
        records.save(f"many_variables_{name}", {"rows": rows})


if __name__ == "__main__":
    main()
