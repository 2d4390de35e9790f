"""`MultiWorkerMirroredStrategy`: processes of their own, on this machine."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip(
        "MultiWorkerMirroredStrategy is TensorFlow's: "
        "KERAS_BACKEND=tensorflow runs these tests.",
        allow_module_level=True,
    )

import tensorflow as tf

from tests import worker

ROOT = pathlib.Path(__file__).parent.parent


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_workers_are_in_sync_and_equal_to_one_device(tmp_path):
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    processes = []
    for index in range(2):
        task = {"type": "worker", "index": index}
        config = {"cluster": {"worker": addresses}, "task": task}
        processes.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.worker",
                    tmp_path / f"{index}.npz",
                ],
                cwd=ROOT,
                env=os.environ | {"TF_CONFIG": json.dumps(config)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        for process in processes:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
    first, second = (np.load(tmp_path / f"{i}.npz") for i in range(2))
    alone = worker.train(tf.distribute.get_strategy())
    assert set(first) == set(second) == set(alone)
    for name, value in alone.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        np.testing.assert_allclose(
            first[name], value, rtol=1e-5, atol=1e-6, err_msg=name
        )
    (skipped,) = (v for k, v in first.items() if "skipped_updates" in k)
    assert int(skipped) == 1
    assert (first["w"] != worker.START).all()
