"""Subset-Norm: subsets, variants, and what it is a case of."""

import numpy as np
import pytest

from keras_adafactor import SubsetNorm
from keras_adafactor.functional import subsets
from tests import harness
from tests import oracles

MODE = harness.MODE


def final(optimizer, x, gradients):
    (variable,) = harness.run(optimizer, [x], [[g] for g in gradients], MODE)
    return harness.values([variable])[0]


def follow(oracle, gradients):
    for g in gradients:
        oracle.step(g)
    return oracle.x


def test_of_single_entries_is_adam_with_epsilon_before_its_correction():
    x, gradients = harness.problem((4, 6), steps=6)
    adam = oracles.Adam(x, 1e-2, 0.9, 0.999, 0.0)
    got = final(SubsetNorm(1e-2, epsilon=1e-30, subsets=1), x, gradients)
    np.testing.assert_allclose(got, follow(adam, gradients), atol=1e-6)


def test_of_one_subset_is_adagrad_norm():
    x, gradients = harness.problem((4, 6), steps=6)
    optimizer = SubsetNorm(0.1, None, variant="adagrad", subsets=24)
    got = final(optimizer, x, gradients)
    expected, squares = x.astype("float64"), 0.0
    for g in gradients.astype("float64"):
        squares += (g**2).sum()
        expected = expected - 0.1 * g / (np.sqrt(squares) + 1e-6)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_rmsprop_is_adam_without_momentum_and_correction():
    x, gradients = harness.problem((4, 6), steps=4)
    left = final(SubsetNorm(variant="rmsprop"), x, gradients)
    adam = SubsetNorm(beta_1=None, bias_correction=False)
    np.testing.assert_array_equal(left, final(adam, x, gradients))


@pytest.mark.parametrize(
    ("shape", "choice", "sizes"),
    [
        # Primes: blocks of one.
        ((7,), 4, (7,)),
        ((13, 1), 5, (13, 1)),
        # The root over q is 0: at least one.
        ((3,), -2, (3,)),
        ((2, 2), -3, (2, 2)),
        ((), -2, (1,)),
        ((), 5, (1,)),
        # More than there are: all of them.
        ((4, 6), 100, (1,)),
        ((4, 6), 12, (2,)),
        ((4, 6), 6, (4, 1)),
        ((4, 6), 5, (6,)),
        ((4, 6), 3, (4, 2)),
        ((6, 6), -2, (6, 2)),
        ((0, 5), 3, (0,)),
    ],
)
def test_blocks_are_of_the_largest_divisor(shape, choice, sizes):
    spec = SubsetNorm(subsets=choice).state_spec(shape, "w")["v"]
    assert spec.shape == sizes
    assert len(spec.axes) == len(sizes)
    x, gradients = harness.problem(shape, steps=2, decades=0.0)
    oracle = oracles.SubsetNorm(x, subsets=choice) if x.size else None
    got = final(SubsetNorm(subsets=choice), x, gradients)
    if oracle:
        np.testing.assert_allclose(got, follow(oracle, gradients), atol=1e-6)


def test_subsets_keep_the_axes_that_they_do_not_cross():
    assert subsets.longer_side((8, 6)).axes == (0,)
    assert subsets.longer_side((6, 8)).axes == (1,)
    assert subsets.longer_side((6, 6)).axes == (0,)
    assert subsets.longer_side((1024, 16, 64)).axes == (0,)
    assert subsets.longer_side((3, 3, 4, 8)).axes == (2, 3)
    assert subsets.blocks((8, 6), 3).axes == (0, None)
    assert subsets.blocks((8, 6), 4).axes == (None,)
    assert subsets.parts((8, 6), 3).axes == (None,)


@pytest.mark.parametrize("variant", ["adam", "adagrad", "rmsprop"])
def test_a_subset_without_gradient_stays_still(variant):
    x, gradients = harness.problem((6, 4), steps=4)
    gradients[:, ::2] = 0.0
    got = final(SubsetNorm(variant=variant), x, gradients)
    np.testing.assert_array_equal(got[::2], x[::2])
    assert (got[1::2] != x[1::2]).all()


@pytest.mark.parametrize("variant", ["adam", "adagrad", "rmsprop"])
def test_steps_are_bounded_after_the_last_gradient_of_a_subset(variant):
    x, gradients = harness.problem((6, 4), steps=300, decades=0.0)
    gradients[3:, 0] = 0.0
    optimizer = SubsetNorm(0.01, variant=variant)
    (variable,) = variables = harness.variables([x])
    step = harness.make_step(optimizer, variables, MODE)
    for g in gradients:
        (before,) = harness.values([variable])
        step([g])
        (after,) = harness.values([variable])
        assert np.isfinite(after).all()
        # RMSProp is not corrected: up to 1 / sqrt(1 - beta_2).
        bound = 0.01 / np.sqrt(1e-3) if variant == "rmsprop" else 0.02
        assert np.abs(after - before).max() <= bound


def test_decays_after_its_step():
    x, gradients = harness.problem((6, 4), steps=1, decades=0.0)
    step = final(SubsetNorm(0.1), x, gradients)
    decayed = final(SubsetNorm(0.1, weight_decay=0.5), x, gradients)
    np.testing.assert_allclose(decayed, step * 0.95, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "sgd"}, "`variant` must be one of 'adam', 'adagrad'"),
        ({"subsets": 0}, "`subsets` must be 'heuristic' or an integer"),
        ({"subsets": 2.0}, "`subsets` must be 'heuristic' or an integer"),
        ({"subsets": True}, "`subsets` must be 'heuristic' or an integer"),
        ({"subsets": "rows"}, "`subsets` must be 'heuristic' or an integer"),
        ({"bias_correction": 1}, "`bias_correction` must be a boolean"),
        (
            {"variant": "adagrad", "bias_correction": True},
            "`bias_correction` must be False or None for variant 'adagrad'",
        ),
        (
            {"variant": "rmsprop", "momentum_dtype": "int8"},
            "`momentum_dtype` must be left at its default",
        ),
        ({"beta_2": 1.0}, "`beta_2` must be a number > 0.0 and < 1.0"),
        ({"epsilon": 0.0}, "`epsilon` must be a number > 0.0"),
    ],
)
def test_refuses_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SubsetNorm(**arguments)


@pytest.mark.parametrize("block", [3, 4, 24])
def test_agrees_with_pytorch_optimizer(block):
    torch = pytest.importorskip("torch", reason="pip install torch")
    theirs = pytest.importorskip(
        "pytorch_optimizer", reason="pip install pytorch_optimizer"
    )
    x, gradients = harness.problem((6, 4), steps=6, decades=0.0)
    weight = torch.nn.Parameter(torch.tensor(x))
    group = {"params": [weight], "sn": True}
    optimizer = theirs.AdamWSN(
        [group], lr=1e-2, weight_decay=0.1, subset_size=block, eps=1e-6
    )
    for g in gradients:
        weight.grad = torch.tensor(g)
        optimizer.step()
    ours = SubsetNorm(1e-2, subsets=block, weight_decay=0.1)
    np.testing.assert_allclose(
        final(ours, x, gradients), weight.detach().numpy(), atol=1e-6
    )
