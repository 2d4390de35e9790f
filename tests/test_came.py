"""CAME's own claims: its limits, its long first steps, its dead slices."""

import math

import numpy as np
import pytest

from keras_adafactor import CAME
from keras_adafactor import Adafactor
from keras_adafactor import AxisGroups
from tests import harness
from tests import oracles
from tests.harness import rms
from tests.harness import trace
from tests.test_arguments import NOT_BOOLEANS
from tests.test_arguments import NOT_NUMBERS

MODE = harness.MODE


def noise_gradients(shape, steps, seed=0):
    return np.random.default_rng(seed).normal(size=(steps, *shape))


# Limits.


@pytest.mark.parametrize(
    ("arguments", "weight"),
    [
        ({}, math.sqrt(1e-4)),
        ({"beta_3": 0.995}, math.sqrt(5e-3)),
        ({"debias_beta_3": True}, 1.0),
    ],
)
def test_first_step_of_a_rank_1_gradient_is_its_signs(arguments, weight):
    rng = np.random.default_rng(0)
    g = np.outer(rng.uniform(1, 2, 4), rng.uniform(1, 2, 3))
    g = g * rng.choice([-1, 1], size=g.shape)
    (got,) = trace(CAME(1.0, **arguments), np.zeros(g.shape), [g])
    np.testing.assert_allclose(
        got, -np.sign(g) * 0.1 / (0.9 * weight), rtol=2e-5
    )


@pytest.mark.parametrize("shape", [(7,), (6, 9), (2, 3, 4)])
def test_is_adafactor_with_momentum_where_confidence_is_equal(shape):
    # Every update is clipped, so that it does not matter that the second
    # moment of one is bias-corrected; `s` is all `epsilon_2`.
    x, gradients = harness.problem(shape)
    shared = {"beta_1": 0.9, "beta_2": 0.999, "clip_threshold": 1e-3}
    confidence = 1e3 if len(shape) > 1 else 1.0
    ours = CAME(0.1 * confidence, epsilon_2=1e6, debias_beta_3=True, **shared)
    theirs = Adafactor(
        0.1, relative_step=False, multiply_by_parameter_scale=False, **shared
    )
    for a, b in zip(
        trace(ours, x, gradients), trace(theirs, x, gradients), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_slices_of_a_batch_axis_are_variables_of_their_own():
    x, gradients = harness.problem((3, 4, 5), steps=5)
    groups = AxisGroups(rows=(1,), cols=(2,), batch=(0,))
    together = trace(CAME(axis_groups=groups), x, gradients)[-1]
    apart = [trace(CAME(), x[i], gradients[:, i])[-1] for i in range(3)]
    np.testing.assert_allclose(together, apart, atol=1e-6)


def test_a_matrix_of_one_column_is_a_vector():
    x, gradients = harness.problem((6, 1), steps=5)
    matrix = trace(CAME(), x, gradients)[-1]
    vector = trace(CAME(), x[:, 0], gradients[..., 0])[-1]
    np.testing.assert_array_equal(matrix[:, 0], vector)


# Hazards.


def test_first_steps_are_long_unless_the_confidence_is_corrected():
    gradients = noise_gradients((64, 64), 100)
    x = np.zeros((64, 64))
    length = {}
    for debias in (False, True):
        optimizer = CAME(1.0, debias_beta_3=debias)
        xs = [x, *trace(optimizer, x, gradients, MODE)]
        length[debias] = [rms(b - a) for a, b in zip(xs, xs[1:], strict=False)]
    first = 0.1 / (0.9 * math.sqrt(1e-4))
    assert length[False][0] == pytest.approx(first, rel=0.02)  # 11.1
    assert length[False][9] == pytest.approx(7.4, rel=0.1)
    assert length[False][99] == pytest.approx(2.5, rel=0.1)
    assert length[True][0] == pytest.approx(0.1 / 0.9, rel=0.02)
    assert max(length[True]) < 0.5


@pytest.mark.parametrize("mode", harness.MODES)
def test_dead_rows_and_columns_stay_and_come_back(mode):
    # The product of two dead statistics, of 1e-33, is no float32; nor is that
    # of two confidences, of 1e-20.
    x, gradients = harness.problem((6, 8), steps=30, decades=1.0)
    gradients[:20, 2] = 0
    gradients[:20, :, 5] = 0
    optimizer, oracle = CAME(), oracles.CAME(x, rows=(0,), cols=(1,))
    trajectory = trace(optimizer, x, gradients, mode)
    for t, (g, got) in enumerate(zip(gradients, trajectory, strict=True)):
        expected = oracle.step(g)
        assert np.isfinite(got).all()
        if t < 20:
            np.testing.assert_array_equal(got[2], x[2])
            np.testing.assert_array_equal(got[:, 5], x[:, 5])
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert not np.array_equal(trajectory[-1][2], x[2])


def test_a_constant_gradient_does_not_run_away():
    # Updates come to equal their momentum, but `s` remembers that they did
    # not.
    g = np.outer([1.0, 2.0, 3.0], [1.0, -1.0, 0.5, 2.0])
    x = np.zeros(g.shape)
    optimizer, oracle = CAME(1.0), oracles.CAME(x, 1.0, rows=(0,), cols=(1,))
    xs = [x, *trace(optimizer, x, [g] * 200, MODE)]
    for _ in range(200):
        expected = oracle.step(g)
    np.testing.assert_allclose(xs[-1], expected, rtol=1e-4)
    assert 40 < rms(xs[-1] - xs[-2]) < 60


# Arguments.

DECAYS = (None, *NOT_NUMBERS, 0.0, 0, 1, 1.5, -0.1)
WRONG = {
    "learning_rate": (None, *NOT_NUMBERS, -0.1),
    "beta_1": DECAYS,
    "beta_2": DECAYS,
    "beta_3": DECAYS,
    "epsilon_1": (None, *NOT_NUMBERS, 0.0, -1e-30),
    "epsilon_2": (None, *NOT_NUMBERS, 0.0, -1e-16),
    "clip_threshold": (*NOT_NUMBERS, 0.0, -1.0),
    "debias_beta_3": NOT_BOOLEANS,
    "axis_groups": (None, 3, "diagonal", (0, 1)),
    "momentum_dtype": (None, "float16", "int4", np.int8),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_argument_is_named_with_its_value(name):
    for value in WRONG[name]:
        harness.assert_refused(CAME, name, value)


# Momentum in less than float32.


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("bfloat16", 0.01), ("int8", 0.05)]
)
def test_low_precision_momentum_stays_close_to_float32(dtype, tolerance):
    x, gradients = harness.problem((64, 512), steps=20)
    full = trace(CAME(), x, gradients, MODE)[-1]
    low = trace(CAME(momentum_dtype=dtype), x, gradients, MODE)[-1]
    assert 0 < rms(low - full) <= tolerance * rms(full - x)
    # Unbiased: the error is no drift.
    assert abs((low - full).mean()) <= 0.1 * rms(low - full)


# Other implementations.


@pytest.mark.parametrize("shape", [(), (7,), (6, 9), (2, 3, 4)])
def test_equals_pytorch_optimizer(shape):
    x, gradients = harness.problem(shape, steps=5)
    theirs = harness.pytorch_trace(
        "CAME", x, gradients, lr=2e-3, weight_decay=0.1
    )
    optimizer = CAME(2e-3, weight_decay=0.1, axis_groups="last_two")
    ours = trace(optimizer, x, gradients)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)
