"""What a refresh costs, apart from an ordinary step.

    KERAS_BACKEND=jax python -m benchmarks.refresh_cost

SOAP, SubspaceMomentum and COAP do something costly every so many steps. Each
is made to do it always, and never, and both steps are timed on one matrix, in
turn, beside Adam's. On JAX both are compiled by the TPU compiler too (v5e;
nothing is executed on a TPU): bytes moved and cycles are those of the
compiler, which counts the body of a loop once, so that of a decomposition they
are a lower bound. Writes `results/refresh_cost_<backend>.json` beside this
file.
"""

import argparse
import functools
import math
import statistics
import time

import keras
import numpy as np

from benchmarks import optimizers
from benchmarks import records
from benchmarks import steps
from benchmarks import tables
from benchmarks.step_time import MODES
from benchmarks.step_time import timed
from keras_adafactor import COAP
from keras_adafactor import SOAP
from keras_adafactor import SubspaceMomentum

TOPOLOGY = "v5e:2x2"
# Name -> function that makes it, steps from one refresh to the next.
OPTIMIZERS = {
    "SOAP": (SOAP, 10),
    "SOAP, one-sided": (functools.partial(SOAP, one_sided=True), 10),
    "SubspaceMomentum, svd": (
        functools.partial(SubspaceMomentum, rank=64),
        200,
    ),
    "SubspaceMomentum, random": (
        functools.partial(SubspaceMomentum, rank=64, basis="random"),
        200,
    ),
    "COAP": (COAP, 32),
    "COAP, sketch": (functools.partial(COAP, recalibrate_every=1), 160),
}


def run_here(shape, rounds):
    """Optimizer -> milliseconds of its steps; Adam's are under `None`."""
    rng = np.random.default_rng(0)
    weight, gradient = (
        rng.normal(size=shape).astype("float32") for _ in range(2)
    )
    mode = MODES[keras.backend.backend()][0]
    makers = {(None, False): keras.optimizers.Adam} | {
        (name, due): optimizers.refreshing(make, due)
        for name, (make, _) in OPTIMIZERS.items()
        for due in (False, True)
    }
    takers = {}
    for key, make in makers.items():
        takers[key] = steps.of_keras(make, [weight], [gradient], mode).take
        for _ in range(2):
            takers[key]()
        print(f"  {key[0] or 'keras.Adam'}: compiled", flush=True)
    return {
        key: 1e3 * statistics.median(clock for clock, _ in samples)
        for key, samples in timed(takers, rounds).items()
    }


def compiled_for_tpu(shape):
    """The same keys -> bytes and cycles a parameter, seconds to compile."""
    # A build machine without libtpu times all the same.
    from tpu_scripts import tpu_compiler  # noqa: PLC0415
    from tpu_scripts import train_step  # noqa: PLC0415

    device = tpu_compiler.devices(TOPOLOGY)[0]
    figures = {}
    for name, (make, _) in OPTIMIZERS.items():
        for due in (False, True):
            began = time.monotonic()
            variable = keras.Variable("zeros", shape=shape, dtype="float32")
            program = train_step.compile_optimizer_step(
                optimizers.refreshing(make, due)(), [variable], device
            )
            size = math.prod(shape)
            figures[name, due] = {
                "bytes_accessed": program.bytes_accessed / size,
                "cycles": 1000 * program.estimated_cycles() / size,
                "compile_seconds": time.monotonic() - began,
            }
            print(f"  {name}: compiled for a TPU", flush=True)
    return figures


def result_name(backend):
    return f"refresh_cost_{backend}"


def table():
    """What was measured, of TensorFlow and of JAX, as Markdown."""
    rows = []
    measured = [
        records.load(result_name(backend))["rows"]
        for backend in ("tensorflow", "jax")
    ]
    for here, there in zip(*measured, strict=True):
        bytes_moved = [
            f"{there[kind]['bytes_accessed']:.0f}"
            for kind in ("tpu_ordinary", "tpu_refresh")
        ]
        rows.append(
            [
                here["optimizer"],
                str(here["every"]),
                *(
                    f"{row['ordinary_ms']:.1f} / {row['refresh_ms']:.1f}"
                    for row in (here, there)
                ),
                *(f"{row['mean_over_adam']:.1f}" for row in (here, there)),
                " / ".join(bytes_moved),
            ]
        )
    header = ["ordinary / refresh", "every", "ms, TensorFlow", "ms, JAX"]
    header += ["mean over Adam, TensorFlow", "JAX", "bytes moved on a TPU"]
    return tables.markdown(header, rows)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    backend = keras.backend.backend()
    shape = (options.size, options.size)
    milliseconds = run_here(shape, options.rounds)
    figures = compiled_for_tpu(shape) if backend == "jax" else {}
    adam = milliseconds[None, False]
    rows = []
    for name, (_, every) in OPTIMIZERS.items():
        ordinary, refresh = (milliseconds[name, due] for due in (False, True))
        mean = ordinary + (refresh - ordinary) / every
        rows.append(
            {
                "optimizer": name,
                "every": every,
                "ordinary_ms": ordinary,
                "refresh_ms": refresh,
                "mean_over_adam": mean / adam,
                "tpu_ordinary": figures.get((name, False)),
                "tpu_refresh": figures.get((name, True)),
            }
        )
    print(f"\n{backend}, a matrix {shape}; Adam {adam:.2f} ms")
    print(f"{'':26} {'ordinary':>9} {'refresh':>9} {'every':>6} {'mean':>7}")
    for row in rows:
        print(
            f"{row['optimizer']:26} {row['ordinary_ms']:6.2f} ms "
            f"{row['refresh_ms']:6.1f} ms {row['every']:6} "
            f"{row['mean_over_adam']:5.1f} x Adam"
        )
        for kind in ("ordinary", "refresh"):
            if found := row[f"tpu_{kind}"]:
                print(
                    f"    TPU compiler, {kind}: "
                    f"{found['bytes_accessed']:.1f} bytes and "
                    f"{found['cycles'] / 1e3:.2f} cycles a parameter, "
                    f"compiled in {found['compile_seconds']:.0f} s"
                )
    result = {"backend": backend, "shape": shape, "adam_ms": adam, "rows": rows}
    print(f"written to {records.save(result_name(backend), result)}")


if __name__ == "__main__":
    main()
