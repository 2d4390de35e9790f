"""Subspace-Momentum: bases, refreshes, and what it is a case of."""

import numpy as np
import pytest
from keras import ops

from keras_adafactor import SubsetNorm
from keras_adafactor import SubspaceMomentum
from keras_adafactor.functional import projection
from tests import harness

MODE = harness.MODE
BASES = ("svd", "random", "top_k", "uniform")
bases = pytest.mark.parametrize("basis", BASES)


class Run:
    """An optimizer of one variable, step by step."""

    def __init__(self, x, **arguments):
        arguments = {"rank": 2, "refresh_every": 3} | arguments
        self.optimizer = SubspaceMomentum(**arguments)
        self.variables = harness.variables([x])
        self.apply = harness.make_step(self.optimizer, self.variables, MODE)

    def step(self, g):
        self.apply([ops.convert_to_tensor(np.asarray(g, "float32"))])
        return self.x

    @property
    def x(self):
        return harness.values(self.variables)[0]

    @property
    def state(self):
        ((_, slots),) = self.optimizer.slots()
        return dict(zip(slots, harness.values(slots.values()), strict=True))


def final(optimizer, x, gradients):
    (variable,) = harness.run(optimizer, [x], [[g] for g in gradients], MODE)
    return harness.values([variable])[0]


@bases
@pytest.mark.parametrize("shape", [(), (7,), (6, 4), (2, 3, 4)])
def test_of_full_rank_is_subset_norm(shape, basis):
    x, gradients = harness.problem(shape, steps=4)
    got = final(SubspaceMomentum(rank=4, basis=basis), x, gradients)
    np.testing.assert_array_equal(got, final(SubsetNorm(), x, gradients))


@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_is_full_momentum_while_gradients_stay_in_the_subspace(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype("float32")
    left, right = rng.normal(size=(7, 2)), rng.normal(size=(2, 4))
    # One plane holds the shorter side of all of them.
    gradients = [(left * rng.normal(size=2)) @ right for _ in range(5)]
    if shape[0] < shape[1]:
        gradients = [g.T for g in gradients]
    gradients = np.float32(gradients)
    got = final(SubspaceMomentum(rank=2), x, gradients)
    np.testing.assert_allclose(
        got, final(SubsetNorm(), x, gradients), atol=1e-6
    )


@bases
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_refreshes_at_the_first_step_and_every_multiple(basis, shape):
    x, gradients = harness.problem(shape, steps=10, decades=0.0)
    run = Run(x, basis=basis)
    kept = []
    for g in gradients:
        run.step(g)
        kept.append(run.state["basis"])
    changed = {
        t + 1
        for t in range(1, len(kept))
        if not np.array_equal(kept[t], kept[t - 1])
    }
    # Random rows may be those of before; nothing changes in between.
    assert changed <= {3, 6, 9}
    assert changed == {3, 6, 9} or basis in ("top_k", "uniform")
    assert len(changed) > 0


@bases
def test_momentum_is_that_of_one_gradient_after_a_refresh(basis):
    x, gradients = harness.problem((6, 4), steps=3, decades=0.0)
    run = Run(x, basis=basis)
    for g in gradients:
        run.step(g)
    p, axis = run.state["basis"], int(basis in ("svd", "random"))
    y = projection.project(*map(ops.convert_to_tensor, (gradients[2], p)), axis)
    np.testing.assert_allclose(
        run.state["m"], 0.1 * ops.convert_to_numpy(y), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
@pytest.mark.parametrize("basis", ["svd", "random"])
def test_bases_are_orthonormal_with_signs(basis, shape):
    x, (g,) = harness.problem(shape, steps=1, decades=0.0)
    run = Run(x, basis=basis)
    run.step(g)
    p = run.state["basis"]
    np.testing.assert_allclose(p.T @ p, np.eye(2), atol=1e-6)
    assert (p[np.abs(p).argmax(0), [0, 1]] > 0).all()


@pytest.mark.parametrize("basis", ["top_k", "uniform"])
def test_bases_of_indices_are_rows_of_a_tall_matrix(basis):
    x, (g,) = harness.problem((40, 3), steps=1, decades=0.0)
    run = Run(x, basis=basis)
    run.step(g)
    chosen = set(run.state["basis"].tolist())
    assert len(chosen) == 2 and chosen <= set(range(40))
    largest = np.argsort(-np.linalg.norm(g, axis=1))[:2]
    assert (chosen == set(largest.tolist())) == (basis == "top_k")


def test_random_bases_differ_by_variable_and_step():
    x, gradients = harness.problem((6, 4), steps=3, decades=0.0)
    optimizer = SubspaceMomentum(rank=2, refresh_every=1, basis="random")
    variables = harness.variables([x, x])
    step = harness.make_step(optimizer, variables, MODE)
    seen = []
    for g in gradients:
        step([ops.convert_to_tensor(g)] * 2)
        for _, slots in optimizer.slots():
            seen.append(harness.values([slots["basis"]])[0])
    for i, one in enumerate(seen):
        for other in seen[:i]:
            assert not np.allclose(one, other, atol=1e-3)


@bases
@pytest.mark.parametrize("rank", [1, 3])
def test_bears_a_first_gradient_of_low_rank(basis, rank):
    x, gradients = harness.problem((6, 4), steps=4, decades=0.0)
    gradients[0] = np.outer(gradients[0, :, 0], gradients[0, 0])
    run = Run(x, basis=basis, rank=rank)
    for g in gradients:
        assert np.isfinite(run.step(g)).all()
    if basis == "svd":
        p = run.state["basis"]
        np.testing.assert_allclose(p.T @ p, np.eye(rank), atol=1e-6)


@bases
def test_waits_for_a_gradient_with_its_first_basis(basis):
    x, gradients = harness.problem((6, 4), steps=4, decades=0.0)
    run = Run(x, basis=basis)
    np.testing.assert_array_equal(run.step(np.zeros_like(x)), x)
    state = run.state
    assert state["count"] == 0
    assert not any(state[name].any() for name in ("m", "v"))
    identity = np.eye(*state["basis"].shape) if state["basis"].ndim > 1 else 0
    np.testing.assert_array_equal(state["basis"], identity)
    late = [run.step(g) for g in gradients]
    assert run.state["count"] == 4
    if basis in ("svd", "top_k"):
        # The others draw what is drawn in that step of the optimizer.
        direct = Run(x, basis=basis)
        for g, expected in zip(gradients, late, strict=True):
            np.testing.assert_array_equal(direct.step(g), expected)


@bases
def test_a_poisoned_gradient_leaves_weights_and_basis(basis):
    x, gradients = harness.problem((6, 4), steps=3, decades=0.0)
    run = Run(x, basis=basis)
    for g in gradients[:2]:
        run.step(g)
    before, weights = run.state, run.x
    # The third step is one of refresh.
    for poison in (np.nan, np.inf, -np.inf, 1e30):
        bad = gradients[2].copy()
        bad[1, 2] = poison
        np.testing.assert_array_equal(run.step(bad), weights)
        for name, value in run.state.items():
            np.testing.assert_array_equal(value, before[name])
    assert int(run.optimizer.skipped_updates) == 4
    run.step(gradients[2])
    assert run.state["count"] == 3
    if basis in ("svd", "random"):
        assert not np.array_equal(run.state["basis"], before["basis"])


@bases
@pytest.mark.parametrize("size", [1e-30, 1e18])
def test_bases_are_of_the_direction_not_of_the_size(basis, size):
    x, (g,) = harness.problem((6, 4), steps=1, decades=0.0)
    one, other = Run(x, basis=basis), Run(x, basis=basis)
    one.step(g)
    other.step(np.float32(size) * g)
    np.testing.assert_allclose(
        one.state["basis"], other.state["basis"], atol=1e-5
    )


@bases
def test_rows_without_gradient_stay_still(basis):
    x, gradients = harness.problem((6, 4), steps=7, decades=0.0)
    gradients[:, ::2] = 0.0
    run = Run(x, basis=basis)
    for g in gradients:
        run.step(g)
    np.testing.assert_array_equal(run.x[::2], x[::2])
    assert (run.x[1::2] != x[1::2]).all()


def test_steps_are_bounded_where_a_subset_has_no_gradient_any_more():
    x, gradients = harness.problem((6, 4), steps=100, decades=0.0)
    gradients[2:, 0] = 0.0
    run = Run(x, learning_rate=0.01, refresh_every=50)
    for g in gradients:
        before = run.x
        # The correction of the first step multiplies the complement too.
        assert np.abs(run.step(g) - before).max() <= 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_momentum_of_a_subspace_is_stored_in_less(dtype):
    x, gradients = harness.problem((512, 64), steps=4, decades=0.0)
    arguments = {"rank": 16, "learning_rate": 0.1}
    exact, less = Run(x, **arguments), Run(x, momentum_dtype=dtype, **arguments)
    for g in gradients:
        exact.step(g)
        less.step(g)
    ((_, slots),) = less.optimizer.slots()
    assert slots["m"].dtype == dtype
    moved = np.abs(exact.x - x).max()
    assert np.abs(exact.x - less.x).max() <= 0.02 * moved


def test_layouts_follow_the_axes_that_are_not_projected():
    optimizer = SubspaceMomentum(rank=2)
    tall = optimizer.state_spec((6, 4), "w")
    assert (tall["m"].axes, tall["basis"].axes) == ((0, None), (1, None))
    wide = optimizer.state_spec((4, 6), "w")
    assert (wide["m"].axes, wide["basis"].axes) == ((None, 1), (0, None))
    heads = optimizer.state_spec((8, 2, 4), "w")
    assert (heads["m"].axes, heads["basis"].axes) == (
        (0, None),
        (None, None),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "`rank` must be an integer >= 1"),
        ({"refresh_every": 0}, "`refresh_every` must be an integer >= 1"),
        ({"basis": "dct"}, "`basis` must be one of 'svd', 'random', 'top_k'"),
        ({"variant": "rmsprop"}, "`variant` must be one of 'adam', 'adagrad'"),
        ({"beta_1": None}, "`beta_1` must be a number > 0.0 and < 1.0"),
        ({"subsets": 0}, "`subsets` must be 'heuristic' or an integer"),
        (
            {"variant": "adagrad", "bias_correction": True},
            "`bias_correction` must be False or None for variant 'adagrad'",
        ),
        ({"momentum_dtype": "float8"}, "`momentum_dtype` must be one of"),
    ],
)
def test_refuses_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SubspaceMomentum(**arguments)
