"""Subset-Norm (Nguyen and Nguyen, 2024)."""

from typing import Any
from typing import Literal
from typing import Unpack

import keras

from keras_adafactor import subset_moment
from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import OptimizerKeywords
from keras_adafactor.arguments import StateDtype
from keras_adafactor.arguments import check
from keras_adafactor.arguments import check_choice
from keras_adafactor.arguments import check_decay
from keras_adafactor.arguments import check_number
from keras_adafactor.functional.moments import ema
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.storage import MOMENTUM_DTYPES
from keras_adafactor.storage import momentum_spec
from keras_adafactor.subset_moment import check_bias_correction
from keras_adafactor.subset_moment import check_subsets
from keras_adafactor.subset_moment import precondition
from keras_adafactor.subset_moment import second_moment_spec
from keras_adafactor.subset_moment import step_size


@keras.saving.register_keras_serializable(package="keras_adafactor")
class SubsetNorm(UpdateRuleOptimizer):
    """Subset-Norm: Adam with one step size for each subset of coordinates.

    Unlike Adam, the second moment is kept for subsets, a row of a matrix say,
    and is the sum of their squares: half of Adam's memory, and next to nothing
    for the variant without momentum. A sum is larger than an entry by as many
    as it is of: use about 10 times Adam's learning rate.

    Algorithm (AdamSN):

    ```
    m = beta_1 * m + (1 - beta_1) * g
    v = beta_2 * v + (1 - beta_2) * sum(g ** 2, subset)
    alpha = learning_rate * sqrt(1 - beta_2 ** t) / (1 - beta_1 ** t)
    x = x - alpha * m / (sqrt(v) + epsilon)
    ```

    AdaGradSN has `v = v + sum(g ** 2, subset)`, RMSPropSN no momentum, and
    both have `alpha = learning_rate`.

    State:

    - `m`: `momentum_dtype`, the shape of the variable; with momentum.
    - `v`: float32, one number for each subset.

    Args:
        learning_rate: Float >= 0, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments: in units of an update whose subsets have a norm
            of 1. Defaults to 1e-3.
        beta_1: Float in (0, 1), decay of the first moment; or `None` for no
            momentum. Defaults to 0.9; `"rmsprop"` has none.
        beta_2: Float in (0, 1), decay of the second; `"adagrad"` has none.
            Defaults to 0.999.
        epsilon: Float > 0, added to the root of the second moment, before
            bias correction. Defaults to 1e-6.
        variant: `"adam"`, `"adagrad"` or `"rmsprop"`. Defaults to `"adam"`.
        subsets: `"heuristic"`: an index of the longer side of a matrix, each
            entry of a vector. An integer: blocks of so many neighbours, row by
            row, or of the largest divisor of the size of the variable below
            it: a prime size has blocks of 1, which is Adam's memory. Negative,
            `-q`: blocks of the root of the size over `q`; the authors' code
            has -2. Defaults to `"heuristic"`.
        bias_correction: Boolean, or `None` for that of the variant: with
            `"adam"` only. Defaults to `None`.
        momentum_dtype: `"float32"`, `"bfloat16"` or `"int8"`, how the first
            moment is stored. Defaults to `"float32"`.
        **kwargs: See `UpdateRuleOptimizer`. Weight decay comes after the step,
            as in the authors' code.

    Deviations from the paper: the heuristic sees a variable of more than two
    axes as the matrix whose rows and columns are fewest together, where the
    authors' code has Adam. Blocks of a negative integer are never shorter than
    one entry. Blocks that do not end with a row move elements between devices
    where a variable is sharded.

    Raises:
        ValueError: If an argument is out of range or contradicts another.

    Example:

    >>> import keras
    >>> from keras_adafactor import SubsetNorm
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=SubsetNorm(0.01), loss="mse")

    Reference:

    - [Nguyen and Nguyen, 2024](https://arxiv.org/abs/2411.07120)
    """

    weight_decay_order = "after"
    meaning = {"m": ("variant", "beta_1"), "v": ("variant", "beta_2")}

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        beta_1: float | None = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        *,
        variant: Literal["adam", "adagrad", "rmsprop"] = "adam",
        subsets: int | Literal["heuristic"] = "heuristic",
        bias_correction: bool | None = None,
        momentum_dtype: StateDtype = "float32",
        **kwargs: Unpack[OptimizerKeywords],
    ) -> None:
        super().__init__(learning_rate, **kwargs)
        self.beta_1 = check_decay("beta_1", beta_1, optional=True)
        self.beta_2 = check_decay("beta_2", beta_2)
        self.epsilon = check_number("epsilon", epsilon, above=0.0)
        self.variant = check_choice(
            "variant", variant, ("adam", "adagrad", "rmsprop")
        )
        self.subsets = check_subsets(subsets)
        self.bias_correction = check_bias_correction(bias_correction, variant)
        self.momentum_dtype = check_choice(
            "momentum_dtype", momentum_dtype, MOMENTUM_DTYPES
        )
        check(
            self._decay is not None or self.momentum_dtype == "float32",
            "momentum_dtype",
            "left at its default where there is no momentum",
            self.momentum_dtype,
        )

    @property
    def _decay(self):
        """That of the momentum, or `None`."""
        return None if self.variant == "rmsprop" else self.beta_1

    def choose(self, shape, path):
        return None

    def state_spec(self, shape, path):
        m = {}
        if self._decay is not None:
            apart = subset_moment.apart(shape, self.subsets)
            m = {"m": momentum_spec(shape, self.momentum_dtype, apart=apart)}
        return m | second_moment_spec(shape, self.subsets)

    def update_rule(self, g, x, state, step):
        new, m = {}, g
        if self._decay is not None:
            new["m"] = m = ema(state["m"], g, 1.0 - self._decay)
        u, new["v"] = precondition(
            m,
            g,
            state["v"],
            self.subsets,
            self.variant,
            self.beta_2,
            self.epsilon,
        )
        alpha = step_size(
            step, self.bias_correction, self.variant, self._decay, self.beta_2
        )
        return alpha * u, new

    def moments(self, state, shape, path, t):
        return subset_moment.moments(
            state.get("m"), state["v"], shape, *self._statistics, t
        )

    def adopt(self, moments, shape, path, t):
        return subset_moment.adopt(moments, shape, *self._statistics, t)

    @property
    def _statistics(self) -> tuple[Any, Any, Any, Any]:
        return self.subsets, self.variant, self._decay, self.beta_2
