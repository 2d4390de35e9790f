import dataclasses

import pytest

from examples.translation.config import OPTIMIZERS
from examples.translation.config import PRESETS
from examples.translation.config import TranslationConfig
from examples.translation.errors import UserError
from examples.translation.optimizers import OPTIMIZERS as OPTIMIZER_ROWS


def test_presets_have_the_paper_sizes():
    base = TranslationConfig.from_preset("base")
    big = TranslationConfig.from_preset("big")
    assert (base.num_layers, base.model_dim, base.ff_dim, base.num_heads) == (
        (6, 512, 2_048, 8)
    )
    assert (big.num_layers, big.model_dim, big.ff_dim, big.num_heads) == (
        (6, 1_024, 4_096, 16)
    )
    assert (base.dropout, big.dropout) == (0.1, 0.3)
    assert (base.steps, big.steps) == (100_000, 300_000)
    assert (base.vocab_size, base.tokens_per_batch) == (37_000, 25_000)


def test_defaults_are_the_tiny_preset():
    assert TranslationConfig() == TranslationConfig.from_preset("tiny")


@pytest.mark.parametrize("preset", PRESETS)
def test_json_round_trip_is_exact(preset):
    config = TranslationConfig.from_preset(preset, learning_rate=0.1, seed=3)
    assert TranslationConfig.from_json(config.to_json()) == config


def test_every_field_is_described():
    for field in dataclasses.fields(TranslationConfig):
        assert field.metadata["description"].endswith("."), field.name


def test_every_optimizer_name_has_a_row():
    assert set(OPTIMIZERS) == set(OPTIMIZER_ROWS)


def test_batch_size_takes_the_place_of_tokens_per_batch():
    config = TranslationConfig.from_preset("base", batch_size=32)
    assert (config.batch_size, config.tokens_per_batch) == (32, None)


def test_tokens_per_batch_takes_the_place_of_batch_size():
    config = TranslationConfig.from_preset("tiny", tokens_per_batch=2_000)
    assert (config.batch_size, config.tokens_per_batch) == (None, 2_000)


def test_max_length_cuts_and_extends_the_buckets():
    shorter = TranslationConfig.from_preset("base", max_length=100)
    longer = TranslationConfig.from_preset("tiny", max_length=100)
    assert shorter.bucket_lengths == (32, 64, 100)
    assert longer.bucket_lengths == (32, 64, 100)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"optimizer": "adamax"},
            r"--optimizer must be one of adafactor, .*Received: adamax",
        ),
        ({"norm": "rms"}, r"--norm must be one of pre, post. Received: rms"),
        ({"dropout": 1.0}, r"--dropout must be less than 1.0. Received: 1.0"),
        ({"steps": 0}, r"--steps must be at least 1. Received: 0"),
        ({"steps": 2.5}, r"--steps must be a whole number. Received: 2.5"),
        (
            {"dropout": "much"},
            r"--dropout must be a number. Received: much",
        ),
        (
            {"learning_rate": float("inf")},
            r"--learning_rate must be a finite number. Received: inf",
        ),
        (
            {"length_penalty": float("nan")},
            r"--length_penalty must be a finite number. Received: nan",
        ),
        ({"seed": 2**32}, r"--seed must be less than 4294967296."),
        (
            {"model_dim": 130},
            r"--model_dim must be a multiple of --num_heads \(4\)",
        ),
        (
            {"batch_size": 8, "tokens_per_batch": 100},
            r"Give one of --batch_size and --tokens_per_batch",
        ),
        (
            {"bucket_lengths": (64, 32)},
            r"--bucket_lengths must be increasing, .*Received: 64,32",
        ),
        (
            {"bucket_lengths": (16, 32)},
            r"ending in --max_length \(64\)",
        ),
        (
            {"average_checkpoints": 6},
            r"--average_checkpoints must be at most --keep_checkpoints \(5\)",
        ),
        (
            {"strategy": "tpu", "virtual_devices": 2},
            r"--virtual_devices .* cannot go with --strategy tpu",
        ),
        (
            {"model_parallel": 8},
            r"--model_parallel must be a divisor of --num_heads \(4\). "
            "Received: 8",
        ),
        (
            {"model_parallel": 4, "ff_dim": 510},
            r"--model_parallel must be a divisor of --ff_dim \(510\)",
        ),
        (
            {"model_parallel": 2, "strategy": "mirrored"},
            r"--model_parallel .* cannot go with --strategy mirrored",
        ),
        (
            {"sharding": "fully_sharded", "strategy": "default"},
            r"--sharding .* --strategy default. Received: fully_sharded",
        ),
        (
            {"sharding": "replicated", "model_parallel": 2},
            "--model_parallel must be .* 1 with --sharding replicated. "
            "Received: 2",
        ),
        (
            {"sharding": "model_parallel"},
            "--model_parallel must be more than 1 with --sharding "
            "model_parallel",
        ),
        (
            {"steps_per_execution": 3},
            r"--checkpoint_every must be a multiple of --steps_per_execution",
        ),
        (
            {"run_dir": "gs://bucket/run"},
            r"--run_dir must be a local directory. Received: gs://bucket/run",
        ),
        ({"speed": 3}, r"No such setting: speed"),
        (
            {"patience": 5},
            r"--patience must be less than --keep_checkpoints \(5\)",
        ),
        (
            {"init_from": "runs/a", "vocab_size": 3_000},
            r"--init_from brings a vocabulary; .* Received: 3000",
        ),
        (
            {"tokenizer_from": "runs/a", "vocab_size": 3_000},
            r"--tokenizer_from brings a vocabulary; .* Received: 3000",
        ),
        (
            {"tokenizer_from": "runs/a", "init_from": "runs/b"},
            r"--init_from .* cannot go with --tokenizer_from",
        ),
    ],
)
def test_wrong_values_are_named(overrides, message):
    with pytest.raises(UserError, match=message):
        TranslationConfig.from_preset("tiny", **overrides)


def test_unknown_preset_is_named():
    with pytest.raises(UserError, match="one of tiny, base, big. .*: huge"):
        TranslationConfig.from_preset("huge")


def test_a_longer_run_does_not_conflict():
    config = TranslationConfig()
    longer = dataclasses.replace(config, steps=5_000, beam_size=1)
    assert longer.conflicts(config) == []


def test_conflicts_name_what_changes_the_run():
    config = TranslationConfig()
    other = dataclasses.replace(config, dropout=0.2, steps=5_000)
    assert other.conflicts(config) == [("dropout", 0.2, 0.0)]
