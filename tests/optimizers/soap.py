"""Rows of SOAP."""

from keras_adafactor import SOAP
from tests import oracles
from tests.optimizers.row import Row
from tests.optimizers.row import like

# Where the Gram matrices of one gradient have no null space but of one
# dimension: elsewhere their eigenvectors are the library's choice.
SHAPES = ((), (7,), (4, 4), (5, 4), (4, 5), (2, 2, 2))


def _row(name, axes, main=False, shapes=SHAPES, **arguments):
    """`axes`: `shape -> axes of the working shape that have a basis`."""

    def oracle(x, shape):
        return oracles.SOAP(x, **arguments)

    def slots(shape):
        factored = arguments.get("factored") and len(shape) == 2
        found = [like("m", shape)]
        if factored:
            found += [like("v_row", shape[:1]), like("v_col", shape[1:])]
        else:
            found += [like("v", shape)]
        for axis, size in axes(shape):
            found += [
                like(f"gram_{axis}", (size, size)),
                like(f"basis_{axis}", (size, size)),
            ]
        count = [("count", (), "int32")] if axes(shape) else []
        return found + count

    return Row(
        name,
        SOAP,
        arguments,
        oracle,
        slots,
        # Eigenvectors of float32 matrices.
        tolerance=1e-4,
        shapes=shapes,
        decades=0.0,
        magnitudes=(1e10, 1e10, 0.0, 1e10, 1e9, 1e10, 1e10, 1e9),
        resting=("basis_0", "basis_1", "basis_2"),
        on_tpu={"max_precondition_dim": 64},
        main=main,
    )


def all_axes(shape):
    return list(enumerate(shape)) if len(shape) > 1 else []


def smallest_axis(shape):
    if len(shape) < 2:
        return []
    return [min(enumerate(shape), key=lambda pair: pair[1])]


ROWS = [
    _row("soap", all_axes, main=True, refresh_every=3),
    _row("soap_one_sided", smallest_axis, one_sided=True, refresh_every=4),
    _row("soap_factored", all_axes, factored=True, refresh_every=2),
    _row(
        "soap_merged",
        lambda shape: [(0, 4), (1, 4)] if len(shape) > 2 else all_axes(shape),
        shapes=(*SHAPES[:-1], (2, 2, 4)),
        merge_axes=True,
        max_precondition_dim=7,
        refresh_every=3,
    ),
    _row(
        "soap_merged_to_vectors",
        lambda shape: [(0, 2)] if len(shape) > 2 else all_axes(shape),
        shapes=(*SHAPES[:-1], (2, 1, 1)),
        merge_axes=True,
        refresh_every=3,
    ),
    _row(
        "soap_with_bases_of_vectors",
        lambda shape: list(enumerate(shape)),
        shapes=((), (2,), (4, 4), (5, 4)),
        precondition_1d=True,
        refresh_every=2,
    ),
    _row("soap_without_bases", lambda shape: [], max_precondition_dim=0),
    _row(
        "soap_unbounded",
        all_axes,
        bound_updates=False,
        refresh_every=3,
    ),
    _row(
        "soap_normalized",
        all_axes,
        normalize_updates=True,
        shampoo_beta=0.9,
    ),
]

STATE_BYTES = [
    # 4 bytes more are the count of calls.
    (SOAP(), (4096, 4096), 402_653_184 + 4),
    (SOAP(one_sided=True), (4096, 4096), 268_435_456 + 4),
    (SOAP(factored=True), (4096, 4096), 335_577_088 + 4),
    (
        SOAP(one_sided=True, factored=True),
        (4096, 4096),
        201_359_360 + 4,
    ),
    (SOAP(max_precondition_dim=0), (4096, 4096), 134_217_728),
    (SOAP(), (1024,), 8_192),
    (
        SOAP(momentum_dtype="bfloat16", second_moment_dtype="bfloat16"),
        (4096, 4096),
        402_653_184 - 67_108_864 + 4,
    ),
    # A scale for 512 codes.
    (
        SOAP(momentum_dtype="int8"),
        (4096, 4096),
        402_653_184 - 3 * 16_777_216 + 131_072 + 4,
    ),
]


def golden(arguments, hyper):
    # As the authors' code has it.
    return SOAP(bound_updates=False, **arguments)
