"""Moving averages of moments, whole and factored into rows and columns."""

import math
from typing import Any
from typing import NamedTuple

from keras import ops

from keras_adafactor.backends import backend


class Moments(NamedTuple):
    """What is known of a gradient `g`: the tongue in which rules talk.

    Attributes:
        first: Tensor of the shape of the variable, an estimate of `E[g]`
            without bias; or `None` where it is not known.
        second: The same of `E[g ** 2]`.
    """

    first: Any = None
    second: Any = None


def ema(average, value, rate):
    """`(1 - rate) * average + rate * value`, without cancellation.

    Exponential moving average written with `rate = 1 - beta`, because `beta`
    rounds to 1 in float32 long before `rate` loses a digit. The difference is
    added to whichever end is nearer: a rate of 1 gives `value` exactly,
    whatever the average was, and a tiny rate does not drift.

    Args:
        average: Tensor, the average so far.
        value: Tensor of the same shape, the new value.
        rate: Float, or tensor that is a scalar or of the same shape, in (0, 1],
            the weight of the new value.

    Returns:
        Tensor of the same shape.
    """
    near = rate < 0.5
    if isinstance(rate, float):
        begin, end = (average, value) if near else (value, average)
        way = rate if near else 1.0 - rate
    else:
        # Of a scalar, the ends are arrays that are there already.
        choose = ops.where if len(rate.shape) else backend.select
        begin, end = choose(near, average, value), choose(near, value, average)
        way = choose(near, rate, 1.0 - rate)
    moved = end - begin
    moved *= way
    moved += begin
    return moved


def power_decay_rate(t, exponent):
    """`1 - beta_2` of Adafactor's increasing decay, `t ** exponent`.

    Paper, section 7.2: `beta_2 = 1 - t ** -0.8`.

    Args:
        t: float32 scalar >= 1, the step.
        exponent: Float <= 0.

    Returns:
        float32 scalar in (0, 1]; 1 at `t = 1`.
    """
    return ops.power(t, exponent)


def debiased_decay_rate(t, beta):
    """`1 - beta_t` of an average that needs no bias correction.

    `beta_t = beta * (1 - beta ** (t - 1)) / (1 - beta ** t)`, paper, section
    7.1. An average with this decay equals Adam's bias-corrected average at
    every step. Evaluated as `1 / (1 + beta / (1 - beta) * (1 - beta ** (t -
    1)))`, which has no cancellation and is exactly 1 at `t = 1`.

    Args:
        t: float32 scalar >= 1, the step.
        beta: Float in (0, 1).

    Returns:
        float32 scalar in (0, 1]; 1 at `t = 1`, `1 - beta` in the limit.
    """
    before = -ops.expm1((t - 1.0) * math.log(beta))
    return 1.0 / (1.0 + beta / (1.0 - beta) * before)


def ema_weight(t, beta):
    """`1 - beta ** t`: how much of an average that began at 0 is values.

    Args:
        t: Int, the values averaged so far.
        beta: Float in [0, 1), its decay.
    """
    return 1.0 - beta**t


def bias_correction(t, beta_1, beta_2):
    """`sqrt(1 - beta_2 ** t) / (1 - beta_1 ** t)`, Adam's, in one factor.

    Args:
        t: Float scalar >= 1, the step.
        beta_1: Float in (0, 1), or `None` without a first moment.
        beta_2: Float in (0, 1).
    """
    second = ops.sqrt(-ops.expm1(t * math.log(beta_2)))
    if beta_1 is None:
        return second
    return second / -ops.expm1(t * math.log(beta_1))


def largest_quotient(beta_1, beta_2):
    """The most that `|m| / sqrt(v)` of Adam's moments can be, uncorrected.

    By Cauchy and Schwarz, for any gradients; with `beta_1 ** 2 < beta_2`. A
    bound for moments that were rounded: a root that is 0 gives no huge step.
    """
    series = (1.0 - beta_2) * (1.0 - beta_1**2 / beta_2)
    return (1.0 - beta_1) / math.sqrt(series)


def factored_mean(x, groups):
    """Row means and column means of a tensor.

    Args:
        x: Tensor.
        groups: `AxisGroups` with rows and columns.

    Returns:
        Tuple of the means over the columns, with the axes
        `groups.row_axes(ndim)`, and the means over the rows, with the axes
        `groups.col_axes(ndim)`.
    """
    return backend.mean(x, groups.cols), backend.mean(x, groups.rows)


def factored_mean_square(g, groups):
    """`factored_mean(g ** 2, groups)`, in passes that only read."""
    square, again = backend.square_for_two(g)
    return backend.mean(square, groups.cols), backend.mean(again, groups.rows)


def precondition_by_factors(g, row, col, groups):
    """`g / sqrt(V)` with `V = row x col / mean(row)`, which is never built.

    Written so that nothing overflows or underflows for any finite positive
    statistics: every factor is the root of one statistic, and a gradient of 0
    gives 0 even where its row has never seen anything but 0. `g / sqrt(row)`
    is bounded by the row; what a quiet column makes of it, by 1e24.

    Args:
        g: Tensor, the gradient.
        row: Tensor > 0, the row statistic of the squared gradient.
        col: Tensor > 0, the column statistic.
        groups: `AxisGroups` with rows and columns.

    Returns:
        Tensor of the shape of `g`.
    """
    row = ops.expand_dims(row, groups.cols)
    col = ops.expand_dims(col, groups.rows)
    mean_row = ops.mean(row, axis=groups.rows, keepdims=True)
    scale_col = ops.minimum(ops.sqrt(mean_row) * ops.rsqrt(col), 1e24)
    return backend.product(g, ops.rsqrt(row), scale_col)
