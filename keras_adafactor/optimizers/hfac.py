"""H-Fac (Nguyen et al., 2024)."""

from dataclasses import KW_ONLY

import keras
from keras import ops

from keras_adafactor.arguments import AxisGroupsChoice
from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import axis_groups
from keras_adafactor.arguments import decay
from keras_adafactor.arguments import number
from keras_adafactor.arguments import rate
from keras_adafactor.factored import precondition_by_moment
from keras_adafactor.factored import second_moment_of
from keras_adafactor.factored import second_moment_spec
from keras_adafactor.factored import update_second_moment
from keras_adafactor.factored import whole_second_moment
from keras_adafactor.functional import axis_groups as grouping
from keras_adafactor.functional.moments import Moments
from keras_adafactor.functional.moments import debiased_decay_rate
from keras_adafactor.functional.moments import ema
from keras_adafactor.functional.moments import factored_mean
from keras_adafactor.functional.scaling import clip_by_rms
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.storage import StateSpec


@keras.saving.register_keras_serializable(package="keras_adafactor")
class HFac(UpdateRuleOptimizer):
    """H-Fac: momentum and second moment, both factored.

    Unlike Adam, both moments of a matrix are kept as row means and column
    means: 64 KiB for 4096 x 4096 weights where Adam has 128 MiB. The step is
    Adafactor's, of the gradient itself, of which the row means and the column
    means are replaced, by half, with those of the momentum.

    Algorithm (`beta_kt` is `beta_k`, less what corrects its bias: 0 at step 1):

    ```
    m_row = beta_1t * m_row + (1 - beta_1t) * mean(g, cols)
    m_col = beta_1t * m_col + (1 - beta_1t) * mean(g, rows)
    v_row = beta_2t * v_row + (1 - beta_2t) * mean(g ** 2 + epsilon, cols)
    v_col = beta_2t * v_col + (1 - beta_2t) * mean(g ** 2 + epsilon, rows)
    phi   = beta_1t * (m_row - mean(g, cols)) / sqrt(v_row)
    psi   = beta_1t * (m_col - mean(g, rows)) / sqrt(v_col)
    v     = outer(v_row, v_col) / mean(v_row)      never built
    u     = g / sqrt(v)
    u_hat = u / max(1, rms(u) / clip_threshold)
    x     = x - learning_rate * ((phi + psi) / 2 + u_hat)
    ```

    Vectors and scalars keep `m` and `v` themselves, and take
    `u = m / sqrt(v)` without `phi` and `psi`.

    `phi` and `psi` are not clipped. A single gradient far larger than those
    before it moves weights by up to `beta_1 ** 2 / sqrt(1 - beta_2)` learning
    rates against it, 26 with the defaults, where `u` would have been clipped;
    and by up to 2.6 along it in the step after. Clip gradients (`clipnorm`)
    where such come. A row without gradient moves with its columns' momentum.

    State:

    - `m_row` (u of the paper) and `v_row` (r): float32, the axes of the
      variable that are not columns.
    - `m_col` (v) and `v_col` (s): float32, the axes that are not rows.
    - `m` and `v`: float32, the shape of the variable; where it is not factored.

    Deviations from the paper: all defaults are assumed, as none could be had
    from the authors, and so is that `beta_1t` has the form of `beta_2t`. The
    paper says nothing of vectors; what they take is a choice of this package,
    and a matrix of one row or one column is treated as one. Means in place of
    sums, which is the same.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> import keras
    >>> from keras_adafactor import HFac
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=HFac(), loss="mse")

    Reference:

    - [Nguyen et al., 2024](https://arxiv.org/abs/2406.09958)
    """

    learning_rate: LearningRate = rate(1e-3, doc="About the RMS of an update.")
    beta_1: float = decay(0.9, doc="Decay of the momentum.")
    beta_2: float = decay(0.999, doc="Decay of the second moment.")
    epsilon: float = number(
        1e-30,
        above=0.0,
        doc="Added to the squared gradient.",
    )
    clip_threshold: float | None = number(
        1.0,
        above=0.0,
        optional=True,
        doc="Largest RMS of `u`. `None`: no clipping.",
    )
    _: KW_ONLY
    axis_groups: AxisGroupsChoice = axis_groups(
        "With batch axes, statistics and clipping are those of each slice."
    )

    def choose(self, shape, path):
        groups = grouping.resolve(self.axis_groups, shape, path)
        return groups.unless_thin(shape)

    def state_spec(self, shape, path):
        groups = self.choose(shape, path)
        if not groups.factored:
            m = {"m": StateSpec.like(shape)}
        else:
            ndim = len(shape)
            m = {
                "m_row": StateSpec.along(shape, groups.row_axes(ndim)),
                "m_col": StateSpec.along(shape, groups.col_axes(ndim)),
            }
        return m | second_moment_spec(shape, groups)

    def update_rule(self, g, x, state, step):
        shape = tuple(g.shape)
        groups = step.choice
        within = groups.within_slice(len(shape))
        rate_1 = debiased_decay_rate(step.t, self.beta_1)
        rate_2 = debiased_decay_rate(step.t, self.beta_2)
        v = update_second_moment(g, state, groups, rate_2, self.epsilon)

        if not groups.factored:
            m = ema(state["m"], g, rate_1)
            u = precondition_by_moment(m, v, groups)
            u_hat = clip_by_rms(u, self.clip_threshold, within)
            return step.lr * u_hat, {"m": m} | v

        row, col = factored_mean(g, groups)
        m_row = ema(state["m_row"], row, rate_1)
        m_col = ema(state["m_col"], col, rate_1)
        beta_1t = 1.0 - rate_1
        phi = beta_1t * (m_row - row) * ops.rsqrt(v["v_row"])
        psi = beta_1t * (m_col - col) * ops.rsqrt(v["v_col"])
        u = precondition_by_moment(g, v, groups)
        u_hat = clip_by_rms(u, self.clip_threshold, within)
        phi = ops.expand_dims(phi, groups.cols)
        psi = ops.expand_dims(psi, groups.rows)
        delta = step.lr * (0.5 * (phi + psi) + u_hat)
        return delta, {"m_row": m_row, "m_col": m_col} | v

    def moments(self, state, shape, path, t):
        # Row and column means do not give the first moment of an entry.
        second = whole_second_moment(state, self.choose(shape, path))
        return Moments(state.get("m"), second)

    def adopt(self, moments, shape, path, t):
        if moments.second is None:
            return {}
        groups = self.choose(shape, path)
        v = second_moment_of(moments.second, groups, self.epsilon)
        if moments.first is None:
            return v
        return second_moment_of(moments.first, groups, 0.0, "m") | v
