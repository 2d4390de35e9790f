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


def product(a, b):
    """Of two matrices; Keras' own makes float32 of float64 on PyTorch."""
    return ops.einsum("ij,jk->ik", a, b)


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


# Of float32, where the singular values of gradients extend over two decades.
_ROUNDING = 2.0**-17


def rotate_gradient(g, bases):
    """`rotate(g, bases)`, with 0 for what is no more than its rounding.

    In a direction in which no gradient points they have a coordinate of some
    1e-6 of their norm, as bases are rounded too. Whoever divides it by the root
    of its own second moment would take steps of ordinary size there.

    Args:
        g: Tensor.
        bases: Dict from axis to a tensor of shape (size, any), of columns of
            about unit length.
    """
    y = rotate(g, bases)
    if not bases:
        return y
    # Rounded by the norms along one axis, of which the largest is spread over
    # the others.
    first, *others = bases
    norm = ops.sqrt(ops.sum(ops.square(y), axis=first, keepdims=True))
    if others:
        norm = ops.max(norm, axis=tuple(others), keepdims=True)
    return ops.where(ops.abs(y) > _ROUNDING * norm, y, ops.zeros_like(y))


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
        0, ITERATIONS, lambda _, q: ops.qr(product(matrix, q))[0], start
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
    turned = product(_of_unit_size(matrix), basis)
    eigenvalues = ops.sum(basis * turned, axis=0)
    order = ops.argsort(-eigenvalues)
    vectors, _ = ops.qr(ops.take(turned, order, axis=1))
    return order, with_signs(vectors)
