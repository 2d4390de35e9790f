"""Loss scaling, and sparse gradients."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_adafactor import Adafactor
from tests.fit.common import MATRIX
from tests.fit.common import SHAPES
from tests.fit.common import STARTS
from tests.fit.common import assert_close
from tests.fit.common import assert_equal
from tests.fit.common import expected
from tests.fit.common import fit_tokens
from tests.fit.common import fit_without_finalizing
from tests.probe import as_numpy
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model
from tests.probe import slot
from tests.probe import weights

SPARSE_SETTINGS = [
    {},
    {"clipnorm": 0.1},
    {"global_clipnorm": 0.1},
    {"clipvalue": 0.01},
    {"loss_scale_factor": 1024.0},
    {"weight_decay": 0.1},
    {"gradient_accumulation_steps": 2},
    {"skip_nonfinite": "step"},
    {"skip_nonfinite": None, "use_ema": True},
    {"factored": False, "beta_1": 0.9},
]


@pytest.mark.parametrize("setting", SPARSE_SETTINGS, ids=str)
def test_repeated_embedding_rows_equal_the_dense_gradient(setting):
    sparse = fit_tokens(Adafactor(0.1, **setting))
    dense = fit_tokens(Adafactor(0.1, **setting), one_hot=True)
    for a, b in zip(sparse.get_weights(), dense.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_loss_scale_factor_changes_nothing_but_the_loss():
    plain = fit_tokens(Adafactor(0.1))
    scaled = fit_tokens(Adafactor(0.1, loss_scale_factor=2.0**12))
    for a, b in zip(scaled.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_loss_scale_factor_is_taken_out_in_float32():
    # 2 ** -30 is nothing in float16; scaled by 2 ** 20 it is 2 ** -10.
    keras.config.set_dtype_policy("float16")
    start = {"encoder": MATRIX}
    model = probe_model(start, Adafactor(loss_scale_factor=2.0**20))
    model.optimizer.build(model.trainable_variables)
    row = np.full(MATRIX.shape, 2.0**-10, dtype="float16")
    model.optimizer.apply([ops.convert_to_tensor(row)])
    np.testing.assert_allclose(
        slot(model.optimizer, "v_row", "encoder/w"), 2.0**-60, rtol=1e-3
    )


def test_overflow_under_loss_scaling_leaves_everything_as_it_was():
    keras.config.set_dtype_policy("mixed_float16")
    optimizer = Adafactor(beta_1=0.9, use_ema=True, skip_nonfinite=None)
    model = probe_model(STARTS, optimizer)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    good = gradients(1, SHAPES)
    # The default scale of 2 ** 15 overflows float16 at first.
    wild = {name: g * 0 + 50.0 for name, g in good.items()}

    def kept():
        inner = {v.path: as_numpy(v) for v in optimizer.variables}
        return weights(model) | inner

    model.optimizer.build(model.trainable_variables)
    before = kept()
    fit_without_finalizing(model, wild)
    assert_equal(kept(), before)
    assert float(as_numpy(model.optimizer.dynamic_scale)) == 2.0**14
    small = {name: g * 1e-3 for name, g in good.items()}
    fit_without_finalizing(model, small)
    after = kept()
    assert int(as_numpy(optimizer.iterations)) == 1
    assert (after["encoder"] != before["encoder"]).any()
    assert np.isfinite(after["encoder"]).all()


def test_loss_scale_optimizer_equals_no_scaling():
    given = gradients(3, SHAPES)
    wrapped = probe_model(
        STARTS, keras.optimizers.LossScaleOptimizer(Adafactor(0.1))
    )
    fit(wrapped, given)
    assert_close(weights(wrapped), expected(given, learning_rate=0.1))
