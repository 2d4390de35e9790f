"""What an optimizer keeps, whoever wrote it: this package, Keras, or a file."""

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_adafactor.keras_rules import rule_of
from keras_adafactor.keras_rules import spec_of
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.optimizer import path_of
from keras_adafactor.step import ACCUMULATOR
from keras_adafactor.step import AVERAGE
from keras_adafactor.storage import Array


@dataclass(frozen=True)
class KeptVariable:
    """What is kept for one variable.

    Attributes:
        path, shape: Of the variable.
        rule: `UpdateRule` that says what it means, or `None`: what is there
            is of the same meaning as what it is carried to.
        specs: Dict from entry to `StateSpec`.
        slots: Dict from slot name to variable or array.
        variable: The variable; `None` in a file.
    """

    path: str
    shape: tuple[int, ...]
    rule: Any
    specs: dict[str, Any]
    slots: dict[str, Any]
    variable: Any = None

    def stored(self, name):
        """The slots of an entry."""
        names = [name + suffix for suffix in self.specs[name].arrays()]
        return {slot: self.slots[slot] for slot in names}

    def decoded(self, name):
        return self.specs[name].decode(
            [ops.convert_to_tensor(s) for s in self.stored(name).values()],
            "float32",
        )

    @property
    def has_statistics(self):
        """Whether anything that begins at 0 is not 0 any more."""
        return not self.specs or any(
            bool(ops.any(ops.convert_to_tensor(slot) != 0))
            for name, spec in self.specs.items()
            if spec.initializer == "zeros"
            for slot in self.stored(name).values()
        )

    @property
    def basis(self):
        """Whether the entries are in a basis, of use only together."""
        return any(spec.refreshed for spec in self.specs.values())


@dataclass(frozen=True)
class KeptState:
    """What an optimizer keeps.

    Attributes:
        name: String, its class.
        rows: List of `KeptVariable`.
        iterations: Int, its calls.
        accumulated: Int, the calls of one update.
        iterations_variable: `keras.Variable`; `None` in a file.
    """

    name: str
    rows: list[KeptVariable]
    iterations: int
    accumulated: int
    iterations_variable: Any = None

    @property
    def updates(self):
        return self.iterations // self.accumulated

    @property
    def nbytes(self):
        slots = [slot for row in self.rows for slot in row.slots.values()]
        return sum(
            Array(
                tuple(slot.shape),
                (),
                keras.backend.standardize_dtype(slot.dtype),
            ).nbytes
            for slot in slots
        )

    @classmethod
    def of(cls, optimizer):
        """That of an optimizer that is built."""
        ours = isinstance(optimizer, UpdateRuleOptimizer)
        return cls(
            name=type(optimizer).__name__,
            rows=_rows_of_ours(optimizer)
            if ours
            else _rows_of_keras(optimizer),
            iterations=int(ops.convert_to_numpy(optimizer._iterations)),
            accumulated=optimizer.gradient_accumulation_steps or 1,
            iterations_variable=optimizer._iterations,
        )


def _rows_of_ours(optimizer):
    variables = optimizer.variables_built_with
    return [
        KeptVariable(
            path=kept.plan.path,
            shape=tuple(variable.shape),
            rule=kept.plan.rule,
            specs=kept.plan.specs,
            slots=kept.slots,
            variable=variable,
        )
        for kept, variable in zip(optimizer._tracked, variables, strict=True)
    ]


def _rows_of_keras(optimizer):
    rule = rule_of(optimizer)
    shared = {}
    if optimizer.use_ema:
        shared[AVERAGE] = optimizer._model_variables_moving_average
    if optimizer.gradient_accumulation_steps:
        shared[ACCUMULATOR] = optimizer._accumulated_gradients
    rows = []
    for position, variable in enumerate(optimizer._trainable_variables):
        slots = rule.slots(position)
        specs = {name: spec_of(slot) for name, slot in slots.items()}
        slots |= {
            name: listed[position]
            for name, listed in shared.items()
            if listed[position] is not None
        }
        rows.append(
            KeptVariable(
                path=path_of(variable),
                shape=tuple(variable.shape),
                rule=rule,
                specs=specs,
                slots=slots,
                variable=variable,
            )
        )
    return rows
