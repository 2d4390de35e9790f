"""Tensors of any rank as matrices."""

import functools
import math


@functools.cache
def square_shape(size):
    """The divisors `(a, b)` of a size that are nearest to its root, `a >= b`.

    A prime gives `(size, 1)`, 1 gives `(1, 1)`, and 0 gives `(0, 1)`.
    """
    root = math.isqrt(size)
    b = next((d for d in range(root, 0, -1) if size % d == 0), 1)
    return size // b, b


def grouped_axes(shape, matrix_shape):
    """Which axes of a tensor its rows and columns run along, if one each.

    Args:
        shape: Tuple of ints, the tensor's.
        matrix_shape: Pair of ints, rows and columns of its reshaped matrix.

    Returns:
        Pair of axes, each `None` where it is no single axis of the tensor.
    """
    if len(shape) < 2:
        return None, None
    rows, cols = matrix_shape
    return (
        0 if rows == shape[0] else None,
        len(shape) - 1 if cols == shape[-1] else None,
    )


def merge_neighbours(shape, limit):
    """A shape of fewer axes: neighbours merged, from the left.

    Args:
        shape: Tuple of ints.
        limit: Int, the largest product of merged axes.

    Returns:
        Tuple of ints with the same product.
    """
    sizes: list[int] = []
    for size in shape:
        if sizes and sizes[-1] * size <= limit:
            sizes[-1] *= size
        else:
            sizes.append(size)
    return tuple(sizes)
