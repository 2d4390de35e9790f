"""Lion (Chen et al., 2023)."""

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
class Lion(UpdateRuleOptimizer):
    """Lion: the sign of a momentum.

    Unlike Adam there is no second moment: 4 bytes a parameter, 1 with 8-bit
    momentum, where Adam has 8. All weights move by the same amount, so that
    the learning rate is three to ten times smaller than Adam's and the weight
    decay as much larger.

    Algorithm (2 of the paper):

    ```
    u = sign(beta_1 * m + (1 - beta_1) * g)
    m = beta_2 * m + (1 - beta_2) * g
    x = x - learning_rate * (u + weight_decay * x)
    ```

    State:

    - `m` (m): `momentum_dtype`, the shape of the variable.

    Deviations from the paper: none.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> import keras
    >>> from keras_adafactor import Lion
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=Lion(weight_decay=0.1), loss="mse")

    Reference:

    - [Chen et al., 2023](https://arxiv.org/abs/2302.06675)
    """

    meaning = {"m": ("beta_2",)}

    learning_rate: LearningRate = rate(
        1e-4,
        doc="The size of every entry of an update.",
    )
    beta_1: float = decay(0.9, doc="Weight of the momentum in the update.")
    beta_2: float = decay(0.99, doc="Decay of the momentum.")
    _: KW_ONLY
    momentum_dtype: StateDtype = momentum_dtype()

    def choose(self, shape, path):
        return None

    def state_spec(self, shape, path):
        return {"m": momentum_spec(shape, self.momentum_dtype)}

    def update_rule(self, g, x, state, step):
        u = ops.sign(ema(state["m"], g, 1.0 - self.beta_1))
        m = ema(state["m"], g, 1.0 - self.beta_2)
        return step.lr * u, {"m": m}

    def moments(self, state, shape, path, t):
        return Moments(state["m"] / ema_weight(t, self.beta_2))

    def adopt(self, moments, shape, path, t):
        if moments.first is None:
            return {}
        return {"m": ema_weight(t, self.beta_2) * moments.first}
