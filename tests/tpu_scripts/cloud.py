"""A stub project to run tpu_scripts in. See stub/gcloud."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
SCRIPTS = HERE.parents[1] / "tpu_scripts"

# Six steps with a checkpoint each. What it is told to wait for, it waits for
# after step 3, in its first start only.
TRAIN = """
import json, os, pathlib, sys, time

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
        stub = pathlib.Path(os.environ["GCLOUD_STUB"])
        verb, *arguments = sys.argv[1:]
        if verb == "exit":
            sys.exit(int(arguments[0]))
        if verb == "fault":
            latest = stub / "bucket/my-bucket/run-1/snapshot/LATEST"
            while not latest.exists():
                time.sleep(0.02)
            time.sleep(0.2)
            (stub / "faults" / arguments[0]).write_text(arguments[1])
        time.sleep(float(arguments[-1]))
"""


class Cloud:
    """A project, a checkout of the repository and a laptop.

    Args:
        root: Empty folder for all of it.
        settings: Settings of every call, over those below.
    """

    def __init__(self, root, **settings):
        self.root = root / "cloud"
        self.repository = root / "repository"
        self.laptop = root / "laptop"
        for folder in ("bucket/my-bucket", "faults", "vm"):
            (self.root / folder).mkdir(parents=True)
        self.laptop.mkdir()
        shutil.copytree(
            SCRIPTS,
            self.repository / "tpu_scripts",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        (self.repository / "train.py").write_text(TRAIN)
        for words in (
            ["init", "--quiet"],
            ["add", "."],
            ["commit", "--quiet", "--message=all"],
        ):
            self._git(*words)
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
            "POLL_SECONDS": "0.05",
            "UPLOAD_SECONDS": "0.1",
        } | settings

    def _git(self, *words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(
            ["git", *identity, *words], cwd=self.repository, check=True
        )

    def start(self, *words, **settings):
        """Starts `tpu` with some words and returns the process."""
        environment = {
            "PATH": f"{HERE / 'stub'}:{os.environ['PATH']}",
            "HOME": str(self.laptop),
            "GCLOUD_STUB": str(self.root),
            "STUB_PYTHON": "",
            "PYTHON": sys.executable,
        }
        return subprocess.Popen(
            [self.repository / "tpu_scripts" / "tpu", *words],
            cwd=self.laptop,
            env=environment | self.settings | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def tpu(self, *words, code=0, **settings):
        """Runs `tpu`; returns all it has printed."""
        process = self.start(*words, **settings)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == code, output + errors + self.log()
        return output + errors

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

    def results(self):
        """Returns the newest copy of the training state in the bucket."""
        manifest = json.loads(
            self.object(f"snapshot/manifests/{self.object('snapshot/LATEST')}")
        )
        return json.loads(
            self.object(f"snapshot/objects/{manifest['checkpoint.json']}")
        )

    def wait_for(self, condition, seconds=20):
        """Waits until a function returns something true."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)
