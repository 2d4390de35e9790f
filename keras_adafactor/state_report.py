"""What an optimizer keeps, variable by variable, in bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from typing import Any

import keras

from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.optimizer import inner_optimizers
from keras_adafactor.optimizer import path_of
from keras_adafactor.sources import check_variables
from keras_adafactor.step import ACCUMULATOR
from keras_adafactor.step import AVERAGE
from keras_adafactor.storage import Array
from keras_adafactor.tables import dimensions
from keras_adafactor.tables import lines_of_table

ADAM_BYTES_PER_PARAMETER = 8  # two float32 averages


@dataclass(frozen=True)
class VariableState:
    """The state of one variable.

    Attributes:
        path: String, the variable's path.
        shape: Tuple of ints, the variable's shape.
        rule: String, the name of the update rule that it takes.
        slots: Dict from slot name to `(shape, dtype)`; `average` is that of
            `use_ema`, `gradient_accumulator` that of
            `gradient_accumulation_steps`.
        state_bytes: Int, the bytes of all its slots.
    """

    path: str
    shape: tuple[int, ...]
    rule: str
    slots: dict[str, tuple[tuple[int, ...], str]]
    state_bytes: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class StateReport:
    """The state of an optimizer: a table when printed, rows as data.

    Attributes:
        optimizer: String, the optimizer's class.
        rows: List of `VariableState`, one a variable.
        uncounted: List of paths: variables that a `MultiOptimizer` gives to
            optimizers of others.
    """

    optimizer: str
    rows: list[VariableState]
    uncounted: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def total_bytes(self) -> int:
        """Bytes of all slots. Step counter and learning rate not counted."""
        return sum(row.state_bytes for row in self.rows)

    @property
    def adam_bytes(self) -> int:
        """Bytes of the two averages that Adam keeps for the variables."""
        return ADAM_BYTES_PER_PARAMETER * self.parameters

    @property
    def bytes_per_parameter(self) -> float:
        return self.total_bytes / max(1, self.parameters)

    @property
    def shared_bytes(self) -> int:
        """Bytes of averages of weights, and of accumulated gradients.

        They are as large with Adam, whose `adam_bytes` are without.
        """
        return sum(
            Array(shape, (), dtype).nbytes
            for row in self.rows
            for name, (shape, dtype) in row.slots.items()
            if name in (AVERAGE, ACCUMULATOR)
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "optimizer": self.optimizer,
            "parameters": self.parameters,
            "total_bytes": self.total_bytes,
            "adam_bytes": self.adam_bytes,
            "variables": [
                {
                    "path": row.path,
                    "shape": list(row.shape),
                    "rule": row.rule,
                    "slots": {
                        name: {"shape": list(shape), "dtype": dtype}
                        for name, (shape, dtype) in row.slots.items()
                    },
                    "state_bytes": row.state_bytes,
                }
                for row in self.rows
            ],
            "uncounted": list(self.uncounted),
        }

    def __str__(self) -> str:
        header = ("variable", "shape", "rule", "slots", "bytes")
        table = [header] + [
            (
                row.path,
                dimensions(row.shape),
                row.rule,
                ", ".join(
                    f"{name} {dimensions(shape)}"
                    + (f" {dtype}" if dtype != "float32" else "")
                    for name, (shape, dtype) in row.slots.items()
                ),
                f"{row.state_bytes:,}",
            )
            for row in self.rows
        ]
        lines = lines_of_table(table, right_aligned=1)
        lines.append(lines[1])
        lines.append(
            f"{self.optimizer}: {self.total_bytes:,} bytes of state for "
            f"{self.parameters:,} parameters "
            f"({self.bytes_per_parameter:.4f} a parameter); Adam: "
            f"{self.adam_bytes:,} ({ADAM_BYTES_PER_PARAMETER})"
        )
        if self.shared_bytes:
            lines.append(
                f"{self.shared_bytes:,} of them are averages of weights and "
                "accumulated gradients, which Adam's are without"
            )
        if self.uncounted:
            lines.append(
                "not counted, of other optimizers: " + ", ".join(self.uncounted)
            )
        return "\n".join(lines)


def state_report(
    optimizer_or_model: keras.optimizers.Optimizer | keras.Model,
    variables: Sequence[keras.Variable] | None = None,
) -> StateReport:
    """Reports what an optimizer keeps for every variable.

    Works before the first step: nothing is built.

    Args:
        optimizer_or_model: An optimizer of this package, a
            `keras.optimizers.LossScaleOptimizer` or `MultiOptimizer` around
            one, or a model compiled with one of these.
        variables: List of variables, for an optimizer that is not built.
            Defaults to the trainable variables of the model, or to those the
            optimizer is built with.

    Returns:
        `StateReport`; `print` it, or read `rows`, `total_bytes`, `as_dict()`.

    Raises:
        ValueError: If there is no such optimizer, or no variables are known.

    Example:

    >>> import keras
    >>> import keras_adafactor
    >>> model = keras.Sequential([keras.Input((256,)), keras.layers.Dense(64)])
    >>> model.compile(keras_adafactor.Adafactor(), "mse")
    >>> keras_adafactor.state_report(model).total_bytes
    1536
    """
    optimizer = optimizer_or_model
    if isinstance(optimizer_or_model, keras.Model):
        optimizer = getattr(optimizer_or_model, "optimizer", None)
        variables = variables or optimizer_or_model.trainable_variables
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    inner = inner_optimizers(optimizer)
    ours = [o for o in inner if isinstance(o, UpdateRuleOptimizer)]
    if not ours:
        raise ValueError(
            "Argument `optimizer_or_model` must be an optimizer of "
            "keras_adafactor or a model compiled with one. Received: "
            f"optimizer_or_model={optimizer_or_model!r}"
        )
    if not variables:
        variables = [v for o in ours for v in o.variables_built_with]
    check_variables(variables, optimizer_or_model)
    # `MultiOptimizer` has no public name for its choice.
    choice = getattr(optimizer, "_optimizer_map", lambda variable: optimizer)
    chosen = [(choice(variable), variable) for variable in variables]
    return StateReport(
        optimizer=type(optimizer).__name__,
        rows=[_state_of(o, variable) for o, variable in chosen if o in ours],
        uncounted=[path_of(v) for o, v in chosen if o not in ours],
    )


def _state_of(optimizer, variable):
    plan = optimizer.plan_for(variable)
    # What is reported on may have no more than a path and a shape.
    dtype = getattr(variable, "dtype", "float32")
    arrays = optimizer._arrays(plan, keras.KerasTensor(variable.shape, dtype))
    return VariableState(
        path=plan.path,
        shape=tuple(variable.shape),
        rule=type(plan.rule).__name__,
        slots={name: (a.shape, a.dtype) for name, a in arrays.items()},
        state_bytes=sum(array.nbytes for array in arrays.values()),
    )
