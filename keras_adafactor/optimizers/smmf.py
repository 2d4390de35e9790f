"""SMMF (Park and Lee, 2024)."""

import math
from dataclasses import KW_ONLY

import keras
from keras import ops

from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import boolean
from keras_adafactor.arguments import decay
from keras_adafactor.arguments import number
from keras_adafactor.arguments import rate
from keras_adafactor.functional.axis_groups import AxisGroups
from keras_adafactor.functional.matricization import grouped_axes
from keras_adafactor.functional.matricization import square_shape
from keras_adafactor.functional.moments import Moments
from keras_adafactor.functional.moments import ema
from keras_adafactor.functional.moments import factored_mean
from keras_adafactor.functional.moments import power_decay_rate
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.storage import StateSpec

_ROWS_AND_COLUMNS = AxisGroups(rows=(0,), cols=(1,))


@keras.saving.register_keras_serializable(package="keras_adafactor")
class SMMF(UpdateRuleOptimizer):
    """SMMF: both of Adam's moments, factored, for tensors of any rank.

    Unlike Adam, every variable is seen as a nearly square matrix, of which
    both moments are kept as row and column means, and of the first one bit an
    element for its sign: 0.13 bytes a parameter where Adam has 8. Vectors and
    convolutions are factored as matrices are. The momentum fades as training
    goes on: its decay is 0.33 at step 1,000 and 0.006 at 5,000.

    Algorithm (all matrices (a, b), with a * b the size and a >= b nearest):

    ```
    beta_1t = beta_1 * beta_1_growth ** (t - 1)
    beta_2t = 1 - t ** beta_2_decay
    M = sign * outer(m_row, m_col)                 decompressed
    V = outer(v_row, v_col)
    M = beta_1t * M + (1 - beta_1t) * G
    V = beta_2t * V + (1 - beta_2t) * G ** 2
    sign, m_row, m_col = M > 0, mean(|M|, cols), mean(|M|, rows) / mean(|M|)
    v_row, v_col = mean(V, cols), mean(V, rows) / mean(V)
    x = x - learning_rate * M / (sqrt(V) + epsilon)
    ```

    State:

    - `m_row`, `v_row` (a,) and `m_col`, `v_col` (b,): float32.
    - `m_sign`: bits of the shape of the variable, eight to a byte; two for
      every element with `zero_sign`.
    - `m` and `v`, float32, of the shape of the variable: in place of these for
      vectors without `reshape_vectors`.

    Deviations from the paper: means in place of sums, which gives the same
    matrices. As in the authors' code, epsilon stands outside the root.
    Reshaping moves elements between devices where a variable is sharded,
    unless the square matrix is the variable itself.

    Raises:
        ValueError: If an argument is out of range or contradicts another.

    Example:

    >>> import keras
    >>> from keras_adafactor import SMMF
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=SMMF(beta_2_decay=-0.8), loss="mse")

    Reference:

    - [Park and Lee, 2024](https://arxiv.org/abs/2412.08894)
    """

    meaning = {"m": ("beta_1", "beta_1_growth")}

    learning_rate: LearningRate = rate(
        1e-3,
        doc="The size of an update, as for Adam.",
    )
    beta_1: float | None = decay(
        0.9,
        optional=True,
        doc="Decay of the momentum in the first step. `None`: no momentum.",
    )
    beta_1_growth: float = number(
        0.999,
        above=0.0,
        at_most=1.0,
        doc="By this that decay is multiplied in every step.",
    )
    beta_2_decay: float = number(
        -0.5,
        below=0.0,
        doc="Exponent (gamma) of the increasing decay of the second moment. "
        "The paper has -0.5 for convolutional networks and -0.8 for "
        "Transformers.",
    )
    epsilon: float = number(
        1e-8,
        above=0.0,
        doc="Added to the root of the second moment.",
    )
    _: KW_ONLY
    zero_sign: bool = boolean(
        False,
        needs="beta_1",
        doc="With one bit, a momentum that is exactly zero comes back "
        "negative: entries that never receive a gradient, rows of an "
        "embedding for example, drift. `True` keeps a third state, in a "
        "second bit. `False` is as in the authors' code.",
    )
    reshape_vectors: bool = boolean(
        True,
        doc="Whether variables with one axis longer than 1 are factored too.",
    )

    def _factored(self, shape):
        return self.reshape_vectors or sum(size > 1 for size in shape) > 1

    def choose(self, shape, path):
        return None

    def state_spec(self, shape, path):
        if not self._factored(shape):
            m = {"m": StateSpec.like(shape)} if self.beta_1 is not None else {}
            return m | {"v": StateSpec.like(shape, sees_gradient=True)}
        sizes = square_shape(math.prod(shape))
        axes = grouped_axes(shape, sizes)

        def vectors(name, sees_gradient=False):
            return {
                f"{name}_{side}": StateSpec(
                    (size,), (axis,), sees_gradient=sees_gradient
                )
                for side, size, axis in zip(
                    ("row", "col"), sizes, axes, strict=True
                )
            }

        spec = {}
        if self.beta_1 is not None:
            bits = "ternary_bits" if self.zero_sign else "sign_bits"
            spec = vectors("m") | {"m_sign": StateSpec.like(shape, bits)}
        return spec | vectors("v", sees_gradient=True)

    def update_rule(self, g, x, state, step):
        shape = tuple(g.shape)
        factored = self._factored(shape)
        if factored:
            g = ops.reshape(g, square_shape(math.prod(shape)))
        new = {}

        m = g
        if self.beta_1 is not None:
            old = (
                ops.reshape(state["m_sign"], g.shape)
                * decompress(state["m_row"], state["m_col"])
                if factored
                else state["m"]
            )
            log_decay = math.log(self.beta_1_growth) * (step.t - 1.0)
            log_decay = log_decay + math.log(self.beta_1)
            m = ema(old, g, -ops.expm1(log_decay))
            if factored:
                new["m_row"], new["m_col"] = compress(ops.abs(m))
                new["m_sign"] = ops.reshape(m, shape)
            else:
                new["m"] = m

        old = (
            decompress(state["v_row"], state["v_col"])
            if factored
            else state["v"]
        )
        rate = power_decay_rate(step.t, self.beta_2_decay)
        v = ema(old, ops.square(g), rate)
        if factored:
            new["v_row"], new["v_col"] = compress(v)
        else:
            new["v"] = v

        # The matrices of this step, before they were compressed.
        u = m / (ops.sqrt(v) + self.epsilon)
        return step.lr * ops.reshape(u, shape), new

    def moments(self, state, shape, path, t):
        if not self._factored(shape):
            first, second = state.get("m"), state["v"]
        else:
            second = decompress(state["v_row"], state["v_col"])
            second, first = ops.reshape(second, shape), None
            if self.beta_1 is not None:
                size = decompress(state["m_row"], state["m_col"])
                first = state["m_sign"] * ops.reshape(size, shape)
        if first is not None:
            first = first / self._momentum_weight(t)
        return Moments(first, second)

    def adopt(self, moments, shape, path, t):
        if moments.second is None:
            return {}
        m, v, state = None, moments.second, {}
        if self.beta_1 is not None and moments.first is not None:
            m = self._momentum_weight(t) * moments.first
        if not self._factored(shape):
            return {"v": v} if m is None else {"m": m, "v": v}
        sizes = square_shape(math.prod(shape))
        if m is not None:
            size = ops.reshape(ops.abs(m), sizes)
            state["m_row"], state["m_col"] = compress(size)
            state["m_sign"] = m
        state["v_row"], state["v_col"] = compress(ops.reshape(v, sizes))
        return state

    def _momentum_weight(self, t):
        """How much of the momentum, which began at 0, is gradients."""
        growth = self.beta_1_growth ** (t * (t - 1) / 2)
        return 1.0 - self.beta_1**t * growth


def compress(matrix):
    """The rank-1 factors of a non-negative matrix: rows, and columns / mean.

    A matrix of zeros has factors of zeros.
    """
    row, col = factored_mean(matrix, _ROWS_AND_COLUMNS)
    mean = ops.mean(row)
    return row, col / ops.where(mean > 0, mean, ops.ones_like(mean))


def decompress(row, col):
    """The matrix of which `compress` gave the factors."""
    return ops.expand_dims(row, 1) * ops.expand_dims(col, 0)
