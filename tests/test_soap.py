"""What is SOAP's own: its bases, and where they say nothing."""

import numpy as np
import pytest

from keras_adafactor import SOAP
from tests import harness
from tests import oracles

MODE = harness.MODE


def trace(optimizer, x, gradients):
    return np.array(harness.trace(optimizer, x, gradients, MODE))


def problem(shape=(5, 4), steps=8):
    return harness.problem(shape, steps=steps, decades=0.0)


def slots_after_each(optimizer, x, gradients):
    variables = harness.variables([x])
    step = harness.make_step(optimizer, variables, MODE)
    for g in gradients:
        step([g])
        ((_, slots),) = optimizer.slots()
        values = harness.values([*variables, *slots.values()])
        yield dict(zip(["x", *slots], values, strict=True))


# What it is a case of.


@pytest.mark.parametrize("shape", [(), (3,), (5, 4), (2, 3, 2)])
def test_without_bases_is_adam(shape):
    x, gradients = problem(shape)
    adam = oracles.Adam(x, 1e-2, 0.9, 0.999, 1e-12)
    expected = [adam.step(g) for g in gradients]
    optimizer = SOAP(1e-2, 0.9, 0.999, 1e-12, max_precondition_dim=0)
    # Its first call sets bases up, whether there are any or not.
    got = trace(optimizer, x, [gradients[0], *gradients])
    np.testing.assert_array_equal(got[0], x)
    np.testing.assert_allclose(got[1:], expected, rtol=1e-5, atol=1e-6)


def test_a_column_is_a_vector_that_has_a_basis():
    x, gradients = problem((4, 1))
    column = trace(SOAP(refresh_every=2), x, gradients)
    vector = SOAP(refresh_every=2, precondition_1d=True)
    got = trace(vector, x[:, 0], gradients[:, :, 0])
    np.testing.assert_allclose(got, column[:, :, 0], atol=1e-6)


def test_on_one_side_turns_the_smaller():
    x, gradients = problem((5, 4))
    one = SOAP(one_sided=True, refresh_every=2)
    small = SOAP(max_precondition_dim=4, refresh_every=2)
    assert list(one.state_spec((5, 4), "w")) == ["m", "v", "gram_1", "basis_1"]
    np.testing.assert_allclose(
        trace(one, x, gradients), trace(small, x, gradients), atol=1e-6
    )


@pytest.mark.parametrize(
    ("limit", "working"), [(4, (4, 3)), (12, (12,)), (10_000, (12,))]
)
def test_merged_axes_are_those_of_the_reshaped_variable(limit, working):
    x, gradients = problem((2, 2, 3), steps=4)
    arguments = {"max_precondition_dim": limit, "refresh_every": 2}
    merged = SOAP(merge_axes=True, **arguments)
    reshaped = SOAP(precondition_1d=True, **arguments)
    got = trace(merged, x, gradients)
    expected = trace(
        reshaped, x.reshape(working), gradients.reshape(-1, *working)
    )
    np.testing.assert_allclose(got, expected.reshape(got.shape), atol=1e-6)


def test_agrees_with_pytorch_optimizer():
    x, gradients = problem((5, 4), steps=8)
    expected = harness.pytorch_trace(
        "SOAP",
        x,
        gradients,
        lr=1e-2,
        betas=(0.95, 0.95),
        weight_decay=0.1,
        precondition_frequency=2,
        eps=1e-8,
    )
    ours = SOAP(
        1e-2,
        refresh_every=2,
        weight_decay=0.1,
        bound_updates=False,
    )
    got = trace(ours, x, gradients)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


# Its bases.


def test_bases_rest_but_for_their_refresh():
    x, gradients = problem(steps=9)
    optimizer = SOAP(refresh_every=3)
    found = list(slots_after_each(optimizer, x, gradients))
    for call in range(1, 9):
        for axis in (0, 1):
            name = f"basis_{axis}"
            rested = np.array_equal(found[call][name], found[call - 1][name])
            # After updates 3 and 6, which are calls 4 and 7 from 1.
            assert rested == (call not in (4, 7)), (call, axis)
            basis = found[call][name]
            np.testing.assert_allclose(
                basis.T @ basis, np.eye(len(basis)), atol=1e-5
            )


def test_a_first_gradient_of_zero_leaves_all_for_the_next():
    x, gradients = problem()
    zeros = np.zeros_like(gradients[:2])
    got = trace(SOAP(refresh_every=3), x, [*zeros, *gradients])
    expected = trace(SOAP(refresh_every=3), x, gradients)
    np.testing.assert_array_equal(got[:2], [x, x])
    np.testing.assert_allclose(got[2:], expected, atol=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("call", [0, 2, 4])
def test_a_bad_gradient_leaves_all_as_it_was(poison, call):
    """Before the first basis, between two, and where a refresh is due."""
    x, gradients = problem()
    bad = gradients[0].copy()
    bad[1, 2] = poison
    optimizer = SOAP(refresh_every=3)
    given = [*gradients[:call], bad, *gradients[call:]]
    found = list(slots_after_each(optimizer, x, given))
    if call:
        for name, value in found[call].items():
            np.testing.assert_array_equal(value, found[call - 1][name], name)
    clean = list(slots_after_each(SOAP(refresh_every=3), x, gradients))
    np.testing.assert_allclose(found[-1]["x"], clean[-1]["x"], atol=1e-6)
    assert int(optimizer.skipped_updates) == 1


# Where there is no gradient.


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(
    "arguments", [{}, {"one_sided": True}, {"factored": True}], ids=str
)
def test_rows_and_columns_without_gradient_stay(arguments, size):
    x, gradients = problem((8, 8), steps=20)
    gradients *= size
    gradients[:, 3] = gradients[:, :, 5] = 0.0
    moved = trace(SOAP(**arguments), x, gradients)[-1] - x
    assert np.abs(moved).max() > 1e-2
    assert np.abs(moved[3]).max() < 1e-5
    assert np.abs(moved[:, 5]).max() < 1e-5


def test_nothing_moves_outside_of_what_gradients_span():
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.normal(size=(8, 2)))[0]
    right = np.linalg.qr(rng.normal(size=(8, 2)))[0]
    middle = rng.normal(size=(60, 2, 2))
    gradients = (left @ middle @ right.T).astype("float32")
    x = np.zeros((8, 8), "float32")
    moved = trace(SOAP(), x, gradients)[-1]
    inside = left @ left.T @ moved @ right @ right.T
    assert np.abs(inside).max() > 1e-2
    assert np.abs(moved - inside).max() < 1e-5


# Its state in less.


@pytest.mark.parametrize(
    ("arguments", "apart"),
    [
        ({"momentum_dtype": "bfloat16"}, 0.01),
        ({"second_moment_dtype": "bfloat16"}, 0.01),
        ({"momentum_dtype": "int8"}, 0.03),
    ],
    ids=str,
)
def test_low_precision_state_is_close_to_float32(arguments, apart):
    x, gradients = problem((64, 64), steps=25)
    exact = trace(SOAP(refresh_every=5), x, gradients)[-1] - x
    got = trace(SOAP(refresh_every=5, **arguments), x, gradients)[-1] - x
    assert np.linalg.norm(got - exact) < apart * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta_1": 1.0}, "`beta_1` must be a number > 0.0 and < 1.0"),
        ({"beta_2": 0.0}, "`beta_2` must be a number > 0.0 and < 1.0"),
        ({"shampoo_beta": 2.0}, "`shampoo_beta` must be"),
        ({"epsilon": 0.0}, "`epsilon` must be a number > 0.0"),
        ({"refresh_every": 0}, "`refresh_every` must be an integer >= 1"),
        ({"max_precondition_dim": -1}, "`max_precondition_dim` must be"),
        ({"one_sided": 1}, "`one_sided` must be a boolean"),
        ({"merge_axes": "yes"}, "`merge_axes` must be a boolean"),
        ({"factored": None}, "`factored` must be a boolean"),
        ({"precondition_1d": 0}, "`precondition_1d` must be a boolean"),
        ({"normalize_updates": 0}, "`normalize_updates` must be a boolean"),
        ({"bound_updates": None}, "`bound_updates` must be a boolean"),
        ({"momentum_dtype": "float16"}, "`momentum_dtype` must be one of"),
        ({"second_moment_dtype": "int8"}, "`second_moment_dtype` must be one"),
    ],
)
def test_refuses_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SOAP(**arguments)
