"""Weights of low precision, and of high."""

import keras
import numpy as np
import pytest

from keras_adafactor import Adafactor
from tests.fit.common import MATRIX
from tests.fit.common import SHAPES
from tests.fit.common import STARTS
from tests.fit.common import assert_close
from tests.fit.common import expected
from tests.fit.common import oracle_of
from tests.probe import as_numpy
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model
from tests.probe import weights

BACKEND = keras.backend.backend()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_weights_move_as_far_as_float32_ones(dtype):
    keras.config.set_dtype_policy(dtype)
    ones = {"encoder": np.ones((64, 64))}
    constant = {"encoder": np.ones((100, 64, 64), "float32")}
    optimizer = Adafactor(1e-3, beta_1=0.9)
    model = probe_model(ones, optimizer)
    fit(model, constant)
    oracle = oracle_of(ones["encoder"], learning_rate=1e-3, beta_1=0.9)
    for g in constant["encoder"]:
        oracle.step(g)
    # 4096 weights: the noise of their mean is some 1e-4.
    assert weights(model)["encoder"].mean() == pytest.approx(
        oracle.x.mean(), abs=5e-4
    )
    assert model.trainable_variables[0].dtype == dtype
    for slots in dict(optimizer.slots()).values():
        assert {v.dtype for v in slots.values()} == {"float32"}


def test_rounding_to_nearest_never_moves_a_bfloat16_weight():
    keras.config.set_dtype_policy("bfloat16")
    model = probe_model(
        {"encoder": np.ones(8)}, Adafactor(1e-3, stochastic_rounding=False)
    )
    fit(model, {"encoder": np.ones((20, 8), "float32")})
    np.testing.assert_array_equal(weights(model)["encoder"], np.ones(8))


def test_float16_weights_survive_zero_and_tiny_gradients():
    keras.config.set_dtype_policy("float16")
    model = probe_model({"encoder": MATRIX}, Adafactor())
    rows = np.stack([MATRIX * 0, MATRIX * 0 + 6e-8, MATRIX * 0 + 6e4])
    fit(model, {"encoder": rows})
    assert np.isfinite(weights(model)["encoder"]).all()
    assert int(as_numpy(model.optimizer.skipped_updates)) == 0


@pytest.mark.skipif(
    BACKEND == "jax", reason="JAX has no float64 unless jax_enable_x64 is set."
)
@pytest.mark.parametrize("accumulate", [None, 2])
def test_float64_weights_stay_float64(accumulate):
    keras.config.set_dtype_policy("float64")
    given = gradients(4, SHAPES)
    given = {name: np.repeat(g, accumulate or 1, 0)
             for name, g in given.items()}  # fmt: skip
    model = probe_model(
        STARTS, Adafactor(0.1, gradient_accumulation_steps=accumulate)
    )
    fit(model, given)
    once = {name: g[:: accumulate or 1] for name, g in given.items()}
    assert_close(weights(model), expected(once, learning_rate=0.1), 1e-7)
    assert model.trainable_variables[0].dtype == "float64"


def test_mixed_bfloat16_equals_float32_on_exact_gradients():
    keras.config.set_dtype_policy("mixed_bfloat16")
    given = {
        name: np.round(g * 4) for name, g in gradients(3, SHAPES).items()
    }  # fmt: skip
    given = {name: np.clip(g, -128, 128) for name, g in given.items()}
    model = probe_model(STARTS, Adafactor())
    fit(model, given)
    assert_close(weights(model), expected(given))
