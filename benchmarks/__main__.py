"""All that is measured here, by name.

    python -m benchmarks               # lists them, and how long each takes
    python -m benchmarks --quick       # a small form of what costs and gains
    python -m benchmarks step_time scaling
    python -m benchmarks report        # tables of README and docs from results

Each is run in a process of its own, once for every backend that it measures
and that is installed. With `--quick` nothing is written. More arguments are
those of the benchmark: `python -m benchmarks.step_time --help`.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from typing import NamedTuple


class Benchmark(NamedTuple):
    """One module of this package.

    Attributes:
        measures: What, in a few words.
        takes: How long on two CPU cores, all backends together; estimated,
            where nobody has run it whole.
        backends: Those it is run on.
        quick: Whether it has a `--quick`.
        needs: A package without which it is not run.
    """

    measures: str
    takes: str
    backends: tuple[str, ...] = ("tensorflow",)
    quick: bool = False
    needs: str = "keras"


BACKENDS = ("tensorflow", "jax", "torch")
BENCHMARKS = {
    "step_time": Benchmark(
        "time, compilation and state of the step alone, beside peers",
        "15 minutes",
        BACKENDS,
        quick=True,
    ),
    "train_step": Benchmark(
        "time of a whole training step of the preset base",
        "a quarter of an hour",
        ("tensorflow", "jax"),
    ),
    "state_bytes": Benchmark("what each keeps, counted", "half a minute"),
    "refresh_cost": Benchmark(
        "what SOAP, COAP and SubspaceMomentum do every so many steps",
        "10 minutes",
        ("tensorflow", "jax"),
    ),
    "programs": Benchmark(
        "losses on small programs with gradients as models have them",
        "10 minutes",
        BACKENDS,
    ),
    "gradient_path": Benchmark(
        "functions that a gradient passes through in one step",
        "seconds",
        ("torch",),
    ),
    "many_variables": Benchmark(
        "first step and step of a model of many small variables",
        "10 minutes",
        BACKENDS,
    ),
    "scaling": Benchmark(
        "the step from 1e5 to 1e9 parameters, from 1 to 256 chips",
        "half an hour",
        ("jax",),
        quick=True,
    ),
    "tpu_compile": Benchmark(
        "bytes moved, cycles and memory by the TPU compiler",
        "half an hour",
        ("jax",),
        quick=True,
        needs="libtpu",
    ),
    "largest_model": Benchmark(
        "the largest model whose step fits, by the TPU compiler",
        "2 hours",
        ("jax",),
        needs="libtpu",
    ),
    "family": Benchmark(
        "quality of every optimizer on the translation example",
        "3 hours a corpus",
        quick=True,
    ),
    "change_optimizer": Benchmark(
        "from Adam to Adafactor in the middle of a run", "an hour a corpus"
    ),
    "learning_rates": Benchmark(
        "which rate does what Adam did, on a CNN and a character model",
        "20 minutes",
        needs="sklearn",
    ),
    "paper_claims": Benchmark(
        "what becomes unstable without momentum, and what cures it",
        "2 hours",
    ),
    "data_input": Benchmark(
        "how fast 4.5 million pairs become batches", "a quarter of an hour"
    ),
    "kill_resume": Benchmark(
        "training killed 32 times, against a run left alone", "half an hour"
    ),
    "monitor_picture": Benchmark(
        "runs that go wrong, for the page on the monitor", "a minute"
    ),
    "family_report": Benchmark("plots of family", "seconds"),
    "report": Benchmark("tables of README and docs from results", "seconds"),
}


def run(name, backend, arguments):
    """Runs a benchmark; returns whether it ended well."""
    environment = os.environ | {"KERAS_BACKEND": backend}
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    print(f"\n{name}, {backend}", flush=True)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments],
        env=environment,
        check=False,
    )
    print(f"{name}, {backend}: {time.monotonic() - began:.0f} s", flush=True)
    return done.returncode == 0


def installed(package):
    return importlib.util.find_spec(package) is not None


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", choices=[[], *BENCHMARKS], metavar="NAME"
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--backends", nargs="+", choices=BACKENDS, default=BACKENDS
    )
    options, arguments = parser.parse_known_args()
    names = options.names
    if not names and not options.quick:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:18} {benchmark.measures} ({benchmark.takes})")
        return 0
    if options.quick:
        arguments = ["--quick", *arguments]
        slow = [name for name in names if not BENCHMARKS[name].quick]
        if slow:
            parser.error(f"there is no --quick of {', '.join(slow)}")
        names = names or [n for n, b in BENCHMARKS.items() if b.quick]
    failed = []
    for name in names:
        needs = BENCHMARKS[name].needs
        for backend in BENCHMARKS[name].backends:
            if backend not in options.backends:
                continue
            missing = [p for p in (needs, backend) if not installed(p)]
            if missing:
                print(f"\n{name}, {backend}: {missing[0]} is not installed")
            elif not run(name, backend, arguments):
                failed.append(f"{name}, {backend}")
    if failed:
        print(f"\nfailed: {'; '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
