"""What is SMMF's own: signs, factors, sizes."""

import numpy as np
import pytest

from keras_adafactor import SMMF
from tests import harness
from tests import oracles


def final(optimizer, x, gradients):
    return harness.trace(optimizer, x, gradients, harness.MODE)[-1]


def resting(steps):
    """Gradients of which some entries are always 0, and a start."""
    x, gradients = harness.problem((6, 4), steps=steps, decades=0.0)
    gradients[:, 2, 1] = gradients[:, 4] = 0.0
    return x, gradients


def test_entries_without_gradient_drift_as_in_the_authors_code():
    x, gradients = resting(5)
    moved = final(SMMF(0.01), x, gradients) - x
    # A sign has no zero: it counts as negative, of its row's and column's size.
    assert moved[2, 1] > 1e-3
    assert not moved[4].any()


def test_three_states_of_a_sign_leave_them_where_they_are():
    x, gradients = resting(5)
    moved = final(SMMF(0.01, zero_sign=True), x, gradients) - x
    assert moved[2, 1] == 0.0
    assert not moved[4].any()
    assert (np.delete(moved.ravel(), [9, 16, 17, 18, 19]) != 0).all()


def test_an_outlier_does_what_it_does_to_the_oracle():
    """Its row and column are quiet, of which V then thinks too little."""
    x, gradients = harness.problem((6, 4), steps=30, decades=0.0)
    gradients[2, 1, 1] = 1e6
    arguments = {"learning_rate": 0.01, "beta_2_decay": -0.8}
    oracle = oracles.SMMF(x, **arguments)
    expected = [oracle.step(g) for g in gradients]
    got = harness.trace(SMMF(**arguments), x, gradients, harness.MODE)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1,), (7, 1), (1, 1), (13,)])
@pytest.mark.parametrize("zero_sign", [False, True])
def test_prime_and_tiny_sizes_step(shape, zero_sign):
    x, gradients = harness.problem(shape, steps=4, decades=0.0)
    moved = final(SMMF(0.01, zero_sign=zero_sign), x, gradients) - x
    assert np.isfinite(moved).all() and (moved != 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta_1": 1.0}, "`beta_1` must be"),
        ({"beta_1_growth": 0.0}, "`beta_1_growth` must be a number > 0.0"),
        ({"beta_1_growth": 1.5}, "`beta_1_growth` must be a number > 0.0"),
        ({"beta_2_decay": 0.5}, "`beta_2_decay` must be a number < 0.0"),
        ({"epsilon": 0.0}, "`epsilon` must be a number > 0.0"),
        ({"zero_sign": 1}, "`zero_sign` must be a boolean"),
        ({"reshape_vectors": None}, "`reshape_vectors` must be a boolean"),
        (
            {"zero_sign": True, "beta_1": None},
            "`zero_sign` must be False unless `beta_1` is given",
        ),
    ],
)
def test_refuses_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SMMF(**arguments)


def test_momentum_with_a_decay_near_1_keeps_its_digits():
    # `g + beta_1 * (m - g)` rounds as `g`, which is 1e7 times `m`, does.
    x, beta_1 = np.zeros(3, "float32"), 1 - 1e-7
    gradients = [np.array([1.0, 10.0, 1000.0], "float32")] * 2
    optimizer = SMMF(
        1e-3, beta_1=beta_1, beta_1_growth=1.0, reshape_vectors=False
    )
    harness.run(optimizer, [x], [[g] for g in gradients], harness.MODE)
    expected = (1 - beta_1**2) * gradients[0].astype("float64")
    np.testing.assert_allclose(harness.slot(optimizer, "m"), expected, 1e-5)
