"""SIGKILL in the middle of a write; `benchmarks.kill_resume` does many."""

import json
import random
import shutil
import sys

import keras
import pytest

from benchmarks import kill_resume
from examples.translation.checkpoint import GROUPS

SETTING = kill_resume.SETTINGS[
    {"tensorflow": "mirrored", "jax": "model_parallel"}[keras.backend.backend()]
]
STEPS = 8
pytestmark = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def straight(data_dir, tmp_path_factory):
    """A run left alone."""
    run = new_run(data_dir, tmp_path_factory.mktemp("killed") / "straight")
    run.finish()
    return run


def new_run(data_dir, folder):
    flags = kill_resume.FLAGS | {"data_dir": data_dir, "steps": STEPS}
    return kill_resume.Run(SETTING, flags, folder)


def test_killed_in_a_write_a_run_ends_as_if_left_alone(straight, data_dir):
    assert f"devices: {SETTING.devices}" in straight.logs[0].read_text()
    run = new_run(data_dir, straight.folder.parent / "killed")
    first, second = kill_resume.kill_and_resume(
        run, 1, random.Random(1), start=0, between=0
    )
    assert first["killed"]
    assert first["in_write"]
    assert not first["half_checkpoints"]
    assert 0 < first["newest"] < STEPS
    assert not second["killed"]
    assert second["continued_from"] == first["newest"]
    assert run.newest() == STEPS
    assert kill_resume.differences(straight, run) == []


def test_a_difference_in_one_slot_is_seen(straight, data_dir, tmp_path):
    run = new_run(data_dir, tmp_path)
    shutil.copytree(straight.run_dir, run.run_dir)
    assert kill_resume.differences(straight, run) == []
    changed = kill_resume.double_a_statistic(run, STEPS)
    assert run.is_whole(STEPS)
    assert kill_resume.differences(straight, run) == [f"optimizer {changed}"]


@pytest.mark.parametrize("part", [*GROUPS, "description"])
def test_half_a_checkpoint_is_seen(straight, data_dir, tmp_path, part):
    run = new_run(data_dir, tmp_path)
    shutil.copytree(straight.run_dir, run.run_dir)
    assert run.is_whole(STEPS)
    shutil.rmtree(run.path(STEPS) / part)
    assert not run.is_whole(STEPS)


def test_a_bad_row_does_not_pass():
    row = {
        "different": [],
        "wrong_resumes": 0,
        "half_checkpoints": 0,
        "different_in_control": 3,
    }
    assert kill_resume.passed(row)
    for bad in (
        {"different": ["step"]},
        {"wrong_resumes": 1},
        {"half_checkpoints": 1},
        {"different_in_control": 0},
    ):
        assert not kill_resume.passed(row | bad), json.dumps(bad)


def test_a_run_that_begins_anew_is_seen(tmp_path):
    run = kill_resume.Run(SETTING, kill_resume.FLAGS, tmp_path)
    run.path(4).mkdir(parents=True)
    for said, wrong in (
        ("step 2/8  loss 5.0", True),
        ("Continuing from step 2.\nstep 4/8  loss 5.0", True),
        ("Continuing from step 4.\nstep 6/8  loss 5.0", False),
    ):
        run.command = [sys.executable, "-c", f"print({said!r})"]
        (row,) = kill_resume.kill_and_resume(
            run, 0, random.Random(0), start=0, between=0
        )
        assert row["wrong_resume"] == wrong, said
        assert row["half_checkpoints"] == 1
