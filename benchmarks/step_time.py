"""Times the optimizer step alone, beside Keras' own optimizers.

    KERAS_BACKEND=tensorflow python -m benchmarks.step_time

All optimizers run in one process, in turn, so that a slow moment of the
machine hits all of them: read the ratios, not the milliseconds, and on a busy
machine those of processor time. The variables
are those of a Transformer (d 512, ff 2048, 8 heads, 1 + 1 layers, 8,000 tied
pieces). Prints a table and writes it to `results/step_time_<backend>.json`
beside this file.
"""

import argparse
import json
import pathlib
import statistics
import time

import keras
import numpy as np
from keras import ops

from keras_adafactor import Adafactor

RESULTS = pathlib.Path(__file__).parent / "results"
BASELINE = "keras.Adafactor"
OPTIMIZERS = {
    "keras.SGD": lambda: keras.optimizers.SGD(1e-3),
    "keras.Adam": lambda: keras.optimizers.Adam(1e-3),
    BASELINE: lambda: keras.optimizers.Adafactor(1e-3),
    "Adafactor": lambda: Adafactor(),
    "Adafactor, no guard": lambda: Adafactor(skip_nonfinite=None),
    "Adafactor, last two axes": lambda: Adafactor(axis_groups="last_two"),
    "Adafactor, beta_1=0.9": lambda: Adafactor(beta_1=0.9),
    "Adafactor, beta_1=0.9 int8": lambda: Adafactor(
        beta_1=0.9, momentum_dtype="int8"
    ),
}
MODES = {
    "tensorflow": ("graph", "jit"),
    "jax": ("jit",),
    "torch": ("eager",),
}


def transformer_shapes(d=512, ff=2048, heads=8, vocabulary=8000):
    """Shapes of one encoder layer, one decoder layer and the embedding."""
    split, merge = (d, heads, d // heads), (heads, d // heads, d)
    attention = [split, split, split, merge] + 3 * [split[1:]] + [(d,)]
    feed_forward = [(d, ff), (ff,), (ff, d), (d,)]
    norms = 5 * [(d,), (d,)]
    return [(vocabulary, d), *(3 * attention), *(2 * feed_forward), *norms]


def make_step(optimizer, variables, gradients, mode):
    """A function that takes one step and waits for it."""
    optimizer.build(variables)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf  # noqa: PLC0415

        apply = tf.function(optimizer.apply, jit_compile=mode == "jit")

        def step():
            apply(gradients)

        return step
    if backend == "torch":
        import torch  # noqa: PLC0415

        def step():
            with torch.no_grad():
                optimizer.apply(gradients)

        return step

    import jax  # noqa: PLC0415

    apply = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2))
    state = [v.value + 0 for v in optimizer.variables]
    weights = [v.value + 0 for v in variables]

    def step():
        nonlocal state, weights
        weights, state = apply(state, gradients, weights)
        jax.block_until_ready(weights)

    return step


def measure(shapes, mode, rounds):
    """Seconds a step, on the clock and of the processors, a round each."""
    rng = np.random.default_rng(0)
    gradients = [
        ops.convert_to_tensor(rng.normal(size=shape).astype("float32"))
        for shape in shapes
    ]
    steps = {}
    for name, make in OPTIMIZERS.items():
        variables = [
            keras.Variable(rng.normal(size=shape).astype("float32"))
            for shape in shapes
        ]
        steps[name] = make_step(make(), variables, gradients, mode)
        for _ in range(2):
            steps[name]()
        print(f"  {mode}: {name} is compiled", flush=True)
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter(), time.process_time()
            step()
            end = time.perf_counter(), time.process_time()
            seconds[name].append((end[0] - start[0], end[1] - start[1]))
    return seconds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--small", action="store_true", help="tiny variables")
    options = parser.parse_args()
    backend = keras.backend.backend()
    shapes = (
        transformer_shapes(64, 128, 4, 500)
        if options.small
        else transformer_shapes()
    )
    parameters = sum(int(np.prod(shape)) for shape in shapes)
    results = []
    for mode in MODES[backend]:
        seconds = measure(shapes, mode, options.rounds)
        for name, samples in seconds.items():
            # Ratios of the same round, so that drift cancels.
            pairs = list(zip(samples, seconds[BASELINE], strict=True))
            clock, processors = zip(*samples, strict=True)
            results.append(
                {
                    "mode": mode,
                    "optimizer": name,
                    "milliseconds": 1e3 * statistics.median(clock),
                    "ratio": statistics.median(a[0] / b[0] for a, b in pairs),
                    "cpu_milliseconds": 1e3 * statistics.median(processors),
                    "cpu_ratio": statistics.median(
                        a[1] / b[1] for a, b in pairs
                    ),
                }
            )
    print(f"\n{backend} {keras.version()}, {parameters:,} parameters")
    print(
        f"{'mode':6} {'optimizer':28} {'ms':>8} {'ratio':>6} "
        f"{'cpu ms':>8} {'ratio':>6}"
    )
    for row in results:
        print(
            f"{row['mode']:6} {row['optimizer']:28} "
            f"{row['milliseconds']:8.2f} {row['ratio']:6.2f} "
            f"{row['cpu_milliseconds']:8.2f} {row['cpu_ratio']:6.2f}"
        )
    print(f"ratio: to {BASELINE}, median over {options.rounds} rounds")
    if not options.small:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"step_time_{backend}.json"
        path.write_text(
            json.dumps(
                {
                    "backend": backend,
                    "keras": keras.version(),
                    "parameters": parameters,
                    "rounds": options.rounds,
                    "results": results,
                },
                indent=1,
            )
        )
        print(f"written to {path}")


if __name__ == "__main__":
    main()
