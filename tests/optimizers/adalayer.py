"""Rows of Adalayer."""

from keras_adafactor import Adalayer
from tests import oracles
from tests.optimizers.row import SHAPES
from tests.optimizers.row import Row
from tests.optimizers.row import like


class SteppingWhileMeasuring(Adalayer):
    """The golden case leaves it to a schedule to take no first steps."""

    def _step_size(self, step):
        return step.lr


def block_axes(kind, shape):
    """What the oracle has in place of a name."""
    if kind == "variable" or not shape:
        return ()
    return {"columns": (len(shape) - 1,), "rows": (0,)}[kind]


class InParts(oracles.Adalayer):
    """The oracle with the parts of the last axis as an axis of their own."""

    def __init__(self, x, parts, **arguments):
        self.parted = (*x.shape[:-1], parts, x.shape[-1] // parts)
        axis = (len(self.parted) - 2,)
        super().__init__(x.reshape(self.parted), block_axes=axis, **arguments)

    def step(self, g):
        return super().step(g.reshape(self.parted)).reshape(g.shape)


def _row(name, kind="variable", adapts=False, main=False, shapes=SHAPES,
         **arguments):  # fmt: skip
    made = dict(arguments)
    if kind != "variable":
        made["blocks"] = {"nothing": "rows", "w": kind}
    if adapts:
        made["keep_adapting"] = "^w"

    def oracle(x, shape):
        settings = {"learning_rate": 3e-3, "keep_adapting": adapts} | arguments
        if isinstance(kind, int):
            return InParts(x, kind, **settings)
        axes = block_axes(kind, shape)
        return oracles.Adalayer(x, block_axes=axes, **settings)

    def slots(shape):
        if isinstance(kind, int):
            return [like("m", shape), like("v", (kind,))]
        sizes = tuple(shape[axis] for axis in block_axes(kind, shape))
        return [like("m", shape), like("v", sizes)]

    frozen = "freeze_after" in arguments
    return Row(
        name,
        Adalayer,
        made,
        oracle,
        slots,
        # 20 roundings of weights of 1 to 4.
        tolerance=2e-6,
        shapes=shapes,
        # What is measured in the first step divides all that follows.
        decades=0.0 if frozen else 3.0,
        magnitudes=(1e18, *Row.magnitudes[1:]) if frozen else Row.magnitudes,
        resting=("v",) if frozen and not adapts else (),
        main=main,
    )


ROWS = [
    _row("adalayer", main=True),
    _row("adalayer_columns", "columns"),
    _row("adalayer_rows", "rows"),
    _row(
        "adalayer_parts",
        2,
        shapes=((8,), (3, 40), (2, 3, 4), (40, 2), (3, 3, 4, 8)),
    ),
    _row("adalayer_frozen", freeze_after=1),
    _row("adalayer_adapting", adapts=True, freeze_after=1),
]

STATE_BYTES = [
    (Adalayer(), (4096, 4096), 67_108_868),
    (Adalayer(blocks={"w": "columns"}), (4096, 4096), 67_125_248),
    (Adalayer(blocks={"w": "rows"}), (32_000, 1024), 4 * 32_000 * 1025),
    (Adalayer(blocks={"w": 3}), (1024, 3072), 4 * (1024 * 3072 + 3)),
    (Adalayer(momentum_dtype="bfloat16"), (4096, 4096), 33_554_436),
    (Adalayer(), (), 8),
    (Adalayer(), (0,), 4),
]


def golden(arguments, hyper):
    kinds = {"tensor": "variable", "rows": "rows", "cols": "columns"}
    arguments["blocks"] = {"": kinds[hyper["block"]]}
    if "freeze" not in hyper:
        return Adalayer(**arguments)
    assert not arguments.pop("keep_adapting")
    return SteppingWhileMeasuring(**arguments)
