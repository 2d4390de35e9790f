"""Times a whole training step of the translation model `base`.

    KERAS_BACKEND=tensorflow python -m benchmarks.train_step

Forward pass, loss, backward pass and optimizer in one program that XLA
compiled, on one batch of 16 sentences of the embedded corpus: a larger batch
would make the optimizer a smaller part of it. A model for each optimizer, all
in one process and in turn, as in `benchmarks.step_time`. What the step of a
larger batch costs on a TPU, by its compiler, `benchmarks.scaling` says.

Prints a table and writes `results/train_step_<backend>.json` beside this file.
"""

import argparse
import contextlib
import math
import tempfile
import time

import keras

from benchmarks import family
from benchmarks import optimizers
from benchmarks import records
from benchmarks import tables
from benchmarks.step_time import compared
from benchmarks.step_time import timed
from examples.translation import batching
from examples.translation.train import prepared

BACKENDS = ("tensorflow", "jax")


def training_step(job):
    """A function that trains on one and the same batch."""
    batches = batching.train_dataset(job.training_data, job.plan, steps=1)
    (batch,) = batches.as_numpy_iterator()
    return lambda: job.model.train_on_batch(*batch)


def measure(rounds, work_dir):
    """A dict for each optimizer."""
    takers, first = {}, {}
    with contextlib.ExitStack() as opened:
        for name in optimizers.OF_EXAMPLE:
            run = family.Run(name, 0, family.SEEDS[0], False)
            config = family.configure(run, "base", None, work_dir)
            with contextlib.redirect_stdout(None):
                job = opened.enter_context(prepared(config))
            parameters = sum(
                math.prod(v.shape) for v in job.model.trainable_variables
            )
            takers[name] = training_step(job)
            began = time.perf_counter()
            takers[name]()
            first[name] = time.perf_counter() - began
            print(f"  {name}, first {first[name]:.0f} s", flush=True)
        seconds = timed(takers, rounds)
    return [
        {
            "optimizer": optimizers.OF_EXAMPLE[name],
            "parameters": parameters,
            "first_seconds": first[name],
            **row,
        }
        for name, row in compared(seconds, {"adam": "adam"}).items()
    ]


def load(backend):
    """What was measured on a backend: a dict for each optimizer."""
    return records.load(f"train_step_{backend}").get("results", [])


def table():
    """A column for each backend, as Markdown; empty where none was measured."""
    found = {
        backend: {row["optimizer"]: row for row in load(backend)}
        for backend in BACKENDS
    }
    if not all(found.values()):
        return ""
    return tables.markdown(
        ["", "TensorFlow, XLA", "JAX"],
        [
            [
                f"`{name}`",
                *(
                    f"{rows[name]['milliseconds']:.0f} "
                    f"({rows[name]['cpu_over_adam']:.2f})"
                    for rows in found.values()
                ),
            ]
            for name in optimizers.OF_EXAMPLE.values()
        ],
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    backend = keras.backend.backend()
    with tempfile.TemporaryDirectory() as work_dir:
        rows = measure(options.rounds, work_dir)
    for row in rows:
        print(
            f"{row['optimizer']:18} {row['milliseconds']:8.0f} ms  over Adam "
            f"{row['over_adam']:.3f}, of processor time "
            f"{row['cpu_over_adam']:.3f}"
        )
    result = {"rounds": options.rounds, "results": rows}
    print(f"written to {records.save(f'train_step_{backend}', result)}")


if __name__ == "__main__":
    main()
