"""Lion (Chen et al., 2023)."""

from typing import Unpack

import keras
from keras import ops

from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import OptimizerKeywords
from keras_adafactor.arguments import StateDtype
from keras_adafactor.arguments import check_choice
from keras_adafactor.arguments import check_decay
from keras_adafactor.functional.moments import Moments
from keras_adafactor.functional.moments import ema
from keras_adafactor.functional.moments import ema_weight
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.storage import MOMENTUM_DTYPES
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

    Args:
        learning_rate: Float >= 0, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments: the size of every entry of an update. Defaults
            to 1e-4.
        beta_1: Float in (0, 1), the weight of the momentum in the update.
            Defaults to 0.9.
        beta_2: Float in (0, 1), decay of the momentum. Defaults to 0.99.
        momentum_dtype: `"float32"`, `"bfloat16"` or `"int8"` (in blocks along
            the longest axis; variables under 4,096 elements stay float32).
            The lower two are rounded without bias. Defaults to `"float32"`.
        **kwargs: See `UpdateRuleOptimizer`.

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

    def __init__(
        self,
        learning_rate: LearningRate = 1e-4,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        *,
        momentum_dtype: StateDtype = "float32",
        **kwargs: Unpack[OptimizerKeywords],
    ) -> None:
        super().__init__(learning_rate, **kwargs)
        self.beta_1 = check_decay("beta_1", beta_1)
        self.beta_2 = check_decay("beta_2", beta_2)
        self.momentum_dtype = check_choice(
            "momentum_dtype", momentum_dtype, MOMENTUM_DTYPES
        )

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
