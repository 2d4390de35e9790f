"""Rows of CAME."""

from keras_adafactor import CAME
from tests import oracles
from tests.optimizers.row import GROUPS
from tests.optimizers.row import Row
from tests.optimizers.row import like
from tests.optimizers.row import row_and_col


def _row(name, **arguments):
    def oracle(x, shape):
        rows, cols = GROUPS[shape]
        return oracles.CAME(x, rows=rows, cols=cols, **arguments)

    def slots(shape):
        confidence = row_and_col(shape, "s") if GROUPS[shape][0] else []
        return [*row_and_col(shape), like("m", shape), *confidence]

    return Row(
        name,
        CAME,
        arguments,
        oracle,
        slots,
        # Weights of up to 4 are rounded twenty times, or with decay forty;
        # without clipping, updates are as large as the weights.
        tolerance=4e-6 if name == "came_llama" else 2e-6,
        main=name == "came",
    )


ROWS = [
    _row("came"),
    _row("came_debiased", debias_beta_3=True, learning_rate=1e-3),
    _row(
        "came_llama",
        beta_2=0.95,
        beta_3=0.995,
        clip_threshold=None,
        weight_decay=0.1,
    ),
]

# 4096 x 4096: momentum, and four vectors of 4,096.
VECTORS = 4 * 4 * 4096
STATE_BYTES = [
    (CAME(), (4096, 4096), 67_174_400),
    (CAME(momentum_dtype="bfloat16"), (4096, 4096), 33_554_432 + VECTORS),
    # A scale for each block of 512.
    (
        CAME(momentum_dtype="int8"),
        (4096, 4096),
        16_777_216 + 4 * 32_768 + VECTORS,
    ),
    (CAME(), (1024, 16, 64), 4 * 1024 * 1024 + 4 * 4 * 1024),
    (CAME(), (1024,), 2 * 4096),
    (CAME(), (1, 1024), 2 * 4096),
    (CAME(), (), 8),
    (CAME(), (0,), 0),
    (CAME(), (5, 0), 0),
]


def golden(arguments, hyper):
    return CAME(**arguments, axis_groups="last_two")
