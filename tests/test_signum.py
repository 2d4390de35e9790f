"""Signum: signs, and what it is a case of."""

import numpy as np
import pytest

from keras_adafactor import Signum
from tests import harness
from tests import oracles


def final(optimizer, x, gradients):
    (variable,) = harness.run(
        optimizer, [x], [[g] for g in gradients], harness.MODE
    )
    return harness.values([variable])[0]


def test_is_lion_with_equal_decays():
    x, gradients = harness.problem((3, 40), steps=6, decades=0.0)
    lion = oracles.Lion(x, 1e-3, beta_1=0.8, beta_2=0.8, weight_decay=0.1)
    for g in gradients:
        expected = lion.step(g)
    got = final(Signum(1e-3, beta_1=0.8, weight_decay=0.1), x, gradients)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)


def test_without_momentum_takes_the_sign_of_the_gradient():
    x, gradients = harness.problem((3, 40), steps=1)
    got = final(Signum(0.5, beta_1=None), x, gradients)
    np.testing.assert_array_equal(
        got, x - np.float32(0.5) * np.sign(gradients[0])
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_entries_without_gradient_stay_still(dtype):
    # As many as are stored in 8 bits.
    x, gradients = harness.problem((64, 128), steps=3)
    gradients[:, ::2] = 0.0
    gradients[:, 1] = -0.0
    got = final(Signum(momentum_dtype=dtype), x, gradients)
    np.testing.assert_array_equal(got[::2], x[::2])
    np.testing.assert_array_equal(got[1], x[1])
    assert (got[3::2] != x[3::2]).all()


def test_moves_by_the_learning_rate_whatever_the_gradient():
    sizes = np.float32([1e-30, -1e-10, 1.0, -1e18])
    got = final(Signum(0.25), np.zeros(4, "float32"), [sizes])
    np.testing.assert_array_equal(got, [-0.25, 0.25, -0.25, 0.25])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta_1": 1.0}, "`beta_1` must be a number > 0.0 and < 1.0 or None"),
        ({"momentum_dtype": "float8"}, "`momentum_dtype` must be one of"),
        (
            {"beta_1": None, "momentum_dtype": "int8"},
            "`momentum_dtype` must be left at its default unless `beta_1`",
        ),
        ({"beta_2": 0.9}, "not recognized by Signum"),
    ],
)
def test_refuses_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Signum(**arguments)


@pytest.mark.parametrize("beta_1", [0.9, None])
def test_agrees_with_pytorch_optimizer(beta_1):
    torch = pytest.importorskip("torch", reason="pip install torch")
    theirs = pytest.importorskip(
        "pytorch_optimizer", reason="pip install pytorch_optimizer"
    )
    x, gradients = harness.problem((6, 4), steps=6, decades=0.0)
    weight = torch.nn.Parameter(torch.tensor(x))
    optimizer = theirs.SignSGD(
        [weight], lr=1e-3, momentum=beta_1 or 0.0, weight_decay=0.1
    )
    for g in gradients:
        weight.grad = torch.tensor(g)
        optimizer.step()
    got = final(Signum(1e-3, beta_1, weight_decay=0.1), x, gradients)
    np.testing.assert_allclose(got, weight.detach().numpy(), rtol=1e-6)
