import dataclasses
import math

import keras
import numpy as np
import pytest

import keras_adafactor
from examples.translation.config import OPTIMIZERS
from examples.translation.config import TranslationConfig
from examples.translation.errors import UserError
from examples.translation.optimizers import WarmupRsqrt
from examples.translation.optimizers import build_optimizer
from examples.translation.optimizers import describe_optimizer

CLASSES = {
    "adafactor": keras_adafactor.Adafactor,
    "came": keras_adafactor.CAME,
    "smmf": keras_adafactor.SMMF,
    "subset_norm": keras_adafactor.SubsetNorm,
    "subspace_momentum": keras_adafactor.SubspaceMomentum,
    "coap": keras_adafactor.COAP,
    "soap": keras_adafactor.SOAP,
    "hfac": keras_adafactor.HFac,
    "fadam": keras_adafactor.FAdam,
    "signum": keras_adafactor.Signum,
    "adalayer": keras_adafactor.Adalayer,
    "lion": keras_adafactor.Lion,
    "keras_adafactor": keras.optimizers.Adafactor,
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "muon": keras.optimizers.Muon,
    "sgd": keras.optimizers.SGD,
}


def config(optimizer, **overrides):
    return TranslationConfig.from_preset(
        "tiny", optimizer=optimizer, **overrides
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_name_gives_its_class_and_takes_steps(name):
    optimizer = build_optimizer(config(name))
    assert type(optimizer) is CLASSES[name]
    variable = keras.Variable(np.ones((3, 4), "float32"))
    # The first gradient gives SOAP its bases, and moves nothing.
    for _ in range(2):
        optimizer.apply([keras.ops.ones((3, 4))], [variable])
    assert np.mean(keras.ops.convert_to_numpy(variable)) < 1


def test_schedule_warms_up_to_the_peak_and_falls_with_the_root():
    schedule = WarmupRsqrt(peak=0.5, warmup_steps=100)
    rates = [float(schedule(step - 1)) for step in (1, 50, 100, 400)]
    np.testing.assert_allclose(rates, [0.005, 0.25, 0.5, 0.25], rtol=1e-6)


def test_schedule_is_serializable():
    schedule = WarmupRsqrt(peak=0.5, warmup_steps=100)
    optimizer = keras.optimizers.SGD(schedule)
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert copy.get_config() == optimizer.get_config()


@pytest.mark.parametrize("name", ["adafactor", "keras_adafactor"])
def test_adafactor_never_has_a_schedule_of_adam(name):
    optimizer = build_optimizer(config(name))
    assert isinstance(optimizer.get_config()["learning_rate"], float)
    assert optimizer.relative_step


@pytest.mark.parametrize(
    ("preset", "peak", "warmup"),
    [
        ("tiny", (128 * 4_000) ** -0.5, 400),
        ("base", (512 * 4_000) ** -0.5, 4_000),
    ],
)
def test_adam_has_the_transformer_schedule(preset, peak, warmup):
    settings = TranslationConfig.from_preset(preset, optimizer="adam")
    schedule = build_optimizer(settings).get_config()["learning_rate"]
    assert schedule["config"] == {"peak": peak, "warmup_steps": warmup}


@pytest.mark.parametrize("step", [1, 10, 400, 10_000])
def test_schedule_is_that_of_the_optimizer(step):
    adafactor = build_optimizer(config("adafactor", learning_rate=0.02))
    adafactor.iterations.assign(step - 1)
    assert float(adafactor.effective_learning_rate) == pytest.approx(
        min(0.02, 1 / math.sqrt(step))
    )
    adam = build_optimizer(config("adam", learning_rate=0.02))
    adam.iterations.assign(step - 1)
    warming, falling = step / 400, math.sqrt(400 / step)
    assert float(adam.learning_rate) == pytest.approx(
        0.02 * min(warming, falling)
    )


def test_adafactor_takes_a_warmup():
    settings = config("adafactor", learning_rate=0.01, warmup_steps=100)
    assert build_optimizer(settings).warmup_steps == 100
    assert "100 steps of warm-up" in describe_optimizer(settings)


def test_keras_adafactor_refuses_a_warmup():
    with pytest.raises(UserError, match="--warmup_steps must be 0 .*: 5"):
        build_optimizer(config("keras_adafactor", warmup_steps=5))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_settings_reach_every_optimizer(name):
    settings = config(
        name,
        learning_rate=0.5,
        weight_decay=0.1,
        gradient_accumulation_steps=4,
    )
    optimizer = build_optimizer(settings)
    assert optimizer.weight_decay == 0.1
    assert optimizer.gradient_accumulation_steps == 4
    rate = optimizer.get_config()["learning_rate"]
    assert 0.5 in (rate, isinstance(rate, dict) and rate["config"]["peak"])


def test_float16_brings_a_loss_scale():
    settings = config("adafactor", mixed_precision="float16")
    optimizer = build_optimizer(settings)
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    assert isinstance(optimizer.inner_optimizer, keras_adafactor.Adafactor)


def test_description_names_optimizer_rate_and_warmup():
    settings = config("adam", learning_rate=0.25)
    assert describe_optimizer(settings) == (
        "adam, peak learning rate 0.25, falling as 1 / sqrt(t), "
        "400 steps of warm-up"
    )
    settings = dataclasses.replace(settings, optimizer="adafactor")
    assert describe_optimizer(settings) == (
        "adafactor, relative step min(0.25, 1 / sqrt(t)), no warm-up"
    )
