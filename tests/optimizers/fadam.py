"""Rows of FAdam."""

from keras_adafactor import FAdam
from tests import oracles
from tests.optimizers.row import Row
from tests.optimizers.row import like

# A quotient of squares that are no float32 is no test of a rule.
MAGNITUDES = (0.0, 1e-3, 0.0, 1e-18, 1e-3, 1e18, 1e18, 1e-18)


def _row(name, magnitudes=MAGNITUDES, **arguments):
    def oracle(x, shape):
        return oracles.FAdam(x, **arguments)

    def slots(shape):
        return [like("m", shape), like("fim", shape)]

    return Row(
        name,
        FAdam,
        arguments,
        oracle,
        slots,
        # Weights of up to 4 are rounded twenty times.
        tolerance=2e-6,
        magnitudes=magnitudes,
        main=name == "fadam",
    )


ROWS = [
    _row("fadam"),
    _row("fadam_masked", mask_decay=True, epsilon=1.0, epsilon_2=1e-4),
    _row("fadam_undecayed", weight_decay=0.0, clip_threshold=None),
    _row("fadam_natural", fisher_exponent=1.0, clip_threshold=0.5),
    _row(
        "fadam_paper_v3",
        # First gradients of zero are divided by zero: see `test_fadam`.
        magnitudes=(1e-3, *MAGNITUDES[1:]),
        epsilon_mode="paper_v3",
        epsilon=1e-4,
    ),
    _row("fadam_port", epsilon_mode="port", epsilon=1e-4),
]

STATE_BYTES = [
    (FAdam(), (4096, 4096), 134_217_728),
    (
        FAdam(momentum_dtype="bfloat16"),
        (4096, 4096),
        67_108_864 + 33_554_432,
    ),
    # A scale for each block of 512.
    (
        FAdam(momentum_dtype="int8"),
        (4096, 4096),
        67_108_864 + 16_777_216 + 4 * 32_768,
    ),
    (FAdam(), (1024,), 2 * 4096),
    (FAdam(), (), 8),
    (FAdam(), (5, 0), 0),
]


def golden(arguments, hyper):
    return FAdam(**arguments)
