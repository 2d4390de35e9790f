"""Orthonormal bases of matrices: QR, eigenvectors and singular vectors.

Every function here returns columns that are orthonormal within 1e-4, for any
finite matrix of any rank and scale. If the backend's decomposition fails all
the same, so that the columns are off by more than 1e-3, the result is NaN in
every entry.

Backends treat linearly dependent columns differently. LAPACK's QR returns
orthonormal columns, TensorFlow's squares what is left of a dependent column,
which underflows, and the kernels of a TPU flush such squares to zero. So each
matrix is conditioned first: no column is left so short that its square
underflows, and any backward stable QR gives an orthonormal result.
"""

import keras
from keras import ops

from keras_adafactor.backends import backend
from keras_adafactor.functional.noise import normal_noise

# Largest entry of `Q^T Q z - z` of a basis, with `z` standard normal. Rounding
# leaves less than 1e-5 for 2,048 rows.
TOLERANCE = 1e-3
# Up to so many rows, all eigenvectors come from one decomposition. The compiler
# of a TPU takes minutes for a larger one.
EXACT_UP_TO = 256
# Steps of orthogonal iteration in place of a larger decomposition.
ITERATIONS = 10
# For the leading eigenvectors: more steps, with more vectors than are wanted.
# They must hold as much of the matrix as the exact eigenvectors do.
ITERATIONS_OF_PART = 20
OVERSAMPLING = 2
FEWEST_MORE = 64
# The smallest normal float32. A matrix below it is treated as zero on a TPU.
_SMALLEST = 2.0**-126


def product(a, b):
    """Product of two matrices, in their full precision on a TPU too."""
    with backend.full_precision():
        # `ops.matmul` casts float64 to float32 on PyTorch.
        return ops.einsum("ij,jk->ik", a, b)


def orthonormal_columns(matrix):
    """Orthonormal basis of a space that contains the columns of a matrix.

    Column `j` of the result is what column `j` of the matrix adds to the
    columns before it. If a column adds nothing, the result has some other
    direction there.

    Args:
        matrix: Tensor of shape (n, rank), `rank <= n`.

    Returns:
        Tensor of the same shape.
    """
    matrix = of_unit_size(matrix)
    # Noise as small as the rounding of the largest entry. No column of it is
    # close to the space of the others.
    return _orthonormalized(matrix + _rounding(matrix) * _noise_like(matrix))


def eigenvectors(matrix, rank=None):
    """Eigenvectors of a symmetric matrix, largest eigenvalue first.

    For more than `EXACT_UP_TO` rows, orthogonal iteration approximates them.
    The first `rank` then hold as much of the matrix as the exact ones, within
    1e-3; all of them are a basis that is not yet diagonal.

    Args:
        matrix: Tensor of shape (d, d), positive semi-definite.
        rank: Int, the number of eigenvectors. Defaults to `None`, all.

    Returns:
        Tensor of shape (d, rank).
    """
    # For a matrix of NaN some backends raise, others return the identity.
    is_finite = ops.all(ops.isfinite(matrix))
    size = matrix.shape[0]
    identity = ops.eye(size, dtype=matrix.dtype)
    matrix = of_unit_size(ops.where(is_finite, matrix, identity))
    vectors = _eigenvectors(matrix, rank)
    return ops.where(is_finite, vectors, float("nan"))


def _eigenvectors(matrix, rank):
    size = matrix.shape[0]
    if size <= EXACT_UP_TO:
        _, vectors = backend.eigh(_with_unit_vectors_last(matrix))
        return _checked(ops.flip(vectors, axis=1)[:, :rank])
    # Start with the unit vectors of the largest diagonal entries.
    order = ops.argsort(-ops.diagonal(matrix))
    start = ops.take(ops.eye(size, dtype=matrix.dtype), order, 1)
    if rank is None or rank == size:
        return _checked(_iterated(matrix, start, ITERATIONS))
    # A leading eigenvector may have no component along these: add noise.
    start = start[:, : max(OVERSAMPLING * rank, rank + FEWEST_MORE)]
    start = start + 0.2 * size**-0.5 * _noise_like(start)
    space = _checked(_iterated(matrix, start, ITERATIONS_OF_PART))
    within = product(ops.transpose(space), product(matrix, space))
    return with_signs(product(space, eigenvectors(within)[:, :rank]))


def _iterated(matrix, basis, steps):
    """Steps of orthogonal iteration from a basis."""
    return ops.fori_loop(
        0,
        steps,
        lambda _, q: ops.qr(_shifted_product(matrix, q))[0],
        basis,
    )


def power_step(matrix, basis):
    """One step of orthogonal iteration towards the eigenvectors.

    Args:
        matrix: Tensor of shape (d, d), positive semi-definite.
        basis: Tensor of shape (d, d), orthogonal.

    Returns:
        Tuple of the order of the old vectors by the eigenvalues `q^T L q`
        estimated with them, largest first, an int tensor of shape (d,); and
        the new basis, whose vectors stand in that order.
    """
    turned = _shifted_product(of_unit_size(matrix), basis)
    order = ops.argsort(-ops.sum(basis * turned, axis=0))
    return order, _orthonormalized(ops.take(turned, order, axis=1))


def with_signs(vectors):
    """Columns whose entry of largest magnitude is positive.

    A decomposition is free in the signs of its vectors. This choice makes them
    the same on every backend.
    """
    largest = ops.argmax(ops.abs(vectors), axis=0, keepdims=True)
    signs = ops.sign(ops.take_along_axis(vectors, largest, axis=0))
    return vectors * ops.where(signs == 0, ops.ones_like(signs), signs)


def of_unit_size(x):
    """A tensor over its largest entry: squares neither over- nor underflow.

    Zero stays zero. What is below 1e-38 may become zero.
    """
    # XLA may multiply by the inverse: it must be a normal float32 too.
    return x / ops.clip(ops.max(ops.abs(x)), _SMALLEST, 1.0 / _SMALLEST)


def _noise_like(x, key=0):
    """Standard normal noise, the same in every call and on every backend."""
    noise = normal_noise(tuple(x.shape), ops.zeros((), dtype="int32"), key)
    return ops.cast(noise, x.dtype)


def _rounding(matrix):
    """Half a unit in the last place of 1."""
    dtype = keras.backend.standardize_dtype(matrix.dtype)
    return 2.0**-53 if dtype == "float64" else 2.0**-24


def _shift(matrix):
    """Multiple of the identity that is added to a positive semi-definite L.

    `(L + shift * I) Q` has no singular value below the shift if the columns of
    Q are orthonormal. Eigenvectors stay the same, and eigenvalues change by
    less than the rounding of L.
    """
    norm = ops.sqrt(ops.sum(ops.square(matrix)))
    norm = ops.where(norm > 0, norm, ops.ones_like(norm))
    return _rounding(matrix) * norm


def _with_unit_vectors_last(matrix):
    """The shifted matrix, with unit vectors for the eigenvectors of zero rows.

    Zero rows share the eigenvalue 0, so a decomposition may return any mixture
    of them. In such a basis a gradient in one new row has as many coordinates
    as there are zero rows, and Adam makes a full step of each. So each zero row
    gets an eigenvalue of its own, negative to come last.
    """
    size = matrix.shape[0]
    shift = _shift(matrix)
    index = ops.cast(ops.arange(1, size + 1), matrix.dtype)
    apart = -shift / _rounding(matrix) * (1.0 + index / size)
    is_zero = ops.equal(ops.diagonal(matrix), 0)
    return matrix + ops.diag(ops.where(is_zero, apart, shift))


def _shifted_product(matrix, basis):
    return product(matrix, basis) + _shift(matrix) * basis


def _orthonormalized(conditioned):
    return _checked(ops.qr(conditioned)[0])


def _checked(vectors):
    """Signed vectors; NaN in every entry unless they are orthonormal.

    `Q^T Q z` must be `z`, for a few random vectors `z`. Sums of products are
    float32 on every backend. A TPU may make a product of matrices in bfloat16,
    in which no basis is orthonormal.
    """
    holds = True
    for key in (1, 2):
        z = _noise_like(vectors[0], key)
        along = ops.sum(vectors * z, axis=1, keepdims=True)
        error = ops.sum(vectors * along, axis=0) - z
        # NaN compares as false. XLA's maximum may pass over it.
        holds = ops.logical_and(holds, ops.all(ops.abs(error) < TOLERANCE))
    return ops.where(holds, with_signs(vectors), float("nan"))
