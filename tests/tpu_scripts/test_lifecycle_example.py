"""The real example through the scripts, taken away in the middle."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from examples.translation.checkpoint import Checkpoints
from tests.tpu_scripts.cloud import Cloud
from tests.tpu_scripts.cloud import make_repository

TRAIN = (
    "python -m examples.translation train --strategy default --data synthetic "
    "--synthetic_train_size 500 --steps 30 --checkpoint_every 10 "
    "--num_layers 1 --model_dim 32 --ff_dim 64 --vocab_size 400 "
    "--test_sentences 5 --bleu_every 0 --keep_checkpoints 2 "
    "--average_checkpoints 1 --run_dir "
)


pytestmark = pytest.mark.skipif(
    not os.environ.get("TPU_SCRIPTS_EXAMPLE"),
    reason="takes minutes: TPU_SCRIPTS_EXAMPLE=1 runs it",
)


def test_preempted_example_ends_as_the_uninterrupted_one(tmp_path):
    repository = make_repository(
        tmp_path / "repository", ("examples", "keras_adafactor")
    )
    cloud = Cloud(tmp_path, repository)
    cloud.python = sys.executable
    cloud.settings |= {
        "COMMAND": f'{TRAIN} "$RUN_DIR"',
        "PLATFORM": "cpu",
        "POLL_SECONDS": "1",
        "UPLOAD_SECONDS": "1",
    }
    run = cloud.start("run")
    cloud.wait_for(
        lambda: (
            "checkpoints/step_00000010/description/metadata" in cloud.copied()
        ),
        300,
    )
    cloud.fault("preempt")
    assert "PREEMPTED. Retry 1 of 5" in cloud.finish(run, seconds=600)
    assert "Continuing from step" in cloud.log()
    cloud.tpu("fetch")

    plain = tmp_path / "plain"
    subprocess.run(
        [sys.executable, *TRAIN.split()[1:], str(plain)],
        cwd=repository,
        env=os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
    )
    expected, received = (
        Checkpoints.of(run_dir / "checkpoints").arrays(30)
        for run_dir in (plain, cloud.laptop / "results/run-1/run")
    )
    for group, arrays in expected.items():
        for one, other in zip(arrays, received[group], strict=True):
            np.testing.assert_array_equal(one, other)


def test_two_hosts_of_which_one_is_lost_end_as_one_left_alone(tmp_path):
    """The machines are folders, and their network is loopback."""
    repository = make_repository(
        tmp_path / "repository", ("examples", "keras_adafactor")
    )
    cloud = Cloud(tmp_path, repository)
    cloud.python = sys.executable
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = tmp_path / "checkpoints"
    train = TRAIN.replace("--strategy default ", "")
    cloud.settings |= {
        "ACCELERATOR": "v5p-16",
        "COMMAND": f"KERAS_DISTRIBUTION_JOB_ADDRESSES=localhost:{port} "
        "KERAS_DISTRIBUTION_NUM_PROCESSES=2 "
        "KERAS_DISTRIBUTION_PROCESS_ID=$WORKER "
        f'{train} "$RUN_DIR" --checkpoint_dir {shared}',
        "PLATFORM": "cpu",
        "POLL_SECONDS": "1",
        "UPLOAD_SECONDS": "1",
    }
    run = cloud.start("run")
    cloud.wait_for((shared / "step_00000010").exists, 300)
    cloud.kill_processes("my-tpu-1")
    output = cloud.finish(run, seconds=900)
    assert "LOST. Retry 1 of 5" in output
    assert "Continuing from step" in cloud.log()
    assert "of 2 processes" in cloud.log()
    cloud.tpu("fetch")

    alone = tmp_path / "alone"
    subprocess.run(
        [sys.executable, *train.split()[1:], str(alone), "--virtual_devices=2"],
        cwd=repository,
        env=os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        check=True,
        capture_output=True,
    )
    scores = [
        json.loads((run_dir / "metrics.json").read_text())["scores"]
        for run_dir in (alone, cloud.laptop / "results/run-1/run")
    ]
    assert scores[0] == scores[1]
    expected = Checkpoints.of(alone / "checkpoints").arrays(30)
    received = Checkpoints.of(shared).arrays(30)
    for group, arrays in expected.items():
        for one, other in zip(arrays, received[group], strict=True):
            np.testing.assert_allclose(
                np.asarray(one, "float64"),
                np.asarray(other, "float64"),
                2e-3,
                2e-6,
            )
