"""Kills training again and again, and compares the end with a run left alone.

    python -m benchmarks.kill_resume [--kills 8] [--seed 0] [--setting NAME ...]

The run is a small one of `examples.translation`, in a process of its own, for
each of plain TensorFlow, TensorFlow's MirroredStrategy over 2 devices of the
CPU, JAX' ModelParallel over 8, and two processes of JAX that train together, of
which one is killed and the other has to end by itself. It gets SIGKILL and is
started again with the same command, until it has been killed often enough and
may finish. Kills take turns:

- at a random time in its start, or after one to three checkpoints and a random
  part of the time between two,
- in the middle of writing a checkpoint, when its folder is there, or in turn
  one of the three parts. The run is stopped (SIGSTOP), the folder looked at,
  and if it still has its unfinished name the run is killed, else continued.

After every kill each checkpoint with the name of a whole one is read, and the
next process must say that it continues from the newest.
At the end weights, slots, seeds, step and losses must be those of the run left
alone, bit for bit.

The control shows that a difference is seen: of the run left alone all but the
oldest checkpoint is taken away, one element of one statistic in it is doubled,
and the run continued. It must be reported as different.

Takes half an hour of processor time; writes a table to stdout and
`results/kill_resume.json` beside this file, where settings that were not asked
for stay as they are.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from benchmarks import records
from examples.translation.checkpoint import GROUPS
from examples.translation.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parent.parent

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

# What of a checkpoint must be there for a kill: only the folder, or a part.
PARTS = ("", *GROUPS, "description")
UNFINISHED = ".orbax-checkpoint-tmp"


@dataclasses.dataclass(frozen=True)
class Setting:
    """A backend, and the flags that choose its devices."""

    backend: str
    flags: dict
    devices: str
    processes: int = 1


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
    "two_processes": Setting(
        "jax",
        {"virtual_devices": 2},
        "DataParallel over 4 cpu devices of 2 processes",
        processes=2,
    ),
}
# Seconds in which the others must have ended when one is killed.
ENDS_WITHIN = 180


class Processes:
    """What one command starts, on each of so many hosts; used as a `Popen`.

    Args:
        command: List of strings.
        environment: Dict.
        log: Path of what the first one prints; others have a number more.
        count: How many.
        victim: Index of the one that `kill` kills.

    Attributes:
        seconds_to_end: How long the others went on after a kill.
    """

    def __init__(self, command, environment, log, count, victim):
        if count > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            environment = environment | {
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"localhost:{port}",
                "KERAS_DISTRIBUTION_NUM_PROCESSES": str(count),
            }
        self._all = []
        for index in range(count):
            name = log.with_name(f"{log.name}.{index}") if index else log
            with open(name, "w") as file:
                self._all.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env=environment
                        | {"KERAS_DISTRIBUTION_PROCESS_ID": str(index)},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )
        self._victim = self._all[victim]
        self.seconds_to_end = None

    @property
    def returncode(self):
        """Of the victim, if it was killed; else the worst."""
        if self._victim.returncode == -signal.SIGKILL:
            return -signal.SIGKILL
        return max((p.returncode for p in self._all), key=abs)

    def poll(self):
        """`None` while one of them runs."""
        if None in [process.poll() for process in self._all]:
            return None
        return self.returncode

    def send_signal(self, number):
        for process in self._all:
            process.send_signal(number)

    def signal_one(self, index, number):
        self._all[index].send_signal(number)

    def kill(self):
        self._victim.kill()
        self.send_signal(signal.SIGCONT)

    def wait(self, seconds=ENDS_WITHIN):
        """Waits until all have ended by themselves.

        Raises:
            RuntimeError: They have not, in so many seconds.
        """
        began = time.monotonic()
        try:
            for process in self._all:
                left = began + seconds - time.monotonic()
                process.wait(max(left, 0.0))
        except subprocess.TimeoutExpired as error:
            self.send_signal(signal.SIGKILL)
            raise RuntimeError(f"It went on for {seconds} seconds.") from error
        self.seconds_to_end = time.monotonic() - began


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
        self.processes = setting.processes
        self.logs = []
        self.killed = False
        self.seconds_to_end = None
        self._left_over = set()

    def start(self):
        """Starts the run; what it prints goes to a new file of `logs`.

        Returns:
            `Processes`, of which another one is the victim each time.
        """
        self._left_over = self._unfinished()
        self.logs.append(self.folder / f"log-{len(self.logs):02d}")
        return Processes(
            self.command,
            self.environment,
            self.logs[-1],
            self.processes,
            len(self.logs) % self.processes,
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
        return {name for name in self._names() if UNFINISHED in name}

    def steps(self):
        """Steps of the checkpoints with a final name, ascending."""
        return sorted(
            int(name.removeprefix("step_"))
            for name in self._names()
            if re.fullmatch(r"step_\d+", name)
        )

    def newest(self):
        """Newest step with a checkpoint, or 0."""
        return max(self.steps(), default=0)

    def path(self, step):
        return self.checkpoints / f"step_{step:08d}"

    def is_whole(self, step):
        """Whether a checkpoint can be read and is what was written."""
        try:
            Checkpoints.of(self.checkpoints).arrays(step)
        except (KeyError, OSError, ValueError):
            return False
        return True

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
                elif list((run.checkpoints / name).glob(f"{part}*")):
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
    run.seconds_to_end = process.seconds_to_end
    if process.returncode != 0 and not run.killed:
        raise run.broken()


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
                "seconds_to_end": round(run.seconds_to_end or 0.0, 1),
                "in_write": bool(run.writing()),
                "continued_from": continued,
                # Killed before it has trained, it may not have said so.
                "wrong_resume": continued != (newest or None)
                and (trained or continued is not None),
                "half_checkpoints": sum(
                    not run.is_whole(step) for step in run.steps()
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
    checkpoints = Checkpoints.of(run.checkpoints)
    description = checkpoints.describe(step)
    found = {
        f"{group} {variable[0]}": array.tobytes()
        for group, arrays in checkpoints.arrays(step).items()
        for variable, array in zip(
            description["variables"][group], arrays, strict=True
        )
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


def double_a_statistic(run, step):
    """Doubles an element of a slot in a checkpoint, returns the name."""
    checkpoints = Checkpoints.of(run.checkpoints)
    description = checkpoints.describe(step)
    arrays = checkpoints.arrays(step)
    names = [variable[0] for variable in description["variables"]["optimizer"]]
    index = next(i for i, n in enumerate(names) if n.endswith("_v_row"))
    arrays["optimizer"][index] = arrays["optimizer"][index].copy()
    arrays["optimizer"][index].flat[0] *= 2
    checkpoints.write(step, arrays, description)
    checkpoints.wait()
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
    double_a_statistic(run, oldest)
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
    others = records.load("kill_resume").get("settings", {})
    records.save(
        "kill_resume", {"seed": arguments.seed, "settings": others | rows}
    )
    return 0 if all(map(passed, rows.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
