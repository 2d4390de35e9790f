"""What is COAP's own: its bases, and what they do to gradients and moments."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_adafactor import COAP
from keras_adafactor.functional.moments import largest_quotient
from keras_adafactor.functional.sketch import correlated_bases
from keras_adafactor.functional.sketch import objective_slopes
from keras_adafactor.functional.sketch import sketched_basis
from tests import harness
from tests import oracles
from tests.optimizers import coap

MODE = harness.MODE


def trained(optimizer, x, gradients, mode=MODE):
    """The variable after every step, and the slots after the last."""
    (variable,) = harness.variables([x])
    step = harness.make_step(optimizer, [variable], mode)
    trajectory = []
    for g in gradients:
        step([ops.convert_to_tensor(np.asarray(g, "float32"))])
        trajectory += harness.values([variable])
    ((_, slots),) = optimizer.slots()
    names, values = list(slots), harness.values(slots.values())
    return trajectory, dict(zip(names, values, strict=True))


def slots_after_each(optimizer, x, gradients):
    (variable,) = harness.variables([x])
    step = harness.make_step(optimizer, [variable], MODE)
    for g in gradients:
        step([ops.convert_to_tensor(np.asarray(g, "float32"))])
        ((_, slots),) = optimizer.slots()
        yield dict(zip(slots, harness.values(slots.values()), strict=True))


def adam_of(x):
    return oracles.Adam(
        x, learning_rate=0.01, beta_1=0.9, beta_2=0.999, epsilon=1e-12
    )


def problem(shape=(6, 4), steps=8, seed=0):
    return harness.problem(shape, steps=steps, seed=seed, decades=0.0)


class FixedBasis(COAP):
    """COAP with all axes of an orthogonal basis, which stays."""

    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]

    def _projection(self, shape, path):
        return shape, {1: 4}

    def refresh(self, g, x, state, step):
        return {"basis_1": ops.convert_to_tensor(self.basis, "float32")}


def test_with_a_fixed_full_basis_is_adam_in_it():
    x, gradients = problem()
    turn = FixedBasis.basis
    optimizer = FixedBasis(0.01, epsilon=1e-12)
    got, _ = trained(optimizer, x, gradients)
    adam = adam_of(x @ turn)
    expected = [adam.step(g @ turn) @ turn.T for g in gradients]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (7,), (6, 4), (3, 3, 8, 16)])
def test_that_does_not_project_is_adam(shape):
    x, gradients = problem(shape)
    # A scale is that of projected variables.
    optimizer = COAP(0.01, epsilon=1e-12, rank=4, scale=0.1)
    got, slots = trained(optimizer, x, gradients)
    assert list(slots) == ["m", "v"]
    adam = adam_of(x)
    expected = [adam.step(g) for g in gradients]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", ["adamw", "adafactor"])
@pytest.mark.parametrize("shape", [(3, 3, 36, 30), (1, 1, 110, 90)])
def test_convolutions_equal_the_oracle_in_both_forms(shape, variant):
    x, gradients = problem(shape, steps=4)
    row = coap.make_row(
        "row", (shape,), refresh_every=1, recalibrate_every=2, variant=variant
    )
    oracle = row.oracle(x, shape)
    got, _ = trained(row.optimizer(), x, gradients)
    expected = [oracle.step(g) for g in gradients]
    # A first step is nearly a sign of each projected entry, however small.
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=4e-5)


@pytest.mark.parametrize("variant", ["adamw", "adafactor"])
def test_weight_decay_is_of_the_form(variant):
    x, gradients = problem()
    row = coap.make_row("row", ((6, 4),), variant=variant, weight_decay=0.5)
    oracle = row.oracle(x, (6, 4))
    got, _ = trained(row.optimizer(learning_rate=1e-3), x, gradients)
    expected = [oracle.step(g) for g in gradients]
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((64, 32), {"m": (0, None), "basis_1": (1, None)}),
        ((32, 64), {"m": (None, 1), "basis_0": (0, None)}),
        # Attention kernels, as matrices of 64 x 64.
        ((64, 4, 16), {"m": (0, None), "basis_1": (None, None)}),
        ((4, 16, 64), {"m": (None, None), "basis_1": (2, None)}),
        (
            (3, 3, 64, 32),
            {
                "m": (0, 1, None, None),
                "basis_2": (2, None),
                "basis_3": (3, None),
            },
        ),
        ((5, 1, 4), {"m": (0, 1, 2)}),
    ],
)
def test_state_is_split_over_devices_as_its_variable(shape, axes):
    spec = COAP(rank=8).state_spec(shape, "w")
    expected = axes | {"v": axes["m"]}
    assert {name: entry.axes for name, entry in spec.items()} == expected


# When the basis moves.


def test_basis_rests_off_schedule_and_follows_the_gradient_on_it():
    x, gradients = problem(steps=13)
    optimizer = COAP(rank=2, refresh_every=3, recalibrate_every=2)
    bases = [
        slots["basis_1"] for slots in slots_after_each(optimizer, x, gradients)
    ]
    for k in range(1, 13):
        same = np.array_equal(bases[k], bases[k - 1])
        assert same == (k % 3 != 0), k
    # A sketch is orthonormal, a step nearly.
    for k, basis in enumerate(bases):
        distance = np.abs(basis.T @ basis - np.eye(2)).max()
        assert (distance < 1e-5) == (k // 3 % 2 == 0), k


def test_is_sketched_after_five_refreshes():
    x, gradients = problem(steps=6)
    optimizer = COAP(rank=2, refresh_every=1)
    *_, before, after = slots_after_each(optimizer, x, gradients)
    assert after["count"] == 6
    expected = sketched_basis(
        ops.convert_to_tensor(gradients[5]),
        1,
        ops.convert_to_tensor(before["basis_1"]),
    )
    np.testing.assert_allclose(
        after["basis_1"], ops.convert_to_numpy(expected), atol=1e-5
    )
    assert np.abs(before["basis_1"] - after["basis_1"]).max() > 1e-3


def test_waits_with_its_basis_for_a_gradient():
    x, gradients = problem()
    zero = np.zeros_like(gradients[:1])
    arguments = {"rank": 2, "refresh_every": 3}
    expected, _ = trained(COAP(**arguments), x, gradients)
    waiting = np.concatenate([zero, zero, gradients])
    got, slots = trained(COAP(**arguments), x, waiting)
    np.testing.assert_array_equal(got[:2], [x, x])
    assert slots["count"] == len(gradients)
    # Another noise, of another step: the span that it gives is the same, up
    # to what the sketch of two vectors misses.
    assert np.abs(got[2] - x).max() > 0
    assert np.isfinite(got).all()
    assert np.abs(got[-1] - expected[-1]).max() < 0.02


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("at", [0, 3, 4])
def test_bad_gradient_leaves_all_as_it_was(poison, at):
    x, gradients = problem()
    bad = np.array(gradients[at])
    bad[1, 2] = poison
    arguments = {"rank": 2, "refresh_every": 3}
    optimizer = COAP(**arguments)
    got, slots = trained(optimizer, x, [*gradients[:at], bad])
    assert int(optimizer.skipped_updates) == 1
    assert slots["count"] == at
    if at:
        expected, before = trained(COAP(**arguments), x, gradients[:at])
        np.testing.assert_array_equal(got[-1], expected[-1])
    else:
        expected, before = [x], {n: np.zeros_like(v) for n, v in slots.items()}
        before["basis_1"] = np.eye(*before["basis_1"].shape)
    np.testing.assert_array_equal(got[-1], expected[-1])
    for name, slot in slots.items():
        np.testing.assert_array_equal(slot, before[name])


class Undefined(COAP):
    """COAP whose decomposition fails."""

    def refresh(self, g, x, state, step):
        new = super().refresh(g, x, state, step)
        return {name: p * np.nan for name, p in new.items()}


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
def test_first_basis_that_is_not_finite_is_the_identity(state_dtype):
    x, gradients = wide(steps=2)
    optimizer = Undefined(rank=48, state_dtype=state_dtype)
    trajectory, state = trained(optimizer, x, gradients)
    assert state["count"] == 2
    assert int(optimizer.failed_refreshes) == 1
    spec = optimizer.state_spec(x.shape, "w")["basis_1"]
    stored = [state["basis_1" + suffix] for suffix in spec.arrays()]
    basis = spec.decode([ops.convert_to_tensor(a) for a in stored], "float32")
    np.testing.assert_allclose(
        ops.convert_to_numpy(basis), np.eye(*spec.shape), atol=1e-6
    )
    # The first columns of the kernel are trained, the others wait.
    moved = np.abs(trajectory[-1] - x.astype("float32"))
    assert (moved[:, :48] > 0).mean() > 0.9 and not moved[:, 48:].any()


@pytest.mark.parametrize("variant", ["adamw", "adafactor"])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_bears_rows_without_gradient(shape, variant):
    x, gradients = problem(shape)
    gradients[:, 1] = 0
    optimizer = COAP(rank=2, refresh_every=1, variant=variant)
    got, _ = trained(optimizer, x, gradients)
    assert np.isfinite(got).all()
    if shape == (6, 4):
        np.testing.assert_array_equal(got[-1][1], x[1])


@pytest.mark.parametrize("at", [0, 2])
def test_bears_gradients_of_a_lower_rank_than_its_own(at):
    x, gradients = problem()
    gradients[at] = 0
    gradients[at, 2, 1] = 0.5
    optimizer = COAP(rank=3, refresh_every=2, recalibrate_every=1)
    for slots in slots_after_each(optimizer, x, gradients):
        basis = slots["basis_1"]
        np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-5)
        assert all(np.isfinite(slot).all() for slot in slots.values())


class Flipped(COAP):
    """COAP with some vectors of its bases turned round."""

    def refresh(self, g, x, state, step):
        new = super().refresh(g, x, state, step)
        signs = ops.convert_to_tensor([1.0, -1.0], "float32")
        first = ops.equal(step.count, 0)
        return {n: ops.where(first, p * signs, p) for n, p in new.items()}


def test_signs_of_a_basis_do_not_matter_until_it_is_sketched_again():
    x, gradients = problem(steps=6)
    arguments = {"rank": 2, "refresh_every": 2}
    expected, _ = trained(COAP(**arguments), x, gradients)
    got, _ = trained(Flipped(**arguments), x, gradients)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


# The bases as functions.


def tensors(*arrays):
    return [ops.convert_to_tensor(a, dtype="float32") for a in arrays]


def objective(g, m, bases, cosine_axis):
    def turn(x, back=False):
        for axis, p in bases.items():
            matrix = p if back else p.T
            x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
        return x

    m = turn(m, back=True)
    error = np.mean((turn(turn(g), back=True) - g) ** 2)
    norms = [np.sqrt((z**2).sum(cosine_axis)) for z in (g, m)]
    cosine = (g * m).sum(cosine_axis) / (norms[0] * norms[1])
    return error * (1 - cosine.mean())


@pytest.mark.parametrize(
    ("shape", "ranks", "cosine_axis"),
    [
        ((6, 4), {1: 2}, 1),
        ((4, 6), {0: 2}, 1),
        ((3, 2, 5, 4), {2: 3, 3: 2}, 2),
        ((3, 2, 5, 4), {3: 2}, 2),
    ],
)
def test_closed_slopes_are_central_differences(shape, ranks, cosine_axis):
    rng = np.random.default_rng(0)
    g = rng.normal(size=shape)
    bases = {
        axis: np.linalg.qr(rng.normal(size=(shape[axis], r)))[0]
        for axis, r in ranks.items()
    }
    m = rng.normal(size=[ranks.get(a, n) for a, n in enumerate(shape)])
    as_tensors = dict(zip(bases, tensors(*bases.values()), strict=True))
    slopes = objective_slopes(*tensors(g, m), as_tensors, cosine_axis)
    assert list(slopes) == list(ranks)
    for axis, slope in slopes.items():
        expected = np.zeros(bases[axis].shape)
        for i in np.ndindex(expected.shape):
            for sign in (1, -1):
                near = {a: p.copy() for a, p in bases.items()}
                near[axis][i] += sign * 1e-6
                expected[i] += sign * objective(g, m, near, cosine_axis) / 2e-6
        np.testing.assert_allclose(
            ops.convert_to_numpy(slope), expected, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("scale", [1e-25, 1e-18, 1e-3, 1e3, 1e18])
def test_a_step_of_the_basis_is_bounded_whatever_the_gradient(scale):
    rng = np.random.default_rng(0)
    g, m = tensors(scale * rng.normal(size=(6, 4)), rng.normal(size=(6, 2)))
    (p,) = tensors(np.linalg.qr(rng.normal(size=(4, 2)))[0])
    new = correlated_bases(g, m, {1: p}, 1)[1]
    moved = np.linalg.norm(ops.convert_to_numpy(new - p))
    assert np.isfinite(moved)
    assert moved < 0.1001
    if scale >= 1e3:
        assert moved == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e18])
@pytest.mark.parametrize("axis", [0, 1])
def test_sketch_finds_the_span_of_a_gradient_of_its_rank(axis, scale):
    rng = np.random.default_rng(0)
    g = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 40))
    a, omega = tensors(scale * g, rng.normal(size=(40, 3)))
    p = ops.convert_to_numpy(sketched_basis(a, axis, omega))
    np.testing.assert_allclose(p.T @ p, np.eye(3), atol=1e-5)
    assert all(p[np.abs(p).argmax(0), range(3)] > 0)
    rest = g - (g @ p @ p.T if axis else p @ p.T @ g)
    assert np.abs(rest).max() < 1e-4
    # The singular vectors themselves, largest first.
    u, _, vt = np.linalg.svd(g)
    exact = vt[:3].T if axis else u[:, :3]
    np.testing.assert_allclose(np.abs((p * exact).sum(0)), 1, atol=1e-4)


# Eight bits.


def wide(steps=40):
    """A matrix large enough for 8 bits, of features of unlike sizes."""
    rng = np.random.default_rng(0)
    sizes = np.arange(1, 97) ** -0.5
    x = rng.normal(size=(192, 96))
    return x, rng.normal(size=(steps, 192, 96)) * sizes


@pytest.mark.parametrize(
    ("state_dtype", "apart"), [("bfloat16", 0.01), ("int8", 0.15)]
)
@pytest.mark.parametrize("variant", ["adamw", "adafactor"])
def test_low_precision_state_is_close_to_float32(variant, state_dtype, apart):
    x, gradients = wide()
    arguments = {"variant": variant, "rank_ratio": 2, "refresh_every": 100}
    expected, _ = trained(COAP(0.01, **arguments), x, gradients)
    arguments["state_dtype"] = state_dtype
    got, slots = trained(COAP(0.01, **arguments), x, gradients)
    wanted = {"bfloat16": "float32", "int8": "int8"}[state_dtype]
    assert slots["m"].dtype == slots["basis_1"].dtype == wanted
    way = expected[-1] - x
    error = np.linalg.norm(got[-1] - x - way) / np.linalg.norm(way)
    assert 0 < error < apart


def test_no_step_explodes_where_eight_bits_round_to_zero():
    x, gradients = wide()
    # Most of a block is a millionth of its largest entry.
    gradients[:, 1::2] *= 1e-6
    optimizer = COAP(0.01, rank=48, state_dtype="int8", refresh_every=100)
    got, slots = trained(optimizer, x, gradients)
    assert np.mean(slots["v_root"] == 0) > 0.3
    steps = np.diff([x, *got], axis=0)
    norms = np.sqrt((steps**2).sum(-1))
    # Of a row: the root of its 48 entries times the largest there is.
    bound = 0.01 * largest_quotient(0.9, 0.999) * np.sqrt(48)
    assert norms.max() <= 1.05 * bound


def test_largest_quotient_is_reached_and_not_passed():
    beta_1, beta_2 = 0.9, 0.999
    # By Cauchy and Schwarz' equality, gradients that grow by a ratio.
    m = v = 0.0
    for g in (beta_2 / beta_1) ** np.arange(400):
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
    assert m / np.sqrt(v) == pytest.approx(largest_quotient(0.9, 0.999))


# Arguments, and training.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "adam"}, "`variant` must be one of 'adamw', 'adafactor'"),
        ({"rank": 0}, "`rank` must be an integer >= 1 or None"),
        ({"rank_ratio": 0.5}, "`rank_ratio` must be a number >= 1"),
        ({"refresh_every": 0}, "`refresh_every` must be an integer >= 1"),
        ({"recalibrate_every": 0}, "`recalibrate_every` must be an integer"),
        ({"restore_state": 1}, "`restore_state` must be a boolean"),
        ({"scale": 0.0}, "`scale` must be"),
        ({"state_dtype": "float16"}, "`state_dtype` must be one of"),
        (
            {"state_dtype": "int8", "beta_1": 0.99, "beta_2": 0.95},
            "`state_dtype` must be 'float32' or 'bfloat16' unless",
        ),
        ({"axis_groups": "none"}, "`axis_groups` must be"),
        ({"beta_1": 1.0}, "`beta_1` must be"),
        ({"beta_2_decay": 0.1}, "`beta_2_decay` must be"),
        ({"clip_threshold": 0.0}, "`clip_threshold` must be"),
    ],
)
def test_wrong_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        COAP(**arguments)


@pytest.mark.parametrize("state_dtype", ["float32", "int8"])
@pytest.mark.parametrize("variant", ["adamw", "adafactor"])
def test_trains_a_regression_at_a_quarter_of_the_rank(variant, state_dtype):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1024, 64)) * np.arange(1, 65) ** -0.5
    y = np.tanh(x @ rng.normal(size=(64, 4)))
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(4),
        ]
    )
    rate = {"adamw": 3e-3, "adafactor": 3e-2}[variant]
    optimizer = COAP(
        rate, variant=variant, refresh_every=8, state_dtype=state_dtype
    )
    model.compile(optimizer, "mse")
    history = model.fit(x, y, batch_size=64, epochs=30, verbose=0)
    assert history.history["loss"][-1] < 0.2 * np.var(y)
