"""Bases of a tensor, one for each of its axes, from the Gram matrices.

A basis is an orthogonal matrix with its vectors in the columns.
"""

import math

from keras import ops

EXACT_UP_TO = 256
ITERATIONS = 10


def _unfolded(x, axis):
    """`x` as (axes before, axis, axes after)."""
    shape = x.shape
    before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    return ops.reshape(x, (before, shape[axis], after))


def gram(x, axis):
    """`X X^T`, with `X` the unfolding of `x` along an axis.

    Args:
        x: Tensor.
        axis: Int; its size is `d`.

    Returns:
        Tensor of shape (d, d).
    """
    return cross_gram(x, x, axis)


def cross_gram(x, y, axis):
    """`X Y^T`, with the unfoldings of two tensors along an axis.

    Args:
        x: Tensor.
        y: Tensor of the same shape but for that axis.
        axis: Int; its size is `d` in `x`, `e` in `y`.

    Returns:
        Tensor of shape (d, e).
    """
    return ops.einsum("bdn,ben->de", _unfolded(x, axis), _unfolded(y, axis))


def rotate(x, matrices, back=False):
    """Multiplies a tensor along some of its axes.

    Args:
        x: Tensor.
        matrices: Dict from axis to a tensor of shape (size, any).
        back: Whether by the matrices, not by their transposes.

    Returns:
        Tensor, of which entry `j` along each such axis is the product with
        column `j` of the matrix (with row `j`, `back`).
    """
    equation = "bjn,dj->bdn" if back else "bdn,dj->bjn"
    for axis, matrix in matrices.items():
        size = matrix.shape[0 if back else 1]
        shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
        x = ops.reshape(ops.einsum(equation, _unfolded(x, axis), matrix), shape)
    return x


def with_signs(vectors):
    """Columns of which the entry of largest magnitude is positive.

    A decomposition is free in the signs of its vectors; this is the choice of
    every basis here, on every backend.
    """
    largest = ops.argmax(ops.abs(vectors), axis=0, keepdims=True)
    signs = ops.sign(ops.take_along_axis(vectors, largest, axis=0))
    return vectors * ops.where(signs == 0, ops.ones_like(signs), signs)


def _of_unit_size(matrix):
    # TensorFlow's decompositions square entries: of 1e20 they overflow.
    return matrix / ops.maximum(ops.max(ops.abs(matrix)), 1e-30)


def eigenvectors(matrix, rank=None):
    """Eigenvectors of a symmetric matrix, largest eigenvalue first.

    Of more than `EXACT_UP_TO` rows they are those that `ITERATIONS` steps of
    orthogonal iteration find from the columns with the largest diagonal: the
    compiler of a TPU takes minutes over a larger decomposition.

    Args:
        matrix: Tensor of shape (d, d), positive semi-definite.
        rank: Int, how many. Defaults to `None`, all.

    Returns:
        Tensor of shape (d, rank), of orthonormal columns.
    """
    matrix = _of_unit_size(matrix)
    if matrix.shape[0] <= EXACT_UP_TO:
        _, vectors = ops.eigh(matrix)
        return with_signs(ops.flip(vectors, axis=1)[:, :rank])
    order = ops.argsort(-ops.diagonal(matrix))[:rank]
    start = ops.take(ops.eye(matrix.shape[0], dtype=matrix.dtype), order, 1)
    vectors = ops.fori_loop(
        0, ITERATIONS, lambda _, q: ops.qr(ops.matmul(matrix, q))[0], start
    )
    return with_signs(vectors)


def power_step(matrix, basis):
    """One step of orthogonal iteration towards the eigenvectors.

    Args:
        matrix: Tensor of shape (d, d), symmetric.
        basis: Tensor of shape (d, d), orthogonal.

    Returns:
        Tuple of the order of the old vectors by the eigenvalues `q^T L q`
        estimated with them, largest first, an int tensor of shape (d,); and
        the new basis, whose vectors stand in that order.
    """
    product = ops.matmul(_of_unit_size(matrix), basis)
    eigenvalues = ops.sum(basis * product, axis=0)
    order = ops.argsort(-eigenvalues)
    vectors, _ = ops.qr(ops.take(product, order, axis=1))
    return order, with_signs(vectors)
