"""Several processes of JAX train as one, on loopback.

`benchmarks.kill_resume` kills them with SIGKILL, many times.
"""

import json
import os
import pathlib
import shutil
import signal
import sys
import time

import keras
import numpy as np
import pytest

from benchmarks.kill_resume import Processes
from examples.translation.checkpoint import GROUPS
from examples.translation.checkpoint import Checkpoints
from examples.translation.config import TranslationConfig
from tests.examples.translation.bucket import bucket
from tests.examples.translation.conftest import SETTINGS

if keras.backend.backend() != "jax":
    pytest.skip(
        "Only JAX trains in several processes: KERAS_BACKEND=jax runs this.",
        allow_module_level=True,
    )

STEPS = 10
PATIENCE = 600  # seconds
# What a process has at the end, beside what the run leaves in its directory.
PROGRAM = """
import hashlib, json, pathlib, sys
import jax
import numpy as np
from examples.translation.config import TranslationConfig
from examples.translation.termination import Terminated, Termination
from examples.translation.train import prepared

path = pathlib.Path(sys.argv[1])
config = TranslationConfig.from_json(path.read_text())
try:
    with Termination() as termination, prepared(config) as job:
        job.fit(termination)
        metrics = job.finish()
except Terminated:
    print("terminated")
    sys.exit(0)
variables = [*job.model.variables, *job.optimizer.variables]
found = {
    "history": job.state.history,
    "scores": metrics["scores"],
    "shards": {
        f"{number} {variable.path}": sorted(
            [str(part.index), hashlib.sha256(np.asarray(part.data)).hexdigest()]
            for part in variable.value.addressable_shards
        )
        for number, variable in enumerate(variables)
    },
}
path.with_suffix(f".{jax.process_index()}").write_text(json.dumps(found))
"""


def beside(config):
    """The directory around that of the run."""
    return pathlib.Path(config.run_dir).parent


def start(config, count, environment=None):
    """Starts `count` processes of a configuration; its log is beside it."""
    path = beside(config) / "settings.json"
    path.write_text(config.to_json())
    shared = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_COMPILATION_CACHE_DIR": f"{config.data_dir}/xla",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
    }
    return Processes(
        [sys.executable, "-c", PROGRAM, str(path)],
        os.environ | shared | (environment or {}),
        beside(config) / f"log-{count}",
        count,
        victim=0,
    )


def log_of(config, name):
    """What a number of processes, or one of them, has said."""
    return (beside(config) / f"log-{name}").read_text()


def finish(config, count, environment=None):
    """Runs to the end; returns what each process had there."""
    processes = start(config, count, environment)
    processes.wait(PATIENCE)
    assert processes.returncode == 0, log_of(config, count)[-4000:]
    return [
        json.loads((beside(config) / f"settings.{index}").read_text())
        for index in range(count)
    ]


def losses(history):
    return [
        [row[name] for name in ("step", "loss", "val_loss", "token_accuracy")]
        for row in history
    ]


def checkpoints(config):
    return pathlib.Path(config.run_dir, "checkpoints")


def weights(config, step=STEPS):
    arrays = Checkpoints.of(checkpoints(config)).arrays(step)
    return [array for group in GROUPS for array in arrays[group]]


def assert_equal_but_for_rounding(one, other):
    for a, b in zip(weights(one), weights(other), strict=True):
        np.testing.assert_allclose(
            np.asarray(a, "float64"), np.asarray(b, "float64"), 2e-3, 2e-6
        )


@pytest.fixture(scope="module")
def configured(data_dir, tmp_path_factory):
    def make(name, **overrides):
        run_dir = tmp_path_factory.mktemp(name) / "run"
        run_dir.mkdir()
        settings = SETTINGS | {
            "steps": STEPS,
            "virtual_devices": 2,
            # Processes that share a CPU wait for one another at every token.
            "bleu_every": 2,
            "max_decode_length": 8,
            "dropout": 0.1,
        }
        return TranslationConfig.from_preset(
            **settings | overrides, data_dir=data_dir, run_dir=str(run_dir)
        )

    return make


@pytest.fixture(scope="module")
def alone(configured):
    """A run of one process with four devices."""
    config = configured("alone", virtual_devices=4)
    (end,) = finish(config, 1)
    return config, end


@pytest.mark.parametrize(
    "count", [2, pytest.param(4, marks=pytest.mark.exhaustive)]
)
def test_processes_train_as_one(configured, alone, count):
    """Each with two devices."""
    config = configured(f"together-{count}")
    first, *others = finish(config, count)
    expected_config, expected = alone
    said = log_of(config, count)
    assert (
        f"DataParallel over {2 * count} cpu devices of {count} processes"
        in said
    )
    np.testing.assert_allclose(
        losses(first["history"]), losses(expected["history"]), rtol=2e-5
    )
    assert_equal_but_for_rounding(config, expected_config)
    # Every weight and slot is the same, bit for bit, on all devices.
    assert all(first["shards"] == other["shards"] for other in others)
    for shards in first["shards"].values():
        assert len({digest for _, digest in shards}) == 1
    # Both translate their part of the sentences, and both know all of it.
    for other in others:
        assert first["scores"] == other["scores"] == expected["scores"]
    # Only the first one speaks.
    assert "step 5/10" in said
    said_by_second = log_of(config, f"{count}.1")
    assert "step 5/10" not in said_by_second
    assert "train: " not in said_by_second


@pytest.mark.exhaustive
def test_sigterm_on_one_saves_on_all_and_fewer_go_on(configured, alone):
    """The run is then continued by one process on two devices."""
    config = configured("terminated")
    processes = start(config, 2)
    began = time.monotonic()
    while not (checkpoints(config) / "step_00000005").exists():
        assert processes.poll() is None, log_of(config, 2)[-4000:]
        assert time.monotonic() < began + PATIENCE
        time.sleep(0.01)
    processes.signal_one(1, signal.SIGTERM)
    processes.wait(PATIENCE)
    assert processes.returncode == 0, log_of(config, 2)[-4000:]
    assert "terminated" in log_of(config, 2)
    saved = Checkpoints.of(checkpoints(config)).steps()
    assert 5 <= saved[-1] <= STEPS

    (end,) = finish(config, 1)
    assert f"Continuing from step {saved[-1]}." in log_of(config, 1)
    expected_config, expected = alone
    # The interval that was cut in two has two rows.
    assert end["history"][0]["loss"] == pytest.approx(
        expected["history"][0]["loss"], rel=2e-5
    )
    assert end["history"][-1]["val_loss"] == pytest.approx(
        expected["history"][-1]["val_loss"], rel=2e-5
    )
    assert_equal_but_for_rounding(config, expected_config)


@pytest.mark.exhaustive
@pytest.mark.skipif(
    shutil.which("openssl") is None,
    reason="openssl makes the emulator's certificate: install it.",
)
def test_checkpoints_in_a_bucket(configured, alone, tmp_path):
    """Two processes are killed, and one goes on alone from `gs://`."""
    config = configured("bucket", checkpoint_dir="gs://bucket/run")
    with bucket("bucket", tmp_path) as (environment, objects):
        processes = start(config, 2, environment)
        began = time.monotonic()
        whole = "run/step_00000005/commit_success.txt"
        while whole not in objects():
            assert processes.poll() is None, log_of(config, 2)[-4000:]
            assert time.monotonic() < began + PATIENCE
            time.sleep(0.01)
        for process in (0, 1):
            processes.signal_one(process, signal.SIGKILL)
        processes.wait(PATIENCE)
        # Each has written its parts.
        for process in (0, 1):
            part = f"run/step_00000005/model/ocdbt.process_{process}/"
            assert any(name.startswith(part) for name in objects())

        (end,) = finish(config, 1, environment)
        last = f"run/step_{STEPS:08}/commit_success.txt"
        assert last in objects()
    assert "Continuing from step " in log_of(config, 1)
    assert not checkpoints(config).exists()
    _, expected = alone
    np.testing.assert_allclose(
        losses(end["history"]), losses(expected["history"]), rtol=2e-5
    )
    assert end["scores"] == expected["scores"]


def test_a_mistake_of_one_process_ends_all(configured, tmp_path):
    """They do not wait for one another, which takes five minutes."""
    config = configured("mistaken", batch_size=6)
    processes = start(config, 2)
    processes.wait(PATIENCE / 3)
    assert processes.returncode != 0
    assert "--batch_size must be a multiple of 4" in log_of(config, 2)
