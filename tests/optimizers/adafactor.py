"""Rows of Adafactor."""

import keras_adafactor
from tests import oracles
from tests.optimizers.row import GROUPS
from tests.optimizers.row import Row
from tests.optimizers.row import like
from tests.optimizers.row import row_and_col


def _row(name, factored=True, main=False, **arguments):
    def oracle(x, shape):
        rows, cols = GROUPS[shape] if factored else ((), ())
        return oracles.Adafactor(x, rows=rows, cols=cols, **arguments)

    def slots(shape):
        second = row_and_col(shape) if factored else [like("v", shape)]
        return second + [like("m", shape)] * ("beta_1" in arguments)

    made = arguments if factored else {**arguments, "factored": False}
    return Row(name, keras_adafactor.Adafactor, made, oracle, slots, main=main)


ROWS = [
    _row("adafactor", main=True),
    _row("adafactor_momentum", main=True, beta_1=0.9),
    _row("adafactor_unfactored", factored=False),
    _row("adafactor_constant_beta_2", beta_2=0.99),
    _row("adafactor_capped", beta_2_cap=0.5, step_offset=3),
    _row(
        "adafactor_absolute",
        learning_rate=0.003,
        relative_step=False,
        multiply_by_parameter_scale=False,
        clip_threshold=None,
    ),
    _row(
        "adafactor_warmup",
        warmup_steps=10,
        max_parameter_scale=0.5,
        clip_threshold=2.0,
    ),
]

STATE_BYTES = [
    (keras_adafactor.Adafactor(), shape, expected)
    for shape, expected in [
        ((4096, 4096), 32_768),
        ((1024, 16, 64), 8_192),
        ((3, 3, 512, 512), 20_480),
        ((16, 64, 1024), 8_192),
        ((32_000, 1024), 132_096),
        ((1024,), 4_096),
        ((), 4),
        ((0,), 0),
        ((5, 0), 0),
        ((2, 3, 4, 5, 6), 4 * (24 + 30)),
    ]
]
