"""The oracles against traces that were made apart from them, and each other."""

import math

import numpy as np
import pytest

from tests import oracles
from tests.golden import CASES
from tests.golden import GOLDEN
from tests.golden import golden_arguments


class SteppingWhileMeasuring(oracles.Adalayer):
    """The golden case leaves it to a schedule to take no first steps."""

    def rate(self):
        return self.learning_rate


def matrix_axes(ndim):
    return {"rows": (ndim - 2,), "cols": (ndim - 1,)} if ndim > 1 else {}


def golden_oracle(family, x, hyper):
    arguments = golden_arguments(hyper)
    if family == "came":
        return oracles.CAME(x, **arguments, **matrix_axes(x.ndim))
    if family == "hfac":
        return oracles.HFac(x, **arguments, **matrix_axes(x.ndim))
    if family == "snsm":
        if arguments["beta_2"] == 1:
            arguments["variant"] = "adagrad"
        if "rank" in arguments:
            return oracles.SubspaceMomentum(x, **arguments)
        return oracles.SubsetNorm(x, **arguments)
    if family == "coap":
        if "clip_threshold" in arguments:
            arguments["variant"] = "adafactor"
        return oracles.COAP(x, **arguments, rank=2)
    if family == "signum_adalayer":
        if "block" not in hyper:
            return oracles.Signum(x, **arguments)
        axes = {"tensor": (), "rows": (0,), "cols": (1,)}[hyper["block"]]
        return SteppingWhileMeasuring(x, **arguments, block_axes=axes)
    kinds = {
        "smmf": oracles.SMMF,
        "soap": oracles.SOAP,
        "fadam": oracles.FAdam,
        "sm3": oracles.SM3,
    }
    return kinds[family](x, **arguments)


def came_state(oracle):
    merged = {"v": oracle.v}
    merged |= {"r": oracle.v.mean(-1), "c": oracle.v.mean(-2)}
    merged |= {"R": oracle.s.mean(-1), "C": oracle.s.mean(-2)}
    return {name: np.squeeze(value) for name, value in merged.items()} | {
        "m": oracle.axes.split(oracle.m),
        "t": oracle.t,
    }


def hfac_state(oracle):
    m, v = oracle.averages()
    state = {"m": m, "w": v}
    if oracle.rows:
        state = {"u": m.mean(-1), "v": m.mean(-2)}
        state |= {"r": v.mean(-1), "s": v.mean(-2)}
    return {name: np.squeeze(value) for name, value in state.items()} | {
        "t": oracle.t
    }


def coap_state(oracle):
    ((axis, p),) = oracle.factor.items()
    return {"PtP": p @ p.T, "m_full": oracle.up(oracle.m), "t": oracle.t}


def soap_state(oracle):
    grams = {f"GG{axis}": gram for axis, gram in oracle.gram.items()}
    return grams | {"m": oracle.m, "v": oracle.v, "t": oracle.t}


def fadam_state(oracle):
    return {"m": oracle.m, "f": oracle.fisher(), "t": oracle.t}


def sm3_state(oracle):
    return {"m": oracle.m, "a0": oracle.a[0], "a1": oracle.a[1], "t": oracle.t}


def adalayer_state(oracle):
    if isinstance(oracle, oracles.Signum):
        return {"m": oracle.m, "t": oracle.t}
    return {"m": oracle.m, "v": oracle.v.ravel(), "t": oracle.t}


def smmf_state(oracle):
    return {"m_hat": oracle.m, "v_hat": oracle.v, "t": oracle.t}


def snsm_state(oracle):
    # The trace has the one name for momentum of a subspace.
    m = {"m": oracle.m, "m_full": oracle.m}
    return m | {"v": oracle.v, "t": oracle.t}


STATE = {
    "came": came_state,
    "smmf": smmf_state,
    "snsm": snsm_state,
    "coap": coap_state,
    "soap": soap_state,
    "hfac": hfac_state,
    "fadam": fadam_state,
    "signum_adalayer": adalayer_state,
    "sm3": sm3_state,
}


def golden_state(family, row, shape, hyper):
    """A step of a trace, with factors multiplied and subsets written out."""
    state = {
        name: np.asarray(value)
        for name, value in row.items()
        if name != "theta"
    }
    if family == "smmf":
        state["v_hat"] = np.outer(state.pop("rv"), state.pop("cv"))
        if "rm" in state:
            sign = np.where(state.pop("sign"), 1, -1)
            state["m_hat"] = sign * np.outer(state.pop("rm"), state.pop("cm"))
    if family == "snsm":
        wide = shape
        if hyper["subset"] != "heuristics":
            wide = (-1, hyper["subset"])
        ones = np.ones(shape).reshape(wide)
        state["v"] = (state["v"] * ones).reshape(shape)
    return state


@pytest.mark.parametrize(("family", "name"), CASES)
def test_follows_the_golden_trace(family, name):
    case = GOLDEN[family][name]
    x = np.asarray(case["inputs"]["theta0"])
    oracle = golden_oracle(family, x, case["hyper"])
    for g, row in zip(case["inputs"]["grads"], case["trace"], strict=True):
        np.testing.assert_allclose(
            oracle.step(np.asarray(g)), row["theta"], rtol=1e-12, atol=1e-12
        )
        state = STATE[family](oracle)
        expected = golden_state(family, row, x.shape, case["hyper"])
        for slot, value in expected.items():
            np.testing.assert_allclose(
                state[slot], value, rtol=1e-12, atol=1e-12, err_msg=slot
            )


# With these settings one is another.

MATRIX = (4, 3)


def problem(shape, steps=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.normal(size=(steps, *shape))


def trajectory(oracle, gradients):
    return np.array([oracle.step(g) for g in gradients])


def assert_same(left, right, gradients):
    np.testing.assert_allclose(
        trajectory(left, gradients),
        trajectory(right, gradients).reshape(gradients.shape),
        rtol=1e-10,
        atol=1e-12,
    )


def adam(x, beta_1=0.9, beta_2=0.999, epsilon=0.0):
    return oracles.Adam(x, 1e-3, beta_1, beta_2, epsilon)


class Reshaped:
    """An oracle that sees variables and gradients in another shape."""

    def __init__(self, kind, x, shape, **arguments):
        self.shape = shape
        self.oracle = kind(x.reshape(shape), **arguments)

    def step(self, g):
        return self.oracle.step(g.reshape(self.shape)).reshape(g.shape)


class Transposed:
    def __init__(self, kind, x, **arguments):
        self.oracle = kind(x.T, **arguments)

    def step(self, g):
        return self.oracle.step(g.T).T


@pytest.mark.parametrize("shape", [(), (3,), MATRIX, (2, 3, 2)])
def test_adamw_is_adam_without_decay(shape):
    x, gradients = problem(shape)
    assert_same(oracles.AdamW(x), adam(x, epsilon=1e-8), gradients)


@pytest.mark.parametrize(
    "kind",
    [
        oracles.AdamW,
        oracles.CAME,
        oracles.SMMF,
        oracles.SubsetNorm,
        oracles.SubspaceMomentum,
        oracles.COAP,
        oracles.HFac,
        oracles.Signum,
        oracles.Adalayer,
        oracles.SM3,
        oracles.Lion,
    ],
)
def test_only_decays_where_there_is_no_gradient(kind):
    x, _ = problem(MATRIX)
    oracle = kind(x, learning_rate=0.1, weight_decay=0.5)
    expected = x * 0.95**2
    if kind is oracles.SMMF:
        oracle.zero_sign = True
    for _ in range(2):
        oracle.step(np.zeros(MATRIX))
    np.testing.assert_allclose(oracle.x, expected, rtol=1e-12)


@pytest.mark.parametrize("name", sorted(set(oracles.__all__) - {"Adam"}))
def test_a_scalar_is_a_vector_of_one(name):
    kind = getattr(oracles, name)
    x, gradients = problem(())
    assert_same(kind(x), Reshaped(kind, x, (1,)), gradients)


def test_came_starts_with_the_signs_of_a_rank_1_gradient():
    rng = np.random.default_rng(0)
    g = np.outer(rng.uniform(1, 2, 4), rng.uniform(1, 2, 3))
    g = g * rng.choice([-1, 1], size=g.shape)
    axes = {"rows": (0,), "cols": (1,), "learning_rate": 1.0}
    for debias, weight in ((False, math.sqrt(1e-4)), (True, 1.0)):
        oracle = oracles.CAME(np.zeros(g.shape), debias_beta_3=debias, **axes)
        np.testing.assert_allclose(
            oracle.step(g), -np.sign(g) * 0.1 / (0.9 * weight), rtol=1e-10
        )


@pytest.mark.parametrize("kind", [oracles.CAME, oracles.HFac])
def test_groups_of_axes_are_a_matrix(kind):
    x, gradients = problem((2, 3, 4))
    grouped = kind(x, rows=(0, 1), cols=(2,))
    matrix = Reshaped(kind, x, (6, 4), rows=(0,), cols=(1,))
    assert_same(grouped, matrix, gradients)


def test_smmf_of_a_prime_size_is_not_factored():
    x, gradients = problem((7,))
    full = oracles.SMMF(x, reshape_vectors=False)
    assert_same(oracles.SMMF(x), full, gradients)


@pytest.mark.parametrize("shape", [(12,), (1, 12)])
def test_smmf_need_not_factor_vectors(shape):
    x, gradients = problem(shape)
    # With this decay the average is the mean of all steps.
    arguments = {"beta_2_decay": -1.0}
    whole = oracles.SMMF(x, reshape_vectors=False, **arguments)
    factored = oracles.SMMF(x, **arguments)
    trajectory(whole, gradients)
    trajectory(factored, gradients)
    mean = (gradients**2).mean(0)
    np.testing.assert_allclose(whole.v.reshape(shape), mean, rtol=1e-12)
    assert not np.allclose(factored.v.reshape(shape), mean)


def test_smmf_takes_the_shape_that_is_nearest_to_a_square():
    x, gradients = problem((2, 3, 4))
    assert oracles.smmf.square_shape(24) == (6, 4)
    assert oracles.smmf.square_shape(36) == (6, 6)
    assert oracles.smmf.square_shape(1) == (1, 1)
    square = Reshaped(oracles.SMMF, x, (6, 4))
    assert_same(oracles.SMMF(x), square, gradients)


def test_smmf_lets_entries_without_gradient_drift_but_for_its_zero_sign():
    for zero_sign, drifts in ((False, True), (True, False)):
        oracle = oracles.SMMF(np.zeros((3, 3)), zero_sign=zero_sign)
        trajectory(oracle, [np.eye(3)] * 3)
        off = oracle.x[~np.eye(3, dtype=bool)]
        assert np.all(off > 0) if drifts else np.all(off == 0)


def test_subset_norm_of_single_entries_is_adam():
    x, gradients = problem(MATRIX)
    assert_same(
        oracles.SubsetNorm(x, subsets=1, epsilon=0.0), adam(x), gradients
    )


def test_subset_norm_of_one_subset_is_adagrad_norm():
    x, gradients = problem(MATRIX)
    oracle = oracles.SubsetNorm(
        x, variant="adagrad", beta_1=0.0, subsets=x.size
    )
    squares = 0.0
    for g in gradients:
        squares = squares + np.sum(g**2)
        x = x - 1e-3 * g / (math.sqrt(squares) + 1e-6)
        np.testing.assert_allclose(oracle.step(g), x, rtol=1e-10)


def test_subset_norm_for_rmsprop_is_adam_without_momentum():
    x, gradients = problem(MATRIX)
    oracle = oracles.SubsetNorm(
        x, variant="rmsprop", subsets=1, epsilon=0.0, bias_correction=True
    )
    assert_same(oracle, adam(x, beta_1=0.0), gradients)


def test_subsets_are_the_largest_divisors_that_fit():
    x, gradients = problem((6, 6))
    for asked, taken in ((5, 4), (-1, 6), (-2, 3), (-99, 1)):
        left = oracles.SubsetNorm(x, subsets=asked)
        right = oracles.SubsetNorm(x, subsets=taken)
        assert_same(left, right, gradients)


BASES = {
    "svd": None,
    "top_k": None,
    "random": lambda t: np.linalg.qr(np.vander(np.arange(3.0) + t, 2))[0].T,
    "uniform": lambda t: [t % 4, (t + 1) % 4],
}


@pytest.mark.parametrize("basis", BASES)
def test_subspace_without_momentum_is_subset_norm(basis):
    x, gradients = problem(MATRIX)
    oracle = oracles.SubspaceMomentum(
        x,
        beta_1=0.0,
        rank=2,
        refresh_every=2,
        basis=basis,
        draw=BASES[basis],
    )
    assert_same(oracle, oracles.SubsetNorm(x, beta_1=0.0), gradients)


@pytest.mark.parametrize("shape", [(), (3,), MATRIX, (2, 3, 2)])
def test_subspace_that_is_everything_is_subset_norm(shape):
    x, gradients = problem(shape)
    oracle = oracles.SubspaceMomentum(x, rank=3, refresh_every=2)
    assert_same(oracle, oracles.SubsetNorm(x), gradients)


@pytest.mark.parametrize("basis", ["svd", "top_k"])
def test_subspace_of_a_wide_matrix_is_that_of_the_tall_one(basis):
    x, gradients = problem(MATRIX)
    arguments = {"rank": 2, "refresh_every": 2, "basis": basis}
    wide = Transposed(oracles.SubspaceMomentum, x, **arguments)
    tall = oracles.SubspaceMomentum(x, **arguments)
    assert_same(tall, wide, gradients)


def test_top_k_is_a_draw_of_the_largest_rows():
    x, gradients = problem(MATRIX)

    def draw(t):
        return np.argsort(-np.linalg.norm(gradients[t - 1], axis=1))[:2]

    arguments = {"rank": 2, "refresh_every": 2}
    drawn = oracles.SubspaceMomentum(x, basis="uniform", draw=draw, **arguments)
    largest = oracles.SubspaceMomentum(x, basis="top_k", **arguments)
    assert_same(largest, drawn, gradients)


class Turned(oracles.COAP):
    """COAP with all axes of an orthogonal basis, which stays."""

    def __init__(self, x, basis, **arguments):
        super().__init__(x, rank=len(basis), **arguments)
        self.factor = {1: basis}

    def refresh(self, g):
        pass


def test_coap_with_a_fixed_full_basis_is_adam_in_it():
    x, gradients = problem(MATRIX)
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    np.testing.assert_allclose(
        trajectory(Turned(x, basis, epsilon=0.0), gradients),
        trajectory(adam(x @ basis), gradients @ basis) @ basis.T,
        rtol=1e-10,
    )


@pytest.mark.parametrize("shape", [(), (3,), MATRIX, (2, 3, 2)])
def test_coap_that_does_not_project_is_adam(shape):
    x, gradients = problem(shape)
    oracle = oracles.COAP(x, rank=3, epsilon=0.0, scale=0.25)
    assert_same(oracle, adam(x), gradients)


@pytest.mark.parametrize("shape", [(), (3,), MATRIX])
def test_coap_that_does_not_project_is_adafactor(shape):
    x, gradients = problem(shape)
    oracle = oracles.COAP(x, rank=3, beta_1=0.0, variant="adafactor")
    adafactor = oracles.Adafactor(
        x,
        learning_rate=1e-3,
        relative_step=False,
        **matrix_axes(len(shape)),
    )
    assert_same(oracle, adafactor, gradients)


@pytest.mark.parametrize("size", [1.0, 10.0])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 2, 5, 4)])
def test_coap_steps_down_its_objective(shape, size):
    x, gradients = problem(shape)
    gradients = size * gradients
    oracle = oracles.COAP(x, rank=2)
    oracle.step(gradients[0])
    oracle.step(gradients[1])
    g, h = gradients[2], 1e-6
    moved = oracle.moved_factors(g)
    for axis, p in oracle.factor.items():
        slope = np.zeros_like(p)
        for i in np.ndindex(p.shape):
            for sign in (1, -1):
                near = p.copy()
                near[i] += sign * h
                oracle.factor[axis] = near
                slope[i] += sign * oracle.objective(g) / (2 * h)
        oracle.factor[axis] = p
        slope = slope * min(1, 1 / (np.linalg.norm(slope) + 1e-6))
        np.testing.assert_allclose(moved[axis], p - 0.1 * slope, atol=1e-8)


def test_coap_compares_vectors_along_the_in_axis_of_a_convolution():
    x, gradients = problem((3, 2, 5, 4))
    oracle = oracles.COAP(x, rank=2)
    assert oracle.cosine(gradients[0])[0].shape == (3, 2, 1, 4)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 2, 5, 4)])
def test_coap_bears_rows_without_gradient(shape):
    x, gradients = problem(shape)
    gradients[:, 0] = 0
    oracle = oracles.COAP(x, rank=2, refresh_every=1)
    assert np.all(np.isfinite(trajectory(oracle, gradients)))


def test_coap_with_adafactor_scales_its_decay():
    for size, scale in ((2.0, 2.0), (1e-9, 1e-3)):
        oracle = oracles.COAP(
            np.full(MATRIX, size),
            variant="adafactor",
            learning_rate=0.1,
            weight_decay=0.5,
        )
        expected = np.full(MATRIX, size * (1 - 0.05 * scale))
        np.testing.assert_allclose(
            oracle.step(np.zeros(MATRIX)), expected, rtol=1e-12
        )


@pytest.mark.parametrize("variant", ["adamw", "adafactor"])
def test_coap_of_a_1_by_1_kernel_is_that_of_a_matrix(variant):
    # But for the steps of the factor: the cosine is along the other axis.
    x, gradients = problem((1, 1, 6, 4))
    arguments = {"rank": 2, "refresh_every": 2, "recalibrate_every": 1}
    arguments |= {"variant": variant}
    matrix = Reshaped(oracles.COAP, x, (6, 4), **arguments)
    assert_same(oracles.COAP(x, **arguments), matrix, gradients)


def test_coap_restores_what_a_new_basis_can_hold():
    # Gradients in one plane: any basis of the plane holds them all.
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(2, 4))
    x, gradients = np.zeros((6, 4)), rng.normal(size=(6, 6, 2)) @ plane
    oracle = oracles.COAP(
        x,
        rank=2,
        refresh_every=2,
        recalibrate_every=1,
        restore_state=True,
        beta_1=0.5,
    )
    m = np.zeros_like(x)
    for g in gradients:
        m = 0.5 * m + 0.5 * g
        oracle.step(g)
        np.testing.assert_allclose(oracle.up(oracle.m), m, atol=1e-10)


@pytest.mark.parametrize("variant", ["adamw", "adafactor"])
def test_coap_waits_for_a_gradient_with_its_refresh(variant):
    x, gradients = problem((6, 4))
    oracle = oracles.COAP(x, rank=2, refresh_every=2, variant=variant)
    np.testing.assert_array_equal(oracle.step(np.zeros_like(x)), x)
    assert oracle.k == 0
    oracle.step(gradients[0])
    np.testing.assert_allclose(
        oracle.factor[1].T @ oracle.factor[1], np.eye(2), atol=1e-12
    )
    oracle.step(np.zeros_like(x))
    before = oracle.factor[1]
    oracle.step(np.zeros_like(x))
    assert (oracle.k, oracle.t) == (2, 4)
    assert oracle.factor[1] is before
    oracle.step(gradients[1])
    assert oracle.k == 3
    assert oracle.factor[1] is not before


@pytest.mark.parametrize("shape", [(), (3,), MATRIX, (2, 3, 2)])
def test_soap_without_bases_is_adam_from_the_second_call(shape):
    x, gradients = problem(shape)
    oracle = oracles.SOAP(
        x,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=0.0,
        max_precondition_dim=0,
    )
    np.testing.assert_array_equal(oracle.step(gradients[0]), x)
    assert_same(oracle, adam(x), gradients[1:])


def test_soap_sorts_its_second_moment_with_its_basis():
    # Diagonal gradients: the bases are permutations, and turn nothing.
    x, _ = problem((3, 3))
    diagonals = [[3, 2, 1], [3, 2, 1], [1, 2, 6], [1, 2, 6], [1, 2, 6]]
    gradients = np.array([np.diag(np.array(d, float)) for d in diagonals])
    arguments = {"learning_rate": 1e-3, "beta_1": 0.9, "beta_2": 0.5}
    oracle = oracles.SOAP(x, refresh_every=2, epsilon=1e-6, **arguments)
    oracle.step(gradients[0])
    before = np.abs(oracle.basis[0])
    adam = oracles.SubsetNorm(x, subsets=1, **arguments)
    assert_same(oracle, adam, gradients[1:])
    after = np.abs(oracle.basis[0])
    np.testing.assert_allclose(before, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(after, np.eye(3)[[2, 1, 0]].T, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 3), (3, 4)])
def test_soap_on_one_side_turns_the_smaller(shape):
    x, gradients = problem(shape)
    one = oracles.SOAP(x, one_sided=True, refresh_every=2)
    small = oracles.SOAP(x, max_precondition_dim=3, refresh_every=2)
    assert_same(one, small, gradients)


def test_soap_turns_a_vector_as_it_does_a_column():
    x, gradients = problem((3,))
    vector = oracles.SOAP(x, precondition_1d=True, refresh_every=2)
    column = Reshaped(oracles.SOAP, x, (3, 1), refresh_every=2)
    assert_same(vector, column, gradients)


def test_soap_merges_axes():
    x, gradients = problem((2, 2, 3))
    arguments = {"max_precondition_dim": 4, "refresh_every": 2}
    merged = oracles.SOAP(x, merge_axes=True, **arguments)
    matrix = Reshaped(oracles.SOAP, x, (4, 3), **arguments)
    assert_same(merged, matrix, gradients)


def test_soap_factors_a_column_without_loss():
    x, gradients = problem((3, 1))
    factored = oracles.SOAP(x, factored=True, refresh_every=2)
    assert_same(factored, oracles.SOAP(x, refresh_every=2), gradients)


def test_soap_normalizes_its_updates():
    x, gradients = problem(MATRIX)
    oracle = oracles.SOAP(x, normalize_updates=True)
    for t, g in enumerate(gradients):
        before = oracle.x
        moved = oracles.common.rms(oracle.step(g) - before)
        if t:
            bias = math.sqrt(1 - 0.95**t) / (1 - 0.95**t)
            np.testing.assert_allclose(moved, 3e-3 * bias, rtol=1e-10)


def test_hfac_without_momentum_is_adafactor():
    x, gradients = problem(MATRIX)
    axes = {"rows": (0,), "cols": (1,)}
    adafactor = oracles.Adafactor(
        x,
        learning_rate=1e-3,
        relative_step=False,
        multiply_by_parameter_scale=False,
        beta_2=0.999,
        **axes,
    )
    assert_same(oracles.HFac(x, beta_1=0.0, **axes), adafactor, gradients)


def test_hfac_clips_vectors():
    x, gradients = problem((5,))
    moved = oracles.HFac(x, clip_threshold=0.1).step(gradients[0]) - x
    np.testing.assert_allclose(oracles.common.rms(moved), 1e-4, rtol=1e-10)


def test_fadam_without_clipping_and_momentum_is_adam():
    x, gradients = problem(MATRIX)
    oracle = oracles.FAdam(x, beta_1=0.0, clip_threshold=None, weight_decay=0.0)
    assert_same(oracle, adam(x, 0.0, epsilon=1e-8), gradients)


@pytest.mark.parametrize("mode", ["paper_v3", "port"])
def test_fadam_has_one_epsilon_for_gradients_of_unit_size(mode):
    x, gradients = problem(MATRIX)
    gradients = gradients / np.sqrt((gradients**2).mean((1, 2), keepdims=True))
    arguments = {"epsilon": 1e-3}
    latest = oracles.FAdam(x, **arguments)
    other = oracles.FAdam(x, epsilon_mode=mode, **arguments)
    assert_same(latest, other, gradients)


def test_fadam_epsilon_follows_small_gradients_in_the_paper_large_in_the_port():
    x, gradients = problem(MATRIX)
    gradients = gradients / np.sqrt((gradients**2).mean((1, 2), keepdims=True))
    for size, paper, port in ((0.25, 1e-2, 2.5e-3), (4.0, 4e-2, 1e-2)):
        left = oracles.FAdam(x, epsilon=paper, epsilon_mode="paper_v3")
        right = oracles.FAdam(x, epsilon=port, epsilon_mode="port")
        assert_same(left, right, size * gradients)


def test_fadam_spends_its_decay_on_what_has_no_gradient_unless_masked():
    x = np.ones((2, 3))
    g = np.array([[0.1, 0.2, -0.3], [0.0, 0.0, 0.0]])
    still = {
        masked: oracles.FAdam(x, mask_decay=masked).step(g)
        for masked in (False, True)
    }
    assert np.all(still[False][1] < 1)
    assert np.all(still[True][1] == 1)


def test_fadam_bears_gradients_of_zero():
    oracle = oracles.FAdam(np.ones(MATRIX), weight_decay=0.0)
    np.testing.assert_array_equal(oracle.step(np.zeros(MATRIX)), 1)


def test_signum_is_lion_with_equal_betas():
    x, gradients = problem(MATRIX)
    arguments = {"learning_rate": 1e-3, "weight_decay": 0.1}
    lion = oracles.Lion(x, beta_1=0.9, beta_2=0.9, **arguments)
    assert_same(oracles.Signum(x, **arguments), lion, gradients)


@pytest.mark.parametrize("shape", [(), (3,), MATRIX])
def test_adalayer_with_blocks_of_one_entry_is_adam(shape):
    x, gradients = problem(shape)
    oracle = oracles.Adalayer(x, block_axes=tuple(range(len(shape))))
    assert_same(oracle, adam(x, beta_2=0.95, epsilon=1e-15), gradients)


def test_adalayer_freezes():
    x, gradients = problem(MATRIX)
    q = (gradients**2).mean((1, 2))
    measured = q[:3].sum() / 4
    for adapting in (False, True):
        oracle = oracles.Adalayer(
            x,
            freeze_after=3,
            keep_adapting=adapting,
            learning_rate=1e-3,
            weight_decay=0.1,
        )
        for g in gradients[:3]:
            np.testing.assert_array_equal(oracle.step(g), x)
        np.testing.assert_allclose(oracle.v, measured, rtol=1e-12)
        v = 0.95 * measured + 0.05 * q[3] if adapting else measured
        m = sum(0.1 * 0.9 ** (3 - i) * gradients[i] for i in range(4)) / (
            1 - 0.9**4
        )
        expected = x * (1 - 1e-4) - 1e-3 * m / math.sqrt(v)
        np.testing.assert_allclose(
            oracle.step(gradients[3]), expected, rtol=1e-12
        )


def test_sm3_of_a_vector_is_adagrad():
    x, gradients = problem((5,))
    oracle = oracles.SM3(x, momentum=0.0)
    squares = 0.0
    for g in gradients:
        squares = squares + g**2
        x = x - 0.1 * g / np.sqrt(squares)
        np.testing.assert_allclose(oracle.step(g), x, rtol=1e-10)


def test_sm3_covers_the_sum_of_squares():
    x, gradients = problem((2, 3, 4))
    oracle = oracles.SM3(x)
    squares = np.zeros_like(x)
    for g in gradients:
        squares = squares + g**2
        oracle.step(g)
        for a in oracle.a:
            assert np.all(a >= squares)
