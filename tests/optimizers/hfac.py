"""Rows of H-Fac."""

from keras_adafactor import HFac
from tests import oracles
from tests.optimizers.row import GROUPS
from tests.optimizers.row import Row
from tests.optimizers.row import row_and_col


def _row(name, **arguments):
    def oracle(x, shape):
        rows, cols = GROUPS[shape]
        return oracles.HFac(x, rows=rows, cols=cols, **arguments)

    def slots(shape):
        return [*row_and_col(shape, "m"), *row_and_col(shape)]

    return Row(
        name,
        HFac,
        arguments,
        oracle,
        slots,
        # Weights of up to 4 are rounded twenty times, or with decay forty.
        tolerance=2e-6,
        main=name == "hfac",
    )


ROWS = [
    _row("hfac"),
    _row("hfac_clipped", clip_threshold=0.5, weight_decay=0.1),
    _row("hfac_unclipped", clip_threshold=None, beta_1=0.5, beta_2=0.99),
]

STATE_BYTES = [
    (HFac(), (4096, 4096), 65_536),
    (HFac(), (3, 3, 512, 512), 4 * 2 * (4608 + 512)),
    (HFac(), (1024,), 2 * 4096),
    (HFac(), (1, 1024), 2 * 4096),
    (HFac(), (), 8),
    (HFac(), (0,), 0),
    (HFac(), (5, 0), 0),
]


def golden(arguments, hyper):
    return HFac(**arguments, axis_groups="last_two")
