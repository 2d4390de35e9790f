"""FAdam (Hwang, 2024)."""

from typing import Literal
from typing import Unpack

import keras
from keras import ops

from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import OptimizerKeywords
from keras_adafactor.arguments import StateDtype
from keras_adafactor.arguments import check_boolean
from keras_adafactor.arguments import check_choice
from keras_adafactor.arguments import check_decay
from keras_adafactor.arguments import check_number
from keras_adafactor.functional.moments import Moments
from keras_adafactor.functional.moments import debiased_decay_rate
from keras_adafactor.functional.moments import ema
from keras_adafactor.functional.moments import ema_weight
from keras_adafactor.functional.scaling import clip_by_rms
from keras_adafactor.functional.scaling import rms
from keras_adafactor.functional.scaling import update_rms
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.storage import MOMENTUM_DTYPES
from keras_adafactor.storage import StateSpec
from keras_adafactor.storage import momentum_spec

EPSILON_MODES = ("latest", "paper_v3", "port")
# The smallest divisor: weights divided by it can be squared and summed.
_FLOOR = 1e-24


@keras.saving.register_keras_serializable(package="keras_adafactor")
class FAdam(UpdateRuleOptimizer):
    """FAdam: Adam as natural gradient descent.

    Unlike Adam, the gradient is divided by the root of its second moment, the
    diagonal of the empirical Fisher information, before it is averaged, and
    so is the weight decay. Both are clipped, and epsilon follows the size of
    the gradient. It saves no memory: 8 bytes a parameter.

    Algorithm:

    ```
    beta_2t = beta_2 * (1 - beta_2 ** (t - 1)) / (1 - beta_2 ** t)
    fim     = beta_2t * fim + (1 - beta_2t) * g ** 2
    eps     = min(epsilon, epsilon_2 * rms(g)) ** (2 * fisher_exponent)
    d       = fim ** fisher_exponent + eps
    u_hat   = clip(g / d)                          natural gradient
    m       = beta_1 * m + (1 - beta_1) * u_hat
    w       = clip(x / d)                          natural weight decay
    x       = x - learning_rate * (m + weight_decay * w)

    clip(u) = u / max(1, rms(u) / clip_threshold)
    ```

    The decay of a weight that has had no gradient (the row of a token that is
    never seen) is divided by epsilon alone. After the clip such weights take
    the decay of the whole variable: `mask_decay` takes it from them.

    State:

    - `m`: `momentum_dtype`, the shape of the variable.
    - `fim` (f of the paper): float32, the shape of the variable. Not in less:
      an average with a decay of 0.999 needs its digits.

    Args:
        learning_rate: Float >= 0, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments. Defaults to 1e-3.
        beta_1: Float in (0, 1), decay of the momentum. Defaults to 0.9.
        beta_2: Float in (0, 1), decay of the Fisher information. Defaults to
            0.999.
        epsilon: Float > 0, the largest epsilon. Defaults to 1e-8.
        epsilon_2: Float > 0, epsilon for a gradient of RMS 1, where that is
            less; used by `"latest"`. Defaults to 0.01.
        weight_decay: Float >= 0 or `None`. Unlike that of other optimizers of
            this package it is preconditioned and clipped. Defaults to 0.1.
        fisher_exponent: Float in (0, 1], `p` of the paper. Defaults to 0.5.
        clip_threshold: Float > 0, the largest RMS of the natural gradient and
            of the natural weight decay, or `None` for no clipping. Defaults to
            1.0.
        epsilon_mode: Which of the published epsilons: `"latest"`, that above,
            and `epsilon` itself where `rms(g)` is 0; `"paper_v3"`,
            `epsilon * min(1, rms(g))`; `"port"`, `epsilon * max(1, rms(g))`,
            as in the PyTorch port of 2025. Defaults to `"latest"`.
        mask_decay: Boolean, whether only weights decay of which `fim` is not
            0. An extension of the paper. Defaults to `False`.
        momentum_dtype: `"float32"`, `"bfloat16"` or `"int8"` (in blocks along
            the longest axis; variables under 4,096 elements stay float32).
            The lower two are rounded without bias. Defaults to `"float32"`.
        **kwargs: See `UpdateRuleOptimizer`.

    Deviations from the paper: `fim` starts at 0, not at 1, of which nothing is
    left after the first step. `d` is at least 1e-24: with `"paper_v3"` a
    gradient of zeros would else be divided by zero.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> import keras
    >>> from keras_adafactor import FAdam
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=FAdam(mask_decay=True), loss="mse")

    Reference:

    - [Hwang, 2024](https://arxiv.org/abs/2405.12807)
    """

    weight_decay_order = "rule"
    meaning = {"m": ("beta_1", "fisher_exponent")}

    def __init__(  # type: ignore[misc]  # `weight_decay` is of both
        self,
        learning_rate: LearningRate = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        epsilon_2: float = 0.01,
        *,
        weight_decay: float | None = 0.1,
        fisher_exponent: float = 0.5,
        clip_threshold: float | None = 1.0,
        epsilon_mode: Literal["latest", "paper_v3", "port"] = "latest",
        mask_decay: bool = False,
        momentum_dtype: StateDtype = "float32",
        **kwargs: Unpack[OptimizerKeywords],
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **kwargs)
        self.beta_1 = check_decay("beta_1", beta_1)
        self.beta_2 = check_decay("beta_2", beta_2)
        self.epsilon = check_number("epsilon", epsilon, above=0.0)
        self.epsilon_2 = check_number("epsilon_2", epsilon_2, above=0.0)
        self.fisher_exponent = check_number(
            "fisher_exponent", fisher_exponent, above=0.0, at_most=1.0
        )
        self.clip_threshold = check_number(
            "clip_threshold", clip_threshold, above=0.0, optional=True
        )
        self.epsilon_mode = check_choice(
            "epsilon_mode", epsilon_mode, EPSILON_MODES
        )
        self.mask_decay = check_boolean("mask_decay", mask_decay)
        self.momentum_dtype = check_choice(
            "momentum_dtype", momentum_dtype, MOMENTUM_DTYPES
        )

    def choose(self, shape, path):
        return None

    def state_spec(self, shape, path):
        return {
            "m": momentum_spec(shape, self.momentum_dtype),
            "fim": StateSpec.like(shape, sees_gradient=True),
        }

    def update_rule(self, g, x, state, step):
        rate = debiased_decay_rate(step.t, self.beta_2)
        fim = ema(state["fim"], ops.square(g), rate)
        d = self._divisor(fim, g)

        u_hat = clip_by_rms(g / d, self.clip_threshold)
        m = ema(state["m"], u_hat, 1.0 - self.beta_1)
        delta = m
        if step.decay:
            w = x / d
            if self.mask_decay:
                w = ops.where(fim > 0, w, ops.zeros_like(w))
            delta = m + step.decay * clip_by_rms(w, self.clip_threshold)
        return step.lr * delta, {"m": m, "fim": fim}

    def _divisor(self, fim, g):
        d = ops.power(fim, self.fisher_exponent) + self._adaptive_epsilon(g)
        return ops.maximum(d, _FLOOR)

    def moments(self, state, shape, path, t):
        fim = state["fim"]
        u = state["m"] / ema_weight(t, self.beta_1)
        return Moments(u * self._divisor(fim, ops.sqrt(fim)), fim)

    def adopt(self, moments, shape, path, t):
        if moments.second is None:
            return {}
        state, fim = {"fim": moments.second}, moments.second
        if moments.first is not None:
            # The gradient is looked at for its RMS only.
            u = moments.first / self._divisor(fim, ops.sqrt(fim))
            u_hat = clip_by_rms(u, self.clip_threshold)
            state["m"] = ema_weight(t, self.beta_1) * u_hat
        return state

    def _adaptive_epsilon(self, g):
        if self.epsilon_mode == "paper_v3":
            return self.epsilon * ops.minimum(1.0, rms(g))
        if self.epsilon_mode == "port":
            return self.epsilon * ops.maximum(1.0, update_rms(g))
        size = rms(g)
        scaled = ops.minimum(self.epsilon, self.epsilon_2 * size)
        epsilon = ops.where(size > 0, scaled, self.epsilon)
        return ops.power(epsilon, 2.0 * self.fisher_exponent)
