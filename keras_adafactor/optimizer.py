"""The shell: everything an optimizer needs that is Keras and not the paper.

It owns the variables. What becomes of their values is `step.take_step`, and
what of the gradient is the rule's. No variable of the model and no slot is
assigned outside of this file, but by what is loaded.
"""

import functools
import inspect
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Any
from typing import Literal
from typing import NamedTuple

import keras
from keras import ops

from keras_adafactor import checks
from keras_adafactor import guards
from keras_adafactor import layouts
from keras_adafactor import saved_state
from keras_adafactor.adamw_rule import AdamWRule
from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import Patterns
from keras_adafactor.arguments import argument
from keras_adafactor.arguments import boolean
from keras_adafactor.arguments import choice
from keras_adafactor.arguments import deserialize
from keras_adafactor.arguments import integer
from keras_adafactor.arguments import number
from keras_adafactor.arguments import rate
from keras_adafactor.arguments import serialize
from keras_adafactor.backends import backend
from keras_adafactor.learning_rate import WithLearningRate
from keras_adafactor.rule import UpdateRule
from keras_adafactor.step import ACCUMULATOR
from keras_adafactor.step import AVERAGE
from keras_adafactor.step import RESERVED
from keras_adafactor.step import Plan
from keras_adafactor.step import Stored
from keras_adafactor.step import average_of
from keras_adafactor.step import compute_dtype
from keras_adafactor.step import no_failures
from keras_adafactor.step import take_steps
from keras_adafactor.storage import Array

# Arguments of `UpdateRuleOptimizer` that Keras has too.
KERAS_ARGUMENTS = (
    "learning_rate",
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
    "name",
)
_LARGE = 2**22  # elements of a variable from which updates are made in turn


class Tracked(NamedTuple):
    """The plan of one variable, and its variables in the optimizer.

    Attributes:
        kind: Int, the position of the first variable of those that are
            updated together; its own if it is updated alone.
        plan: `Plan`.
        slots: Dict from slot name to `keras.Variable`.
    """

    kind: int
    plan: Plan
    slots: dict[str, Any]

    @property
    def average(self):
        return self.slots.get(AVERAGE)

    @property
    def accumulator(self):
        return self.slots.get(ACCUMULATOR)


def _check_fallback(name, value):
    """A dict from regular expression to rule, or `None`."""
    if value is None:
        return None
    if not isinstance(value, dict):
        patterns = checks.check_patterns(name, value)
        return {pattern: AdamWRule() for pattern in patterns}
    checks.check_patterns(name, list(value))
    for rule in value.values():
        checks.check(
            isinstance(rule, UpdateRule),
            name,
            "a dict from regular expression to update rule, `AdamWRule()` say",
            value,
        )
    return dict(value)


def _check_name(name, value):
    checks.check(
        value is None or isinstance(value, str), name, "a string", value
    )
    return value


class UpdateRuleOptimizer(UpdateRule, WithLearningRate):
    """Abstract base of optimizers that are a pure update rule.

    A subclass implements `state_spec` and `update_rule`, and `refresh` where
    something changes every so many steps only; see `UpdateRule`. Unlike a
    subclass of `keras.optimizers.Optimizer` it never touches a variable.

    All keywords of `keras.optimizers.Optimizer` work. These differ from it:

    - Statistics and arithmetic are float32 whatever the dtype of the weights
      (arithmetic float64 for float64 weights).
    - Sparse gradients are made dense, repeated rows summed, before anything
      is squared.
    - Accumulators are float32, the gradients of all replicas are summed
      before they are accumulated or clipped, and nothing of the update is
      computed in a step that only accumulates.
    - Weight decay goes by the whole path of a variable on every backend, and
      is saved with the optimizer.
    - A checkpoint that does not fit is an error; `warm_start` keeps what fits
      of it.

    Raises:
        ValueError: If an argument is out of range or contradicts another.
    """

    # Elements of a variable up to which it may be updated with others.
    _largest_together = 4096

    learning_rate: LearningRate = rate()
    _: KW_ONLY
    weight_decay: float | None = number(
        None,
        at_least=0.0,
        optional=True,
        doc="`weight_decay * learning_rate` of every weight is subtracted from "
        "it in a step, unless `exclude_from_weight_decay()` excludes it.",
    )
    clipnorm: float | None = number(
        None,
        above=0.0,
        optional=True,
        doc="Largest norm of the gradient of a variable.",
    )
    clipvalue: float | None = number(
        None,
        above=0.0,
        optional=True,
        doc="Largest absolute value of an element of a gradient.",
    )
    global_clipnorm: float | None = number(
        None,
        above=0.0,
        optional=True,
        doc="Largest norm of all gradients together.",
    )
    use_ema: bool = boolean(
        False,
        doc="Whether an average of every weight is kept, which replaces the "
        "weight at the end of `fit`.",
    )
    ema_momentum: float = number(
        0.99, at_least=0.0, at_most=1.0, doc="Decay of these averages."
    )
    ema_overwrite_frequency: int | None = integer(
        None,
        at_least=1,
        optional=True,
        needs="use_ema",
        doc="Number of steps after which weights are overwritten with their "
        "averages. `None`: only at the end of `fit`.",
    )
    loss_scale_factor: float | None = number(
        None,
        above=0.0,
        optional=True,
        doc="Number by which the loss is multiplied and the gradients are "
        "divided.",
    )
    gradient_accumulation_steps: int | None = integer(
        None,
        at_least=2,
        optional=True,
        doc="Number of batches whose mean gradient makes an update.",
    )
    name: str | None = argument(
        None,
        check=_check_name,
        type="String or `None`",
        doc="Name of the optimizer; by default the class, numbered.",
    )
    stochastic_rounding: bool = boolean(
        True,
        doc="Whether weights of dtype bfloat16 and float16 are rounded up or "
        "down at random so that their mean is exact. Rounding to nearest never "
        "moves a bfloat16 weight of 1.0 by 1e-3. The noise is a hash of "
        "element, step and variable: it is the same on all replicas, and in a "
        "resumed run.",
    )
    skip_nonfinite: Literal["variable", "step"] | None = choice(
        "variable",
        choices=guards.POLICIES,
        doc="What stays as it was when a gradient holds NaN, infinity, or an "
        'element too large to be squared in float32 (1.8e19). `"variable"`: '
        "the variable of that gradient and its statistics. The optimizer reads "
        "this from the statistics, where they have seen the whole gradient, "
        'and makes no pass over the gradient. `"step"`: every variable, every '
        "statistic and the count of steps. All updates then wait for the last "
        "gradient, so no gradient is freed early: compiled for a TPU v5e, on "
        "JAX, a training step of twelve 4096 x 4096 layers needs 2.4 bytes of "
        'temporaries a parameter, with `"variable"` or `None` 0.37. '
        "`skipped_updates` counts, and `fit` ends with a warning.",
    )
    fallback: Patterns | dict[str, UpdateRule] = argument(
        None,
        check=_check_fallback,
        type="Regular expression, list of them, dict from regular expression "
        "to `UpdateRule`, or `None`",
        doc="Variables that take another rule: by an expression or a list "
        "`AdamWRule()`, by a dict the rule of the first expression that is "
        "found in the path of the variable. `state_report` shows the rule of "
        "every variable.",
    )

    def initialize(self, values: dict[str, Any]) -> None:
        if type(self).update_step is not UpdateRuleOptimizer.update_step:
            raise TypeError(
                f"`{type(self).__name__}.update_step` would never be called: "
                "override `update_rule(g, x, state, step)`, which returns what "
                "is subtracted from the variable, or subclass "
                "`keras.optimizers.Optimizer`."
            )
        kept = {
            name: self.declared[name].check(name, value)
            for name, value in values.items()
        }
        keywords = {n: kept.pop(n) for n in KERAS_ARGUMENTS if n in kept}
        keywords["name"] = keywords["name"] or _unique_name(type(self))
        keras.optimizers.Optimizer.__init__(self, **keywords)
        self._undecayed: list[str] = []
        self._tracked: list[Tracked] = []
        self._skipped_updates: Any = None
        self._failed_refreshes: Any = None
        # Count that was warned of -> how often it had happened then.
        self._warned_of: dict[str, int] = {}
        # What was loaded before there were slots: see `saved_state`.
        self._waiting: dict[str, Any] = {}
        super().initialize(kept)
        if self.ema_momentum != 0.99 and not self.use_ema:
            warnings.warn(
                f"`ema_momentum={self.ema_momentum}` does nothing unless "
                "`use_ema` is True; for momentum see `beta_1`.",
                stacklevel=4,
            )

    def is_fixed(self) -> bool:
        return bool(self.__dict__.get("_tracked"))

    # State.

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        # All that can be wrong with a choice of the user, or with what was
        # loaded, raises here, before anything is made.
        self.check_arguments()
        plans = [
            self.plan_for(variable, key)
            for key, variable in enumerate(variables)
        ]
        arrays = [
            self._arrays(plan, variable)
            for plan, variable in zip(plans, variables, strict=True)
        ]
        saved_state.check_waiting(self, arrays)
        made_before = saved_state.stored(self)
        with backend.creation_scope(self):
            # Keras would make accumulators of the variables' dtype: in
            # bfloat16, 599 additions of 1.0 give 256.
            accumulate: Any = self.gradient_accumulation_steps
            self.gradient_accumulation_steps: Any = None
            super().build(variables)
            self.gradient_accumulation_steps = accumulate
            if self._guard.skips_updates or self._guard.skips_steps:
                self._skipped_updates = self.add_variable(
                    shape=(),
                    dtype="int32",
                    aggregation="only_first_replica",
                    name="skipped_updates",
                )
            kinds: dict[Any, int] = {}
            self._tracked = [
                self._track(*row, kinds)
                for row in zip(plans, arrays, variables, strict=True)
            ]
            # After the slots: in a `tf.train.Checkpoint` their positions count.
            if any(plan.refreshes for plan in plans):
                self._failed_refreshes = self.add_variable(
                    shape=(),
                    dtype="int32",
                    aggregation="only_first_replica",
                    name=saved_state.FAILED_REFRESHES,
                )
            self._accumulated_gradients = [t.accumulator for t in self._tracked]
        saved_state.load_waiting(self, made_before)
        self._warn_of_unused_patterns([plan.path for plan in plans])

    def _warn_of_unused_patterns(self, paths):
        """Warns of regular expressions that are found in no path."""
        given = {
            "fallback": self.fallback,
            "exclude_from_weight_decay": self._undecayed,
        }
        given |= {n: getattr(self, n, None) for n in self.pattern_arguments}
        for name, patterns in given.items():
            if not isinstance(patterns, dict | list):
                continue
            for pattern in patterns:
                if not any(re.search(pattern, path) for path in paths):
                    warnings.warn(
                        f"The regular expression {pattern!r} of `{name}` is "
                        "found in no variable's path. Three of the paths are: "
                        f"{', '.join(paths[:3])}",
                        stacklevel=3,
                    )

    def rule_for(self, shape: tuple[int, ...], path: str) -> UpdateRule:
        rules: Any = self.fallback or {}
        for pattern, rule in rules.items():
            if re.search(pattern, path):
                return rule
        return self

    def plan_for(self, variable: Any, key: int = 0) -> Plan:
        """What is, or would be, decided about a variable.

        Args:
            variable: Variable, or anything with a path and a shape.
            key: Int, its position among the variables.

        Returns:
            `Plan`.

        Raises:
            ValueError: If an argument does not fit the variable, or its dtype
                is not floating.
        """
        path, shape = path_of(variable), tuple(variable.shape)
        overwritten = getattr(variable, "overwrite_with_gradient", False)
        dtype = keras.backend.standardize_dtype(
            getattr(variable, "dtype", "float32")
        )
        if "float" not in dtype and not overwritten:
            raise ValueError(
                f"Variable '{path}' must be of a floating dtype to be "
                f"trained with {type(self).__name__}. Received: dtype={dtype}"
            )
        rule = self.rule_for(shape, path)
        specs = {} if overwritten else rule.state_spec(shape, path)
        choice = None if overwritten else rule.choose(shape, path)
        if taken := set(specs) & set(RESERVED):
            raise ValueError(
                f"An entry of `state_spec` must not be named {taken}."
            )
        decayed = self.weight_decay and not any(
            re.search(pattern, path) for pattern in self._undecayed
        )
        return Plan(
            path=path,
            key=key,
            rule=rule,
            specs=specs,
            choice=choice,
            decay=(self.weight_decay or 0.0) if decayed else 0.0,
            guard=self._guard,
            rounded=self.stochastic_rounding,
            averaged=self.use_ema and not overwritten,
            ema_momentum=self.ema_momentum,
            overwrite_frequency=self.ema_overwrite_frequency,
        )

    def _arrays(self, plan, variable):
        """Slot name -> `Array`, of all that is kept for a variable."""
        shape, dtype = tuple(variable.shape), variable.dtype
        axes = tuple(range(len(shape)))
        arrays = plan.arrays()
        if plan.averaged:
            arrays[AVERAGE] = Array(shape, axes, dtype)
        if self.gradient_accumulation_steps:
            arrays[ACCUMULATOR] = Array(shape, axes, compute_dtype(variable))
        return arrays

    def _track(self, plan, arrays, variable, kinds):
        slots = {
            # Keras has made the averages.
            name: self._model_variables_moving_average[plan.key]
            if name == AVERAGE
            else self._add_slot(variable, plan.path, name, array)
            for name, array in arrays.items()
        }
        kind = self._kind_of(plan, variable)
        first = plan.key if kind is None else kinds.setdefault(kind, plan.key)
        return Tracked(first, plan, slots)

    def _kind_of(self, plan, variable):
        """What is equal of variables that are updated together, or `None`.

        Together each is a slice of one array. Large ones would be copied for
        nothing, and of a condition that differs between them all branches
        would be computed.
        """
        size = math.prod(variable.shape)
        if (
            not 0 < size <= self._largest_together
            or plan.refreshes
            or self.gradient_accumulation_steps
            or layouts.is_split(variable)
            or not _chooses_for_its_update(plan.rule)
        ):
            return None
        kind = (tuple(variable.shape), str(variable.dtype), plan.kind)
        try:
            hash(kind)
        except TypeError:
            return None
        return kind

    def _add_slot(self, variable, path, name, array):
        with backend.colocate_with(self, variable):
            return self.add_variable(
                shape=array.shape,
                initializer=array.initializer,
                dtype=array.dtype,
                layout=layouts.derive_layout(variable, array),
                name=f"{path.replace('/', '_')}_{name}",
            )

    def slots(self) -> list[tuple[str, dict[str, keras.Variable]]]:
        """What the rules keep for every variable.

        Returns:
            List of pairs of a variable's path and a dict from slot name to
            `keras.Variable`, in the order of the variables; empty before the
            optimizer is built.
        """
        return [
            (plan.path, {name: slots[name] for name in plan.arrays()})
            for _, plan, slots in self._tracked
        ]

    @property
    def variables_built_with(self) -> list[keras.Variable]:
        """The variables of the model; empty before the optimizer is built."""
        return list(self._trainable_variables)

    @property
    def skipped_updates(self) -> keras.Variable | int:
        """Number of updates skipped for NaN or infinity so far.

        An integer `keras.Variable`: updates of single variables with
        `skip_nonfinite="variable"`, whole steps with `"step"`. 0 before the
        optimizer is built, and with `skip_nonfinite=None`.
        """
        return 0 if self._skipped_updates is None else self._skipped_updates

    @property
    def failed_refreshes(self) -> keras.Variable | int:
        """Number of refreshes so far whose result could not be used.

        An integer `keras.Variable`, or 0 before the optimizer is built and for
        rules without a refresh. If a decomposition fails, the variable keeps
        its old basis and the next step tries again; until then the count of its
        steps, and with it the bias correction, stays. A variable without a
        basis gets the identity until the next regular refresh.
        """
        return 0 if self._failed_refreshes is None else self._failed_refreshes

    @property
    def _guard(self):
        return guards.POLICIES[self.skip_nonfinite]

    # The step.

    @backend.training_step
    def apply(self, grads, trainable_variables=None):
        """Takes a step with the gradients, or adds them up for one.

        A gradient is made dense, unscaled, summed over the replicas, looked at
        by the guard, accumulated and clipped, in this order. Then
        `step.take_step` makes the update of its variable.

        Args:
            grads: List of gradients, `None` for a variable without one.
            trainable_variables: List of their variables; by default those the
                optimizer was built with.

        Raises:
            ValueError: If the variables are not those, no variable has a
                gradient, or one is not of its variable's shape.
        """
        if len(grads) == 0:
            return
        variables = self._variables_of(grads, trainable_variables)
        with keras.name_scope(self.name, caller=self):
            grads, variables = self._filter_empty_gradients(grads, variables)
            grads = [backend.densify(gradient) for gradient in grads]
            grads, variables = (
                self._overwrite_variables_directly_with_gradients(
                    grads, variables
                )
            )
            if grads:
                self._update_all(self._unscaled(grads), variables)
            self._iterations.assign_add(1)

    def _update_all(self, gradients, variables):
        gradients = [
            _of_shape(ops.cast(gradient, compute_dtype(variable)), variable)
            for gradient, variable in zip(
                backend.sum_over_replicas(gradients), variables, strict=True
            )
        ]
        members = [self._tracked_of(variable) for variable in variables]
        step_taken = self._guard.takes_step(gradients)
        if step_taken is not None:
            self._count_step(step_taken)

        totals = None
        if self.gradient_accumulation_steps:
            totals = [
                gradient + member.accumulator
                for gradient, member in zip(gradients, members, strict=True)
            ]
            gradients = [t / self.gradient_accumulation_steps for t in totals]
        finite = self._guard.takes_updates(gradients, self._clipping)
        gradients = self._clip_gradients(gradients)

        learning_rate = self.learning_rate
        updates = []
        for positions in self._kinds_of(members):
            mine = functools.partial(_take, positions=positions)
            first, *others = mine(variables)
            update = functools.partial(self._update, mine(members), others)
            arguments = (
                mine(gradients),
                learning_rate,
                mine(totals),
                mine(finite),
                step_taken,
            )
            updates.append((first, update, arguments))
        backend.update_variables(self, updates, self._in_turn)
        if self.use_ema:
            self._average_the_rest(members, step_taken)
        for variable in variables:
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable))

    def _variables_of(self, gradients, variables):
        """The variables of a step, for which the optimizer is then built."""
        if variables is not None:
            variables = list(variables)
            if not self.built:
                with keras.name_scope(self.name, caller=self):
                    self.build(variables)
            self._check_variables_are_known(variables)
            return variables
        if not self.built:
            raise ValueError(
                "`apply(grads)` without `trainable_variables` needs an "
                "optimizer that is built: call "
                "`optimizer.build(trainable_variables)` first."
            )
        if len(gradients) != len(self._tracked):
            raise ValueError(
                f"`grads` must have one gradient for each of the "
                f"{len(self._tracked)} variables the optimizer was built with. "
                f"Received: {len(gradients)} gradients"
            )
        return self.variables_built_with

    def _unscaled(self, gradients):
        """The gradients of the loss, of which those of a multiple are given."""
        if self.loss_scale_factor is None:
            return gradients
        # In float16 a small one would be 0.
        return [
            ops.cast(g, compute_dtype(g)) / self.loss_scale_factor
            for g in gradients
        ]

    @property
    def _clipping(self):
        if self.global_clipnorm:
            return "together"
        return "each" if self.clipnorm or self.clipvalue else None

    def _in_turn(self, variable):
        """What is assigned before the update of the next variable begins.

        Of those whose gradient is read more than once, as statistics are made
        of it: it is then held as long as its update lasts. Not where a
        condition needs it whole (a refresh, accumulation) or the step needs all
        of them at once, nor small ones, which are faster together.

        Args:
            variable: Variable that is updated.

        Returns:
            List of variables, or `None`.
        """
        if (
            self._guard.skips_steps
            or self.global_clipnorm
            or self.gradient_accumulation_steps
        ):
            return None
        size = math.prod(variable.shape)
        _, plan, slots = self._tracked_of(variable)
        has_statistics = any(
            1 < math.prod(array.shape) < size
            for array in plan.arrays().values()
        )
        if size < _LARGE or not has_statistics or plan.refreshes:
            return None
        return [variable, *slots.values()]

    def _count_step(self, taken):
        """Counts a step that is skipped, and takes it back."""
        skipped = ops.cast(ops.logical_not(taken), "int32")
        self._skipped_updates.assign_add(skipped)
        # `apply` will add 1.
        self._iterations.assign_sub(ops.cast(skipped, self._iterations.dtype))

    def _average_the_rest(self, updated, step_taken):
        """Moves the averages of variables that got no gradient."""
        updated = {member.plan.key for member in updated}
        rest = [
            (variable, functools.partial(self._update_average, member))
            for variable, member in zip(
                self._trainable_variables, self._tracked, strict=True
            )
            if member.plan.key not in updated and member.average is not None
        ]
        if rest:
            backend.update_variables(
                self,
                [(*pair, (None, step_taken)) for pair in rest],
                lambda variable: None,
            )

    def _kinds_of(self, members):
        """Positions among the members, of those that are updated together."""
        kinds: dict[int, list[int]] = {}
        for position, member in enumerate(members):
            kinds.setdefault(member.kind, []).append(position)
        return kinds.values()

    def _tracked_of(self, variable):
        return self._tracked[self._get_variable_index(variable)]

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable, without clipping or accumulation."""
        members = [self._tracked_of(variable)]
        self._update(members, [], variable, [gradient], learning_rate)

    def _update(
        self,
        members,
        others,
        variable,
        gradients,
        learning_rate,
        totals=None,
        finite=None,
        step_taken=None,
    ):
        """Assigns variables of one kind, and their slots.

        Args:
            members: List of `Tracked`.
            others: List of their variables, but for the first.
            variable: The first variable, of Keras or of the backend.
            gradients: List of dense tensors, of which the updates are made.
            learning_rate: Scalar.
            totals: List of tensors, the sums of the gradients accumulated so
                far, or `None` without accumulation.
            finite, step_taken: As in `take_steps`.
        """
        variables = [variable, *others]
        old = [_stored(*pair) for pair in zip(variables, members, strict=True)]

        def update():
            return take_steps(
                [member.plan for member in members],
                gradients,
                old,
                learning_rate,
                self._int32_iterations(),
                finite,
                step_taken,
            )

        if totals is None:
            new, failures = update()
        else:
            steps = self.gradient_accumulation_steps
            complete = ops.equal((self._iterations + 1) % steps, 0)
            new, failures = ops.cond(
                complete, update, lambda: (old, no_failures())
            )
            for member, total in zip(members, totals, strict=True):
                left = backend.select(complete, ops.zeros_like(total), total)
                if step_taken is not None:
                    before = backend.read(member.accumulator)
                    left = backend.select(step_taken, left, before)
                self.assign(member.accumulator, left)
        for row in zip(variables, members, old, new, strict=True):
            self._assign(*row)
        if self._guard.skips_updates:
            self.assign_add(self._skipped_updates, failures.updates)
        if members[0].plan.refreshes:
            self.assign_add(self._failed_refreshes, failures.refreshes)

    def _int32_iterations(self):
        """The updates so far, for an optimizer of 64 bits up to 2**31 - 2."""
        updates = self.iterations
        largest = ops.cast(2**31 - 2, updates.dtype)
        return ops.cast(ops.minimum(updates, largest), "int32")

    def _assign(self, variable, member, old, new):
        self.assign(variable, new.variable)
        for name, value in new.slots.items():
            if value is not old.slots[name]:
                self.assign(member.slots[name], value)

    def _update_average(self, member, variable, gradient, step_taken):
        """Assigns the average of a variable that got no gradient."""
        steps = self.gradient_accumulation_steps or 1
        moves = ops.equal((self._iterations + 1) % steps, 0)
        if step_taken is not None:
            moves = ops.logical_and(moves, step_taken)
        average, _ = average_of(
            member.plan,
            backend.read(variable),
            backend.read(member.average),
            self._int32_iterations(),
            moves,
        )
        self.assign(member.average, average)

    def finalize_variable_values(self, var_list):
        # Keras calls this at the end of every `fit`, one that raised too: an
        # error here would hide its own.
        if not backend.has_value(self._iterations):
            return
        self._warn_of_failures()
        if not self.use_ema:
            return
        for variable in var_list:
            average = self._tracked_of(variable).average
            if average is not None:
                # A copy: JAX refuses to donate one buffer as two variables.
                variable.assign(ops.copy(ops.convert_to_tensor(average)))

    def _warn_of_failures(self):
        if skipped := self._count_since_warned("skipped_updates"):
            single = self._guard.skips_updates
            what = "updates of single variables" if single else "steps"
            warnings.warn(
                f"Optimizer '{self.name}' skipped {skipped} {what} because of "
                "NaN or infinity in a gradient; `skipped_updates` counts them.",
                stacklevel=3,
            )
        if failed := self._count_since_warned("failed_refreshes"):
            warnings.warn(
                f"Optimizer '{self.name}' could not compute a new basis in "
                f"{failed} refreshes and trained on with the old one, or the "
                "identity; `failed_refreshes` counts them.",
                stacklevel=3,
            )

    def _count_since_warned(self, name):
        count = int(ops.convert_to_numpy(getattr(self, name)))
        new = count - self._warned_of.get(name, 0)
        self._warned_of[name] = count
        return max(new, 0)

    # Weight decay.

    def exclude_from_weight_decay(
        self,
        var_list: Sequence[keras.Variable] | None = None,
        var_names: Patterns = None,
    ) -> None:
        """Excludes variables from weight decay.

        Args:
            var_list: List of variables.
            var_names: List of regular expressions. A variable is excluded if
                one is found anywhere in its path, `"encoder/dense/bias"`.

        Raises:
            ValueError: If the optimizer is built already.
        """
        if self.built:
            raise ValueError(
                "`exclude_from_weight_decay()` can only be called before the "
                "optimizer is built."
            )
        names = checks.check_patterns("var_names", var_names) or []
        paths = [f"^{re.escape(path_of(v))}$" for v in var_list or ()]
        self._undecayed = names + paths

    # On disk.

    def save_own_variables(self, store):
        saved_state.save(self, store)

    def load_own_variables(self, store):
        saved_state.load(self, store)

    def get_config(self) -> dict[str, Any]:
        taken = constructor_arguments(type(self))
        # What the constructor does not take, it gives to its parent itself.
        config = {n: v for n, v in super().get_config().items() if n in taken}
        for name in own_arguments(type(self)):
            if not hasattr(self, name):
                raise AttributeError(
                    f"`{type(self).__name__}.__init__` must keep its argument "
                    f"`{name}` as `self.{name}`, or it cannot be saved."
                )
            config[name] = serialize(getattr(self, name))
        if self._undecayed:
            config["excluded_from_weight_decay"] = list(self._undecayed)
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        undecayed = config.pop("excluded_from_weight_decay", None)
        for name in own_arguments(cls):
            if name in config:
                config[name] = deserialize(config[name], custom_objects)
        optimizer = super().from_config(config, custom_objects)
        if undecayed:
            optimizer.exclude_from_weight_decay(var_names=undecayed)
        return optimizer


def _chooses_for_its_update(rule):
    """Whether `choose` is of the class that has `update_rule`, or newer.

    A subclass may have an `update_rule` that looks at the path after all.
    """
    classes = type(rule).__mro__
    chooses, updates = (
        next(i for i, cls in enumerate(classes) if name in vars(cls))
        for name in ("choose", "update_rule")
    )
    return chooses <= updates


def _take(values, positions):
    """Some of a list, or `None` of `None`."""
    return values and [values[position] for position in positions]


def _stored(variable, member):
    """`Stored`, of the variable's values and the slots' now."""
    return Stored(
        backend.read(variable),
        {
            name: backend.read(slot)
            for name, slot in member.slots.items()
            if name != ACCUMULATOR
        },
    )


def path_of(variable):
    """The path of a variable: what every regular expression is held against."""
    # A raw `tf.Variable` has a name only.
    path = getattr(variable, "path", None)
    return variable.name.partition(":")[0] if path is None else path


def inner_optimizers(optimizer):
    """The optimizers inside of what Keras wraps around them.

    Args:
        optimizer: Any optimizer, a `keras.optimizers.LossScaleOptimizer` or
            `MultiOptimizer` perhaps.

    Returns:
        List of optimizers, of one where there is no `MultiOptimizer`.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    # `MultiOptimizer` has them; not every Keras has it.
    return list(getattr(optimizer, "optimizers", [optimizer]))


def constructor_arguments(cls):
    """Names of all arguments that the constructor of an optimizer takes.

    Its own, and if it takes `**kwargs` those of the next of its parents.
    """
    found: list[str] = []
    for owner in cls.__mro__:
        if "__init__" not in vars(owner):
            continue
        _, *parameters = inspect.signature(owner.__init__).parameters.values()
        kinds = [parameter.kind for parameter in parameters]
        variadic = (
            inspect.Parameter.VAR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
        )
        names = [p.name for p in parameters if p.kind not in variadic]
        found = [*(n for n in names if n not in found), *found]
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return found


def own_arguments(cls):
    """Those of them that Keras does not know: each an attribute of its name."""
    return [n for n in constructor_arguments(cls) if n not in KERAS_ARGUMENTS]


def _unique_name(cls):
    name = saved_state.name_of(cls)
    count = keras.backend.get_uid(name)
    return name if count == 1 else f"{name}_{count - 1}"


def _of_shape(gradient, variable):
    shape = tuple(variable.shape)
    fitting = backend.with_shape(gradient, shape)
    if fitting is None:
        raise ValueError(
            f"The gradient of variable '{path_of(variable)}' must be of its "
            f"shape {shape}. Received: shape={tuple(gradient.shape)}"
        )
    return fitting
