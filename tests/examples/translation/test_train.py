import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time
import warnings

import keras
import numpy as np
import pytest
import sacrebleu

from examples.translation import runs
from examples.translation import train as job
from examples.translation.checkpoint import Checkpoints
from examples.translation.devices import Devices
from examples.translation.errors import UserError
from examples.translation.synthetic import grammar
from examples.translation.tokenizer import Tokenizer
from examples.translation.train import train
from tests.examples.translation.wmt14_files import prepare_wmt14
from tests.harness import once_on

BACKEND = keras.backend.backend()
TIMES = ("seconds", "tokens_per_second")


def checkpoint(run_dir, step=20):
    """All bits of a checkpoint, and its history without the times."""
    checkpoints = Checkpoints.of(pathlib.Path(run_dir) / "checkpoints")
    description = checkpoints.describe(step)
    values = {
        f"{group}/{index}": array.tobytes()
        for group, arrays in checkpoints.arrays(step).items()
        for index, array in enumerate(arrays)
    }
    history = [
        {name: value for name, value in row.items() if name not in TIMES}
        for row in description["training"]["history"]
    ]
    return values, description["variables"], history


def fit_only(config):
    """Trains without the evaluation at the end, which takes its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job.Job, "finish", lambda self: None)
        train(config)


# The command line, in the foreground: a shell's job in the background ignores
# Ctrl-C, and what is started by it does.
PROGRAM = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("examples.translation", run_name="__main__", alter_sys=True)
"""


def stop(config, signal_number, *, after, log):
    """Runs the command line until a checkpoint is there, and signals it.

    Args:
        config: Of the run.
        signal_number: What to send.
        after: Step of the checkpoint.
        log: File for what it prints.

    Returns:
        Its exit status.
    """
    flags = [
        f"--{name}={str(value).strip('[]')}"
        for name, value in json.loads(config.to_json()).items()
        if value is not None
    ]
    path = pathlib.Path(config.run_dir, "checkpoints", f"step_{after:08d}")
    with open(log, "a") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "train", *flags],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            while not path.exists():
                assert process.poll() is None, log.read_text()
                time.sleep(0.01)
            process.send_signal(signal_number)
            return process.wait(timeout=120)
        finally:
            process.kill()


def test_a_run_leaves_what_its_user_needs(finished_run):
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert "synthetic" in metrics["data"]
    assert metrics["steps"] == 20
    assert metrics["training_seconds"] < metrics["process_seconds"]
    assert metrics["versions"]["sacrebleu"] == sacrebleu.__version__
    assert "commit" in metrics
    assert metrics["config"]["optimizer"] == "adafactor"
    assert metrics["optimizer_state_bytes"] < 0.1 * metrics["adam_state_bytes"]
    assert set(metrics["scores"]) == {"final", "avg4"}
    assert metrics["saved_weights"] in metrics["scores"]
    for splits in metrics["scores"].values():
        assert list(splits) == ["test", "test_compositional", "test_long"]
        for score in splits.values():
            assert score["sentences"] == 4
            assert 0 <= score["bleu"] <= 100
            assert "version" in score["bleu_signature"]
    for name in (
        "config.json",
        "tokenizer.model",
        "history.csv",
        "loss.png",
        "model.keras",
        "tensorboard",
    ):
        assert (finished_run / name).exists(), name


def test_a_run_learns(finished_run):
    _, _, history = checkpoint(finished_run)
    assert [row["step"] for row in history] == [5, 10, 15, 20]
    losses = [row["loss"] for row in history]
    assert losses == sorted(losses, reverse=True)
    assert history[-1]["val_loss"] < losses[0] - 0.3
    assert ["val_bleu" in row for row in history] == [False, True] * 2


@once_on("jax")
def test_every_kind_of_state_continues(small_config, tmp_path):
    """Cut at step 4, in the middle of an accumulation."""
    for name, stops in (("straight", [8]), ("cut", [4, 8])):
        for steps in stops:
            fit_only(
                small_config(
                    steps=steps,
                    checkpoint_every=4,
                    bleu_every=0,
                    optimizer="adam",
                    gradient_accumulation_steps=3,
                    mixed_precision="float16",
                    batching="pack",
                    run_dir=str(tmp_path / name),
                )
            )
    straight, cut = (
        checkpoint(tmp_path / name, step=8) for name in ("straight", "cut")
    )
    assert straight == cut


@pytest.mark.parametrize(
    ("signal_number", "name", "status"),
    [
        (signal.SIGTERM, "SIGTERM", 0),
        pytest.param(
            *(signal.SIGINT, "Ctrl-C", 130),
            marks=pytest.mark.skipif(
                BACKEND == "jax",
                reason="Ctrl-C is caught alike on every backend: "
                "KERAS_BACKEND=tensorflow runs this.",
            ),
        ),
    ],
)
def test_a_stopped_run_continues_bit_for_bit(
    finished_run, small_config, tmp_path, signal_number, name, status
):
    config = small_config()
    log = tmp_path / "log"
    assert stop(config, signal_number, after=5, log=log) == status
    assert f"Stopped by {name}. The same command continues" in log.read_text()
    assert "Traceback" not in log.read_text()
    fit_only(config)
    values, variables, history = checkpoint(tmp_path)
    straight_values, straight_variables, straight = checkpoint(finished_run)
    assert (values, variables) == (straight_values, straight_variables)
    # The signal may have cut the second interval; the others are whole.
    assert history[0] == straight[0]
    assert history[2:] == straight[2:]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dropout": 0.2}, r"started with --dropout 0.1 \(received 0.2\)"),
        ({"optimizer": "adam"}, r"--optimizer adafactor \(received adam\)"),
        ({"vocab_size": 600}, r"--vocab_size 500 \(received 600\)"),
    ],
)
def test_another_run_is_not_continued(
    finished_run, small_config, overrides, message
):
    before = (finished_run / "config.json").read_text()
    with pytest.raises(UserError, match=message):
        train(small_config(run_dir=str(finished_run), **overrides))
    assert (finished_run / "config.json").read_text() == before


def test_fewer_steps_than_are_done_are_refused(finished_run, small_config):
    def stamps():
        return {
            path: path.stat().st_mtime_ns
            for path in finished_run.rglob("*")
            if path.is_file() and path.name != ".lock"
        }

    before = stamps()
    with pytest.raises(UserError, match="at least the 20 .* Received: 5"):
        train(small_config(run_dir=str(finished_run), steps=5))
    assert stamps() == before


def test_other_sentences_are_refused(
    finished_run, small_config, tmp_path, monkeypatch
):
    """The configuration is the same, what it names has changed."""
    before = (finished_run / "tokenizer.model").read_bytes()
    for name in ("source", "target"):
        (tmp_path / name).write_text(
            "".join(f"{name} sentence number {i}\n" for i in range(900))
        )
    files = {
        f"{split}_{side}": str(tmp_path / side)
        for split in ("train", "validation", "test")
        for side in ("source", "target")
    }
    config = small_config(run_dir=str(finished_run), data="text", **files)
    with pytest.raises(UserError, match="its corpus fingerprint is"):
        train(config)
    assert (finished_run / "tokenizer.model").read_bytes() == before


@once_on("tensorflow")
def test_a_run_starts_from_the_weights_of_another(
    finished_run, small_config, tmp_path, monkeypatch
):
    """A step of no size leaves them as they were, and nothing is warned of."""
    warnings.simplefilter("error", UserWarning)
    monkeypatch.setattr(
        job.Job, "finish", lambda self: weights.append(self.model.get_weights())
    )
    weights = []
    settings = {"steps": 1, "optimizer": "sgd", "learning_rate": 0.0}
    settings |= {"bleu_every": 0, "dropout": 0.0}
    config = small_config(**settings)
    config = dataclasses.replace(config, init_from=str(finished_run))
    train(config)
    model = keras.models.load_model(finished_run / "model.keras", compile=False)
    for new, old in zip(*weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    assert (tmp_path / "tokenizer.model").read_bytes() == (
        finished_run / "tokenizer.model"
    ).read_bytes()
    with pytest.raises(UserError, match="--init_from .* .received None."):
        train(dataclasses.replace(config, init_from=None))


def test_weights_that_do_not_fit_are_refused(
    finished_run, small_config, tmp_path
):
    def start(run_dir, **overrides):
        config = small_config(**overrides)
        train(dataclasses.replace(config, init_from=str(run_dir)))

    with pytest.raises(UserError, match=r"--model_dim 32 \(received 64\)"):
        start(finished_run, model_dim=64)
    with pytest.raises(UserError, match="Cannot load vocabulary"):
        start(tmp_path / "none")
    for name in ("config.json", "tokenizer.model"):
        (tmp_path / "unfinished").mkdir(exist_ok=True)
        (tmp_path / "unfinished" / name).symlink_to(finished_run / name)
    with pytest.raises(
        UserError, match="unfinished is not finished: it has no"
    ):
        start(tmp_path / "unfinished")


@once_on("tensorflow")
def test_a_run_takes_the_vocabulary_of_another(
    finished_run, small_config, tmp_path
):
    config = small_config(steps=5, bleu_every=0, synthetic_train_size=500)
    fit_only(dataclasses.replace(config, tokenizer_from=str(finished_run)))
    assert (tmp_path / "tokenizer.model").read_bytes() == (
        finished_run / "tokenizer.model"
    ).read_bytes()


@once_on("tensorflow")
def test_patience_ends_a_run_and_offers_the_best_weights(
    small_config, tmp_path, capsys
):
    """Without a learning rate the first loss is the best."""
    config = small_config(
        optimizer="sgd", learning_rate=0.0, patience=2, bleu_every=0
    )
    metrics = train(config)
    assert metrics["steps"] == 15
    assert list(metrics["scores"]) == ["final", "avg3", "best"]
    message = "Stopped after step 15: the validation loss has not fallen for 2"
    assert message in capsys.readouterr().err
    # The same command only scores again.
    assert train(config)["steps"] == metrics["steps"]


def test_one_process_at_a_time(finished_run, small_config):
    config = small_config(run_dir=str(finished_run))
    with runs.locked(finished_run):
        with pytest.raises(UserError, match="Another process is training in"):
            train(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"jit_compile": "on"}, "--jit_compile on"),
        ({"steps_per_execution": 5}, "--steps_per_execution 5"),
        (
            {"optimizer": "adam", "gradient_accumulation_steps": 2},
            "--gradient_accumulation_steps 2 with --optimizer adam",
        ),
    ],
)
def test_what_a_strategy_cannot_do_is_refused(small_config, overrides, message):
    mirrored = Devices("Mirrored", 2, strategy=object(), mirrored=True)
    config = small_config(**overrides)
    with pytest.raises(UserError, match=f"Mirrored cannot do {message}"):
        job.check_devices(config, mirrored)
    job.check_devices(config, Devices("one"))


def test_a_vocabulary_that_cannot_be_split_is_refused(
    small_config, finished_run
):
    tokenizer = Tokenizer.load(finished_run / "tokenizer.model")
    rows = f"{tokenizer.vocab_size:,} rows. Received: 3"
    config = small_config(
        model_parallel=3, num_heads=3, model_dim=36, ff_dim=66
    )
    assert tokenizer.vocab_size % 3
    with pytest.raises(UserError, match=rows):
        job.check_vocabulary(config, tokenizer)


def test_trains_on_what_the_real_wmt14_builder_prepared(
    small_config, monkeypatch, tmp_path
):
    pairs = list(grammar.generate("train", 600))
    held_out = list(grammar.generate("test", 12))
    data_dir = tmp_path / "tensorflow_datasets"
    prepare_wmt14(
        monkeypatch,
        tmp_path / "archives",
        data_dir,
        train=pairs,
        validation=held_out[:6],
        test=held_out[6:],
    )
    config = small_config(
        data="tfds",
        data_dir=str(data_dir),
        run_dir=str(tmp_path / "run"),
        synthetic_train_size=None,
        steps=10,
    )
    train(config)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "wmt14_translate/de-en" in metrics["data"]
    assert metrics["steps"] == 10
    assert metrics["scores"]["final"]["test"]["sentences"] == 4
    history = (tmp_path / "run" / "history.csv").read_text().splitlines()
    losses = [float(row.split(",")[2]) for row in history[1:]]
    assert losses[-1] < losses[0]
