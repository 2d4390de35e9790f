"""Root mean squares, and what is scaled or clipped by them.

`axis` is the axes of one slice of a stacked variable, or `None` for all.
"""

from keras import ops


def rms(x, axis=None):
    """`sqrt(mean(x ** 2))` with the reduced axes kept at size 1."""
    return ops.sqrt(ops.mean(ops.square(x), axis=axis, keepdims=True))


def clip_by_rms(x, threshold, axis=None):
    """`x / max(1, rms(x) / threshold)`.

    Paper, section 6. Larger values are brought to the threshold, smaller ones
    stay as they are.

    Args:
        x: Tensor.
        threshold: Float > 0, `d` in the paper.
        axis: Axes of one slice.

    Returns:
        Tensor of the same shape, with an RMS of at most `threshold`.
    """
    return x / ops.maximum(1.0, rms(x, axis) / threshold)


def parameter_scale(x, floor, ceiling=None, axis=None):
    """`max(floor, rms(x))`, at most `ceiling`.

    Paper, section 8, where `floor` is `epsilon_2`.

    Args:
        x: Tensor, the parameter.
        floor: Float > 0, the scale of a parameter that is (nearly) zero.
        ceiling: Float >= `floor`, or `None`.
        axis: Axes of one slice.

    Returns:
        Tensor with the reduced axes kept at size 1.
    """
    scale = ops.maximum(rms(x, axis), floor)
    return scale if ceiling is None else ops.minimum(scale, ceiling)
