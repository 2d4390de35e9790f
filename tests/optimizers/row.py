"""What a row of the table says, and what most rows share."""

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field
from typing import Any

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
SHAPES = tuple(GROUPS)


@dataclass(frozen=True)
class Row:
    """An optimizer, or one of its settings, under the contracts.

    Attributes:
        name: Test id.
        make: Class of the optimizer.
        arguments: Its arguments.
        oracle: `(x, shape) -> object with step(g) -> x`.
        slots: `shape -> [(name, shape, dtype)]`, in the order on disk.
        tolerance: Largest difference from the oracle after 20 steps, and
            between ways to run.
        shapes: The shapes of its variables: where a decomposition leaves some
            of its result open, those where it does not.
        decades: Half the decades that its gradients extend over.
        magnitudes: Of the gradients of the test of extremes.
        resting: Names of slots that need not move in every step: bases,
            signs, steps taken.
        on_tpu: Arguments of the optimizer where its step is compiled for a
            TPU: the compiler takes long over decompositions.
        main: Whether it stands for its optimizer in the contracts that take
            long: `fit`, replicas, layouts, files, TPU programs.
    """

    name: str
    make: Callable[..., Any]
    arguments: dict[str, Any]
    oracle: Callable[..., Any]
    slots: Callable[..., Any]
    tolerance: float = 1e-6
    shapes: tuple = SHAPES
    decades: float = 3.0
    magnitudes: tuple = (0.0, 1e-30, 0.0, 1e-18, 1e-3, 1e18, 1e18, 1e-18)
    resting: tuple = ()
    on_tpu: dict = field(default_factory=dict)
    main: bool = False

    def optimizer(self, **overrides):
        return self.make(**{**self.arguments, **overrides})


def like(name, shape, dtype="float32"):
    return (name, shape, dtype)


def row_and_col(shape, name="v", groups=GROUPS):
    """Slots of a factored statistic, or of a whole one where it is not."""
    rows, cols = groups[shape]
    if not rows:
        return [(name, shape, "float32")]
    return [
        (f"{name}_row", tuple(shape[a] for a in rows), "float32"),
        (f"{name}_col", tuple(shape[a] for a in cols), "float32"),
    ]
