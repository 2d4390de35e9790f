"""H-Fac's own claims: its limits, its dead slices, its spikes."""

import math

import numpy as np
import pytest

from keras_adafactor import Adafactor
from keras_adafactor import AxisGroups
from keras_adafactor import HFac
from tests import harness
from tests import oracles
from tests.harness import rms
from tests.harness import trace
from tests.test_arguments import NOT_NUMBERS

MODE = harness.MODE


def adafactor(**arguments):
    return Adafactor(
        1e-3,
        beta_2=0.999,
        relative_step=False,
        multiply_by_parameter_scale=False,
        **arguments,
    )


# Limits.


@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("shape", [(), (7,), (6, 9), (2, 3, 4)])
def test_without_momentum_is_adafactor(shape, threshold):
    x, gradients = harness.problem(shape)
    ours = HFac(beta_1=1e-12, clip_threshold=threshold)
    theirs = adafactor(clip_threshold=threshold)
    for a, b in zip(
        trace(ours, x, gradients), trace(theirs, x, gradients), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_first_step_is_adafactors():
    x, gradients = harness.problem((6, 9), steps=1)
    (ours,) = trace(HFac(), x, gradients)
    (theirs,) = trace(adafactor(), x, gradients)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_kept_and_batch_axes_have_statistics_of_their_own():
    # Without clipping, both are a matrix for each index.
    x, gradients = harness.problem((3, 4, 5), steps=5)
    unclipped = {"clip_threshold": None}
    apart = [
        trace(HFac(**unclipped), x[i], gradients[:, i])[-1] for i in range(3)
    ]
    for batch in ((), (0,)):
        groups = AxisGroups(rows=(1,), cols=(2,), batch=batch)
        optimizer = HFac(axis_groups=groups, **unclipped)
        together = trace(optimizer, x, gradients)[-1]
        np.testing.assert_allclose(together, apart, atol=1e-6)


def test_slices_of_a_batch_axis_are_clipped_apart():
    x, gradients = harness.problem((3, 4, 5), steps=5)
    groups = AxisGroups(rows=(1,), cols=(2,), batch=(0,))
    together = trace(HFac(axis_groups=groups), x, gradients)[-1]
    apart = [trace(HFac(), x[i], gradients[:, i])[-1] for i in range(3)]
    np.testing.assert_allclose(together, apart, atol=1e-6)


def test_kept_axes_are_clipped_together():
    x, gradients = harness.problem((3, 4, 5))
    oracle = oracles.HFac(x, rows=(1,), cols=(2,), clip_threshold=0.5)
    optimizer = HFac(axis_groups="last_two", clip_threshold=0.5)
    for g in gradients:
        expected = oracle.step(g)
    got = trace(optimizer, x, gradients)[-1]
    np.testing.assert_allclose(got, expected, atol=2e-6)


# Hazards.


@pytest.mark.parametrize("mode", harness.MODES)
def test_dead_rows_and_columns_are_no_quotient_of_zeros(mode):
    # The product of two dead statistics, of 1e-30, is no float32.
    x, gradients = harness.problem((6, 8), steps=30, decades=1.0)
    gradients[:20, 2] = 0
    gradients[:20, :, 5] = 0
    oracle = oracles.HFac(x, rows=(0,), cols=(1,))
    trajectory = trace(HFac(), x, gradients, mode)
    for t, (g, got) in enumerate(zip(gradients, trajectory, strict=True)):
        expected = oracle.step(g)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-6)
        if t < 20:
            # Where both are dead nothing moves.
            assert got[2, 5] == x[2, 5]


def test_a_spike_goes_against_it_then_along_it_within_bounds():
    # Momentum has not seen it, the second moment has.
    calm, spike = 1000, 1e6
    g = np.random.default_rng(0).choice([-1.0, 1.0], size=(calm + 3, 8, 8))
    g[calm] += spike
    x = np.zeros((8, 8))
    xs = trace(HFac(1.0), x, g, MODE)[calm - 1 :]
    steps = [a - b for a, b in zip(xs, xs[1:], strict=False)]
    root = math.sqrt(1e-3 / (1 - 0.999 ** (calm + 1)))
    # `u` itself is clipped to 1. 20.4; 25.6 where bias no longer counts.
    np.testing.assert_allclose(steps[0], 1 - 0.81 / root, rtol=0.01)
    np.testing.assert_allclose(steps[1], 0.081 / root, rtol=0.01)
    np.testing.assert_allclose(steps[2], 0.9 * 0.081 / root, rtol=0.01)
    clipped = trace(HFac(1.0, clipnorm=8.0), x, g, MODE)[calm - 1 :]
    assert np.abs(clipped[1] - clipped[0]).max() < 2


def test_steps_have_an_rms_of_one_learning_rate():
    gradients = np.random.default_rng(0).normal(size=(100, 64, 64))
    x = np.zeros((64, 64))
    xs = [x, *trace(HFac(1.0), x, gradients, MODE)]
    for t in (0, 9, 99):
        assert rms(xs[t + 1] - xs[t]) == pytest.approx(1.0, rel=0.03)


# Arguments.

DECAYS = (None, *NOT_NUMBERS, 0.0, 0, 1, 1.5, -0.1)
WRONG = {
    "learning_rate": (None, *NOT_NUMBERS, -0.1),
    "beta_1": DECAYS,
    "beta_2": DECAYS,
    "epsilon": (None, *NOT_NUMBERS, 0.0, -1e-30),
    "clip_threshold": (*NOT_NUMBERS, 0.0, -1.0),
    "axis_groups": (None, 3, "diagonal", (0, 1)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_argument_is_named_with_its_value(name):
    for value in WRONG[name]:
        harness.assert_refused(HFac, name, value)
