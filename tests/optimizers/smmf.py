"""Rows of SMMF."""

import math

from keras_adafactor import SMMF
from tests import oracles
from tests.optimizers.row import Row
from tests.optimizers.row import like
from tests.oracles.smmf import square_shape

# One axis an eighth; the other shapes are padded.
SIGNS = {
    (): (1,),
    (7,): (1,),
    (3, 40): (3, 5),
    (40, 3): (5, 3),
    (6, 1): (1, 1),
    (2, 3, 4): (2, 3, 1),
    (16, 4, 4): (2, 4, 4),
    (3, 3, 4, 8): (3, 3, 4, 1),
}


def _row(name, **arguments):
    momentum = arguments.get("beta_1", 0.9) is not None

    def oracle(x, shape):
        return oracles.SMMF(x, **arguments)

    def slots(shape):
        if arguments.get("reshape_vectors") is False and shape in (
            (),
            (7,),
            (6, 1),
        ):
            return [like("m", shape), like("v", shape)]
        rows, cols = square_shape(math.prod(shape))
        planes = ["m_sign"]
        if arguments.get("zero_sign"):
            planes = ["m_sign_positive", "m_sign_negative"]
        found = []
        if momentum:
            found = [like("m_row", (rows,)), like("m_col", (cols,))]
            found += [(plane, SIGNS[shape], "uint8") for plane in planes]
        return found + [like("v_row", (rows,)), like("v_col", (cols,))]

    return Row(
        name,
        SMMF,
        arguments,
        oracle,
        slots,
        # The update of an entry in a quiet row and column is large.
        tolerance=1e-5,
        decades=1.0,
        # A quotient of squares that are no float32 is no test of a rule.
        magnitudes=(0.0, 1e-3, 0.0, 1e-18, 1e-3, 1e18, 1e18, 1e-3),
        # A column that is the only one is 1, signs are few.
        resting=(
            "m_sign",
            "m_sign_positive",
            "m_sign_negative",
            "m_col",
            "v_col",
        ),  # fmt: skip
        main=name == "smmf",
    )


ROWS = [
    _row("smmf"),
    _row("smmf_transformer", beta_2_decay=-0.8),
    _row("smmf_zero_sign", zero_sign=True),
    _row("smmf_no_momentum", beta_1=None),
    _row("smmf_vectors", reshape_vectors=False),
]

STATE_BYTES = [
    (SMMF(), (4096, 4096), 65_536 + 2_097_152),
    (SMMF(zero_sign=True), (4096, 4096), 65_536 + 2 * 2_097_152),
    (SMMF(beta_1=None), (4096, 4096), 32_768),
    (SMMF(), (3, 3, 512, 512), 4 * 2 * (1536 + 1536) + 9 * 512 * 512 // 8),
    (SMMF(), (), 4 * 4 + 1),
    (SMMF(), (7,), 4 * 2 * (7 + 1) + 1),
    # 1,048,573 is a prime.
    (SMMF(beta_1=None), (1_048_573,), 4 * (1_048_573 + 1)),
]


def golden(arguments, hyper):
    return SMMF(**arguments)
