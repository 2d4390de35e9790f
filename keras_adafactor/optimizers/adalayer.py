"""Adalayer (Zhao et al., 2024)."""

import re
from dataclasses import KW_ONLY

import keras
from keras import ops

from keras_adafactor import checks
from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import Patterns
from keras_adafactor.arguments import StateDtype
from keras_adafactor.arguments import argument
from keras_adafactor.arguments import decay
from keras_adafactor.arguments import integer
from keras_adafactor.arguments import number
from keras_adafactor.arguments import patterns
from keras_adafactor.arguments import rate
from keras_adafactor.functional import subsets
from keras_adafactor.functional.moments import Moments
from keras_adafactor.functional.moments import debiased_decay_rate
from keras_adafactor.functional.moments import ema
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.storage import StateSpec
from keras_adafactor.storage import momentum_dtype
from keras_adafactor.storage import momentum_spec

KINDS = ("variable", "columns", "rows")


def _check_blocks(name, blocks):
    """A dict from regular expression to kind of block, or `None`."""
    if blocks is None:
        return None
    requirement = (
        "a dict from regular expression to 'variable', 'columns', 'rows' or "
        "an integer >= 1"
    )
    checks.check(isinstance(blocks, dict), name, requirement, blocks)
    checks.check_patterns(name, list(blocks))
    for kind in blocks.values():
        checks.check(
            kind in KINDS
            if isinstance(kind, str)
            else isinstance(kind, int)
            and not isinstance(kind, bool)
            and kind >= 1,
            name,
            requirement,
            blocks,
        )
    return dict(blocks)


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

    learning_rate: LearningRate = rate(
        3e-3,
        doc="The size of an update, as for Adam.",
    )
    beta_1: float = decay(0.9, doc="Decay of the first moment.")
    beta_2: float = decay(0.95, doc="Decay of the second moment.")
    epsilon: float = number(
        1e-15,
        above=0.0,
        doc="Added to the root of the second moment.",
    )
    _: KW_ONLY
    blocks: dict[str, int | str] | None = argument(
        None,
        check=_check_blocks,
        type="Dict from regular expression to a kind of block, or `None`",
        doc="What is a block of a variable: the first expression that is "
        'found in its path decides. `"variable"`, also for paths '
        'without one: all of it. `"columns"`: each index of the last '
        'axis, a logit of a `Dense` kernel. `"rows"`: each index of the '
        "first axis, a token of an `Embedding`. An integer: that number "
        "of equal parts along the last axis, 3 for a kernel that makes "
        "query, key and value.",
    )
    freeze_after: int | None = integer(
        None,
        at_least=1,
        optional=True,
        doc="Number of steps that only measure. `None`: the second moment "
        "always moves.",
    )
    keep_adapting: Patterns = patterns(
        None,
        needs="freeze_after",
        doc="A variable is not frozen if one is found in its path.",
    )
    momentum_dtype: StateDtype = momentum_dtype()

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
        checks.check(
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
