"""Adalayer (Zhao et al., 2024)."""

import re
from typing import Unpack

import keras
from keras import ops

from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import OptimizerKeywords
from keras_adafactor.arguments import Patterns
from keras_adafactor.arguments import StateDtype
from keras_adafactor.arguments import check
from keras_adafactor.arguments import check_choice
from keras_adafactor.arguments import check_decay
from keras_adafactor.arguments import check_integer
from keras_adafactor.arguments import check_number
from keras_adafactor.arguments import check_patterns
from keras_adafactor.functional import subsets
from keras_adafactor.functional.moments import Moments
from keras_adafactor.functional.moments import debiased_decay_rate
from keras_adafactor.functional.moments import ema
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.storage import MOMENTUM_DTYPES
from keras_adafactor.storage import StateSpec
from keras_adafactor.storage import momentum_spec

KINDS = ("variable", "columns", "rows")


@keras.saving.register_keras_serializable(package="keras_adafactor")
class Adalayer(UpdateRuleOptimizer):
    """Adalayer: Adam with one second moment for a layer.

    Unlike Adam, the second moment is one number for a variable, or for each
    of a few blocks of it: half of Adam's memory. It was made to ask which part
    of a language model needs Adam's adaptivity. Answer: the last layer, a
    block for every logit, and the normalizations; give the first in `blocks`.

    Algorithm:

    ```
    m = beta_1 * m + (1 - beta_1) * g              bias-corrected
    v = beta_2 * v + (1 - beta_2) * mean(g ** 2, block)    bias-corrected
    x = x - learning_rate * m / (sqrt(v) + epsilon)
    ```

    With `freeze_after`, the first so many steps move nothing and measure:

    ```
    v = (t * v + mean(g ** 2, block)) / (t + 1)
    ```

    and then `v` stays as it is, but of a block that had no gradient, which
    takes its first; in variables of `keep_adapting` it goes on as above, but
    without bias correction.

    State:

    - `m`: `momentum_dtype`, the shape of the variable.
    - `v`: float32, one number for each block.

    Args:
        learning_rate: Float >= 0, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments: the size of an update, as for Adam. Defaults to
            3e-3.
        beta_1: Float in (0, 1), decay of the first moment. Defaults to 0.9.
        beta_2: Float in (0, 1), decay of the second. Defaults to 0.95.
        epsilon: Float > 0, added to the root of the second moment. Defaults
            to 1e-15.
        blocks: Dict from regular expression to what is a block of the
            variables in whose path it is found; the first that is decides.
            `"variable"`: all of it, as where none is found. `"columns"`: each
            index of the last axis, a logit of a `Dense` kernel. `"rows"`: each
            index of the first axis, a token of an `Embedding`. An integer: so
            many equal parts along the last axis, 3 for a kernel that makes
            query, key and value. Defaults to `None`.
        freeze_after: Integer >= 1 or `None`, the steps that only measure.
            Defaults to `None`: the second moment always moves.
        keep_adapting: Regular expression or list of them. A variable in whose
            path one is found is not frozen. Defaults to `None`.
        momentum_dtype: `"float32"`, `"bfloat16"` or `"int8"`, how the first
            moment is stored. Defaults to `"float32"`.
        **kwargs: See `UpdateRuleOptimizer`.

    Deviations from the paper: a block that had no gradient while all were
    measured would have been divided by `epsilon`, and takes its first one. As
    in the authors' code the zero that `v` starts from counts as one
    measurement: it ends at `freeze_after / (freeze_after + 1)` of the mean.
    Their weight decay is divided by the largest learning rate, ours is not. The
    defaults are those of the authors' runs; their class has 0.999 for `beta_2`,
    1e-8 for `epsilon` and a weight decay of 0.01.

    Raises:
        ValueError: If an argument is out of range or contradicts another, or
            parts do not divide a last axis.

    Example:

    >>> import keras
    >>> from keras_adafactor import Adalayer
    >>> model = keras.Sequential(
    ...     [keras.Input((8,)), keras.layers.Dense(4, name="logits")]
    ... )
    >>> optimizer = Adalayer(blocks={"logits": "columns"})
    >>> model.compile(optimizer=optimizer, loss="mse")

    Reference:

    - [Zhao et al., 2024](https://arxiv.org/abs/2407.07972)
    """

    # Not in the steps that only measure.
    weight_decay_order = "rule"
    pattern_arguments = ("blocks", "keep_adapting")

    def __init__(
        self,
        learning_rate: LearningRate = 3e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.95,
        epsilon: float = 1e-15,
        *,
        blocks: dict[str, int | str] | None = None,
        freeze_after: int | None = None,
        keep_adapting: Patterns = None,
        momentum_dtype: StateDtype = "float32",
        **kwargs: Unpack[OptimizerKeywords],
    ) -> None:
        super().__init__(learning_rate, **kwargs)
        self.beta_1 = check_decay("beta_1", beta_1)
        self.beta_2 = check_decay("beta_2", beta_2)
        self.epsilon = check_number("epsilon", epsilon, above=0.0)
        self.blocks = _check_blocks(blocks)
        self.freeze_after = check_integer(
            "freeze_after", freeze_after, 1, optional=True
        )
        self.keep_adapting = check_patterns("keep_adapting", keep_adapting)
        self.momentum_dtype = check_choice(
            "momentum_dtype", momentum_dtype, MOMENTUM_DTYPES
        )
        check(
            self.freeze_after is not None or self.keep_adapting is None,
            "keep_adapting",
            "None unless `freeze_after` is given",
            self.keep_adapting,
        )

    def _subsets(self, shape, path):
        kind = next(
            (
                kind
                for pattern, kind in (self.blocks or {}).items()
                if re.search(pattern, path)
            ),
            "variable",
        )
        if kind == "variable" or not shape:
            return subsets.along(shape, ())
        if kind in KINDS:
            axis = len(shape) - 1 if kind == "columns" else 0
            return subsets.along(shape, (axis,))
        check(
            shape[-1] % kind == 0,
            "blocks",
            f"a divisor of the last axis of variable '{path}' of shape {shape}",
            kind,
        )
        return subsets.parts(shape, kind)

    def choose(self, shape, path):
        """The blocks, and whether they adapt for ever."""
        adapts = any(
            re.search(pattern, path) for pattern in self.keep_adapting or ()
        )
        return self._subsets(shape, path), adapts

    def state_spec(self, shape, path):
        blocks = self._subsets(shape, path)
        return {
            "m": momentum_spec(shape, self.momentum_dtype, apart=blocks.apart),
            "v": StateSpec(blocks.sizes, blocks.axes, sees_gradient=True),
        }

    def update_rule(self, g, x, state, step):
        shape = tuple(g.shape)
        blocks, adapts = step.choice
        # Averages that are bias-corrected in themselves.
        m = ema(state["m"], g, debiased_decay_rate(step.t, self.beta_1))
        q = blocks.mean(ops.square(g))
        v = ema(
            state["v"], q, self._second_moment_rate(state["v"], step, adapts)
        )
        u = m / (blocks.spread(ops.sqrt(v), shape) + self.epsilon)
        if step.decay:
            u = u + step.decay * x
        return self._step_size(step) * u, {"m": m, "v": v}

    def moments(self, state, shape, path, t):
        v = self._subsets(shape, path).spread(state["v"], shape)
        return Moments(state["m"], ops.broadcast_to(v, shape))

    def adopt(self, moments, shape, path, t):
        if moments.second is None:
            return {}
        m = {} if moments.first is None else {"m": moments.first}
        blocks = self._subsets(shape, path)
        return m | {"v": blocks.mean(moments.second)}

    def _second_moment_rate(self, v, step, adapts):
        """`1 - beta_2`, or what it is in place of that around a freeze."""
        if self.freeze_after is None:
            return debiased_decay_rate(step.t, self.beta_2)
        # A block that has had no gradient yet takes its first.
        frozen = ops.cast(v <= 0, v.dtype)
        return ops.where(
            self._measures(step),
            1.0 / (step.t + 1.0),
            1.0 - self.beta_2 if adapts else frozen,
        )

    def _step_size(self, step):
        if self.freeze_after is None:
            return step.lr
        return ops.where(self._measures(step), 0.0, step.lr)

    def _measures(self, step):
        return step.t <= self.freeze_after


def _check_blocks(blocks):
    """A dict from regular expression to kind of block, or `None`."""
    if blocks is None:
        return None
    requirement = (
        "a dict from regular expression to 'variable', 'columns', 'rows' or "
        "an integer >= 1"
    )
    check(isinstance(blocks, dict), "blocks", requirement, blocks)
    check_patterns("blocks", list(blocks))
    for kind in blocks.values():
        check(
            kind in KINDS
            if isinstance(kind, str)
            else isinstance(kind, int)
            and not isinstance(kind, bool)
            and kind >= 1,
            "blocks",
            requirement,
            blocks,
        )
    return dict(blocks)
