"""Copies of a run's directory: whole or not at all, whenever they are cut."""

import os
import pathlib
import shutil
import subprocess

import pytest

from tests.tpu_scripts.cloud import HERE
from tpu_scripts.vm import snapshot

PREFIX = "gs://my-bucket/run/snapshot"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A stub project; returns the folder that is its bucket."""
    (tmp_path / "stub/bucket/my-bucket").mkdir(parents=True)
    (tmp_path / "stub/faults").mkdir()
    monkeypatch.setenv("GCLOUD_STUB", str(tmp_path / "stub"))
    monkeypatch.setenv("PATH", f"{HERE / 'stub'}:{os.environ['PATH']}")
    return tmp_path / "stub/bucket/my-bucket/run/snapshot"


class Machine:
    """A machine with a run directory, empty and restored."""

    def __init__(self, folder):
        self.directory = folder / "run"
        self.directory.mkdir(parents=True)
        self.snapshots = snapshot.Snapshots(self.directory, PREFIX)
        self.snapshots.restore()

    def write(self, **files):
        for name, text in files.items():
            path = self.directory / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    def files(self):
        return {
            str(path.relative_to(self.directory)): path.read_text()
            for path in self.directory.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def machine(tmp_path, project):
    return Machine(tmp_path / "first")


def test_another_machine_gets_the_same_files(machine, tmp_path):
    machine.write(config="a", step_1__weights="b", step_1__same="a")
    machine.snapshots.save()
    assert Machine(tmp_path / "second").files() == machine.files()


def test_second_copy_uploads_only_what_is_new(machine, project, monkeypatch):
    machine.write(config="a", step_1__weights="b")
    machine.snapshots.save()
    calls = []

    def gcloud(verb, *arguments, real=snapshot._gcloud):
        calls.append([verb, *map(str, arguments)])
        return real(verb, *arguments)

    monkeypatch.setattr(snapshot, "_gcloud", gcloud)
    machine.snapshots.save()
    assert calls == []
    machine.write(step_2__weights="c")
    machine.snapshots.save()
    uploaded = [call for call in calls if call[-1] == f"{PREFIX}/objects/"]
    assert [len(call) - 2 for call in uploaded] == [1]


def test_copy_cut_at_any_call_leaves_the_one_before(
    tmp_path, project, monkeypatch
):
    machine = Machine(tmp_path / "first")
    machine.write(config="a", step_1__weights="b")
    machine.snapshots.save()
    before = machine.files()
    machine.write(config="changed", step_2__weights="c")
    (machine.directory / "step_1/weights").unlink()
    after = machine.files()
    bucket, memory = project.parent, machine.snapshots.memory
    shutil.copytree(bucket, tmp_path / "bucket")
    shutil.copy(memory, tmp_path / "memory")
    real = snapshot._gcloud
    seen = []
    for allowed in range(10):
        left = allowed

        def gcloud(verb, *arguments):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return real(verb, *arguments)

        shutil.rmtree(bucket)
        shutil.copytree(tmp_path / "bucket", bucket)
        shutil.copy(tmp_path / "memory", memory)
        monkeypatch.setattr(snapshot, "_gcloud", gcloud)
        cut = False
        try:
            machine.snapshots.save()
        except KeyboardInterrupt:
            cut = True
        monkeypatch.setattr(snapshot, "_gcloud", real)
        restored = Machine(tmp_path / f"machine-{allowed}").files()
        assert restored in (before, after), allowed
        seen.append(restored == after)
        # The next copy mends what the cut one has left.
        machine.snapshots.save()
        assert Machine(tmp_path / f"mended-{allowed}").files() == after
        if not cut:
            break
    assert not cut
    assert seen == sorted(seen)
    assert {False, True} <= set(seen)


def test_damaged_copy_is_refused(machine, project, tmp_path):
    machine.write(config="a")
    machine.snapshots.save()
    (path,) = (project / "objects").iterdir()
    path.write_text("b")
    with pytest.raises(RuntimeError, match="is damaged"):
        Machine(tmp_path / "second")
    assert not any((tmp_path / "second/run").iterdir())


def test_lost_manifest_is_not_a_new_run(machine, project, tmp_path):
    machine.write(config="a")
    machine.snapshots.save()
    shutil.rmtree(project / "manifests")
    with pytest.raises(RuntimeError, match="is missing"):
        Machine(tmp_path / "second")


def test_silent_bucket_is_not_a_new_run(project, tmp_path):
    (tmp_path / "stub/faults/bucket_down").write_text("1")
    with pytest.raises(RuntimeError, match="503"):
        Machine(tmp_path / "second")


def test_machine_that_restored_nothing_saves_nothing(tmp_path, project):
    directory = tmp_path / "run"
    directory.mkdir()
    with pytest.raises(RuntimeError, match="was not restored"):
        snapshot.Snapshots(directory, PREFIX).save()
    assert not project.exists()


def test_unfinished_files_are_left_out(machine, tmp_path):
    machine.write(config="a")
    for name in (".unfinished-step-2", "step_2.orbax-checkpoint-tmp"):
        (machine.directory / name).mkdir()
        (machine.directory / name / "weights").write_text("half")
    (machine.directory / ".lock").touch()
    machine.snapshots.save()
    assert Machine(tmp_path / "second").files() == {"config": "a"}


def test_pruned_files_leave_the_bucket_one_copy_later(machine, project):
    for step in range(4):
        shutil.rmtree(machine.directory / "checkpoint", ignore_errors=True)
        machine.write(checkpoint__weights=f"step {step}")
        machine.snapshots.save()
    stored = {path.read_text() for path in (project / "objects").iterdir()}
    assert stored == {"step 2", "step 3"}


def test_file_that_goes_while_it_is_copied_is_tried_again(
    machine, monkeypatch, tmp_path
):
    machine.write(config="a", step_1__weights="b")
    real = shutil.copyfile

    def copyfile(source, target):
        if pathlib.Path(source).name == "weights":
            shutil.rmtree(machine.directory / "step_1")
        return real(source, target)

    monkeypatch.setattr(snapshot.shutil, "copyfile", copyfile)
    machine.snapshots.save()
    monkeypatch.undo()
    assert machine.files() == {"config": "a"}


def test_runs_as_a_script_and_says_what_failed(machine, project):
    machine.write(config="a")
    script = [
        "python3",
        str(pathlib.Path(snapshot.__file__)),
        "save",
        str(machine.directory),
    ]
    subprocess.run([*script, PREFIX], check=True)
    assert (project / "LATEST").exists()
    machine.write(config="b")
    result = subprocess.run(
        [*script, "gs://no-bucket/run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "snapshot: gcloud storage cp: ERROR" in result.stderr
