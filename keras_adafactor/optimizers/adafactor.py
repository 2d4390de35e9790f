"""Adafactor (Shazeer and Stern, 2018)."""

import math
import re
import warnings
from dataclasses import KW_ONLY
from typing import Any

import keras
from keras import ops

from keras_adafactor import checks
from keras_adafactor.arguments import AxisGroupsChoice
from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import Patterns
from keras_adafactor.arguments import StateDtype
from keras_adafactor.arguments import axis_groups
from keras_adafactor.arguments import boolean
from keras_adafactor.arguments import decay
from keras_adafactor.arguments import integer
from keras_adafactor.arguments import number
from keras_adafactor.arguments import patterns
from keras_adafactor.arguments import rate
from keras_adafactor.factored import precondition
from keras_adafactor.factored import second_moment_of
from keras_adafactor.factored import second_moment_spec
from keras_adafactor.factored import typical_updates
from keras_adafactor.factored import whole_second_moment
from keras_adafactor.functional import axis_groups as grouping
from keras_adafactor.functional.axis_groups import AxisGroups
from keras_adafactor.functional.moments import Moments
from keras_adafactor.functional.moments import debiased_decay_rate
from keras_adafactor.functional.moments import ema
from keras_adafactor.functional.moments import ema_weight
from keras_adafactor.functional.moments import power_decay_rate
from keras_adafactor.functional.scaling import parameter_scale
from keras_adafactor.functional.scaling import rms
from keras_adafactor.functional.scaling import rms_clip_scale
from keras_adafactor.functional.scaling import update_and_parameter_rms
from keras_adafactor.functional.scaling import update_rms
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.storage import StateSpec
from keras_adafactor.storage import momentum_dtype
from keras_adafactor.storage import momentum_spec


@keras.saving.register_keras_serializable(package="keras_adafactor")
class Adafactor(UpdateRuleOptimizer):
    """Adafactor: Adam's adaptive steps without Adam's memory.

    Unlike Adam, the second moment of a matrix is kept as its row means and
    column means (4096 x 4096 weights: 32 KiB of state where Adam has 128 MiB),
    there is no momentum unless `beta_1` is given, the update is clipped by
    its own RMS, and the step is relative to the size of the weights.

    Algorithm (4 to 6 of the paper, with its defaults):

    ```
    rho     = min(learning_rate, 1 / sqrt(t))      relative step size
    alpha   = max(epsilon_2, rms(x)) * rho         step size
    beta_2t = 1 - t ** beta_2_decay
    v_row   = beta_2t * v_row + (1 - beta_2t) * mean(g ** 2 + epsilon_1, cols)
    v_col   = beta_2t * v_col + (1 - beta_2t) * mean(g ** 2 + epsilon_1, rows)
    v       = outer(v_row, v_col) / mean(v_row)    never built
    u       = g / sqrt(v)
    u_hat   = u / max(1, rms(u) / clip_threshold)
    x       = x - alpha * u_hat
    ```

    Vectors and scalars keep `v` itself.

    State:

    - `v_row` (R of the paper): float32, the axes of the variable that are not
      columns.
    - `v_col` (C): float32, the axes that are not rows.
    - `v` (V): float32, the shape of the variable; where it is not factored.
    - `m`: `momentum_dtype`, the shape of the variable; with `beta_1`.
    - `u_rms`: float32 scalar; with `record_update_rms`.

    Deviations from the paper: means in place of sums in `v_row` and `v_col`,
    which is the same `v`; `beta_2t` and the inverse root are evaluated in
    forms that do not cancel or overflow; more than two axes are grouped by
    `axis_groups`.

    Raises:
        ValueError: If an argument is out of range or contradicts another.

    Example:

    >>> import keras
    >>> from keras_adafactor import Adafactor
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=Adafactor(), loss="mse")

    Reference:

    - [Shazeer and Stern, 2018](https://arxiv.org/abs/1804.04235)
    """

    pattern_arguments = ("axis_groups", "exclude_from_parameter_scale")
    meaning = {"m": ("beta_1",)}

    learning_rate: LearningRate = rate(
        0.01,
        doc="With `multiply_by_parameter_scale`, in units of the RMS of the "
        "weights per update; else in units of the weights. A float with "
        "`relative_step` is the cap of the relative step. 0.01 is the "
        "paper's.",
    )
    beta_2_decay: float = number(
        -0.8,
        below=0.0,
        excluded_by="beta_2",
        doc="The exponent `-c` of the paper's section 7.2.",
    )
    epsilon_1: float = number(
        1e-30,
        above=0.0,
        doc="Added to the squared gradient.",
    )
    epsilon_2: float = number(
        1e-3,
        above=0.0,
        doc="Floor of the parameter scale.",
    )
    clip_threshold: float | None = number(
        1.0,
        above=0.0,
        optional=True,
        doc="`d` of the paper's section 6, the largest RMS of an update "
        "before it is multiplied by the step size. `None`: no clipping.",
    )
    relative_step: bool = boolean(
        True,
        doc="Whether a float `learning_rate` is cut off at `1 / sqrt(t)`. A "
        "schedule, and any learning rate with `relative_step=False`, is "
        "used as it is.",
    )
    _: KW_ONLY
    warmup_steps: int | None = integer(
        None,
        at_least=1,
        optional=True,
        doc="Number of steps over which the relative step grows linearly: "
        "`min(learning_rate * t / warmup_steps, 1 / sqrt(t))`. The "
        "paper's warm-up, `1e-6 * t`, is `warmup_steps=10_000`.",
    )
    multiply_by_parameter_scale: bool = boolean(
        True,
        doc="Whether the step is multiplied by `max(epsilon_2, rms(x))`.",
    )
    max_parameter_scale: float | None = number(
        None,
        above=0.0,
        optional=True,
        needs="multiply_by_parameter_scale",
        doc="Ceiling of the parameter scale, at least `epsilon_2`.",
    )
    exclude_from_parameter_scale: Patterns = patterns(
        None,
        needs="multiply_by_parameter_scale",
        doc="A variable is not scaled if one is found anywhere in its path.",
    )
    factored: bool = boolean(
        True,
        doc="Whether matrices keep row and column means only.",
    )
    axis_groups: AxisGroupsChoice = axis_groups(
        "With batch axes, for layers stacked in one variable, "
        "statistics, scale and clipping are those of each slice."
    )
    min_dim_size_to_factor: int = integer(
        2,
        at_least=1,
        doc="A variable with fewer rows or columns is not factored.",
    )
    beta_2: float | None = decay(
        None,
        optional=True,
        doc="A constant decay instead of the increasing one, with the bias "
        "correction of the paper's section 7.1 (equal to Adam's).",
    )
    beta_2_cap: float | None = decay(
        None,
        optional=True,
        excluded_by="beta_2",
        doc="Largest value of the increasing decay; 0.999 in Zhai et al., "
        "2021.",
    )
    step_offset: int = integer(
        0,
        at_least=0,
        doc="The decay is that of step `max(1, t - step_offset)`. To "
        "fine-tune with fresh statistics, give the number of steps of "
        "the checkpoint.",
    )
    beta_1: float | None = decay(
        None,
        optional=True,
        doc="Decay of the momentum: an average, without bias correction, of "
        "the clipped update before it is multiplied by the step size. "
        "`None`: no momentum.",
    )
    momentum_dtype: StateDtype = momentum_dtype(needs="beta_1")
    record_update_rms: bool = boolean(
        False,
        doc="Whether to keep the RMS of every variable's latest update "
        "before clipping, for `update_rms()`.",
    )

    def check_arguments(self) -> None:
        super().check_arguments()
        checks.check(
            self.max_parameter_scale is None
            or self.max_parameter_scale >= self.epsilon_2,
            "max_parameter_scale",
            f"a number >= {self.epsilon_2} or None",
            self.max_parameter_scale,
        )
        self._check_learning_rate(self._learning_rate)

    def _check_learning_rate(self, learning_rate):
        is_number = isinstance(learning_rate, (float, keras.Variable))
        checks.check(
            self.warmup_steps is None or (self.relative_step and is_number),
            "warmup_steps",
            "None unless `relative_step` is True and `learning_rate` a float; "
            "a schedule has its own warm-up",
            self.warmup_steps,
        )

    def _warn_of_learning_rate(self, learning_rate):
        if not self._cut_off:
            return
        if callable(learning_rate):
            warnings.warn(
                "A schedule is used as it is given: from now on no relative "
                "step of `1 / sqrt(t)` caps the learning rate.",
                stacklevel=4,
            )
            return
        used = float(ops.convert_to_numpy(self.effective_learning_rate))
        now = float(ops.convert_to_numpy(self.learning_rate))
        if self.warmup_steps is None and used < learning_rate < now:
            warnings.warn(
                f"A learning rate of {float(learning_rate):.4g} changes "
                f"nothing: the relative step is at {used:.4g} already, its "
                "cap of `1 / sqrt(t)`. See `effective_learning_rate`, or give "
                "`relative_step=False`.",
                stacklevel=4,
            )

    @property
    def _cut_off(self):
        """Whether the relative step applies: not to a schedule."""
        return self.relative_step and isinstance(
            self._learning_rate, keras.Variable
        )

    def _groups(self, shape, path):
        groups = grouping.resolve(self.axis_groups, shape, path)
        if not self.factored:
            return AxisGroups(batch=groups.batch)
        return groups.unless_thin(shape, self.min_dim_size_to_factor)

    def state_spec(self, shape, path):
        groups = self._groups(shape, path)
        spec = second_moment_spec(shape, groups)
        if self.beta_1 is not None:
            spec["m"] = momentum_spec(shape, self.momentum_dtype)
        if self.record_update_rms and math.prod(shape):
            spec["u_rms"] = StateSpec((), ())
        return spec

    def choose(self, shape, path):
        """The axis groups, and whether the step scales with the variable."""
        scales = self.multiply_by_parameter_scale and not any(
            re.search(pattern, path)
            for pattern in self.exclude_from_parameter_scale or ()
        )
        return self._groups(shape, path), scales

    def update_rule(self, g, x, state, step):
        groups, scales = step.choice
        within = groups.within_slice(len(g.shape))
        state = dict(state)

        # Lines 5-7: the second moment.
        rate = self._decay_rate(step.t)
        u, moment = precondition(g, state, groups, rate, self.epsilon_1)
        state |= moment

        # Line 9: clipping, of the whole variable or of each slice.
        u_rms, x_rms = self._sizes(u, x, within, scales)
        if "u_rms" in state:
            state["u_rms"] = ops.squeeze(rms(u_rms))
        clip = 1.0
        if self.clip_threshold is not None:
            clip = rms_clip_scale(u_rms, self.clip_threshold)

        # Lines 4 and 10: the step.
        alpha = self._relative_step(step.lr, step.t)
        if x_rms is not None:
            alpha = alpha * parameter_scale(
                x_rms, self.epsilon_2, self.max_parameter_scale
            )
        if self.beta_1 is None:
            u *= alpha * clip
            return u, state
        u *= clip
        m = ema(state["m"], u, 1.0 - self.beta_1)
        return alpha * m, state | {"m": m}

    def moments(self, state, shape, path, t):
        second = whole_second_moment(state, self._groups(shape, path))
        if self.beta_1 is None:
            return Moments(None, second)
        u = state["m"] / ema_weight(t, self.beta_1)
        return Moments(u * ops.sqrt(second), second)

    def adopt(self, moments, shape, path, t):
        if moments.second is None:
            return {}
        checks.check(
            self.step_offset < t,
            "step_offset",
            f"below {t}, the steps that were taken, or the statistics they "
            "left are forgotten in the next",
            self.step_offset,
        )
        groups = self._groups(shape, path)
        state = second_moment_of(moments.second, groups, self.epsilon_1)
        if self.beta_1 is not None and moments.first is not None:
            u, _ = typical_updates(moments, state, groups, self.clip_threshold)
            state["m"] = ema_weight(t, self.beta_1) * u
        return state

    def _decay_rate(self, t):
        """`1 - beta_2t`."""
        if self.step_offset:
            t = ops.maximum(t - self.step_offset, 1.0)
        if self.beta_2 is not None:
            return debiased_decay_rate(t, self.beta_2)
        rate = power_decay_rate(t, self.beta_2_decay)
        if self.beta_2_cap is not None:
            rate = ops.maximum(rate, 1.0 - self.beta_2_cap)
        return rate

    def _relative_step(self, lr, t):
        """`rho`."""
        if not self._cut_off:
            return lr
        if self.warmup_steps is not None:
            lr = lr * ops.minimum(1.0, t / self.warmup_steps)
        return ops.minimum(lr, ops.rsqrt(t))

    def _sizes(self, u, x, within, scales):
        """RMS of the update and of the variable, `None` where not needed."""
        clips = self.clip_threshold is not None or self.record_update_rms
        if clips and scales:
            return update_and_parameter_rms(u, x, within)
        return (
            update_rms(u, within) if clips else None,
            rms(x, within) if scales else None,
        )

    @property
    def effective_learning_rate(self) -> Any:
        """`rho`, the relative step of the next update: a float32 scalar.

        With a float `learning_rate`, `min(learning_rate, 1 / sqrt(t))` after
        warm-up: past the cap a lower `learning_rate` changes nothing.
        """
        t = ops.cast(self.iterations, "float32") + 1.0
        return self._relative_step(ops.cast(self.learning_rate, "float32"), t)

    def update_rms(self) -> dict[str, float]:
        """RMS of every variable's latest update before clipping.

        An update is clipped where it is above `clip_threshold`.

        Returns:
            Dict from variable path to float, 0.0 before the first step.

        Raises:
            ValueError: Without `record_update_rms`.
        """
        checks.check(
            self.record_update_rms,
            "record_update_rms",
            "True for `update_rms()`",
            self.record_update_rms,
        )
        found = {
            path: ops.copy(slots["u_rms"])
            for path, slots in self.slots()
            if "u_rms" in slots
        }
        if not found:
            return {}
        # Read at once: the host waits for the device every time.
        values = ops.convert_to_numpy(ops.stack(list(found.values())))
        return dict(zip(found, values.tolist(), strict=True))
