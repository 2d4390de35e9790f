"""Lion beside its neighbours."""

import keras
import numpy as np
import pytest

from keras_adafactor import Lion
from tests import harness
from tests import oracles

MODE = harness.MODE


def test_of_one_decay_is_signum():
    x, gradients = harness.problem((6, 4), seed=1)
    optimizer = Lion(0.01, beta_1=0.9, beta_2=0.9)
    (got,) = harness.values(
        harness.run(optimizer, [x], [[g] for g in gradients], MODE)
    )
    signum = oracles.Signum(x, learning_rate=0.01, beta_1=0.9)
    for g in gradients:
        expected = signum.step(g)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_equals_that_of_keras():
    x, gradients = harness.problem((6, 4), seed=2)
    steps = [[g] for g in gradients]
    got, expected = (
        harness.values(harness.run(make(0.01, weight_decay=0.1), [x], steps))
        for make in (Lion, keras.optimizers.Lion)
    )
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(
    "arguments", [{"beta_1": 1.0}, {"beta_2": 0.0}, {"momentum_dtype": "int4"}]
)
def test_wrong_arguments_raise(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        Lion(**arguments)
