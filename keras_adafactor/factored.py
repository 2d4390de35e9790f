"""The second moment of a gradient, factored where there are rows and columns.

State and step of the statistic that Adafactor and its descendants share, so
that neither is written twice.
"""

from keras import ops

from keras_adafactor.functional.moments import ema
from keras_adafactor.functional.moments import factored_mean
from keras_adafactor.functional.moments import factored_mean_square
from keras_adafactor.functional.moments import precondition_by_factors
from keras_adafactor.functional.scaling import rms_clip_scale
from keras_adafactor.functional.scaling import update_rms
from keras_adafactor.storage import StateSpec


def second_moment_spec(shape, groups, name="v"):
    """`v_row` and `v_col`, or `v` where there are no rows and columns."""
    ndim = len(shape)
    if not groups.factored:
        return {name: StateSpec.like(shape, sees_gradient=True)}
    return {
        f"{name}_row": StateSpec.along(
            shape, groups.row_axes(ndim), sees_gradient=True
        ),
        f"{name}_col": StateSpec.along(
            shape, groups.col_axes(ndim), sees_gradient=True
        ),
    }


def second_moment_of(square, groups, epsilon, name="v"):
    """The entries of `second_moment_spec`, for one value of `g ** 2`.

    Args:
        square: Tensor of the shape of the variable: `g ** 2`, or its mean.
        groups: `AxisGroups`.
        epsilon: Float >= 0, added to it.
        name: String, the name given to `second_moment_spec`.
    """
    if not groups.factored:
        return {name: square + epsilon}
    return _rows_and_columns(factored_mean(square, groups), epsilon, name)


def _rows_and_columns(means, epsilon, name):
    row, col = means
    return {f"{name}_row": row + epsilon, f"{name}_col": col + epsilon}


def whole_second_moment(state, groups, name="v"):
    """`V`, of the shape of the variable; 0 where nothing was seen.

    Args:
        state: Dict with the entries of `second_moment_spec`.
        groups, name: As there.
    """
    if not groups.factored:
        return state[name]
    row = ops.expand_dims(state[f"{name}_row"], groups.cols)
    col = ops.expand_dims(state[f"{name}_col"], groups.rows)
    mean_row = ops.mean(row, axis=groups.rows, keepdims=True)
    return row * (col / ops.where(mean_row > 0, mean_row, 1.0))


def typical_updates(moments, state, groups, clip_threshold):
    """What `u_hat = clip(g / sqrt(V))` was, had `V` stood still.

    Args:
        moments: `Moments` of the gradient; the second is known.
        state: Dict, from `second_moment_of`.
        groups: `AxisGroups`.
        clip_threshold: Float > 0, or `None` for no clipping.

    Returns:
        Tuple of `E[u_hat]`, `None` where the first moment is, and of
        `sqrt(E[u_hat ** 2])`.
    """
    size = precondition_by_moment(ops.sqrt(moments.second), state, groups)
    clip = 1.0
    if clip_threshold is not None:
        size_rms = update_rms(size, groups.within_slice(len(size.shape)))
        clip = rms_clip_scale(size_rms, clip_threshold)
    if moments.first is None:
        return None, clip * size
    mean = clip * precondition_by_moment(moments.first, state, groups)
    return mean, clip * size


def update_second_moment(g, state, groups, rate, epsilon, name="v"):
    """`V`, moved towards `g ** 2 + epsilon` by `rate`.

    Args:
        g: Tensor, the gradient, or what else is averaged.
        state: Dict with the entries of `second_moment_spec`.
        groups: `AxisGroups`.
        rate: Scalar in (0, 1], `1 - beta_2`.
        epsilon: Float > 0.
        name: String, the name given to `second_moment_spec`.

    Returns:
        Dict, the new entries.
    """
    if groups.factored:
        means = factored_mean_square(g, groups)
        now = _rows_and_columns(means, epsilon, name)
    else:
        now = second_moment_of(ops.square(g), groups, epsilon, name)
    return {key: ema(state[key], value, rate) for key, value in now.items()}


def precondition_by_moment(g, moment, groups, name="v"):
    """`g / sqrt(V)`.

    Args:
        g: Tensor, the gradient, or a momentum.
        moment: Dict, from `update_second_moment`.
        groups, name: As there.

    Returns:
        Tensor of the shape of `g`.
    """
    if not groups.factored:
        return g * ops.rsqrt(moment[name])
    row, col = moment[f"{name}_row"], moment[f"{name}_col"]
    return precondition_by_factors(g, row, col, groups)


def precondition(g, state, groups, rate, epsilon, name="v"):
    """`g / sqrt(V)`, with `V` moved towards `g ** 2 + epsilon` by `rate`.

    Args: See `update_second_moment`.

    Returns:
        Tuple of a tensor of the shape of `g`, and the new entries.
    """
    moment = update_second_moment(g, state, groups, rate, epsilon, name)
    return precondition_by_moment(g, moment, groups, name), moment
