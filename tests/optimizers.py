"""THE TABLE: one row an optimizer (or one of its settings).

A row brings every contract test of `test_contracts.py` and `test_memory.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field
from typing import Any

import keras_adafactor
from tests import oracles

# What "auto" makes of the shapes that the contracts use.
GROUPS = {
    (): ((), ()),
    (7,): ((), ()),
    (3, 40): ((0,), (1,)),
    (40, 3): ((0,), (1,)),
    (6, 1): ((), ()),
    (2, 3, 4): ((0, 1), (2,)),
    (16, 4, 4): ((0,), (1, 2)),
    (3, 3, 4, 8): ((0, 1), (2, 3)),
}
SHAPES = list(GROUPS)


@dataclass(frozen=True)
class Row:
    """An optimizer under the contracts.

    Attributes:
        name: Test id.
        make: Class or function that makes the optimizer.
        arguments: Its arguments.
        oracle: `(x, shape) -> object with step(g) -> x`.
        slots: `shape -> [(name, shape, dtype)]`, in the order on disk.
        tolerance: Largest difference from the oracle after 20 steps.
    """

    name: str
    make: Callable[..., Any]
    arguments: dict[str, Any]
    oracle: Callable[..., Any]
    slots: Callable[..., Any]
    tolerance: float = field(default=1e-6)

    def optimizer(self, **overrides):
        return self.make(**{**self.arguments, **overrides})


def _adafactor(name, factored=True, momentum=None, **arguments):
    def oracle(x, shape):
        rows, cols = GROUPS[shape] if factored else ((), ())
        return oracles.Adafactor(x, rows=rows, cols=cols, **arguments)

    def slots(shape):
        rows, cols = GROUPS[shape] if factored else ((), ())
        if rows:
            second = [
                ("v_row", tuple(shape[a] for a in rows), "float32"),
                ("v_col", tuple(shape[a] for a in cols), "float32"),
            ]
        else:
            second = [("v", shape, "float32")]
        return second + [("m", shape, "float32")] * ("beta_1" in arguments)

    made = arguments if factored else {**arguments, "factored": False}
    return Row(name, keras_adafactor.Adafactor, made, oracle, slots)


TABLE = [
    _adafactor("adafactor"),
    _adafactor("adafactor_momentum", beta_1=0.9),
    _adafactor("adafactor_unfactored", factored=False),
    _adafactor("adafactor_constant_beta_2", beta_2=0.99),
    _adafactor("adafactor_capped", beta_2_cap=0.5, step_offset=3),
    _adafactor(
        "adafactor_absolute",
        learning_rate=0.003,
        relative_step=False,
        multiply_by_parameter_scale=False,
        clip_threshold=None,
    ),
    _adafactor(
        "adafactor_warmup",
        warmup_steps=10,
        max_parameter_scale=0.5,
        clip_threshold=2.0,
    ),  # fmt: skip
]
