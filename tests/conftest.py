"""The same seeds in every test, and tests that need several devices.

Devices are made before a backend starts, and a process that has several is
not what the other tests are about: tests marked
`@pytest.mark.virtual_devices` run in one child process per file, and are
reported here one by one.
"""

import functools
import gc
import os
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

import keras
import pytest

if keras.backend.backend() == "jax":
    import jax
if keras.backend.backend() != "torch":
    # The peers' PyTorch imports it where it is installed, and the process
    # aborts where TensorFlow or JAX were imported before.
    sys.modules.setdefault("triton", None)

ROOT = pathlib.Path(__file__).parent.parent
VIRTUAL_DEVICES = 8
IN_CHILD = "KERAS_ADAFACTOR_VIRTUAL_DEVICES"
# The environment of a process with several devices. Of a program that jaxlib
# 0.10 takes from its cache, a CPU's devices begin the exchanges in different
# orders, and wait without end: in 12 of 47 runs of `test_fully_sharded.py`.
SEVERAL_DEVICES = {"JAX_ENABLE_COMPILATION_CACHE": "false"}

if IN_CHILD in os.environ:
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * VIRTUAL_DEVICES,
        )
    if keras.backend.backend() == "jax":
        jax.config.update("jax_num_cpu_devices", VIRTUAL_DEVICES)


@pytest.fixture(autouse=True)
def _reproducible():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
    """Lets go of what one file compiled before the next compiles its own."""
    yield
    if keras.backend.backend() == "jax":
        jax.clear_caches()
    gc.collect()
    # What is left stays: the next collection need not look at it again.
    gc.freeze()


@pytest.fixture
def run_python():
    """Runs a program in a fresh process, and returns what it printed."""

    def run(program, *arguments):
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


# A worker takes a whole file: the longest begin first, or one worker ends
# minutes after the others.
LONG_FILES = (
    "test_replicas.py",
    "test_model_parallel.py",
    "test_fully_sharded.py",
    "test_train.py",
    "test_processes.py",
    "test_layouts.py",
    "test_contracts.py",
    "test_real_gradients.py",
    "test_tpu_compile.py",
    "test_precompile.py",
    "test_cli.py",
    "test_lifecycle.py",
    "test_at_work.py",
    "test_killed.py",
    "test_serialization.py",
    "test_decompositions.py",
    "test_benchmarks.py",
)


# Their tests do not look at the backend.
BACKEND_FREE_FILES = (
    "test_batching.py",
    "test_config.py",
    "test_convert.py",
    "test_evaluate.py",
    "test_files.py",
    "test_lifecycle.py",
    "test_prepare.py",
    "test_release.py",
    "test_report.py",
    "test_sources.py",
    "test_synthetic.py",
    "test_tokenizer.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG_FILES)
    if keras.backend.backend() != "tensorflow":
        once = pytest.mark.skip(
            reason="the same on every backend: KERAS_BACKEND=tensorflow runs it"
        )
        for item in items:
            if item.path.name in BACKEND_FREE_FILES:
                item.add_marker(once)


def pytest_configure(config):
    # pytest-xdist would begin with the files of the most tests.
    config.option.loadscopereorder = False
    config.addinivalue_line(
        "markers",
        f"virtual_devices: runs where the CPU is {VIRTUAL_DEVICES} devices",
    )
    config.addinivalue_line(
        "markers",
        "exhaustive: one more setting of what other tests cover; -m '' runs "
        "all",
    )
    config.addinivalue_line(
        "markers",
        "once: alike on every backend, and run in CI on one: harness.once_on",
    )
    if keras.backend.backend() == "jax" and hasattr(config, "cache"):
        _compile_less_with_jax(config.cache.mkdir("jax"))


def _compile_less_with_jax(folder):
    """Many tests compile the same step, and compiling is most of their time.

    XLA's passes over the program are as ever, LLVM's over a CPU's are left out;
    JAX_DISABLE_MOST_OPTIMIZATIONS=0 has both.
    """
    for option, value in {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }.items():
        if option.upper() not in os.environ:
            # Child processes read the environment, this one has done so.
            os.environ[option.upper()] = str(value)
            jax.config.update(option, value)


def pytest_pyfunc_call(pyfuncitem):
    if IN_CHILD in os.environ or not pyfuncitem.get_closest_marker(
        "virtual_devices"
    ):
        return None
    same_file = (
        item.nodeid
        for item in pyfuncitem.session.items
        if item.path == pyfuncitem.path
    )
    outcomes, output = _run_in_child(tuple(same_file))
    outcome = outcomes.get(pyfuncitem.name)
    if outcome is None:
        pytest.fail(f"The child process broke off.\n{output}", pytrace=False)
    for kind in outcome:
        if kind.tag == "skipped":
            pytest.skip(kind.get("message"))
        if kind.tag in ("failure", "error"):
            pytest.fail(kind.text, pytrace=False)
    return True


@functools.cache
def _run_in_child(nodeids):
    # Each device waits in a thread of its own for the others. With no more
    # threads than devices, two exchanges at a time wait without end, and with
    # few more for long; XLA makes as many as NPROC says.
    threads = {
        "NPROC": f"{16 * VIRTUAL_DEVICES}",
        "TF_NUM_INTEROP_THREADS": f"{8 * VIRTUAL_DEVICES}",
    }
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "report.xml")
        done = subprocess.run(
            [
                # Where a library aborts, what it wrote is to be seen.
                *(sys.executable, "-m", "pytest", "-m", "", "--capture=sys"),
                *(f"--junitxml={report}", *nodeids),
            ],
            cwd=ROOT,
            env=os.environ | {IN_CHILD: "1"} | threads | SEVERAL_DEVICES,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if not report.exists():
            return {}, done.stdout
        cases = xml.etree.ElementTree.parse(report).iter("testcase")
        return {case.get("name"): case for case in cases}, done.stdout
