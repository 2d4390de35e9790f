"""Projections of a matrix onto a subspace of lower dimension, and back.

A basis is a matrix of orthonormal columns, (d, rank), along an axis of size d;
or a vector of `rank` indices of an axis, whose rows or columns then are the
subspace.
"""

import math

from keras import ops

from keras_adafactor.functional import axis_groups
from keras_adafactor.functional.decompositions import eigenvectors
from keras_adafactor.functional.decompositions import of_unit_size
from keras_adafactor.functional.eigenbasis import gram
from keras_adafactor.functional.eigenbasis import rotate


def matrix_of(shape):
    """The matrix that a tensor is reshaped to: that of `axis_groups.auto`.

    Returns:
        Tuple of its shape, and of the axes of the tensor that its rows and
        columns run along, `None` where they are several; or `None` for a
        tensor of fewer than two axes.
    """
    groups = axis_groups.auto(shape)
    if not groups.factored:
        return None
    sides = (groups.rows, groups.cols)
    sizes = tuple(math.prod(shape[axis] for axis in side) for side in sides)
    return sizes, tuple(s[0] if len(s) == 1 else None for s in sides)


def singular_vectors(matrix, axis, rank):
    """The singular vectors of the largest singular values, as a basis.

    From the Gram matrix of the axis: choose the shorter.
    """
    return eigenvectors(gram(of_unit_size(matrix), axis), rank)


def largest_slices(matrix, axis, rank):
    """Indices of the rows (axis 0) or columns that have the largest norm."""
    matrix = of_unit_size(matrix)
    norms = ops.sum(ops.square(matrix), axis=1 - axis)
    return largest_entries(norms, rank)


def largest_entries(vector, rank):
    """Indices of the largest entries of a vector, the first of equal ones."""
    return ops.cast(ops.argsort(-vector)[:rank], "int32")


def project(matrix, basis, axis):
    """The coordinates of a matrix in a subspace.

    Args:
        matrix: Tensor of two axes.
        basis: Tensor, of one axis or two; see above.
        axis: Int, the axis that becomes `rank` long.
    """
    if len(basis.shape) == 1:
        return ops.take(matrix, basis, axis=axis)
    return rotate(matrix, {axis: basis})


def with_projection(matrix, old, new, basis, axis):
    """A matrix with other coordinates in a subspace; its complement stays.

    Args:
        matrix: Tensor of two axes.
        old: Tensor, what `project` returned.
        new: Tensor of the same shape, the coordinates in place of these.
        basis, axis: As for `project`.
    """
    if len(basis.shape) > 1:
        return matrix + rotate(new - old, {axis: basis}, back=True)
    if axis == 1:
        matrix, new = ops.transpose(matrix), ops.transpose(new)
    matrix = ops.scatter_update(matrix, ops.expand_dims(basis, 1), new)
    return ops.transpose(matrix) if axis == 1 else matrix
