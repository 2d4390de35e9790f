"""FAdam (Hwang, 2024)."""

from dataclasses import KW_ONLY
from typing import Literal

import keras
from keras import ops

from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import StateDtype
from keras_adafactor.arguments import boolean
from keras_adafactor.arguments import choice
from keras_adafactor.arguments import decay
from keras_adafactor.arguments import number
from keras_adafactor.arguments import rate
from keras_adafactor.functional.moments import Moments
from keras_adafactor.functional.moments import debiased_decay_rate
from keras_adafactor.functional.moments import ema
from keras_adafactor.functional.moments import ema_weight
from keras_adafactor.functional.scaling import clip_by_rms
from keras_adafactor.functional.scaling import rms
from keras_adafactor.functional.scaling import update_rms
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.storage import StateSpec
from keras_adafactor.storage import momentum_dtype
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

    learning_rate: LearningRate = rate(
        1e-3,
        doc="The size of an update, as for Adam.",
    )
    beta_1: float = decay(0.9, doc="Decay of the momentum.")
    beta_2: float = decay(0.999, doc="Decay of the Fisher information.")
    epsilon: float = number(1e-8, above=0.0, doc="The largest epsilon.")
    epsilon_2: float = number(
        0.01,
        above=0.0,
        doc="Epsilon for a gradient of RMS 1, if that is less; with "
        '`epsilon_mode="latest"`.',
    )
    _: KW_ONLY
    weight_decay: float | None = number(
        0.1,
        at_least=0.0,
        optional=True,
        doc="Unlike that of the other optimizers of this package, it is "
        "preconditioned and clipped.",
    )
    fisher_exponent: float = number(
        0.5,
        above=0.0,
        at_most=1.0,
        doc="`p` of the paper.",
    )
    clip_threshold: float | None = number(
        1.0,
        above=0.0,
        optional=True,
        doc="Largest RMS of the natural gradient and of the natural weight "
        "decay. `None`: no clipping.",
    )
    epsilon_mode: Literal["latest", "paper_v3", "port"] = choice(
        "latest",
        choices=EPSILON_MODES,
        doc='Which of the published epsilons. `"latest"`: the one above, '
        'and `epsilon` itself if `rms(g)` is 0. `"paper_v3"`: `epsilon '
        '* min(1, rms(g))`. `"port"`: `epsilon * max(1, rms(g))`, as in '
        "the PyTorch port of 2025.",
    )
    mask_decay: bool = boolean(
        False,
        doc="Whether only those weights decay whose `fim` is not 0. An "
        "extension of the paper.",
    )
    momentum_dtype: StateDtype = momentum_dtype()

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
