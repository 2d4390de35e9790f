"""Gram matrices of a tensor, and products of its axes with bases.

A basis is a matrix with its vectors in the columns.
"""

import math

from keras import ops

from keras_adafactor.functional.decompositions import product


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


def turn(old, new):
    """`old^T new`, by which coordinates go from one basis to another.

    Entries that are no more than rounding are 0. Both moments would otherwise
    leak into directions without a gradient, where their quotient makes a full
    step of what has leaked.

    Args:
        old: Tensor of shape (d, r), a basis.
        new: Tensor of shape (d, s), a basis.

    Returns:
        Tensor of shape (r, s).
    """
    cosines = product(ops.transpose(old), new)
    small = ops.abs(cosines) <= _ROUNDING
    return ops.where(small, ops.zeros_like(cosines), cosines)
