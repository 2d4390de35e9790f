"""AdamW, for variables that another rule does not suit."""

import keras
from keras import ops

from keras_adafactor.arguments import number
from keras_adafactor.functional.moments import Moments
from keras_adafactor.functional.moments import debiased_decay_rate
from keras_adafactor.functional.moments import ema
from keras_adafactor.rule import UpdateRule
from keras_adafactor.storage import StateSpec


@keras.saving.register_keras_serializable(package="keras_adafactor")
class AdamWRule(UpdateRule):
    """AdamW's update rule: what `fallback` gives to the variables it names.

    Weight decay is the optimizer's.

    Algorithm:

    ```
    m = beta_1 * m + (1 - beta_1) * g              bias-corrected
    v = beta_2 * v + (1 - beta_2) * g ** 2         bias-corrected
    x = x - learning_rate_ratio * lr * m / (sqrt(v) + epsilon)
    ```

    State: `m` and `v`, float32, of the shape of the variable.

    Reference:

    - [Loshchilov and Hutter, 2019](https://arxiv.org/abs/1711.05101)
    """

    beta_1: float = number(
        0.9, at_least=0.0, below=1.0, doc="Decay of the first moment."
    )
    beta_2: float = number(
        0.999, at_least=0.0, below=1.0, doc="Decay of the second moment."
    )
    epsilon: float = number(
        1e-8, above=0.0, doc="Added to the root of the second moment."
    )
    learning_rate_ratio: float = number(
        1.0,
        above=0.0,
        doc="Number by which the learning rate of the optimizer is multiplied.",
    )

    def choose(self, shape, path):
        return None

    def state_spec(self, shape, path):
        return {"m": StateSpec.like(shape), "v": StateSpec.like(shape)}

    def update_rule(self, g, x, state, step):
        # Averages that are bias-corrected in themselves.
        m = ema(state["m"], g, debiased_decay_rate(step.t, self.beta_1))
        v = ema(
            state["v"], ops.square(g), debiased_decay_rate(step.t, self.beta_2)
        )
        lr = self.learning_rate_ratio * step.lr
        return lr * m / (ops.sqrt(v) + self.epsilon), {"m": m, "v": v}

    def moments(self, state, shape, path, t):
        return Moments(state["m"], state["v"])

    def adopt(self, moments, shape, path, t):
        if moments.second is None:
            return {}
        m = {} if moments.first is None else {"m": moments.first}
        return m | {"v": moments.second}

    def get_config(self):
        return dict(vars(self))

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        given = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"AdamWRule({given})"

    def __eq__(self, other):
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]
