"""A stub project to run tpu_scripts in. See stub/gcloud."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
SCRIPTS = HERE.parents[1] / "tpu_scripts"

# Six steps with a checkpoint each. In its first start it does after step 3 what
# it is told: exit CODE, wait (until the test says go), or preempted.
TRAIN = """
import json, os, pathlib, sys, time

stub = pathlib.Path(os.environ["GCLOUD_STUB"])


def copied():
    snapshot = stub / "bucket/my-bucket/run-1/snapshot"
    try:
        name = (snapshot / "LATEST").read_text()
        manifest = json.loads((snapshot / "manifests" / name).read_text())
        sha256 = manifest["checkpoint.json"]
        return json.loads((snapshot / "objects" / sha256).read_text())
    except OSError:
        return None


checkpoint = pathlib.Path(os.environ["RUN_DIR"], "checkpoint.json")
state = {"step": 0, "starts": []}
if checkpoint.exists():
    state = json.loads(checkpoint.read_text())
state["starts"].append(state["step"])
while state["step"] < 6:
    state["step"] += 1
    unfinished = checkpoint.with_name(".unfinished")
    unfinished.write_text(json.dumps(state))
    unfinished.rename(checkpoint)
    print("step", state["step"], flush=True)
    if state["step"] == 3 and len(state["starts"]) == 1 and sys.argv[1:]:
        verb, *arguments = sys.argv[1:]
        if verb == "exit":
            sys.exit(int(arguments[0]))
        if verb == "preempted":
            while copied() != state:
                time.sleep(0.02)
            (stub / "faults/preempt").touch()
        while not (stub / "go").exists():
            time.sleep(0.02)
"""


def make_repository(folder, packages=()):
    """Makes a git repository of the scripts and a training program.

    Args:
        folder: Empty folder for it.
        packages: Other folders of this repository to have in it.
    """
    for name in ("tpu_scripts", *packages):
        shutil.copytree(
            SCRIPTS.parent / name,
            folder / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    (folder / "train.py").write_text(TRAIN)
    for words in (
        ["init", "--quiet"],
        ["add", "."],
        ["commit", "--quiet", "--message=all"],
    ):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
            cwd=folder,
            check=True,
        )
    return folder


def heed_signals():
    """What a shell starts in the background ignores Ctrl-C for good."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


class Cloud:
    """A project and a laptop.

    Args:
        root: Empty folder for both.
        repository: What `make_repository` has made.
    """

    def __init__(self, root, repository):
        assert os.access(HERE / "stub/gcloud", os.X_OK), "lost its mode"
        self.root = root / "cloud"
        self.repository = repository
        self.laptop = root / "laptop"
        for folder in ("bucket/my-bucket", "faults", "vm"):
            (self.root / folder).mkdir(parents=True)
        self.laptop.mkdir()
        self.started = 0
        # Python of the machines; empty: one with a stub of jax.
        self.python = ""
        self.settings = {
            "PROJECT": "my-project",
            "ZONE": "us-west4-a",
            "BUCKET": "my-bucket",
            "TPU_NAME": "my-tpu",
            "ACCELERATOR": "v5litepod-8",
            "RUN_ID": "run-1",
            "COMMAND": 'python train.py "$@"',
            "OWNER": "me",
            "SPOT": "yes",
            "POLL_SECONDS": "0.3",
            "UPLOAD_SECONDS": "0.6",
        }

    def start(self, *words, **settings):
        """Starts `tpu` with some words and returns the process."""
        environment = {
            "PATH": f"{HERE / 'stub'}:{os.environ['PATH']}",
            "HOME": str(self.laptop),
            "GCLOUD_STUB": str(self.root),
            "STUB_PYTHON": self.python,
            "PYTHON": sys.executable,
            # Should a real gcloud ever be reached, it must know nobody.
            "CLOUDSDK_CONFIG": str(self.laptop / "no-account"),
        }
        self.started += 1
        output = self.laptop.with_name(f"output-{self.started}")
        with open(output, "w") as file:
            process = subprocess.Popen(
                [self.repository / "tpu_scripts" / "tpu", *words],
                cwd=self.laptop,
                env=environment | self.settings | settings,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=heed_signals,
            )
        process.output = output.read_text
        return process

    def finish(self, process, code=0, seconds=60):
        """Waits for a started `tpu`; returns all it has printed."""
        process.wait(timeout=seconds)
        output = process.output()
        assert process.returncode == code, output + self.log()
        return output

    def go(self):
        """Lets a training that waits go on."""
        (self.root / "go").touch()

    def tpu(self, *words, code=0, **settings):
        """Runs `tpu`; returns all it has printed."""
        return self.finish(self.start(*words, **settings), code)

    def calls(self, *words):
        """Returns the recorded calls of gcloud that have these words."""
        path = self.root / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [
            call
            for call in map(json.loads, lines)
            if all(word in call for word in words)
        ]

    def fault(self, name, text="1"):
        (self.root / "faults" / name).write_text(text)

    def resources(self):
        """Returns (kind, name) of everything that is left."""
        path = self.root / "state.json"
        state = json.loads(path.read_text()) if path.exists() else {}
        return [(kind, name) for kind in state for name in state[kind]]

    def change(self, kind, name, change):
        """Passes a resource to a function that changes it."""
        path = self.root / "state.json"
        state = json.loads(path.read_text())
        change(state[kind][name])
        path.write_text(json.dumps(state))

    def object(self, path):
        """Returns an object of the run's folder in the bucket as text."""
        return (self.root / "bucket/my-bucket/run-1" / path).read_text()

    def log(self):
        """Returns what the job has last put into the bucket, for messages."""
        try:
            return self.object("log/worker-0")
        except FileNotFoundError:
            return ""

    def copied(self):
        """Returns path -> SHA-256 of the newest copy in the bucket."""
        try:
            latest = self.object("snapshot/LATEST")
        except FileNotFoundError:
            return {}
        return json.loads(self.object(f"snapshot/manifests/{latest}"))

    def results(self):
        """Returns the newest copy of the training state in the bucket."""
        sha256 = self.copied()["checkpoint.json"]
        return json.loads(self.object(f"snapshot/objects/{sha256}"))

    def kill_processes(self, machine=""):
        """Kills what runs on the machines, or one, as a crash does."""
        self.signal_processes(machine, signal.SIGKILL)

    def signal_processes(self, machine, number, name=""):
        """Signals what runs on machines, or what has `name` in its line."""
        mark = f"STUB_VM={self.root}/vm/{machine}".encode()
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if (
                    mark in (path / "environ").read_bytes()
                    and name.encode() in (path / "cmdline").read_bytes()
                ):
                    os.kill(int(path.name), number)
            except OSError:
                continue

    def wait_for(self, condition, seconds=30):
        """Waits until a function returns something true."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)
