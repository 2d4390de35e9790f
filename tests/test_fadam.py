"""FAdam's own claims: its limits, its epsilons, what its decay falls on."""

import math

import numpy as np
import pytest

from keras_adafactor import FAdam
from keras_adafactor.optimizers.fadam import EPSILON_MODES
from tests import harness
from tests import oracles
from tests.harness import rms
from tests.harness import slot
from tests.harness import trace
from tests.test_arguments import NOT_BOOLEANS
from tests.test_arguments import NOT_NUMBERS

MODE = harness.MODE
modes = pytest.mark.parametrize("epsilon_mode", EPSILON_MODES)


# Limits.


@pytest.mark.parametrize("shape", [(), (7,), (6, 9)])
def test_without_momentum_clip_and_decay_is_adam(shape):
    x, gradients = harness.problem(shape)
    adam = oracles.Adam(x, 1e-3, beta_1=0.0, beta_2=0.999, epsilon=1e-8)
    optimizer = FAdam(beta_1=1e-12, clip_threshold=None, weight_decay=0.0)
    for g, got in zip(gradients, trace(optimizer, x, gradients), strict=True):
        np.testing.assert_allclose(got, adam.step(g), atol=2e-6)


@modes
def test_epsilons_agree_on_gradients_of_unit_size(epsilon_mode):
    x, gradients = harness.problem((6, 9), steps=5)
    gradients = [g / rms(g) for g in gradients]
    latest = FAdam(epsilon=1e-3)
    other = FAdam(epsilon=1e-3, epsilon_mode=epsilon_mode)
    np.testing.assert_allclose(
        trace(other, x, gradients), trace(latest, x, gradients), rtol=1e-6
    )


@modes
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_epsilon_follows_the_size_of_the_gradient(epsilon_mode, size):
    x, gradients = harness.problem((6, 9), steps=3, scale=size, decades=0.0)
    gradients[2] = 0
    arguments = {"epsilon": 0.1, "epsilon_2": 0.5, "clip_threshold": None}
    oracle = oracles.FAdam(x, epsilon_mode=epsilon_mode, **arguments)
    optimizer = FAdam(epsilon_mode=epsilon_mode, **arguments)
    for g, got in zip(gradients, trace(optimizer, x, gradients), strict=True):
        np.testing.assert_allclose(got, oracle.step(g), rtol=1e-5, atol=1e-6)


# Hazards.


@modes
@pytest.mark.parametrize("mode", harness.MODES)
def test_gradients_of_zero_only_decay(epsilon_mode, mode):
    x = np.array([[1.0, -2.0], [3.0, 0.0]])
    still = trace(
        FAdam(weight_decay=0.0, epsilon_mode=epsilon_mode),
        x,
        np.zeros((3, 2, 2)),
        mode,
    )
    np.testing.assert_array_equal(still[-1], x)
    # No divisor differs from another: what is clipped is the weights.
    optimizer = FAdam(0.1, epsilon_mode=epsilon_mode)
    (decayed,) = trace(optimizer, x, [np.zeros_like(x)], mode)
    np.testing.assert_allclose(decayed, x - 0.1 * 0.1 * x / rms(x), rtol=1e-6)
    assert int(optimizer.skipped_updates) == 0
    masked = FAdam(0.1, epsilon_mode=epsilon_mode, mask_decay=True)
    (kept,) = trace(masked, x, [np.zeros_like(x)], mode)
    np.testing.assert_array_equal(kept, x)


@modes
def test_gradients_too_small_to_be_squared_are_no_steps(epsilon_mode):
    x, gradients = harness.problem((4, 5), steps=3, scale=1e-30, decades=0.0)
    optimizer = FAdam(weight_decay=0.0, epsilon_mode=epsilon_mode)
    got = trace(optimizer, x, gradients)[-1]
    assert np.isfinite(got).all()
    assert rms(got - x) <= 3 * 1e-3


def test_weights_without_gradient_take_the_decay_unless_masked():
    g = np.random.default_rng(0).normal(size=(8, 8))
    g[3] = 0
    x = np.ones((8, 8))
    steps = {}
    for name, arguments in {
        "none": {"weight_decay": 0.0},
        "all": {},
        "masked": {"mask_decay": True},
    }.items():
        (got,) = trace(FAdam(1.0, **arguments), x, [g])
        steps[name] = x - got
    decay = steps["all"] - steps["none"]
    # The clip leaves 64 entries an RMS of 1, and these 8 are all of it.
    np.testing.assert_allclose(decay[3], 0.1 * math.sqrt(8), rtol=1e-5)
    assert np.abs(np.delete(decay, 3, 0)).max() < 1e-5
    decay = steps["masked"] - steps["none"]
    np.testing.assert_array_equal(decay[3], 0.0)
    assert (np.delete(decay, 3, 0) > 1e-3).all()
    assert rms(decay) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("threshold", [1.0, 0.25])
def test_decay_is_clipped_apart_from_the_gradient(threshold):
    x, gradients = harness.problem((6, 9), steps=1)
    shared = {"clip_threshold": threshold}
    for scale in (1.0, 100.0):
        (decayed,) = trace(FAdam(1.0, **shared), scale * x, gradients)
        (plain,) = trace(
            FAdam(1.0, weight_decay=0.0, **shared), scale * x, gradients
        )
        assert rms(plain - decayed) == pytest.approx(0.1 * threshold, rel=1e-3)
        assert rms(plain - scale * x) <= 0.1 * threshold * 1.001


def test_excluded_variables_do_not_decay():
    x, gradients = harness.problem((6, 9), steps=3)
    optimizer = FAdam()
    optimizer.exclude_from_weight_decay(var_names=["w0"])
    np.testing.assert_array_equal(
        trace(optimizer, x, gradients),
        trace(FAdam(weight_decay=0.0), x, gradients),
    )
    np.testing.assert_array_equal(
        trace(FAdam(weight_decay=None), x, gradients),
        trace(FAdam(weight_decay=0.0), x, gradients),
    )
    assert FAdam().get_config()["weight_decay"] == 0.1


def test_large_weights_that_never_had_a_gradient_do_not_overflow():
    x = np.full((64, 64), 1e3)
    g = np.zeros((64, 64))
    g[0, 0] = 1e-18
    optimizer = FAdam(epsilon_mode="paper_v3")
    trajectory = trace(optimizer, x, [g, 0 * g], MODE)
    assert np.isfinite(trajectory).all()
    assert int(optimizer.skipped_updates) == 0


# Arguments.

DECAYS = (None, *NOT_NUMBERS, 0.0, 0, 1, 1.5, -0.1)
WRONG = {
    "learning_rate": (None, *NOT_NUMBERS, -0.1),
    "beta_1": DECAYS,
    "beta_2": DECAYS,
    "epsilon": (None, *NOT_NUMBERS, 0.0, -1e-8),
    "epsilon_2": (None, *NOT_NUMBERS, 0.0, -0.01),
    "weight_decay": (*NOT_NUMBERS, -0.1),
    "fisher_exponent": (None, *NOT_NUMBERS, 0.0, 1.5, -0.5),
    "clip_threshold": (*NOT_NUMBERS, 0.0, -1.0),
    "epsilon_mode": (None, "v3", "Latest", 3),
    "mask_decay": NOT_BOOLEANS,
    "momentum_dtype": (None, "float16", "int4", np.int8),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_argument_is_named_with_its_value(name):
    for value in WRONG[name]:
        harness.assert_refused(FAdam, name, value)


# Momentum in less than float32.


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("bfloat16", 0.01), ("int8", 0.05)]
)
def test_low_precision_momentum_stays_close_to_float32(dtype, tolerance):
    x, gradients = harness.problem((64, 512), steps=20)
    full = trace(FAdam(), x, gradients, MODE)[-1]
    optimizer = FAdam(momentum_dtype=dtype)
    low = trace(optimizer, x, gradients, MODE)[-1]
    assert 0 < rms(low - full) <= tolerance * rms(full - x)
    # Unbiased: the error is no drift.
    assert abs((low - full).mean()) <= 0.1 * rms(low - full)
    assert slot(optimizer, "fim").dtype == "float32"


# Other implementations.


@pytest.mark.parametrize("exponent", [0.5, 1.0])
@pytest.mark.parametrize("shape", [(), (7,), (6, 9), (2, 3, 4)])
def test_equals_pytorch_optimizer(shape, exponent):
    x, gradients = harness.problem(shape, steps=5)
    # Its averages are float32 unless it is told otherwise.
    torch = pytest.importorskip("torch", reason="install torch")
    theirs = harness.pytorch_trace(
        "FAdam",
        x,
        gradients,
        p=exponent,
        clip=0.5,
        momentum_dtype=torch.float64,
        fim_dtype=torch.float64,
    )
    optimizer = FAdam(fisher_exponent=exponent, clip_threshold=0.5)
    ours = trace(optimizer, x, gradients)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)
