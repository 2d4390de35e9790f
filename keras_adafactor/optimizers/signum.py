"""Signum (Bernstein et al., 2018)."""

from typing import Unpack

import keras
from keras import ops

from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import OptimizerKeywords
from keras_adafactor.arguments import StateDtype
from keras_adafactor.arguments import check
from keras_adafactor.arguments import check_choice
from keras_adafactor.arguments import check_decay
from keras_adafactor.functional.moments import Moments
from keras_adafactor.functional.moments import ema
from keras_adafactor.functional.moments import ema_weight
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.storage import MOMENTUM_DTYPES
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

    Args:
        learning_rate: Float >= 0, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments: by how much every weight moves, about a tenth
            of Adam's. Defaults to 3e-4.
        beta_1: Float in (0, 1), decay of the momentum; or `None` for the sign
            of the gradient, signSGD, without state. Defaults to 0.9.
        momentum_dtype: `"float32"`, `"bfloat16"` or `"int8"`, how the momentum
            is stored. In 8 bits entries under 1 % of the largest of their
            block, up to 512 neighbours of a row, are 0 now and then, and rest.
            The sign alone, one bit, is no average. Defaults to `"float32"`.
        **kwargs: See `UpdateRuleOptimizer`.

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

    def __init__(
        self,
        learning_rate: LearningRate = 3e-4,
        beta_1: float = 0.9,
        *,
        momentum_dtype: StateDtype = "float32",
        **kwargs: Unpack[OptimizerKeywords],
    ) -> None:
        super().__init__(learning_rate, **kwargs)
        self.beta_1 = check_decay("beta_1", beta_1, optional=True)
        self.momentum_dtype = check_choice(
            "momentum_dtype", momentum_dtype, MOMENTUM_DTYPES
        )
        check(
            self.beta_1 is not None or self.momentum_dtype == "float32",
            "momentum_dtype",
            "left at its default unless `beta_1` is given",
            self.momentum_dtype,
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
