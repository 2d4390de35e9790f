"""Rows of Signum."""

from keras_adafactor import Signum
from tests import oracles
from tests.optimizers.row import Row
from tests.optimizers.row import like


def _row(name, main=False, **arguments):
    def oracle(x, shape):
        beta_1 = arguments.get("beta_1", 0.9) or 0.0
        return oracles.Signum(x, learning_rate=3e-4, beta_1=beta_1)

    def slots(shape):
        momentum = arguments.get("beta_1", 0.9) is not None
        return [like("m", shape)] * momentum

    return Row(
        name,
        Signum,
        arguments,
        oracle,
        slots,
        # Steps of one size are rounded one way: 20 halves of a unit at 3.0.
        tolerance=3e-6,
        main=main,
    )


ROWS = [
    _row("signum", main=True),
    _row("signum_no_momentum", beta_1=None),
]

STATE_BYTES = [
    (Signum(), (4096, 4096), 67_108_864),
    (Signum(momentum_dtype="bfloat16"), (4096, 4096), 33_554_432),
    # A scale for every 512 codes.
    (
        Signum(momentum_dtype="int8"),
        (4096, 4096),
        16_777_216 + 4 * 16_777_216 // 512,
    ),
    (Signum(beta_1=None), (4096, 4096), 0),
    (Signum(), (), 4),
    (Signum(), (0,), 0),
]


def golden(arguments, hyper):
    return Signum(**arguments)
