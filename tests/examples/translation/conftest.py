"""A small run of the real job, and the settings that make it small."""

import fcntl
import os

import keras
import pytest

from examples.translation.config import TranslationConfig
from examples.translation.train import train

# XLA's compiler takes longer than these runs; JAX has nothing else.
JIT_COMPILE = "off" if keras.backend.backend() == "tensorflow" else "auto"

SETTINGS = {
    "data": "synthetic",
    "synthetic_train_size": 600,
    "vocab_size": 500,
    "max_length": 96,
    "bucket_lengths": (32, 96),
    "num_layers": 1,
    "model_dim": 32,
    "ff_dim": 64,
    "num_heads": 2,
    "dropout": 0.1,
    "batch_size": 8,
    "steps": 20,
    "checkpoint_every": 5,
    "jit_compile": JIT_COMPILE,
    "bleu_every": 2,
    "bleu_sentences": 4,
    "test_sentences": 4,
    "sample_sentences": 2,
    "evaluation_batch_size": 4,
    "beam_size": 2,
    "max_decode_length": 16,
}


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture
def small_config(data_dir, tmp_path):
    """Returns the configuration of a small run, with fields changed."""

    def make(**overrides):
        settings = {**SETTINGS, "data_dir": data_dir, "run_dir": str(tmp_path)}
        return TranslationConfig.from_preset(**(settings | overrides))

    return make


@pytest.fixture(scope="session")
def finished_run(data_dir, tmp_path_factory):
    """The directory of a finished small run; its tests only read it.

    The first worker that asks makes it, the others wait.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    run_dir = folder / "finished_run"
    with open(folder / "finished_run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (run_dir / "metrics.json").exists():
            train(
                TranslationConfig.from_preset(
                    **SETTINGS, data_dir=data_dir, run_dir=str(run_dir)
                )
            )
    return run_dir
