"""Kills training again and again, and compares the end with a run left alone.

    python -m benchmarks.kill_resume [--kills 8] [--seed 0] [--setting NAME ...]

The run is a small one of `examples.translation`, in a process of its own, for
each of plain TensorFlow, TensorFlow's MirroredStrategy over 2 devices of the
CPU, and JAX' ModelParallel over 8. It gets SIGKILL and is started again with
the same command, until it has been killed often enough and may finish. Kills
take turns:

- at a random time in its start, or after one to three checkpoints and a random
  part of the time between two,
- in the middle of writing a checkpoint, when its folder is there, or in turn
  one of its files. The process is stopped (SIGSTOP), the folder looked at, and
  if it still has its unfinished name the process is killed, else continued.

After every kill each checkpoint with the name of a whole one is held against
its manifest, and the next process must say that it continues from the newest.
At the end weights, slots, seeds, step and losses must be those of the run left
alone, bit for bit.

The control shows that a difference is seen: of the run left alone all but the
oldest checkpoint is taken away, one element of one statistic in it is doubled,
and the run continued. It must be reported as different.

Takes twelve minutes of processor time; writes a table to stdout and
`benchmarks/results/kill_resume.json`.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from examples.translation.checkpoint import ARRAYS
from examples.translation.checkpoint import MANIFEST
from examples.translation.checkpoint import STATE

ROOT = pathlib.Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "kill_resume.json"

# What the three settings have in common: a model, a corpus and an evaluation
# so small that a process is mostly its start.
FLAGS = {
    "data": "synthetic",
    "synthetic_train_size": 600,
    "vocab_size": 500,
    "max_length": 96,
    "bucket_lengths": 96,
    "num_layers": 1,
    "model_dim": 32,
    "ff_dim": 64,
    "num_heads": 2,
    "dropout": 0.1,
    "batch_size": 8,
    "steps": 80,
    "checkpoint_every": 2,
    "keep_checkpoints": 3,
    "average_checkpoints": 1,
    "bleu_every": 0,
    "bleu_sentences": 1,
    "test_sentences": 1,
    "sample_sentences": 0,
    "beam_size": 1,
    "max_decode_length": 2,
}

# What of a checkpoint must be there for a kill: only the folder, or a file.
PARTS = ("", ARRAYS, STATE, MANIFEST)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A backend, and the flags that choose its devices."""

    backend: str
    flags: dict
    devices: str


SETTINGS = {
    "tensorflow": Setting("tensorflow", {"jit_compile": "off"}, "one CPU"),
    "mirrored": Setting(
        "tensorflow",
        {"virtual_devices": 2},
        "MirroredStrategy over 2 CPU devices",
    ),
    "model_parallel": Setting(
        "jax",
        {"virtual_devices": 8, "model_parallel": 2},
        "ModelParallel over 8 cpu devices",
    ),
}


class Run:
    """A run in its directory: its command, its processes, what they leave.

    Args:
        setting: `Setting`.
        flags: Dict, flags beside those of the setting.
        folder: Directory; what all runs share is next to it.
    """

    def __init__(self, setting, flags, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run_dir = self.folder / "run"
        self.checkpoints = self.run_dir / "checkpoints"
        shared = self.folder.parent
        flags = {
            "data_dir": shared / "data",
            **flags,
            **setting.flags,
            "run_dir": self.run_dir,
        }
        self.interval = flags["checkpoint_every"]
        self.command = [
            *(sys.executable, "-m", "examples.translation", "train"),
            *(f"--{name}={value}" for name, value in flags.items()),
        ]
        self.environment = os.environ | {
            "KERAS_BACKEND": setting.backend,
            "TF_CPP_MIN_LOG_LEVEL": "2",
            # Most of a process' time would be XLA's, for the same programs.
            "JAX_COMPILATION_CACHE_DIR": str(shared / "xla"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.logs = []
        self.killed = False
        self._left_over = set()

    def start(self):
        """Starts a process; its output goes to a new file of `logs`."""
        self._left_over = self._unfinished()
        self.logs.append(self.folder / f"log-{len(self.logs):02d}")
        with open(self.logs[-1], "w") as log:
            return subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def finish(self):
        """Runs a process to its end.

        Returns:
            Seconds after its start at which it had written a checkpoint.
        """
        newest = self.newest()
        seconds = []
        began = time.monotonic()
        process = self.start()
        while process.poll() is None:
            if self.newest() != newest:
                newest = self.newest()
                seconds.append(time.monotonic() - began)
            time.sleep(0.01)
        self.killed = False
        if process.returncode != 0:
            raise self.broken()
        return seconds

    def broken(self):
        text = self.logs[-1].read_text()
        return RuntimeError(f"The process failed by itself:\n{text[-4000:]}")

    def _names(self):
        """Names in the folder of checkpoints; none before it is made."""
        try:
            return os.listdir(self.checkpoints)
        except FileNotFoundError:
            return []

    def writing(self):
        """Names of checkpoints that the newest process has begun to write.

        To be asked often: what an earlier one has left there, it removes when
        it starts.
        """
        names = self._unfinished()
        self._left_over &= names
        return names - self._left_over

    def _unfinished(self):
        prefix = ".unfinished-step-"
        return {name for name in self._names() if name.startswith(prefix)}

    def steps(self):
        """Steps of the checkpoints with a final name, ascending."""
        return sorted(
            int(name.removeprefix("step-"))
            for name in self._names()
            if name.startswith("step-")
        )

    def newest(self):
        """Newest step with a checkpoint, or 0."""
        return max(self.steps(), default=0)

    def path(self, step):
        return self.checkpoints / f"step-{step:08d}"

    def continued_from(self):
        """Step that the last process says it continues from, or `None`."""
        found = self._said(r"Continuing from step ([\d,]+)\.$")
        return found and int(found[1].replace(",", ""))

    def has_trained(self):
        """Whether the last process has trained for an interval."""
        return bool(self.writing() or self._said(r"step [\d,]+/"))

    def _said(self, line):
        return re.search(f"^{line}", self.logs[-1].read_text(), re.MULTILINE)


def kill_at(run, skip, delay):
    """Kills a new process so many seconds after so many checkpoints."""
    begin = run.newest() + skip * run.interval
    moment = None
    with killed(run) as process:
        while process.poll() is None:
            if moment is None and run.newest() >= begin:
                moment = time.monotonic() + delay
            if moment is not None and time.monotonic() > moment:
                return
            run.writing()
            time.sleep(0.001)


def kill_in_write(run, skip, part):
    """Kills a new process in the middle of writing a checkpoint.

    Args:
        run: `Run`.
        skip: Number of checkpoints to let pass.
        part: Name of the file that must be there, or `""` for the folder.
    """
    passed = set()
    with killed(run) as process:
        while process.poll() is None:
            for name in run.writing() - passed:
                if len(passed) < skip:
                    passed.add(name)
                elif (run.checkpoints / name / part).exists():
                    process.send_signal(signal.SIGSTOP)
                    if name in run.writing():
                        return
                    process.send_signal(signal.SIGCONT)
            time.sleep(0.0002)


@contextlib.contextmanager
def killed(run):
    """A new process of a run, that gets SIGKILL at the end."""
    process = run.start()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
    run.killed = process.returncode == -signal.SIGKILL
    if process.returncode != 0 and not run.killed:
        raise run.broken()


def is_whole(path):
    """Whether a checkpoint is byte for byte what its manifest says."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        return set(manifest) == {ARRAYS, STATE} and all(
            hashlib.sha256((path / name).read_bytes()).hexdigest()
            == entry["sha256"]
            for name, entry in manifest.items()
        )
    except (OSError, ValueError):
        return False


def kill_and_resume(run, kills, draw, start, between):
    """Kills a run so many times, at random and in a write by turns.

    Args:
        run: `Run`.
        kills: Number of kills.
        draw: `random.Random`.
        start: Seconds that a process needs to its first checkpoint.
        between: Seconds between two checkpoints.

    Returns:
        A dict for each process, the last one ended by itself: what was aimed
        at, whether it was killed in a write, the step it continued from, steps
        to be done again at most, and what went wrong.
    """
    rows = []
    for number in range(kills + 1):
        newest = run.newest()
        skip = draw.randrange(4)
        if number == kills:
            aim = "the end"
            run.finish()
        elif number % 2:
            aim = "random"
            delay = draw.uniform(0, between if skip else start)
            kill_at(run, skip, delay)
        else:
            part = PARTS[number // 2 % len(PARTS)]
            aim = f"write: {part or 'folder'}"
            kill_in_write(run, skip, part)
        continued = run.continued_from()
        trained = run.has_trained()
        rows.append(
            {
                "aim": aim,
                "killed": run.killed,
                "in_write": bool(run.writing()),
                "continued_from": continued,
                # Killed before it has trained, it may not have said so.
                "wrong_resume": continued != (newest or None)
                and (trained or continued is not None),
                "half_checkpoints": sum(
                    not is_whole(run.path(step)) for step in run.steps()
                ),
                "newest": run.newest(),
                "steps_lost_at_most": run.interval
                if run.killed and (trained or continued is not None)
                else 0,
            }
        )
        print(f"  {rows[-1]}", flush=True)
        if not run.killed:
            break
    return rows


def contents(run):
    """What must be equal: step, every array's bits, and the losses."""
    step = run.newest()
    path = run.path(step)
    description = json.loads((path / STATE).read_text())
    with np.load(path / ARRAYS) as arrays:
        found = {
            f"{group} {variable[0]}": arrays[f"{group}/{index}"].tobytes()
            for group, variables in description["variables"].items()
            for index, variable in enumerate(variables)
        }
    times = ("seconds", "tokens_per_second")
    history = [
        {name: value for name, value in row.items() if name not in times}
        for row in description["training"]["history"]
    ]
    return {**found, "step": step, "history": history}


def differences(one, other):
    """Names of what differs at the end of two runs."""
    one, other = contents(one), contents(other)
    return sorted(
        name
        for name in one.keys() | other.keys()
        if one.get(name) != other.get(name)
    )


def double_a_statistic(path):
    """Doubles an element of a slot, fits the manifest, returns the name."""
    description = json.loads((path / STATE).read_text())
    names = [variable[0] for variable in description["variables"]["optimizer"]]
    index = next(i for i, n in enumerate(names) if n.endswith("_v_row"))
    with np.load(path / ARRAYS) as arrays:
        values = dict(arrays)
    values[f"optimizer/{index}"].flat[0] *= 2
    np.savez(path / ARRAYS, **values)
    manifest = json.loads((path / MANIFEST).read_text())
    data = (path / ARRAYS).read_bytes()
    manifest[ARRAYS] = {
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    (path / MANIFEST).write_text(json.dumps(manifest))
    return names[index]


def control(straight, run):
    """Continues a run from a checkpoint that is not quite its own.

    Args:
        straight: `Run` that was left alone.
        run: New `Run`.

    Returns:
        Names of what is then different, and the seconds that a process needs
        to its first checkpoint and from there to the second.
    """
    shutil.copytree(straight.run_dir, run.run_dir)
    oldest, *others = run.steps()
    for step in others:
        shutil.rmtree(run.path(step))
    double_a_statistic(run.path(oldest))
    first, second = run.finish()
    if run.continued_from() != oldest:
        raise RuntimeError("The control did not continue.")
    return differences(straight, run), first, second - first


def measure(setting, folder, *, kills, seed=0, **flags):
    """Kills, resumes, compares, and checks that the comparison can fail.

    Args:
        setting: `Setting`.
        folder: Directory of the runs, with what other settings have left
            there.
        kills: Number of kills.
        seed: Number or string, of the moments.
        **flags: To change in `FLAGS`.

    Returns:
        Dict, a row of the table with its processes.
    """
    flags = FLAGS | flags
    straight, spoiled, killed = (
        Run(setting, flags, folder / name)
        for name in ("straight", "spoiled", "killed")
    )
    straight.finish()
    log = straight.logs[-1].read_text()
    if f"devices: {setting.devices}" not in log:
        raise RuntimeError(f"Not on {setting.devices}:\n{log}")
    in_control, start, between = control(straight, spoiled)
    rows = kill_and_resume(killed, kills, random.Random(seed), start, between)
    return {
        "backend": setting.backend,
        "devices": setting.devices,
        "kills": sum(row["killed"] for row in rows),
        "kills_in_a_write": sum(row["in_write"] for row in rows),
        "resumes": sum(row["continued_from"] is not None for row in rows),
        "wrong_resumes": sum(row["wrong_resume"] for row in rows),
        "half_checkpoints": sum(row["half_checkpoints"] for row in rows),
        "steps": flags["steps"],
        "steps_lost_at_most": sum(row["steps_lost_at_most"] for row in rows),
        "compared": len(contents(straight)),
        "different": differences(straight, killed),
        "different_in_control": len(in_control),
        "each_process": rows,
    }


def format_table(rows):
    """The rows as text, columns aligned."""
    table = [
        (
            "setting",
            "kills",
            "in a write",
            "resumes",
            "wrong",
            "half",
            "steps lost, at most",
            "equal bit for bit",
            "control noticed",
        )
    ]
    for row in rows:
        lost = f"{row['steps_lost_at_most']} of {row['steps']}"
        equal = row["compared"] - len(row["different"])
        table.append(
            (
                f"{row['backend']}, {row['devices']}",
                row["kills"],
                row["kills_in_a_write"],
                row["resumes"],
                row["wrong_resumes"],
                row["half_checkpoints"],
                lost,
                f"{equal} of {row['compared']}",
                "yes" if row["different_in_control"] else "NO",
            )
        )
    widths = [
        max(len(str(cell)) for cell in column)
        for column in zip(*table, strict=True)
    ]
    return "\n".join(
        "  ".join(
            f"{cell!s:{'<' if index == 0 else '>'}{width}}"
            for index, (cell, width) in enumerate(
                zip(line, widths, strict=True)
            )
        )
        for line in table
    )


def passed(row):
    """Whether a row says what is claimed: exact, and able to say otherwise."""
    return bool(
        not row["different"]
        and not row["wrong_resumes"]
        and not row["half_checkpoints"]
        and row["different_in_control"]
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--setting", nargs="+", choices=SETTINGS, default=list(SETTINGS)
    )
    parser.add_argument("--kills", type=int, default=8, help="of each setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=FLAGS["steps"])
    parser.add_argument("--output", type=pathlib.Path, default=RESULT)
    arguments = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.setting:
            print(f"{name}:", flush=True)
            rows[name] = measure(
                SETTINGS[name],
                pathlib.Path(folder, name),
                kills=arguments.kills,
                seed=f"{arguments.seed} {name}",
                steps=arguments.steps,
            )
    print(format_table(rows.values()))
    versions = {
        name: importlib.metadata.version(name) for name in ("keras", "jax")
    }
    result = {
        "seed": arguments.seed,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
        "settings": rows,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(map(passed, rows.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
