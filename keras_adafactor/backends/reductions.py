"""Sums over axes, as the backends share them."""

import math

from keras import ops


def stages(axes):
    """The axes to reduce, the last one first.

    XLA reduces to a scalar on one core of a CPU only.
    """
    return [stage for stage in (axes[-1:], axes[:-1]) if stage]


def scaled_square(x, scale):
    """`(scale * x) ** 2`, for a float that is a power of 2."""
    return ops.square(scale * x if scale != 1 else x)


def staged_mean(x, axes):
    """Mean over some axes, which are kept at size 1."""
    for stage in stages(axes):
        x = ops.mean(x, axis=stage, keepdims=True)
    return x


def means_in_one_pass(sums_of_two, a, b, axes, scale):
    """`mean((scale * a) ** 2)` and `mean(b ** 2)`, axes kept at size 1.

    Args:
        sums_of_two: Function of two tensors and axes that sums both over these
            in one pass, and keeps them at size 1.
        a, b: Tensors of one shape.
        axes: Tuple of ints.
        scale: Float, a power of 2.
    """
    sums = scaled_square(a, scale), ops.square(b)
    # The second stage costs a TPU 2,000 cycles, and makes large arrays faster.
    small = math.prod(a.shape) <= 2**20
    for stage in [axes] if small else stages(axes):
        # No mean: to divide in between would be a kernel of its own.
        sums = sums_of_two(*sums, stage)
    count = math.prod(a.shape[i] for i in axes)
    return sums[0] / count, sums[1] / count
