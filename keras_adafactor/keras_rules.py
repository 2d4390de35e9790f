"""What Keras' own optimizers keep, said as the rules of this package say it.

Only what the entries mean: their steps are Keras'.
"""

from collections.abc import Mapping

import keras
from keras import ops

from keras_adafactor.functional.moments import Moments
from keras_adafactor.functional.moments import ema_weight
from keras_adafactor.rule import UpdateRule
from keras_adafactor.rule import letter_of
from keras_adafactor.storage import StateSpec


class KerasRule(UpdateRule):
    """Abstract base: a Keras optimizer, seen as a rule.

    Attributes:
        lists: Dict from slot name to the attribute of the optimizer that
            lists this slot of all variables, in the order of the variables.
    """

    lists: Mapping[str, str] = {}

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def meaning_of(self, name):
        attributes = self.meaning.get(letter_of(name), ())
        return tuple(getattr(self.optimizer, each) for each in attributes)

    def slots(self, position):
        """Slot name -> `keras.Variable`, of the variable at a position."""
        listed = {
            name: getattr(self.optimizer, attribute, None)
            for name, attribute in self.lists.items()
        }
        slots = {n: slots[position] for n, slots in listed.items() if slots}
        # Where a weight is overwritten by its gradient there is nothing.
        return {n: s for n, s in slots.items() if s is not None}


class AdamSlots(KerasRule):
    """`m` and `v`, averages that began at 0; `v_max` with `amsgrad`."""

    lists = {
        "m": "_momentums",
        "v": "_velocities",
        "v_max": "_velocity_hats",
    }
    meaning = {"m": ("beta_1",), "v": ("beta_2",)}

    def moments(self, state, shape, path, t):
        v = state.get("v_max", state["v"])
        return Moments(
            state["m"] / ema_weight(t, self.optimizer.beta_1),
            v / ema_weight(t, self.optimizer.beta_2),
        )

    def adopt(self, moments, shape, path, t):
        if moments.second is None:
            return {}
        v = ema_weight(t, self.optimizer.beta_2) * moments.second
        state = {"v": v, "v_max": v}
        if moments.first is not None:
            weight = ema_weight(t, self.optimizer.beta_1)
            state["m"] = weight * moments.first
        return state


class RMSpropSlots(KerasRule):
    """`v`, an average that began at 0; `m`, that of gradients, if centered.

    The momentum is a sum of steps, whose learning rates are gone.
    """

    lists = {
        "v": "_velocities",
        "m": "_average_gradients",
        "steps": "_momentums",
    }
    meaning = {"v": ("rho",), "m": ("rho",)}

    def moments(self, state, shape, path, t):
        weight = ema_weight(t, self.optimizer.rho)
        first = state["m"] / weight if "m" in state else None
        return Moments(first, state["v"] / weight)

    def adopt(self, moments, shape, path, t):
        if moments.second is None:
            return {}
        weight = ema_weight(t, self.optimizer.rho)
        state = {"v": weight * moments.second}
        if moments.first is not None:
            state["m"] = weight * moments.first
        return state


class AdafactorSlots(KerasRule):
    """`v`, whole, without bias; of a matrix the product of `r` and `c`."""

    lists = {"r": "_r", "c": "_c", "v": "_v"}

    def slots(self, position):
        slots = super().slots(position)
        # Of a vector Keras keeps `v` alone, and two placeholders.
        if len(slots["v"].shape) < 2:
            return {"v": slots["v"]}
        return slots

    def moments(self, state, shape, path, t):
        return Moments(None, state["v"])

    def adopt(self, moments, shape, path, t):
        if moments.second is None:
            return {}
        v = moments.second + self.optimizer.epsilon_1
        if len(shape) < 2:
            return {"v": v}
        r, c = ops.mean(v, axis=-1), ops.mean(v, axis=-2)
        row = r / ops.mean(r, axis=-1, keepdims=True)
        v = ops.expand_dims(row, -1) * ops.expand_dims(c, -2)
        return {"r": r, "c": c, "v": v}


KERAS_RULES = {
    keras.optimizers.Adam: AdamSlots,
    keras.optimizers.RMSprop: RMSpropSlots,
    keras.optimizers.Adafactor: AdafactorSlots,
}


def rule_of(optimizer):
    """The `KerasRule` of an optimizer, or `None` where there is none."""
    for cls in type(optimizer).__mro__:
        if cls in KERAS_RULES:
            return KERAS_RULES[cls](optimizer)
    return None


def spec_of(slot):
    """How a slot of Keras is stored."""
    return StateSpec.like(
        tuple(slot.shape), keras.backend.standardize_dtype(slot.dtype)
    )
