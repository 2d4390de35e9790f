import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from examples.translation import devices
from examples.translation.devices import Devices
from examples.translation.devices import choose_devices
from examples.translation.errors import UserError

BACKEND = keras.backend.backend()


def in_a_new_process(code):
    """Devices are chosen once a process, so each case has its own."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


CHOOSE = """
from examples.translation.devices import choose_devices
devices = choose_devices("auto", 2)
print(devices.description, devices.replicas, sep="|")
with devices.scope():
    import keras
    dense = keras.layers.Dense(1)
    dense.build((None, 1))
"""


def test_virtual_devices_share_the_batch():
    done = in_a_new_process(CHOOSE + "print(dense.kernel.value)")
    assert done.returncode == 0, done.stderr
    description, replicas = done.stdout.splitlines()[0].split("|")
    assert replicas == "2"
    if BACKEND == "tensorflow":
        assert description.startswith("MirroredStrategy over 2 CPU devices")
        assert "MirroredVariable" in done.stdout
    else:
        assert description.startswith("DataParallel over 2 cpu devices")


def test_too_late_a_split_is_refused():
    keras.ops.ones(())
    with pytest.raises(UserError, match="--virtual_devices 3 came too late"):
        choose_devices("auto", 3)


def test_one_device_is_named_with_its_version():
    chosen = choose_devices("default")
    assert chosen.replicas == 1
    assert "one " in chosen.description
    with chosen.scope():
        pass


def test_a_missing_tpu_is_an_error():
    with pytest.raises(UserError, match="TPU"):
        choose_devices("tpu")


@pytest.mark.skipif(BACKEND != "jax", reason="KERAS_BACKEND=jax runs this.")
def test_a_mesh_that_leaves_devices_over_is_refused():
    count = keras.distribution.get_device_count()
    message = (
        rf"--model_parallel must divide .* which is {count} .*: {count + 1}"
    )
    with pytest.raises(UserError, match=message):
        choose_devices("auto", 1, count + 1)


@pytest.mark.skipif(BACKEND != "jax", reason="KERAS_BACKEND=jax runs this.")
def test_one_device_cannot_be_several_processes(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(UserError, match="--strategy default .*: 2 processes"):
        choose_devices("default")


@pytest.mark.skipif(BACKEND != "jax", reason="KERAS_BACKEND=jax runs this.")
def test_processes_that_differ_are_refused_by_what_differs(monkeypatch):
    from jax.experimental import multihost_utils  # noqa: PLC0415

    def gather(mine):
        return np.stack([mine, [*mine[:-1], mine[-1] + 1]])

    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    facts = {"the settings": {"seed": 1}, "the vocabulary": "v1"}
    devices.check_alike(Devices("one", processes=1), facts)
    with pytest.raises(UserError, match="Different: the vocabulary$"):
        devices.check_alike(Devices("two", processes=2), facts)


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="KERAS_BACKEND=tensorflow runs this."
)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TPU_WORKER_HOSTNAMES", "host-0,host-1"),
        ("TF_CONFIG", '{"cluster": {"worker": ["host-0", "host-1"]}}'),
    ],
)
def test_several_hosts_are_refused_naming_jax(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="KERAS_BACKEND=jax .* host-0, host-1"):
        choose_devices()


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="KERAS_BACKEND=tensorflow runs this."
)
def test_only_jax_splits_a_model():
    with pytest.raises(UserError, match="--model_parallel 2 needs Keras' JAX"):
        choose_devices("auto", 1, 2)
    with pytest.raises(UserError, match="fully_sharded needs Keras' JAX"):
        choose_devices(fully_sharded=True)


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(devices.keras.backend, "backend", lambda: "torch")
    with pytest.raises(UserError, match="tensorflow or jax. Received: torch"):
        choose_devices()
