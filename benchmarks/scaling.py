"""How the step of an optimizer grows, to 1e9 parameters and to 256 chips.

    python -m benchmarks.scaling

On JAX. First the step alone, on square matrices of 1e5 to 1e9 parameters in
all, each optimizer in a process of its own: its time, the time to the end of
the first step, and the memory. That is, by the compiler's account, weights,
gradients, state and temporaries, and by the system's the most that the process
had, of which a few hundred MB are the program. With 1e9 it takes up to 20 GiB.
Then the training step of the translation model `base`, 32 rows a chip, fully
sharded over 1 to 256 chips, compiled by the TPU compiler; nothing is run on a
TPU.

Writes `results/scaling.json` beside this file after each, and
`results/scaling.png` at the end: the same command goes on where it was stopped.
"""

import argparse
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from benchmarks import optimizers  # noqa: E402
from benchmarks import records  # noqa: E402
from benchmarks import steps  # noqa: E402

SIZES = (10**5, 10**6, 10**7, 10**8, 10**9)
QUICK_SIZES = (10**4, 10**5)
OPTIMIZERS = (
    *("keras.Adam", "keras.Adafactor", "Adafactor"),
    *("optax.adam", "optax.adafactor"),
)
LARGEST_WIDTH = 4096
ROUNDS = 7
TOPOLOGIES = ("v5e:1x1", "v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16")
COMPILED = ("adam", "keras_adafactor", "adafactor")
ROWS_A_CHIP = 32


def shapes(size):
    """Equal square matrices that have about so many elements together."""
    width = min(LARGEST_WIDTH, math.isqrt(size))
    return [(width, width)] * round(size / width**2)


def peak_resident_bytes():
    """The most that this process had in memory since `forget_peak`."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[1])


def forget_peak():
    """Lets that begin anew: see proc(5), clear_refs."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def measure(name, size):
    """Makes one optimizer and takes steps, in this process."""
    rng = np.random.default_rng(0)

    def arrays():
        for shape in shapes(size):
            yield rng.standard_normal(shape, "float32")

    peers, _ = optimizers.peers("jax")
    began = time.perf_counter()
    if name in peers:
        step = steps.of_optax(peers[name], arrays(), arrays())
    else:
        (make,) = optimizers.of_keras([name]).values()
        step = steps.of_keras(make, arrays(), arrays(), "jit")
    step.take()
    first = time.perf_counter() - began
    forget_peak()
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        step.take()
        seconds.append(time.perf_counter() - began)
    parameters = sum(math.prod(shape) for shape in shapes(size))
    weights = 4 * parameters
    return {
        "optimizer": name,
        "parameters": parameters,
        "milliseconds": 1e3 * statistics.median(seconds),
        "first_seconds": first,
        "state_bytes": step.state_bytes,
        "held_bytes": 2 * weights + step.state_bytes + step.temporary_bytes,
        "peak_resident_bytes": peak_resident_bytes(),
    }


def in_a_new_process(name, size):
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, "--one", name, str(size)],
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        return {"optimizer": name, "parameters": size, "failed": True}
    return json.loads(done.stdout.splitlines()[-1])


def sizes(every, rows, measured):
    """Measures what is not among the rows: every optimizer at every size.

    Args:
        every: Numbers of parameters.
        rows: List of dicts, added to.
        measured: Is called after each.
    """
    done = {(row["optimizer"], row["size"]) for row in rows}
    _, missing = optimizers.peers("jax")
    for size in every:
        for name in OPTIMIZERS:
            if name in missing:
                print(f"{name:18} is not installed")
                continue
            if (name, size) in done:
                continue
            row = {"size": size, **in_a_new_process(name, size)}
            rows.append(row)
            measured()
            print(f"{name:18} {row['parameters']:14,} ", end="")
            if "failed" in row:
                print("failed", flush=True)
                continue
            print(
                f"{row['milliseconds']:9.2f} ms  first "
                f"{row['first_seconds']:5.1f} s "
                f"{row['held_bytes'] / row['parameters']:6.2f} bytes a "
                "parameter, process "
                f"{row['peak_resident_bytes'] / 2**30:.2f} GiB",
                flush=True,
            )


def chips(rows, measured):
    """Asks the TPU compiler what a chip of each slice holds and computes.

    Args:
        rows: List of dicts, added to.
        measured: Is called after each.
    """
    from tpu_scripts import precompile  # noqa: PLC0415
    from tpu_scripts import tpu_compiler  # noqa: PLC0415

    done = {(row["optimizer"], row["chips"]) for row in rows}
    for topology in TOPOLOGIES:
        count = tpu_compiler.chips(topology)
        for optimizer in COMPILED:
            if (optimizer, count) in done:
                continue
            request, names, values = precompile.parse(
                [
                    "precompile",
                    *("--preset=base", "--sharding=fully_sharded"),
                    f"--topology={topology}",
                    f"--global_batch={ROWS_A_CHIP * count}",
                    f"--optimizer={optimizer}",
                ]
            )
            answer = precompile.run(request, names, values.search)
            rows.append({"chips": count, **answer["results"][0]})
            measured()


def draw(result, path):
    """Memory and time a parameter of the step, and HBM of a chip."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    memory, clock, slices = figure.subplots(1, 3)
    for name in OPTIMIZERS:
        rows = [
            row
            for row in sorted(result["sizes"], key=lambda row: row["size"])
            if row["optimizer"] == name and "failed" not in row
        ]
        count = [row["parameters"] for row in rows]
        line = "--" if name.startswith("optax") else "o-"
        for axes, key, scale in (
            (memory, "held_bytes", 1),
            (clock, "milliseconds", 1e6),
        ):
            values = [scale * row[key] / row["parameters"] for row in rows]
            axes.semilogx(count, values, line, label=name, markersize=4)
    memory.set_ylabel("bytes a parameter, weights and gradients too")
    memory.set_title("memory of the step", fontsize=10)
    clock.set_ylabel("nanoseconds a parameter")
    clock.set_title("time of the step", fontsize=10)
    clock.legend(fontsize=8)
    for name in COMPILED:
        rows = [row for row in result["chips"] if row["optimizer"] == name]
        slices.semilogx(
            [row["chips"] for row in rows],
            [row["required"] / 2**30 for row in rows],
            "o-",
            label=optimizers.OF_EXAMPLE[name],
            markersize=4,
        )
    slices.set(xlabel="chips", ylabel="GiB")
    slices.set_title("HBM of a chip, base, fully sharded", fontsize=10)
    slices.legend(fontsize=8)
    for axes in (memory, clock, slices):
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
    for axes in (memory, clock):
        axes.set_xlabel("parameters")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two small sizes, nothing compiled for a TPU, no file written",
    )
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, size = options.one
        print(json.dumps(measure(name, int(size))))
    elif options.quick:
        sizes(QUICK_SIZES, [], lambda: None)
    else:
        before = records.load("scaling")
        result = {part: before.get(part, []) for part in ("sizes", "chips")}

        def measured():
            records.save("scaling", result)

        sizes(SIZES, result["sizes"], measured)
        chips(result["chips"], measured)
        path = records.path("scaling").with_suffix(".png")
        draw(result, path)
        print(f"written to {path.with_suffix('.json')} and {path.name}")


if __name__ == "__main__":
    main()
