"""How one variable takes a step, as a pure function.

    x <- float32(variable)
    state <- refresh(g, x, state)                 if it is due
    x <- x - weight_decay * lr * x                before, or after the rule
    delta, state <- update_rule(g, x, state, step)
    x <- x - delta
    average <- ema_momentum * average + (1 - ema_momentum) * x
    variable <- round(x)

in one place, so that it is the same on every backend and in one pass over
memory.
"""

import functools
from collections.abc import Hashable
from dataclasses import dataclass
from dataclasses import replace
from typing import Any
from typing import NamedTuple

import keras
from keras import ops

from keras_adafactor import guards
from keras_adafactor.backends import backend
from keras_adafactor.functional.moments import ema
from keras_adafactor.rule import Step
from keras_adafactor.rule import UpdateRule
from keras_adafactor.rule import noise_key
from keras_adafactor.storage import Array
from keras_adafactor.storage import StateSpec
from keras_adafactor.storage import round_to
from keras_adafactor.storage import stored_arrays

# Names that no entry of a rule may have.
COUNT = "count"
AVERAGE = "average"
ACCUMULATOR = "gradient_accumulator"
RESERVED = (COUNT, AVERAGE, ACCUMULATOR)
# What noise is for: the variable, its average, then the entries of the state.
_VARIABLE_SALT, _AVERAGE_SALT, _STATE_SALT = range(3)


@dataclass(frozen=True)
class Plan:
    """What is decided about one variable when the optimizer is built.

    Attributes:
        path: String, the variable's path.
        key: Int, or int32 scalar, its position: seeds its noise.
        rule: `UpdateRule` that it takes.
        specs: Dict, the rule's `state_spec`.
        choice: What the rule's `choose` returned.
        decay: Float, 0 if it is excluded from weight decay.
        guard: `guards.Guard`, the optimizer's policy.
        rounded: Boolean, whether it is rounded stochastically.
        averaged: Boolean, whether an average of its values is kept.
        ema_momentum: Float, the decay of that average.
        overwrite_frequency: Int or `None`, the steps from one overwriting of
            the variable by its average to the next.
    """

    path: str
    key: Any
    rule: UpdateRule
    specs: dict[str, StateSpec]
    choice: Hashable
    decay: float
    guard: guards.Guard
    rounded: bool
    averaged: bool
    ema_momentum: float
    overwrite_frequency: int | None

    @property
    def kind(self):
        """Equal for plans that differ in path and position alone."""
        shared = vars(self) | {"path": None, "key": None}
        shared |= {"specs": tuple(self.specs.items()), "rule": id(self.rule)}
        return tuple(shared.items())

    @property
    def refreshes(self):
        return any(spec.refreshed for spec in self.specs.values())

    def arrays(self):
        """Slot name -> `Array`, of what is stored for the rule."""
        counter = {COUNT: Array((), (), "int32")} if self.refreshes else {}
        return stored_arrays(self.specs) | counter


class Stored(NamedTuple):
    """A variable and its slots, as they are stored.

    Attributes:
        variable: Tensor.
        slots: Dict from slot name to tensor: the arrays of the rule's state,
            its `count`, and the `average`, where they are kept.
    """

    variable: Any
    slots: dict[str, Any]


class Failures(NamedTuple):
    """What went wrong in one step of one variable, as int32 scalars, 0 or 1.

    Attributes:
        updates: Updates that were skipped for NaN or infinity.
        refreshes: Refreshes whose result was not finite. A decomposition that
            fails returns NaN.
    """

    updates: Any
    refreshes: Any


def no_failures():
    """`Failures` of a step that does nothing."""
    zero = ops.zeros((), dtype="int32")
    return Failures(zero, zero)


def compute_dtype(tensor):
    """The precision of arithmetic for a variable: float32, or its float64."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return "float64" if dtype == "float64" else "float32"


def take_step(
    plan,
    gradient,
    stored,
    learning_rate,
    iteration,
    known_finite=None,
    step_taken=None,
):
    """One step of one variable.

    Args:
        plan: `Plan`.
        gradient: Dense tensor.
        stored: `Stored`, before the step.
        learning_rate: Scalar.
        iteration: int32 scalar, the updates of the optimizer before this one.
        known_finite: Boolean scalar, what the guard said of this gradient
            before it was clipped, or `None`.
        step_taken: Boolean scalar, whether the guard lets the whole step be
            taken, or `None` where it is in any case.

    Returns:
        Tuple of `Stored`, after the step, and of `Failures` in it. A slot that
        did not change is the object given.
    """
    if 0 in stored.variable.shape:
        # Without elements there is no step, and no mean of them.
        return stored, no_failures()
    dtype = compute_dtype(stored.variable)
    g = ops.cast(gradient, dtype)
    x = before = ops.cast(stored.variable, dtype)
    slots = dict(stored.slots)
    count = slots[COUNT] if plan.refreshes else iteration
    step = Step(
        count=count,
        t=ops.cast(count + 1, dtype),
        lr=ops.cast(learning_rate, dtype),
        path=plan.path,
        decay=plan.decay,
        iteration=iteration,
        key=plan.key,
        choice=plan.choice,
    )

    failures = no_failures()
    if plan.refreshes:
        allowed = _all_of(known_finite, step_taken)
        refreshed, counted, failed = _refresh(plan, g, x, slots, step, allowed)
        slots |= refreshed
        failures = failures._replace(refreshes=failed)
    if plan.decay and plan.rule.weight_decay_order == "before":
        x = x - x * (plan.decay * step.lr)
    state = _decode(plan, slots, dtype)
    delta, new_state = plan.rule.update_rule(g, x, state, step)
    kept = (g, before, *slots.values(), *state.values(), *new_state.values())
    x = backend.subtract(x, delta, kept)
    if plan.decay and plan.rule.weight_decay_order == "after":
        x = x - x * (plan.decay * step.lr)
    new = _encode(plan, state, new_state, step)

    finite = plan.guard.takes_update(
        known_finite, lambda: _is_finite(plan, g, new_state)
    )
    if finite is not None:
        skipped = ops.cast(ops.logical_not(finite), "int32")
        failures = failures._replace(updates=skipped)
    taken = _all_of(finite, step_taken)
    if taken is not None:
        x = backend.select(taken, x, before)
        new = {n: backend.select(taken, v, slots[n]) for n, v in new.items()}
    if plan.refreshes:
        if taken is not None:
            counted = counted * ops.cast(taken, "int32")
        new[COUNT] = slots[COUNT] + counted
    slots |= new
    if plan.averaged:
        # The average goes on, of a variable that stays where it was.
        slots[AVERAGE], average = average_of(
            plan, x, slots[AVERAGE], iteration, step_taken
        )
        if plan.overwrite_frequency:
            due = ops.equal((iteration + 1) % plan.overwrite_frequency, 0)
            x = backend.select(_all_of(due, step_taken), average, x)
    variable = _rounded(
        plan, x, stored.variable.dtype, iteration, _VARIABLE_SALT
    )
    return Stored(variable, slots), failures


def take_steps(
    plans, gradients, stored, learning_rate, iteration, finite, step_taken
):
    """One step of each of several variables, at once if they are of one kind.

    Args:
        plans: List of `Plan`, of one `kind`.
        gradients: List of as many tensors, of one shape.
        stored: List of as many `Stored`.
        learning_rate, iteration: As for `take_step`.
        finite: List of as many boolean scalars, or `None`, `known_finite`.
        step_taken: As for `take_step`.

    Returns:
        List of `Stored`, and `Failures`, summed.
    """
    if len(plans) == 1:
        new, failures = take_step(
            plans[0],
            gradients[0],
            stored[0],
            learning_rate,
            iteration,
            finite and finite[0],
            step_taken,
        )
        return [new], failures

    # What differs, along a leading axis.
    given = {
        "key": ops.convert_to_tensor([p.key for p in plans], dtype="int32"),
        "gradient": ops.stack(gradients),
        "variable": ops.stack([old.variable for old in stored]),
        "slots": {
            name: ops.stack([old.slots[name] for old in stored])
            for name in stored[0].slots
        },
    }
    if finite is not None:
        given["finite"] = ops.stack(finite)

    def of_one(given):
        return take_step(
            replace(plans[0], key=given["key"]),
            given["gradient"],
            Stored(given["variable"], given["slots"]),
            learning_rate,
            iteration,
            given.get("finite"),
            step_taken,
        )

    new, failures = backend.vectorize(of_one, given)
    count = len(plans)
    variables = ops.unstack(new.variable, count)
    slots = {name: ops.unstack(s, count) for name, s in new.slots.items()}
    return [
        Stored(variables[i], {name: slots[name][i] for name in slots})
        for i in range(count)
    ], Failures(*(ops.sum(number) for number in failures))


def _all_of(*conditions):
    """Whether all hold; `None` for those that hold in any case."""
    given = [condition for condition in conditions if condition is not None]
    return functools.reduce(ops.logical_and, given) if given else None


def average_of(plan, x, average, iteration, moves=None):
    """The average of a variable's values, as it is stored and exactly.

    Args:
        plan: `Plan`.
        x: Tensor, the variable.
        average: Tensor, its average as stored.
        iteration: int32 scalar, the updates of the optimizer before this one.
        moves: Boolean scalar, or `None` where it does in any case.
    """
    dtype = compute_dtype(average)
    # The first average is the first value, as in Keras.
    rate = ops.where(ops.equal(iteration, 0), 1.0, 1.0 - plan.ema_momentum)
    new = ema(
        ops.cast(average, dtype), ops.cast(x, dtype), ops.cast(rate, dtype)
    )
    stored = _rounded(plan, new, average.dtype, iteration, _AVERAGE_SALT)
    if moves is not None:
        stored = backend.select(moves, stored, average)
    return stored, new


def _refresh(plan, g, x, slots, step, allowed):
    """Refreshes the state, if that is due.

    A result that is not finite is not taken. The old state stays, and so does
    the count, so that the refresh is due again in the next step. In the first
    refresh there is no old state: an entry that is not finite then gets its
    initial value, which is the identity for a basis, and training goes on.

    Returns:
        Tuple of the slots after the refresh, by how much to count on, and the
        int32 number of failed refreshes.
    """
    dtype = compute_dtype(g)
    specs = {n: s for n, s in plan.specs.items() if s.refreshed}
    old = {n: slots[n] for n in stored_arrays(specs)}

    def refresh():
        # A decomposition of NaN may not end, one of zero is no basis.
        usable = ops.logical_and(
            guards.has_finite_square(g), ops.max(ops.abs(g)) > 0
        )
        safe = backend.select(usable, g, ops.ones_like(g))
        new = plan.rule.refresh(safe, x, _decode(plan, slots, dtype), step)
        succeeded: Any = ops.convert_to_tensor(True)
        for name, spec in specs.items():
            # Before it is stored: codes of NaN have a scale of NaN.
            if "float" in keras.backend.standardize_dtype(new[name].dtype):
                is_finite = ops.all(ops.isfinite(new[name]))
                succeeded = ops.logical_and(succeeded, is_finite)
                initializer = keras.initializers.get(spec.initializer)
                initial = ops.cast(initializer(spec.shape), new[name].dtype)
                new[name] = backend.select(is_finite, new[name], initial)
        encoded = {
            stored_name: tensor
            for name, spec in specs.items()
            for stored_name, tensor in _encoded(plan, name, new[name], step)
        }
        first = ops.equal(step.count, 0)
        taken = ops.logical_and(usable, ops.logical_or(succeeded, first))
        kept = [backend.select(taken, encoded[name], old[name]) for name in old]
        failed = ops.logical_and(usable, ops.logical_not(succeeded))
        return [*kept, ops.cast(taken, "int32"), ops.cast(failed, "int32")]

    due = plan.rule.is_refresh_due(step.count)
    due = _all_of(due, allowed)
    one, zero = ops.ones((), dtype="int32"), ops.zeros((), dtype="int32")
    *new, counted, failed = ops.cond(
        due, refresh, lambda: [*old.values(), one, zero]
    )
    return dict(zip(old, new, strict=True)), counted, failed


def _decode(plan, slots, dtype):
    return {
        name: spec.decode(
            [slots[name + suffix] for suffix in spec.arrays()], dtype
        )
        for name, spec in plan.specs.items()
    }


def _encode(plan, state, new_state, step):
    """Slot name -> tensor to store, of the entries that changed."""
    return {
        stored_name: tensor
        for name in plan.specs
        if new_state[name] is not state[name]
        for stored_name, tensor in _encoded(plan, name, new_state[name], step)
    }


def _encoded(plan, name, value, step):
    """Pairs of slot name and tensor, of one entry."""
    spec = plan.specs[name]
    salt = _STATE_SALT + list(plan.specs).index(name)
    tensors = spec.encode(value, step.iteration + 1, noise_key(plan.key, salt))
    names = [name + suffix for suffix in spec.arrays()]
    return zip(names, tensors, strict=True)


def _rounded(plan, value, dtype, iteration, salt):
    dtype = keras.backend.standardize_dtype(dtype)
    if plan.rounded:
        return round_to(value, dtype, iteration + 1, noise_key(plan.key, salt))
    return ops.cast(value, dtype)


def _is_finite(plan, g, state):
    """Whether the new state can be trusted.

    Entries that have seen all of the gradient are smaller than it: to ask
    them costs no pass over memory.
    """
    witnesses = [
        ops.all(ops.isfinite(state[name]))
        for name, spec in plan.specs.items()
        if spec.sees_gradient
    ]
    if not witnesses:
        return guards.has_finite_square(g)
    return functools.reduce(ops.logical_and, witnesses)
