"""Signum (Bernstein et al., 2018)."""

from dataclasses import KW_ONLY

import keras
from keras import ops

from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import StateDtype
from keras_adafactor.arguments import decay
from keras_adafactor.arguments import rate
from keras_adafactor.functional.moments import Moments
from keras_adafactor.functional.moments import ema
from keras_adafactor.functional.moments import ema_weight
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.storage import momentum_dtype
from keras_adafactor.storage import momentum_spec


@keras.saving.register_keras_serializable(package="keras_adafactor")
class Signum(UpdateRuleOptimizer):
    """Signum: the sign of the momentum, and nothing adaptive.

    Unlike Adam, there is no second moment, and every weight moves by the
    learning rate: half of Adam's memory, a quarter with `momentum_dtype` of
    bfloat16. It is Lion with equal decays, and what Adam is near to where its
    two decays are equal. All updates have an RMS of 1 however small the
    gradients are, so let the learning rate go to nearly zero.

    Algorithm:

    ```
    m = beta_1 * m + (1 - beta_1) * g
    x = x - learning_rate * sign(m)                sign(0) = 0
    ```

    State:

    - `m`: `momentum_dtype`, the shape of the variable; with `beta_1`.

    Deviations from the paper: weight decay is decoupled, as Zhao et al. run
    it, and the momentum an average in place of a sum, of the same sign.

    Raises:
        ValueError: If an argument is out of range or contradicts another.

    Example:

    >>> import keras
    >>> from keras_adafactor import Signum
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=Signum(), loss="mse")

    References:

    - [Bernstein et al., 2018](https://arxiv.org/abs/1802.04434)
    - [Zhao et al., 2024](https://arxiv.org/abs/2407.07972)
    """

    meaning = {"m": ("beta_1",)}

    learning_rate: LearningRate = rate(
        3e-4,
        doc="The size of every entry of an update, about a tenth of Adam's "
        "learning rate.",
    )
    beta_1: float | None = decay(
        0.9,
        optional=True,
        doc="Decay of the momentum. `None`: the update is the sign of the "
        "gradient (signSGD), without state.",
    )
    _: KW_ONLY
    momentum_dtype: StateDtype = momentum_dtype(
        "In 8 bits, entries under 1 % of the largest of their block are "
        "sometimes 0, and their weights then rest.",
        needs="beta_1",
    )

    def choose(self, shape, path):
        return None

    def state_spec(self, shape, path):
        if self.beta_1 is None:
            return {}
        return {"m": momentum_spec(shape, self.momentum_dtype)}

    def update_rule(self, g, x, state, step):
        if self.beta_1 is None:
            return step.lr * ops.sign(g), {}
        m = ema(state["m"], g, 1.0 - self.beta_1)
        return step.lr * ops.sign(m), {"m": m}

    def moments(self, state, shape, path, t):
        if self.beta_1 is None:
            return Moments()
        return Moments(state["m"] / ema_weight(t, self.beta_1))

    def adopt(self, moments, shape, path, t):
        if self.beta_1 is None or moments.first is None:
            return {}
        return {"m": ema_weight(t, self.beta_1) * moments.first}
