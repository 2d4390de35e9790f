"""Times the optimizer step alone, beside Keras' own optimizers and peers.

    KERAS_BACKEND=tensorflow python -m benchmarks.step_time

All optimizers run in one process, in turn, so that a slow moment of the
machine hits all of them: read the ratios, not the milliseconds, and on a busy
machine those of processor time. The variables are those of a Transformer (d
512, ff 2048, 8 heads, 1 + 1 layers, 8,000 tied pieces). On JAX optax's
optimizers run beside, on PyTorch those of `torch.optim`, Transformers and
pytorch_optimizer, where they are installed (`pip install -e ".[peers]"`).

`first` are the seconds until the first step is done: tracing, compiling,
running. What some optimizers do every so many steps alone is left out:
`benchmarks.refresh_cost` has it. Prints a table and writes
`results/step_time_<backend>.json` beside this file.
"""

import argparse
import statistics
import time

import keras
import numpy as np

from benchmarks import optimizers
from benchmarks import records
from benchmarks import steps

BASELINES = {"adam": "keras.Adam", "keras_adafactor": "keras.Adafactor"}
QUICK = (*BASELINES.values(), "Adafactor")
MODES = {
    "tensorflow": ("graph", "jit"),
    "jax": ("jit",),
    "torch": ("eager",),
}


def transformer_shapes(d=512, ff=2048, heads=8, vocabulary=8000, layers=1):
    """Shapes of encoder layers, as many decoder layers and the embedding."""
    split, merge = (d, heads, d // heads), (heads, d // heads, d)
    attention = [split, split, split, merge] + 3 * [split[1:]] + [(d,)]
    feed_forward = [(d, ff), (ff,), (ff, d), (d,)]
    norms = 5 * [(d,), (d,)]
    both = 3 * attention + 2 * feed_forward + norms
    return [(vocabulary, d), *(layers * both)]


def starters(names, mode):
    """Name -> function of weights and gradients that returns a `steps.Step`.

    Args:
        names: Those asked for; one that is not installed is told of.
        mode: As `steps.of_keras` takes it.
    """
    backend = keras.backend.backend()
    found = {
        name: lambda weights, gradients, make=make: steps.of_keras(
            optimizers.refreshing(make, False), weights, gradients, mode
        )
        for name, make in optimizers.of_keras(names).items()
    }
    peers, missing = optimizers.peers(backend)
    of_peer = steps.of_optax if backend == "jax" else steps.of_torch
    found |= {
        name: lambda weights, gradients, make=make: of_peer(
            make, weights, gradients
        )
        for name, make in peers.items()
        if name in names
    }
    for name in missing:
        print(f"  {name} is not installed", flush=True)
    return found


def start(starters, shapes, mode):
    """Makes every optimizer and takes its first step.

    Returns:
        Name -> `steps.Step`, and name -> seconds of the first step.
    """
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=shape).astype("float32") for shape in shapes]
    started, seconds = {}, {}
    for name, starter in starters.items():
        weights = [rng.normal(size=shape).astype("float32") for shape in shapes]
        began = time.perf_counter()
        started[name] = starter(weights, gradients)
        started[name].take()
        seconds[name] = time.perf_counter() - began
        started[name].take()
        print(f"  {mode}: {name}, first {seconds[name]:.1f} s", flush=True)
    return started, seconds


def timed(takers, rounds):
    """Seconds of every step, done in turn.

    Args:
        takers: Dict from a name to a function that takes a step.
        rounds: How often each takes one.

    Returns:
        Dict from the name to a list of pairs, one a round: seconds on the
        clock, and of the processors.
    """
    seconds = {name: [] for name in takers}
    for _ in range(rounds):
        for name, take in takers.items():
            begin = time.perf_counter(), time.process_time()
            take()
            end = time.perf_counter(), time.process_time()
            seconds[name].append((end[0] - begin[0], end[1] - begin[1]))
    return seconds


def _ratio(samples, baseline, column):
    """Median over the rounds of one to the other, so that drift cancels."""
    return statistics.median(
        mine[column] / other[column]
        for mine, other in zip(samples, baseline, strict=True)
    )


def compared(seconds, baselines):
    """Medians of what `timed` returned, and over those of some of the names.

    Args:
        seconds: As returned.
        baselines: Dict from what a baseline is called to its name.

    Returns:
        Dict from the name to a dict that JSON can hold.
    """
    rows = {}
    for name, samples in seconds.items():
        clock, processors = zip(*samples, strict=True)
        rows[name] = {
            "milliseconds": 1e3 * statistics.median(clock),
            "cpu_milliseconds": 1e3 * statistics.median(processors),
        }
        for key, baseline in baselines.items():
            if baseline in seconds:
                other = seconds[baseline]
                rows[name][f"over_{key}"] = _ratio(samples, other, 0)
                rows[name][f"cpu_over_{key}"] = _ratio(samples, other, 1)
    return rows


def measure(names, shapes, mode, rounds):
    """A dict for each optimizer: its time, bytes and ratios."""
    started, first = start(starters(names, mode), shapes, mode)
    seconds = timed({name: s.take for name, s in started.items()}, rounds)
    return [
        {
            "mode": mode,
            "optimizer": name,
            "first_seconds": first[name],
            "state_bytes": started[name].state_bytes,
            "temporary_bytes": started[name].temporary_bytes,
            **row,
        }
        for name, row in compared(seconds, BASELINES).items()
    ]


def show(rows, parameters):
    """Prints the rows as a table."""
    print(
        f"{'mode':6} {'optimizer':30} {'ms':>8} {'/ Adam':>7} {'cpu ms':>8} "
        f"{'/ Adam':>7} {'first':>7} {'bytes a parameter':>18}"
    )
    for row in rows:
        print(
            f"{row['mode']:6} {row['optimizer']:30} "
            f"{row['milliseconds']:8.2f} {row['over_adam']:7.2f} "
            f"{row['cpu_milliseconds']:8.2f} {row['cpu_over_adam']:7.2f} "
            f"{row['first_seconds']:5.1f} s "
            f"{row['state_bytes'] / parameters:18.4f}"
        )


def main():
    backend = keras.backend.backend()
    every = (
        *optimizers.KERAS,
        *optimizers.FAMILY,
        *optimizers.VARIANTS,
        *optimizers.PEERS[backend],
    )
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--optimizers",
        nargs="+",
        choices=every,
        metavar="NAME",
        help=f"of {', '.join(every)}; all, with --quick a few",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny variables, three rounds, no file written",
    )
    options = parser.parse_args()
    few = (*QUICK, *optimizers.PEERS[backend])
    names = options.optimizers or (few if options.quick else every)
    names = {*names, BASELINES["adam"]}
    shapes, rounds = transformer_shapes(), options.rounds
    if options.quick:
        shapes, rounds = transformer_shapes(64, 128, 4, 500), 3
    parameters = sum(int(np.prod(shape)) for shape in shapes)
    rows = []
    for mode in MODES[backend]:
        rows += measure(names, shapes, mode, rounds)
    print(f"\n{backend}, Keras {keras.version()}, {parameters:,} parameters")
    show(rows, parameters)
    print(f"/ Adam: over keras.Adam, median over {rounds} rounds")
    if not options.quick:
        result = {"parameters": parameters, "rounds": rounds, "results": rows}
        print(f"written to {records.save(f'step_time_{backend}', result)}")


if __name__ == "__main__":
    main()
