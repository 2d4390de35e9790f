"""Rows of Lion."""

from keras_adafactor import Lion
from tests import oracles
from tests.optimizers.row import Row
from tests.optimizers.row import like


def _row(name, main=False, **arguments):
    return Row(
        name,
        Lion,
        arguments,
        lambda x, shape: oracles.Lion(x, **arguments),
        lambda shape: [like("m", shape)],
        # Steps of one size are rounded alike. Of a weight above 2 by 1.2e-7,
        # 20 times, and as often again where it decays.
        tolerance=5e-6,
        main=main,
    )


ROWS = [
    _row("lion", main=True),
    _row("lion_decayed", beta_1=0.95, beta_2=0.98, weight_decay=0.1),
]

STATE_BYTES = [
    (Lion(), (4096, 4096), 67_108_864),
    (Lion(momentum_dtype="bfloat16"), (4096, 4096), 33_554_432),
    (Lion(momentum_dtype="int8"), (4096, 4096), 16_777_216 + 4 * 32_768),
    (Lion(), (), 4),
]
