"""What benchmarks measured, each in a JSON file of the folder `results`."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform

from examples.translation.files import write_atomically

FOLDER = pathlib.Path(__file__).parent / "results"
PACKAGES = (
    *("keras_adafactor", "keras", "tensorflow", "jax", "torch", "libtpu"),
    *("optax", "pytorch_optimizer", "transformers"),
)


def path(name):
    """Where the result of a name is, or would be."""
    return FOLDER / f"{name}.json"


def load(name):
    """The result of a name, as `save` was given it and more; empty if none."""
    return json.loads(path(name).read_text()) if path(name).exists() else {}


def runs(name):
    """The runs of a result, each a dict; none where there is no result."""
    return load(name).get("runs", [])


def save(name, data):
    """Writes a result, with the day, the versions and the kind of machine.

    Args:
        name: Of the file, without its ending.
        data: Dict that JSON can hold.

    Returns:
        The path.
    """
    about = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
    }
    write_atomically(path(name), json.dumps(about | data, indent=1) + "\n")
    return path(name)


def machine():
    """The kind of machine, in words: its kind of processor, how many cores."""
    kind = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                kind = value.strip()
                break
    return f"{kind}, {os.cpu_count()} cores"


def versions():
    """Versions of Python and of those of `PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
