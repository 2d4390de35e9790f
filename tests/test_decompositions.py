"""Bases stay orthonormal, and decompositions never fail, for any matrix."""

import functools

import numpy as np
import pytest
from keras import ops

from keras_adafactor.backends import backend
from keras_adafactor.functional import decompositions
from keras_adafactor.functional.projection import singular_vectors
from keras_adafactor.functional.sketch import sketched_basis
from tests import harness
from tests.matrices import matrices

SHAPES = ((1, 1), (5, 3), (40, 40), (90, 25), (25, 90))
SCALES = (1e-30, 1.0, 1e30)
COMPILED = harness.MODES[1:] or harness.MODES
# Eager steps run the same kernels as graphs, and take long.
shapes_and_modes = pytest.mark.parametrize(
    ("shape", "mode"),
    [
        pytest.param(shape, mode, id=f"{shape[0]}x{shape[1]}-{mode}")
        for mode in harness.MODES
        for shape in SHAPES
        if mode in COMPILED or shape == (40, 40)
    ],
)


def in_mode(function, mode):
    """The function of arrays, run as `mode` says; gives arrays."""
    run = function
    if mode in ("graph", "xla"):
        import tensorflow as tf  # noqa: PLC0415

        run = tf.function(function, jit_compile=mode == "xla")
    if mode == "jit":
        import jax  # noqa: PLC0415

        run = jax.jit(function)

    def call(*arrays):
        return ops.convert_to_numpy(run(*map(ops.convert_to_tensor, arrays)))

    return call


def energy(basis, matrix):
    """How much of the squares of a matrix a basis holds."""
    basis, matrix = basis.astype("float64"), matrix.astype("float64")
    return np.square(basis.T @ matrix).sum() / np.square(matrix).sum()


def assert_orthonormal(basis, name):
    gram = basis.astype("float64").T @ basis
    error = np.abs(gram - np.eye(len(gram))).max()
    assert error < 1e-4, (name, error)


def cases(rows, columns, scales=SCALES):
    """Pairs of a name and a matrix: other dtypes and scales too."""
    for name, matrix in matrices(rows, columns).items():
        for scale in scales:
            if scale * np.abs(matrix).max() < 3e38:
                yield f"{name} * {scale}", (scale * matrix).astype("float32")
        for dtype in ("bfloat16", "float16"):
            if np.abs(matrix).max() < 6e4:
                low = ops.cast(ops.cast(matrix, dtype), "float32")
                yield f"{name}, {dtype}", ops.convert_to_numpy(low)
    # Not a normal float32.
    yield "denormal", np.full((rows, columns), 1e-40, "float32")


@shapes_and_modes
def test_columns_are_orthonormal_and_hold_the_matrix(shape, mode):
    shape = sorted(shape, reverse=True)
    run = in_mode(decompositions.orthonormal_columns, mode)
    for name, matrix in cases(*shape):
        basis = run(matrix)
        assert_orthonormal(basis, name)
        if matrix.max() > 1e-37:
            assert energy(basis, matrix) > 1 - 1e-3, name


@shapes_and_modes
def test_singular_vectors_hold_what_the_exact_ones_do(shape, mode):
    rank = max(1, min(shape) // 3)
    run = in_mode(functools.partial(singular_vectors, axis=0, rank=rank), mode)
    for name, matrix in cases(*shape):
        basis = run(matrix)
        assert_orthonormal(basis, name)
        if matrix.max() > 1e-37:
            exact = np.linalg.svd(matrix.astype("float64"))[0][:, :rank]
            best = energy(exact, matrix)
            assert energy(basis, matrix) > (1 - 1e-3) * best, name


@shapes_and_modes
def test_power_steps_from_the_eigenvectors_stay_orthonormal(shape, mode):
    """A refresh of SOAP, twice, as gradients of other rank come in."""

    def refreshes(first, second):
        basis = decompositions.eigenvectors(first)
        grams = (first, first + 0.1 * second, second)
        for gram in grams:
            _, basis = decompositions.power_step(gram, basis)
        return basis

    run = in_mode(refreshes, mode)
    found = [matrix @ matrix.T for _, matrix in cases(*shape, scales=(1, 1e9))]
    found = [gram for gram in found if np.isfinite(gram).all()]
    for i, gram in enumerate(found):
        assert_orthonormal(run(gram, found[i - 1]), i)


@shapes_and_modes
def test_sketch_holds_what_it_does_in_float64(shape, mode):
    rank = max(1, min(shape) // 3)
    omega = np.random.default_rng(1).normal(size=(shape[0], rank))
    omega = omega.astype("float32")
    run = in_mode(functools.partial(sketched_basis, axis=0, omega=omega), mode)
    for name, matrix in cases(*shape):
        basis = run(matrix)
        assert_orthonormal(basis, name)
        exact = matrix.astype("float64")
        if exact.max() > 1e-37:
            q = np.linalg.qr(exact.T @ omega)[0]
            expected = np.linalg.svd(exact @ q, full_matrices=False)[0]
            assert energy(basis, matrix) > (1 - 1e-3) * energy(
                expected, matrix
            ), name


@pytest.mark.parametrize("name", list(matrices(4, 4)))
def test_large_matrices_by_iteration(name):
    """More rows than are decomposed at once, up to 2,048."""
    for rows, columns, rank in ((300, 400, 140), (2048, 48, 16)):
        matrix = matrices(rows, columns)[name]
        # Eagerly: one program a shape takes longer to compile than to run.
        basis = ops.convert_to_numpy(
            singular_vectors(ops.convert_to_tensor(matrix), 0, rank)
        )
        assert_orthonormal(basis, rows)
        if matrix.any():
            exact = np.linalg.svd(
                matrix.astype("float64"), full_matrices=False
            )[0][:, :rank]
            best = energy(exact, matrix)
            assert energy(basis, matrix) > (1 - 1e-3) * best, rows
    gram = ops.convert_to_tensor(matrix[:300] @ matrix[:300].T)
    basis = decompositions.eigenvectors(gram)
    assert_orthonormal(ops.convert_to_numpy(basis), name)
    _, basis = decompositions.power_step(gram, basis)
    assert_orthonormal(ops.convert_to_numpy(basis), name)


def test_eigenvectors_come_in_order_and_with_signs():
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    matrix = (vectors * [16.0, 8.0, 4.0, 2.0, 1.0]) @ vectors.T
    matrix = ops.convert_to_tensor(matrix.astype("float32"))
    found = ops.convert_to_numpy(decompositions.eigenvectors(matrix))
    np.testing.assert_allclose(np.abs(vectors.T @ found), np.eye(5), atol=1e-5)
    largest = np.abs(found).argmax(0)
    assert (found[largest, range(5)] > 0).all()


def test_power_steps_end_at_the_eigenvectors():
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    matrix = (vectors * [16.0, 8.0, 4.0, 2.0, 1.0]) @ vectors.T
    matrix = ops.convert_to_tensor(matrix.astype("float32"))
    basis = ops.eye(5, dtype="float32")
    for _ in range(40):
        order, basis = decompositions.power_step(matrix, basis)
    np.testing.assert_array_equal(ops.convert_to_numpy(order), range(5))
    np.testing.assert_allclose(
        ops.convert_to_numpy(basis),
        ops.convert_to_numpy(decompositions.eigenvectors(matrix)),
        atol=1e-4,
    )


@pytest.mark.parametrize("rank", [None, 3])
def test_iteration_ends_at_the_eigenvectors(monkeypatch, rank):
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    matrix = (vectors * 4.0 ** -np.arange(12)) @ vectors.T
    matrix = ops.convert_to_tensor(matrix.astype("float32"))
    exact = ops.convert_to_numpy(decompositions.eigenvectors(matrix, rank))
    monkeypatch.setattr(decompositions, "EXACT_UP_TO", 4)
    found = ops.convert_to_numpy(decompositions.eigenvectors(matrix, rank))
    assert found.shape == (12, rank or 12)
    np.testing.assert_allclose(found[:, :3], exact[:, :3], atol=1e-4)


@pytest.mark.parametrize("mode", harness.MODES)
@pytest.mark.parametrize("size", [3e-3, 1.0, float("nan")])
def test_result_that_is_not_orthonormal_is_nan(monkeypatch, size, mode):
    def skewed(matrix):
        q = np.eye(*matrix.shape, dtype="float32")
        q[0, -1] += size
        return ops.convert_to_tensor(q), None

    def bases(matrix):
        return ops.concatenate(
            [
                decompositions.orthonormal_columns(matrix),
                decompositions.power_step(matrix, ops.eye(5))[1],
                decompositions.eigenvectors(matrix),
                decompositions.eigenvectors(matrix, 2),
                sketched_basis(matrix, 0, ops.eye(5)),
            ],
            axis=1,
        )

    monkeypatch.setattr(decompositions.ops, "qr", skewed)
    monkeypatch.setattr(decompositions, "EXACT_UP_TO", 1)
    monkeypatch.setattr(decompositions, "FEWEST_MORE", 1)
    found = in_mode(bases, mode)(matrices(5, 5)["full rank"])
    assert found.shape == (5, 22) and np.isnan(found).all()


@pytest.mark.parametrize("mode", harness.MODES)
def test_eigenvectors_of_nan_are_nan(mode):
    run = in_mode(decompositions.eigenvectors, mode)
    for size in (3, 40):
        assert np.isnan(run(np.full((size, size), np.nan, "float32"))).all()


@pytest.mark.skipif(harness.BACKEND != "torch", reason="Only PyTorch raises.")
def test_decomposition_that_raises_gives_nan(monkeypatch):
    import torch  # noqa: PLC0415

    def raises(matrix):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", raises)
    values, vectors = backend.eigh(torch.eye(3))
    assert torch.isnan(values).all() and torch.isnan(vectors).all()
    assert values.shape == (3,) and vectors.shape == (3, 3)


# A TPU, and TensorFlow on a CPU, do not see denormal numbers.

SMALLEST = np.finfo("float32").tiny


def flushed(x):
    x = np.asarray(x, "float32")
    return np.where(np.abs(x) < SMALLEST, np.float32(0), x)


def householder_q(a):
    """Q of a QR by reflections, without scaling, in flushed float32."""
    a = flushed(a).copy()
    reflections = []
    for j in range(a.shape[1]):
        head, tail = a[j, j], a[j + 1 :, j]
        square = flushed(np.sum(flushed(tail * tail), dtype="float32"))
        if square == 0:
            continue
        norm = -np.copysign(np.sqrt(head * head + square), head)
        v = flushed(np.concatenate([[1.0], tail / (head - norm)]))
        tau = np.float32((norm - head) / norm)
        a[j:, j:] = flushed(a[j:, j:] - tau * np.outer(v, v @ a[j:, j:]))
        reflections.append((j, v, tau))
    q = np.eye(*a.shape, dtype="float32")
    for j, v, tau in reversed(reflections):
        q[j:] = flushed(q[j:] - tau * np.outer(v, v @ q[j:]))
    return q


def error_of(q):
    q = q.astype("float64")
    return np.abs(q.T @ q - np.eye(q.shape[1])).max()


def test_conditioned_matrices_are_orthonormal_where_denormals_are_flushed(
    monkeypatch,
):
    """The library's own matrices, in the arithmetic of a TPU.

    Without the conditioning the same QR is off by a tenth or more: how far
    depends on the order in which a processor sums.
    """
    raw, conditioned = [], []

    def qr(matrix):
        q = householder_q(ops.convert_to_numpy(matrix))
        conditioned.append(error_of(q))
        return ops.convert_to_tensor(q), None

    monkeypatch.setattr(decompositions.ops, "qr", qr)
    rng = np.random.default_rng(2)
    start = np.linalg.qr(rng.normal(size=(120, 120)))[0].astype("float32")
    for matrix in matrices(120, 60).values():
        decompositions.orthonormal_columns(ops.convert_to_tensor(matrix))
        gram = matrix @ matrix.T
        gram = gram / max(gram.max(), 1e-30)
        basis = ops.convert_to_tensor(start)
        for _ in range(2):
            raw.append(
                error_of(householder_q(gram @ ops.convert_to_numpy(basis)))
            )
            _, basis = decompositions.power_step(
                ops.convert_to_tensor(gram), basis
            )
    assert max(conditioned) < 1e-5
    assert max(raw) > 0.1
