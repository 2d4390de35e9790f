"""Two hosts train one model, are killed while Orbax writes, and go on.

The hosts are processes of `jax.distributed` on this machine; neither can read
the slots as a whole.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import keras
import pytest

if keras.backend.backend() != "jax":
    pytest.skip(
        "Only JAX trains on several hosts: KERAS_BACKEND=jax runs this.",
        allow_module_level=True,
    )
pytest.importorskip(
    "orbax.checkpoint", reason="`pip install orbax-checkpoint` runs this."
)

from tests.conftest import ROOT
from tests.conftest import SEVERAL_DEVICES
from tests.orbax_job import HOSTS

EPOCHS = 3
PATIENCE = 180  # seconds
# Keras would import TensorFlow too, which takes longer than all else here.
PROGRAM = """
import pathlib, sys
sys.modules["tensorflow"] = None
from tests.orbax_job import run
index, port, directory, epochs = sys.argv[1:]
run(int(index), int(port), pathlib.Path(directory), int(epochs))
"""


def start(directory):
    """Starts both hosts; each writes what it prints into `directory`."""
    directory.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    hosts = []
    for index in range(HOSTS):
        arguments = [index, port, directory, EPOCHS]
        with open(directory / f"log-{index}", "w") as log:
            hosts.append(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, *map(str, arguments)],
                    cwd=ROOT,
                    env=os.environ
                    | SEVERAL_DEVICES
                    | {"TF_CPP_MIN_LOG_LEVEL": "2"},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return hosts


def finish(directory):
    """Runs both hosts to the end.

    Returns:
        For each host, the epoch it began with and what it held at the end.
    """
    hosts = start(directory)
    try:
        for index, host in enumerate(hosts):
            assert host.wait(PATIENCE) == 0, log(directory, index)
    finally:
        kill(hosts)
    ends = []
    for index in range(HOSTS):
        begin = "begins with epoch "
        (line,) = (
            line
            for line in log(directory, index).splitlines()
            if line.startswith(begin)
        )
        end = json.loads((directory / f"end-{index}.json").read_text())
        ends.append((int(line.removeprefix(begin)), end))
    return ends


def log(directory, index):
    return (directory / f"log-{index}").read_text()


def kill(hosts):
    for host in hosts:
        host.kill()
    for host in hosts:
        host.wait()


def kill_in_write(directory):
    """Kills both hosts while they write a checkpoint that is not the first.

    Returns:
        Names of the whole checkpoints, and of those begun.
    """

    def names():
        try:
            found = os.listdir(directory / "checkpoints")
        except FileNotFoundError:
            found = []
        whole = {name for name in found if name.isdigit()}
        return whole, {name for name in found if "orbax-checkpoint-tmp" in name}

    hosts = start(directory)
    give_up = time.monotonic() + PATIENCE
    try:
        while True:
            for index, host in enumerate(hosts):
                assert host.poll() is None, log(directory, index)
            assert time.monotonic() < give_up, log(directory, 0)
            if all(names()):
                for host in hosts:
                    host.send_signal(signal.SIGSTOP)
                if all(names()):
                    break
                for host in hosts:
                    host.send_signal(signal.SIGCONT)
            time.sleep(0.0005)
    finally:
        kill(hosts)
    return names()


def test_two_hosts_killed_in_a_write_end_as_if_left_alone(tmp_path):
    straight = finish(tmp_path / "straight")
    whole, begun = kill_in_write(tmp_path / "killed")
    assert whole and begun
    killed = finish(tmp_path / "killed")
    for (began, alone), (continued, resumed) in zip(
        straight, killed, strict=True
    ):
        assert began == 0
        assert continued == max(map(int, whole)) + 1 < EPOCHS
        # Every slot was beyond the reach of each host.
        assert alone["addressable"] == []
        assert resumed == alone
    kernels = [
        {part for _, end in straight for part, _ in end["digests"][path]}
        for path in straight[0][1]["digests"]
        if path.endswith(("kernel", "kernel_m"))
    ]
    assert [len(parts) for parts in kernels] == [8] * len(kernels)
