"""Root mean squares, and what is scaled or clipped by them.

`axis` is the axes of one slice of a stacked variable, or `None` for all.
"""

from keras import ops

from keras_adafactor.backends import backend


def rms(x, axis=None):
    """`sqrt(mean(x ** 2))` with the reduced axes kept at size 1."""
    return backend.sqrt(backend.mean_square(x, _axes(x, axis)))


# Smaller by this, what is squared does not overflow; what underflows instead
# is a millionth of an ordinary update.
_SAFE = 2.0**-40


def update_rms(u, axis=None):
    """`rms(u)` of an update, right up to 1e29.

    A preconditioned gradient can be huge where its column was quiet.
    """
    square = backend.mean_square(u, _axes(u, axis), _SAFE)
    return backend.sqrt(square) / _SAFE


def update_and_parameter_rms(u, x, axis=None):
    """`update_rms(u)` and `rms(x)`, of one shape, in one pass over both.

    On a TPU that takes three quarters of the time of two passes; on others it
    is two. Of 1e10 numbers, right up to 1e26 and 1e14.
    """
    squares = backend.mean_squares_of_two(u, x, _axes(x, axis), _SAFE)
    u_rms, x_rms = map(backend.sqrt, squares)
    return u_rms / _SAFE, x_rms


def _axes(x, axis):
    return tuple(range(len(x.shape)) if axis is None else axis)


def rms_clip_scale(u_rms, threshold):
    """`1 / max(1, u_rms / threshold)`, by which an update is multiplied.

    Paper, section 6. Larger updates are brought to the threshold, smaller ones
    stay as they are. A factor, so that it can join the step size and cost no
    pass over the update.

    Args:
        u_rms: Tensor, from `update_rms`.
        threshold: Float > 0, `d` in the paper.

    Returns:
        Tensor in (0, 1], of the shape of `u_rms`.
    """
    return 1.0 / ops.maximum(1.0, u_rms / threshold)


def clip_by_rms(u, threshold, axis=None):
    """`u / max(1, rms(u) / threshold)`.

    Args:
        u: Tensor, the update.
        threshold: Float > 0, or `None` for no clipping.
        axis: Axes of one slice.

    Returns:
        Tensor of the shape of `u`.
    """
    if threshold is None:
        return u
    return rms_clip_scale(update_rms(u, axis), threshold) * u


def parameter_scale(x_rms, floor, ceiling=None):
    """`max(floor, rms(x))`, at most `ceiling`.

    Paper, section 8, where `floor` is `epsilon_2`.

    Args:
        x_rms: Tensor, the RMS of a parameter.
        floor: Float > 0, the scale of a parameter that is (nearly) zero.
        ceiling: Float >= `floor`, or `None`.

    Returns:
        Tensor of the shape of `x_rms`.
    """
    scale = ops.maximum(x_rms, floor)
    return scale if ceiling is None else ops.minimum(scale, ceiling)
