"""Gradient accumulation."""

import keras
import numpy as np
import pytest

from keras_adafactor import Adafactor
from tests.fit.common import SHAPES
from tests.fit.common import STARTS
from tests.fit.common import assert_close
from tests.fit.common import fit_tokens
from tests.fit.common import fit_without_finalizing
from tests.probe import as_numpy
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model
from tests.probe import state
from tests.probe import weights

ACCUMULATED = [
    {},
    {"weight_decay": 0.3},
    {"clipvalue": 0.5},
    {"global_clipnorm": 0.5},
    {"use_ema": True, "ema_momentum": 0.5},
    {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
    {"beta_1": 0.9},
    {"loss_scale_factor": 64.0},
    {"skip_nonfinite": "step"},
    {"skip_nonfinite": None},
    {"warmup_steps": 3},
]


@pytest.mark.parametrize("setting", ACCUMULATED, ids=str)
def test_accumulation_equals_the_large_batch(setting):
    given = gradients(12, SHAPES)
    large = probe_model(STARTS, Adafactor(0.1, **setting))
    fit(large, given, batch_size=3)
    small = probe_model(
        STARTS, Adafactor(0.1, gradient_accumulation_steps=3, **setting)
    )
    fit(small, given)
    assert_close(weights(small), weights(large))
    assert int(as_numpy(small.optimizer.iterations)) == 4


def test_accumulation_equals_the_large_batch_with_a_schedule():
    def schedule():
        return keras.optimizers.schedules.PolynomialDecay(0.5, 4, 0.01)

    given = gradients(12, SHAPES)
    large = probe_model(STARTS, Adafactor(schedule(), weight_decay=0.3))
    fit(large, given, batch_size=3)
    small = probe_model(
        STARTS,
        Adafactor(schedule(), weight_decay=0.3, gradient_accumulation_steps=3),
    )
    fit(small, given)
    assert_close(weights(small), weights(large))
    assert float(as_numpy(small.optimizer.learning_rate)) == pytest.approx(
        float(as_numpy(large.optimizer.learning_rate))
    )


def test_accumulation_equals_the_large_batch_with_an_embedding():
    large = fit_tokens(Adafactor(0.1), batch_size=4)
    small = fit_tokens(
        Adafactor(0.1, gradient_accumulation_steps=4), batch_size=1
    )
    for a, b in zip(small.get_weights(), large.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_accumulating_steps_change_the_accumulators_alone():
    optimizer = Adafactor(
        beta_1=0.9,
        weight_decay=0.5,
        use_ema=True,
        gradient_accumulation_steps=3,
        record_update_rms=True,
    )
    model = probe_model(STARTS, optimizer)
    given = gradients(5, SHAPES)
    rows = [{name: g[i : i + 1] for name, g in given.items()} for i in range(5)]
    for row in rows[:3]:
        fit_without_finalizing(model, row)
    before = state(model)
    for row in rows[3:]:
        fit_without_finalizing(model, row)
    changed = {
        name.partition(":")[2] or name
        for name, value in state(model).items()
        if (value != before[name]).any()
    }
    prefix = optimizer.name
    assert changed == {
        f"{prefix}/iteration",
        f"{prefix}/encoder_w_gradient_accumulator",
        f"{prefix}/bias_w_gradient_accumulator",
    }


def test_accumulators_of_bfloat16_weights_are_exact():
    steps = 600
    keras.config.set_dtype_policy("bfloat16")
    model = probe_model(
        {"encoder": np.ones(3)}, Adafactor(gradient_accumulation_steps=steps)
    )
    fit(model, {"encoder": np.ones((steps - 1, 3))})
    (accumulator,) = (
        v for v in model.optimizer.variables if "accumulator" in v.path
    )
    np.testing.assert_array_equal(as_numpy(accumulator), np.full(3, 599.0))


def test_accumulators_start_again_after_the_update():
    # Were the first mean left in, the second update would still be positive.
    given = {"encoder": np.array([[8.0], [8.0], [-1.0], [-1.0]])}
    model = probe_model(
        {"encoder": np.ones(1)}, Adafactor(gradient_accumulation_steps=2)
    )
    seen = []
    fit(
        model,
        given,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: seen.append(
                    weights(model)["encoder"].item()
                )
            )
        ],
    )
    assert seen[0] == 1.0
    assert seen[1] == seen[2] < 1.0
    assert seen[3] > seen[2]
