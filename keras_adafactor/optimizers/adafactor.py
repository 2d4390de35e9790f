"""Adafactor (Shazeer and Stern, 2018)."""

import math
import re
import warnings
from typing import Any
from typing import Unpack

import keras
from keras import ops

from keras_adafactor.arguments import AxisGroupsChoice
from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import OptimizerKeywords
from keras_adafactor.arguments import Patterns
from keras_adafactor.arguments import StateDtype
from keras_adafactor.arguments import check
from keras_adafactor.arguments import check_boolean
from keras_adafactor.arguments import check_choice
from keras_adafactor.arguments import check_decay
from keras_adafactor.arguments import check_integer
from keras_adafactor.arguments import check_number
from keras_adafactor.arguments import check_patterns
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
from keras_adafactor.storage import MOMENTUM_DTYPES
from keras_adafactor.storage import StateSpec
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

    Args:
        learning_rate: Float >= 0, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments. With `multiply_by_parameter_scale` in units of
            the RMS of the weights per update, else in units of the weights.
            A float with `relative_step` is the cap of the relative step.
            Defaults to 0.01, as in the paper.
        beta_2_decay: Float < 0, the exponent `-c` of the paper's section 7.2.
            Defaults to -0.8.
        epsilon_1: Float > 0, added to the squared gradient. Defaults to 1e-30.
        epsilon_2: Float > 0, the floor of the parameter scale. Defaults to
            1e-3.
        clip_threshold: Float > 0, `d` of the paper's section 6, the largest
            RMS of an update before it is multiplied by the step size; or
            `None` for no clipping. Defaults to 1.0.
        relative_step: Boolean. Whether a float `learning_rate` is cut off at
            `1 / sqrt(t)`. A schedule, and any learning rate with
            `relative_step=False`, is used as it is. Defaults to `True`.
        warmup_steps: Integer >= 1 or `None`. The relative step grows linearly
            over so many steps: `min(learning_rate * t / warmup_steps,
            1 / sqrt(t))`. The paper's warm-up, `1e-6 * t`, is
            `warmup_steps=10_000`. Defaults to `None`.
        multiply_by_parameter_scale: Boolean, whether the step is multiplied by
            `max(epsilon_2, rms(x))`. Defaults to `True`.
        max_parameter_scale: Float >= `epsilon_2` or `None`, the ceiling of the
            parameter scale. Defaults to `None`.
        exclude_from_parameter_scale: Regular expression or list of them. A
            variable is not scaled if one is found anywhere in its path.
            Defaults to `None`.
        factored: Boolean, whether matrices keep row and column means only.
            Defaults to `True`.
        axis_groups: What the rows and columns of a variable are: `"auto"`, the
            contiguous split of its axes that keeps the fewest numbers;
            `"last_two"`, as the paper and most implementations; an
            `AxisGroups`; a callable `(shape, path) -> axis groups`; or a dict
            from regular expression to axis groups, of which the first that is
            found in the path decides. With batch axes, for layers stacked in
            one variable, statistics, scale and clip are those of each slice.
            Defaults to `"auto"`.
        min_dim_size_to_factor: Integer >= 1. A variable with fewer rows or
            columns is not factored. Defaults to 2: any matrix is.
        beta_2: Float in (0, 1) or `None`. A constant decay instead of the
            increasing one, with the bias correction of the paper's section
            7.1 (equal to Adam's). Defaults to `None`.
        beta_2_cap: Float in (0, 1) or `None`, the largest value of the
            increasing decay; 0.999 in Zhai et al., 2021. Defaults to `None`.
        step_offset: Integer >= 0. The decay is that of step
            `max(1, t - step_offset)`. To fine-tune with fresh statistics,
            give the number of steps of the checkpoint. Defaults to 0.
        beta_1: Float in (0, 1) or `None`, the decay of the momentum: an
            average, without bias correction, of the clipped update before it
            is multiplied by the step size. Defaults to `None`, no momentum.
        momentum_dtype: `"float32"`, `"bfloat16"` or `"int8"` (in blocks along
            the longest axis; variables under 4,096 elements stay float32).
            The lower two are rounded without bias. Defaults to `"float32"`.
        record_update_rms: Boolean, whether to keep the RMS of every
            variable's latest update before clipping, for `update_rms()`.
            Defaults to `False`.
        **kwargs: See `UpdateRuleOptimizer`.

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

    def __init__(
        self,
        learning_rate: LearningRate = 0.01,
        beta_2_decay: float = -0.8,
        epsilon_1: float = 1e-30,
        epsilon_2: float = 1e-3,
        clip_threshold: float | None = 1.0,
        relative_step: bool = True,
        *,
        warmup_steps: int | None = None,
        multiply_by_parameter_scale: bool = True,
        max_parameter_scale: float | None = None,
        exclude_from_parameter_scale: Patterns = None,
        factored: bool = True,
        axis_groups: AxisGroupsChoice = "auto",
        min_dim_size_to_factor: int = 2,
        beta_2: float | None = None,
        beta_2_cap: float | None = None,
        step_offset: int = 0,
        beta_1: float | None = None,
        momentum_dtype: StateDtype = "float32",
        record_update_rms: bool = False,
        **kwargs: Unpack[OptimizerKeywords],
    ) -> None:
        super().__init__(learning_rate, **kwargs)
        self.beta_2_decay = check_number(
            "beta_2_decay", beta_2_decay, below=0.0
        )
        self.epsilon_1 = check_number("epsilon_1", epsilon_1, above=0.0)
        self.epsilon_2 = check_number("epsilon_2", epsilon_2, above=0.0)
        self.clip_threshold = check_number(
            "clip_threshold", clip_threshold, above=0.0, optional=True
        )
        self.relative_step = check_boolean("relative_step", relative_step)
        self.warmup_steps = check_integer(
            "warmup_steps", warmup_steps, 1, optional=True
        )
        self.multiply_by_parameter_scale = check_boolean(
            "multiply_by_parameter_scale", multiply_by_parameter_scale
        )
        self.max_parameter_scale = check_number(
            "max_parameter_scale",
            max_parameter_scale,
            at_least=self.epsilon_2,
            optional=True,
        )
        self.exclude_from_parameter_scale = check_patterns(
            "exclude_from_parameter_scale", exclude_from_parameter_scale
        )
        self.factored = check_boolean("factored", factored)
        self.axis_groups = grouping.check_choice(axis_groups)
        self.min_dim_size_to_factor = check_integer(
            "min_dim_size_to_factor", min_dim_size_to_factor, 1
        )
        self.beta_2 = check_decay("beta_2", beta_2, optional=True)
        self.beta_2_cap = check_decay("beta_2_cap", beta_2_cap, optional=True)
        self.step_offset = check_integer("step_offset", step_offset, 0)
        self.beta_1 = check_decay("beta_1", beta_1, optional=True)
        self.momentum_dtype = check_choice(
            "momentum_dtype", momentum_dtype, MOMENTUM_DTYPES
        )
        self.record_update_rms = check_boolean(
            "record_update_rms", record_update_rms
        )
        self._check_learning_rate(learning_rate)
        self._check_combinations()

    def _check_learning_rate(self, learning_rate):
        check(
            self.warmup_steps is None
            or (self.relative_step and not callable(learning_rate)),
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

    def _check_combinations(self):
        check(
            self.beta_2 is None or self.beta_2_decay == -0.8,
            "beta_2_decay",
            "left at its default if `beta_2` is given",
            self.beta_2_decay,
        )
        check(
            self.beta_2 is None or self.beta_2_cap is None,
            "beta_2_cap",
            "None if `beta_2` is given",
            self.beta_2_cap,
        )
        check(
            self.beta_1 is not None or self.momentum_dtype == "float32",
            "momentum_dtype",
            "left at its default unless `beta_1` is given",
            self.momentum_dtype,
        )
        for name in ("max_parameter_scale", "exclude_from_parameter_scale"):
            check(
                self.multiply_by_parameter_scale or getattr(self, name) is None,
                name,
                "None unless `multiply_by_parameter_scale` is True",
                getattr(self, name),
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
        check(
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
        check(
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
