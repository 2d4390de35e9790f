"""CAME (Luo et al., 2023)."""

from dataclasses import KW_ONLY

import keras
from keras import ops

from keras_adafactor.arguments import AxisGroupsChoice
from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import StateDtype
from keras_adafactor.arguments import axis_groups
from keras_adafactor.arguments import boolean
from keras_adafactor.arguments import decay
from keras_adafactor.arguments import number
from keras_adafactor.arguments import rate
from keras_adafactor.factored import precondition
from keras_adafactor.factored import precondition_by_moment
from keras_adafactor.factored import second_moment_of
from keras_adafactor.factored import second_moment_spec
from keras_adafactor.factored import typical_updates
from keras_adafactor.factored import update_second_moment
from keras_adafactor.factored import whole_second_moment
from keras_adafactor.functional import axis_groups as grouping
from keras_adafactor.functional.moments import Moments
from keras_adafactor.functional.moments import debiased_decay_rate
from keras_adafactor.functional.moments import ema
from keras_adafactor.functional.moments import ema_weight
from keras_adafactor.functional.scaling import clip_by_rms
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.storage import momentum_dtype
from keras_adafactor.storage import momentum_spec


@keras.saving.register_keras_serializable(package="keras_adafactor")
class CAME(UpdateRuleOptimizer):
    """CAME: Adafactor with momentum, slower where it is not confident.

    Unlike Adam, the second moment of a matrix is kept as its row means and
    column means, momentum is of the clipped update, and it is divided by a
    second factored statistic: how far the updates lie from their momentum.
    4.004 bytes a parameter where Adam has 8; 1.02 with momentum in int8.

    Algorithm:

    ```
    v_row = beta_2 * v_row + (1 - beta_2) * mean(g ** 2 + epsilon_1, cols)
    v_col = beta_2 * v_col + (1 - beta_2) * mean(g ** 2 + epsilon_1, rows)
    v     = outer(v_row, v_col) / mean(v_row)      never built
    u     = g / sqrt(v)
    u_hat = u / max(1, rms(u) / clip_threshold)
    m     = beta_1 * m + (1 - beta_1) * u_hat
    q     = (u_hat - m) ** 2 + epsilon_2           instability
    s_row = beta_3 * s_row + (1 - beta_3) * mean(q, cols)
    s_col = beta_3 * s_col + (1 - beta_3) * mean(q, rows)
    s     = outer(s_row, s_col) / mean(s_row)      never built
    x     = x - learning_rate * m / sqrt(s)
    ```

    Vectors and scalars keep `v` itself and no `s`: their step is
    `learning_rate * m`.

    The first steps are long: `s` starts at 0, is not bias-corrected, and
    nothing is clipped after it. With the defaults the first step of a matrix
    has an RMS of 11 learning rates, the tenth of 7, the hundredth of 2.5, the
    thousandth of 0.8. Warm the learning rate up, over `1 / (1 - beta_3)` steps
    if that can be had, or set `debias_beta_3`.

    State:

    - `v_row` and `s_row` (R of the paper): float32, the axes of the variable
      that are not columns.
    - `v_col` and `s_col` (C): float32, the axes that are not rows.
    - `v`: float32, the shape of the variable; where it is not factored.
    - `m`: `momentum_dtype`, the shape of the variable.

    Deviations from the paper: means in place of sums, which is the same `v`
    and `s`; weight decay, of which the paper's box says nothing, comes before
    the step, as in the authors' code. Unlike that code, a matrix of one row or
    one column is treated as a vector.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> import keras
    >>> from keras_adafactor import CAME
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=CAME(debias_beta_3=True), loss="mse")

    Reference:

    - [Luo et al., 2023](https://arxiv.org/abs/2307.02047)
    """

    meaning = {"m": ("beta_1",), "v": ("beta_2",), "s": ("beta_3",)}

    learning_rate: LearningRate = rate(
        2e-4,
        doc="The authors advise 0.5 to 0.9 times that of AdamW.",
    )
    beta_1: float = decay(0.9, doc="Decay of the momentum.")
    beta_2: float = decay(0.999, doc="Decay of the second moment.")
    beta_3: float = decay(
        0.9999,
        doc="Decay of the instability. The authors advise 0.9995 to 0.99995 "
        "with a `beta_2` of 0.999, and 0.99 to 0.999 with one of 0.95.",
    )
    epsilon_1: float = number(
        1e-30,
        above=0.0,
        doc="Added to the squared gradient.",
    )
    epsilon_2: float = number(1e-16, above=0.0, doc="Added to the instability.")
    clip_threshold: float | None = number(
        1.0,
        above=0.0,
        optional=True,
        doc="`d` of the paper, the largest RMS of an update before "
        "momentum. `None`: no clipping.",
    )
    _: KW_ONLY
    debias_beta_3: bool = boolean(
        False,
        doc="Whether `s` is bias-corrected as Adam's moments are: no step "
        "is then longer because it is early. An extension of the paper.",
    )
    axis_groups: AxisGroupsChoice = axis_groups(
        'The authors\' code has `"last_two"`. With batch axes, '
        "statistics and clipping are those of each slice."
    )
    momentum_dtype: StateDtype = momentum_dtype()

    def choose(self, shape, path):
        groups = grouping.resolve(self.axis_groups, shape, path)
        return groups.unless_thin(shape)

    def state_spec(self, shape, path):
        groups = self.choose(shape, path)
        spec = second_moment_spec(shape, groups)
        spec["m"] = momentum_spec(shape, self.momentum_dtype)
        if groups.factored:
            spec |= second_moment_spec(shape, groups, "s")
        return spec

    def update_rule(self, g, x, state, step):
        shape = tuple(g.shape)
        groups = step.choice

        u, v = precondition(g, state, groups, 1.0 - self.beta_2, self.epsilon_1)
        u_hat = clip_by_rms(
            u, self.clip_threshold, groups.within_slice(len(shape))
        )
        m = ema(state["m"], u_hat, 1.0 - self.beta_1)
        if not groups.factored:
            return step.lr * m, v | {"m": m}

        # The confidence: large where updates lie near their momentum.
        rate = 1.0 - self.beta_3
        if self.debias_beta_3:
            rate = debiased_decay_rate(step.t, self.beta_3)
        s = update_second_moment(
            u_hat - m, state, groups, rate, self.epsilon_2, "s"
        )
        delta = step.lr * precondition_by_moment(m, s, groups, "s")
        return delta, v | {"m": m} | s

    def moments(self, state, shape, path, t):
        # `v` has the bias that `u`, and so `m`, was made with.
        v = whole_second_moment(state, self.choose(shape, path))
        u = state["m"] / ema_weight(t, self.beta_1)
        return Moments(u * ops.sqrt(v), v / ema_weight(t, self.beta_2))

    def adopt(self, moments, shape, path, t):
        if moments.second is None:
            return {}
        groups = self.choose(shape, path)
        second = ema_weight(t, self.beta_2) * moments.second
        state = second_moment_of(second, groups, self.epsilon_1)
        mean, size = typical_updates(
            moments, state, groups, self.clip_threshold
        )
        new = dict(state)
        if mean is not None:
            new["m"] = ema_weight(t, self.beta_1) * mean
        if groups.factored:
            # Of independent updates: their variance, times what the momentum
            # has followed of each.
            q = ops.square(size)
            if mean is not None:
                q = ops.maximum(q - ops.square(mean), 0.0)
                q = q * (2.0 * self.beta_1**2 / (1.0 + self.beta_1))
            weight = 1.0
            if not self.debias_beta_3:
                weight = ema_weight(t, self.beta_3)
            new |= second_moment_of(
                weight * q, groups, weight * self.epsilon_2, "s"
            )
        return new
