"""Subset-Norm (Nguyen and Nguyen, 2024)."""

from dataclasses import KW_ONLY
from typing import Any
from typing import Literal

import keras

from keras_adafactor import checks
from keras_adafactor import subset_moment
from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import StateDtype
from keras_adafactor.arguments import argument
from keras_adafactor.arguments import choice
from keras_adafactor.arguments import decay
from keras_adafactor.arguments import number
from keras_adafactor.arguments import rate
from keras_adafactor.functional.moments import ema
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.storage import momentum_dtype
from keras_adafactor.storage import momentum_spec
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

    Weight decay comes after the step, as in the authors' code.

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

    learning_rate: LearningRate = rate(
        1e-3,
        doc="In units of an update whose subsets have a norm of 1.",
    )
    beta_1: float | None = decay(
        0.9,
        optional=True,
        doc="Decay of the first moment. `None`: no momentum, as always with "
        '`variant="rmsprop"`.',
    )
    beta_2: float = decay(
        0.999,
        doc='Decay of the second moment; `"adagrad"` has none.',
    )
    epsilon: float = number(
        1e-6,
        above=0.0,
        doc="Added to the root of the second moment, before bias correction.",
    )
    _: KW_ONLY
    variant: Literal["adam", "adagrad", "rmsprop"] = choice(
        "adam",
        choices=("adam", "adagrad", "rmsprop"),
        doc="See the algorithm.",
    )
    subsets: int | Literal["heuristic"] = argument(
        "heuristic",
        check=subset_moment.check_subsets,
        type='`"heuristic"` or an integer other than 0',
        doc='`"heuristic"`: an index of the longer side of a matrix, each '
        "entry of a vector. An integer: blocks of that number of "
        "neighbours, row by row, or of the largest divisor of the size "
        "of the variable below it; a prime size has blocks of 1, which "
        "is Adam's memory. A negative integer `-q`: blocks of the root "
        "of the size over `q`; the authors' code has -2.",
    )
    bias_correction: bool | None = argument(
        None,
        check=subset_moment.check_bias_correction,
        type="Boolean or `None`",
        doc='`None`: only with `variant="adam"`.',
    )
    momentum_dtype: StateDtype = momentum_dtype()

    def check_arguments(self) -> None:
        super().check_arguments()
        subset_moment.check_variant(self)
        checks.check(
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
