"""Subsets: entries of a tensor that share one statistic.

Every entry is in one subset. A statistic of subsets has one number for each,
and is kept in the shape that these have beside each other.
"""

import math
from typing import NamedTuple

from keras import ops

from keras_adafactor.backends import backend
from keras_adafactor.functional import axis_groups


class Subsets(NamedTuple):
    """How the entries of a tensor are divided.

    Attributes:
        shape: Tuple of ints, the shape that the tensor is reshaped to, row by
            row: its own but for split axes.
        kept: Tuple of axes of that shape, in order. Their indices tell subsets
            apart; a subset extends over the other axes.
        axes: For each of these the axis of the tensor that it runs along, or
            `None`.
    """

    shape: tuple[int, ...]
    kept: tuple[int, ...]
    axes: tuple[int | None, ...]

    @property
    def sizes(self):
        """The shape of a statistic."""
        return tuple(self.shape[axis] for axis in self.kept)

    @property
    def apart(self):
        """Axes of the tensor that no subset extends along."""
        return tuple(axis for axis in self.axes if axis is not None)

    @property
    def inside(self):
        return tuple(a for a in range(len(self.shape)) if a not in self.kept)

    @property
    def count(self):
        """The entries of one subset, at least 1."""
        return max(1, math.prod(self.shape[axis] for axis in self.inside))

    def mean(self, x):
        """The mean of every subset; 0 of those without entries."""
        x = ops.reshape(x, self.shape)
        if 0 in self.shape:
            return ops.sum(x, axis=self.inside)
        return backend.mean(x, self.inside)

    def sum(self, x):
        """The sum of every subset."""
        return self.count * self.mean(x)

    def spread(self, statistic, shape):
        """The number of its subset for every entry.

        Args:
            statistic: Tensor of shape `sizes`.
            shape: Tuple of ints, the tensor's.

        Returns:
            Tensor that broadcasts against one of the given shape.
        """
        spread = ops.expand_dims(statistic, self.inside)
        if self.shape == tuple(shape):
            return spread
        return ops.reshape(ops.broadcast_to(spread, self.shape), shape)


def along(shape, axes):
    """A subset for every index of the given axes: one alone for none."""
    return Subsets(tuple(shape), tuple(axes), tuple(axes))


def parts(shape, count):
    """Equal parts along the last axis, which `count` divides."""
    *before, last = shape
    return Subsets((*before, count, last // count), (len(before),), (None,))


def blocks(shape, limit):
    """Blocks of neighbours, row by row.

    Args:
        shape: Tuple of ints.
        limit: Int. The blocks are as long as the largest divisor of the
            size of a tensor that is at most this. If negative, `-q`, the
            limit is the root of the size divided by `q`, at least 1.

    Returns:
        `Subsets`.
    """
    size = math.prod(shape)
    if limit < 0:
        limit = max(1, math.isqrt(size) // -limit)
    block = largest_divisor(size, limit)
    *before, last = shape or (1,)
    if last % block == 0:
        # Within the last axis: no element leaves its row, or device.
        axes = (*range(len(before)), None)
        split = (*before, last // block, block)
        return Subsets(split, tuple(range(len(split) - 1)), axes)
    return Subsets((size // block, block), (0,), (None,))


def largest_divisor(size, limit):
    """The largest divisor of a size that is at most a limit."""
    start = min(size, limit) if size else limit
    return next(d for d in range(start, 0, -1) if size % d == 0)


def longer_side(shape):
    """A subset for every index of the longer side of a matrix, its rows if
    both are as long.

    A tensor of more axes is the matrix of `axis_groups.auto`; in one of fewer
    every entry is a subset.
    """
    groups = axis_groups.auto(shape)
    if not groups.factored:
        return along(shape, range(len(shape)))
    rows, cols = (
        math.prod(shape[axis] for axis in axes)
        for axes in (groups.rows, groups.cols)
    )
    return along(shape, groups.rows if rows >= cols else groups.cols)
