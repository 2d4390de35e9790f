"""What the benchmarks do when they are only asked what they do."""

import pathlib
import subprocess
import sys

import pytest

RESULTS = pathlib.Path(__file__).parents[2] / "benchmarks" / "results"
PROGRAM = """
import runpy
import sys
sys.modules["jax"] = sys.modules["libtpu"] = None
sys.argv[1:] = ["--help"]
runpy.run_module({!r}, run_name="__main__")
"""


@pytest.mark.parametrize("name", ["largest_model", "tpu_compile"])
def test_help_is_help_without_the_compiler(name):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()}

    before = stamps()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(f"benchmarks.{name}")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert f"python -m benchmarks.{name}" in done.stdout
    assert stamps() == before
