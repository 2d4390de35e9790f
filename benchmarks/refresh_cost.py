"""What a refresh costs, apart from an ordinary step.

    KERAS_BACKEND=jax python -m benchmarks.refresh_cost

SOAP, SubspaceMomentum and COAP do something costly every so many steps. Each
is made to do it always, and never, and both steps are timed on one matrix, in
turn, beside Adam's. On JAX both are compiled by the TPU compiler too (v5e;
nothing is executed on a TPU): bytes moved and cycles are those of the
compiler, which counts the body of a loop once, so that of a decomposition they
are a lower bound. Writes `results/refresh_cost_<backend>.json` beside this
file, and the table of `docs/memory_and_speed.md`.
"""

import argparse
import json
import math
import pathlib
import statistics
import time

import keras
import numpy as np
from keras import ops

from benchmarks import tables
from benchmarks.step_time import MODES
from benchmarks.step_time import make_step
from keras_adafactor import COAP
from keras_adafactor import SOAP
from keras_adafactor import SubspaceMomentum

RESULTS = pathlib.Path(__file__).parent / "results"
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "memory_and_speed.md"
TOPOLOGY = "v5e:2x2"
# Name -> class, arguments, steps from one refresh to the next.
OPTIMIZERS = {
    "SOAP": (SOAP, {}, 10),
    "SOAP, one-sided": (SOAP, {"one_sided": True}, 10),
    "SubspaceMomentum, svd": (SubspaceMomentum, {"rank": 64}, 200),
    "SubspaceMomentum, random": (
        SubspaceMomentum,
        {"rank": 64, "basis": "random"},
        200,
    ),
    "COAP": (COAP, {}, 32),
    "COAP, sketch": (COAP, {"recalibrate_every": 1}, 160),
}


def fixed(cls, due):
    """The class, with a refresh in every step or in none."""

    class Fixed(cls):
        def is_refresh_due(self, count):
            return ops.convert_to_tensor(due)

    return Fixed


def timed(steps, rounds):
    """Median milliseconds of every step, done in turn."""
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {n: 1e3 * statistics.median(s) for n, s in seconds.items()}


def run_here(shape, rounds):
    """Optimizer -> milliseconds of its steps; Adam's are under `None`."""
    rng = np.random.default_rng(0)
    gradient = ops.convert_to_tensor(rng.normal(size=shape).astype("float32"))
    mode = MODES[keras.backend.backend()][0]
    made = {(None, False): keras.optimizers.Adam(1e-3)} | {
        (name, due): fixed(cls, due)(**arguments)
        for name, (cls, arguments, _) in OPTIMIZERS.items()
        for due in (False, True)
    }
    steps = {}
    for key, optimizer in made.items():
        variable = keras.Variable(rng.normal(size=shape).astype("float32"))
        steps[key] = make_step(optimizer, [variable], [gradient], mode)
        for _ in range(2):
            steps[key]()
        print(f"  {key[0] or 'keras.Adam'}: compiled", flush=True)
    return timed(steps, rounds)


def compiled_for_tpu(shape):
    """The same keys -> bytes and cycles a parameter, seconds to compile."""
    # A build machine without libtpu times all the same.
    from tpu_scripts import tpu_compiler  # noqa: PLC0415
    from tpu_scripts import train_step  # noqa: PLC0415

    device = tpu_compiler.devices(TOPOLOGY)[0]
    figures = {}
    for name, (cls, arguments, _) in OPTIMIZERS.items():
        for due in (False, True):
            began = time.monotonic()
            variable = keras.Variable("zeros", shape=shape, dtype="float32")
            program = train_step.compile_optimizer_step(
                fixed(cls, due)(**arguments), [variable], device
            )
            size = math.prod(shape)
            figures[name, due] = {
                "bytes_accessed": program.bytes_accessed / size,
                "cycles": 1000 * program.estimated_cycles() / size,
                "compile_seconds": time.monotonic() - began,
            }
            print(f"  {name}: compiled for a TPU", flush=True)
    return figures


def load(backend):
    path = RESULTS / f"refresh_cost_{backend}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def table():
    """What was measured, of TensorFlow and of JAX, as Markdown."""
    rows = []
    for here, there in zip(load("tensorflow"), load("jax"), strict=True):
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
    for name, (_, _, every) in OPTIMIZERS.items():
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
    path = RESULTS / f"refresh_cost_{backend}.json"
    path.write_text(
        json.dumps(
            {
                "backend": backend,
                "keras": keras.version(),
                "shape": shape,
                "adam_ms": adam,
                "rows": rows,
            },
            indent=1,
        )
        + "\n"
    )
    print(f"written to {path}")
    if load("tensorflow") and load("jax"):
        page = PAGE.read_text()
        PAGE.write_text(tables.replaced(page, "refresh", table()))


if __name__ == "__main__":
    main()
