"""Gradients as models have them: few have full rank, and many rows are zero.

The programs are those of `benchmarks.programs`, which has trained them on all
three backends. Random gradients show none of what is tested here.
"""

import keras
import numpy as np
import pytest

from benchmarks import programs
from keras_adafactor import COAP
from keras_adafactor import SOAP
from keras_adafactor import SubspaceMomentum
from tests import harness
from tests.matrices import matrices
from tests.probe import as_numpy

# Settings with a basis, and whether the basis stays orthonormal in between.
WITH_BASIS = {
    name: not name.startswith("COAP")
    for name in programs.OPTIMIZERS
    if name.startswith(("SOAP", "COAP", "Subspace"))
}
# The mode of the table, and for rules with a basis every other one. XLA takes
# minutes over these programs, as JAX does eagerly: it compiles every condition
# in every step. Settings of one rule share its bases.
LONG = {("SOAP, int8", harness.MODE), ("COAP, restored", harness.MODE)}
LONG |= {("SOAP, refreshed always", "jit")}
LONG_MODES = {"tensorflow": ("xla",), "jax": ("eager",), "torch": ()}
CASES = [
    pytest.param(
        *(name, mode),
        marks=pytest.mark.exhaustive
        if mode in LONG_MODES[harness.BACKEND] or (name, mode) in LONG
        else (),
    )
    for name in programs.OPTIMIZERS
    for mode in harness.MODES
    if mode == harness.MODE or name in ("SubspaceMomentum", "COAP", "SOAP")
]


def bases_of(optimizer):
    return [
        as_numpy(slot)
        for _, slots in optimizer.slots()
        for name, slot in slots.items()
        if name.startswith("basis")
    ]


def orthonormality_error(basis):
    gram = basis.astype("float64").T @ basis
    return np.abs(gram - np.eye(len(gram))).max()


@pytest.fixture(autouse=True, scope="module")
def _no_program_of_the_cache():
    """Compiles everything anew on JAX.

    When jaxlib 0.10 reads a condition with a decomposition in it from its
    cache on disk, the process crashes.
    """
    if keras.backend.backend() != "jax":
        yield
        return
    import jax  # noqa: PLC0415
    from jax.experimental.compilation_cache import compilation_cache  # noqa: PLC0415

    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_losses_agree_on_all_backends(name, mode):
    optimizer = programs.OPTIMIZERS[name]()
    # An eager step takes long: few are enough to see a basis at fault.
    eager = mode == "eager" != harness.MODE
    trained = programs.train(
        optimizer,
        lambda *given: harness.make_step(*given, mode),
        steps=12 if eager else programs.STEPS,
    )
    assert int(optimizer.skipped_updates) == 0
    assert int(optimizer.failed_refreshes) == 0
    for program in trained:
        assert np.isfinite(program.loss), program
        for backend in programs.BACKENDS if not eager else ():
            expected = programs.losses_of(backend)[name][program.name]
            apart = 0.03 if name in WITH_BASIS else 1e-5
            assert program.loss == pytest.approx(expected, rel=apart), backend
        if name in WITH_BASIS:
            rate = float(as_numpy(optimizer.learning_rate))
            assert program.largest_change < 10 * rate, program
    for basis in bases_of(optimizer) if WITH_BASIS.get(name) else ():
        assert orthonormality_error(basis) < 1e-4


def test_table_has_every_optimizer_of_every_backend():
    names = [program.name for program in programs.programs()]
    for backend in programs.BACKENDS:
        losses = programs.losses_of(backend)
        assert list(losses) == list(programs.OPTIMIZERS)
        assert all(list(found) == names for found in losses.values())


# In `fit`.


def embedding(optimizer):
    """200 tokens, of which a batch has few."""
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            keras.layers.Embedding(200, 32),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(3),
        ]
    )
    tokens = np.random.default_rng(0).integers(0, 40, (64, 4))
    return fitted(model, optimizer, tokens, tokens[:, 0] % 3)


def images(optimizer):
    """20 x 20 pixels with an empty border, through dead units."""
    model = keras.Sequential(
        [
            keras.Input((20, 20, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(64, "relu", bias_initializer=_mostly_dead),
            keras.layers.Dense(64, "relu", bias_initializer=_mostly_dead),
            keras.layers.Dense(3),
        ]
    )
    rng = np.random.default_rng(0)
    x = np.zeros((64, 20, 20, 1), "float32")
    x[:, 6:14, 6:14] = rng.random((64, 8, 8, 1)) > 0.7
    return fitted(model, optimizer, x, np.arange(64) % 3)


def _mostly_dead(shape, dtype=None):
    return np.where(np.arange(shape[0]) % 8, -5.0, 0.0).astype("float32")


def fitted(model, optimizer, x, y):
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    history = model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
    return history.history["loss"]


@pytest.mark.parametrize("model", [embedding, images])
@pytest.mark.parametrize(
    "make",
    [
        lambda: SOAP(3e-3, refresh_every=4),
        lambda: COAP(3e-3, rank=16, refresh_every=3, recalibrate_every=2),
        lambda: SubspaceMomentum(1e-2, rank=16, refresh_every=5),
    ],
    ids=["SOAP", "COAP", "SubspaceMomentum"],
)
def test_fit_goes_down_with_orthonormal_bases(model, make):
    optimizer = make()
    losses = model(optimizer)
    assert losses[-1] < losses[0] < 2.0
    assert int(as_numpy(optimizer.failed_refreshes)) == 0
    if not isinstance(optimizer, COAP):
        bases = bases_of(optimizer)
        assert bases and max(map(orthonormality_error, bases)) < 1e-4


@pytest.mark.parametrize(
    ("exponent", "dtype"),
    [(-15, "float32"), (17, "float32"), (0, "bfloat16")],
)
@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (SOAP, {}),
        (COAP, {"rank": 4, "recalibrate_every": 2}),
        (
            COAP,
            {
                "rank": 4,
                "recalibrate_every": 2,
                "restore_state": True,
                "state_dtype": "bfloat16",
            },
        ),
        (SubspaceMomentum, {"rank": 4}),
    ],
    ids=["SOAP", "COAP", "COAP-restored", "SubspaceMomentum"],
)
def test_any_rank_and_scale_leaves_weights_finite(
    make, arguments, exponent, dtype
):
    """Every matrix as a gradient, twice and then the next one."""
    found = matrices(24, 16)
    names = list(found)
    halves = names[: len(names) // 2 + 1], names[len(names) // 2 :]
    rows = [
        [10.0**exponent * found[half[i // 2]] for half in halves]
        for i in range(2 * len(halves[0]))
    ]
    rows = [[np.clip(g, -1e17, 1e17) for g in row] for row in rows]
    optimizer = make(1e-3, epsilon=1e-30, refresh_every=2, **arguments)
    starts = [np.ones((24, 16), "float32")] * 2
    variables = harness.run(optimizer, starts, rows, harness.MODE, dtype)
    for value in harness.values(variables):
        moved = np.abs(value - 1.0).max()
        assert 1e-3 < moved < 10 * 1e-3 * len(rows)
    assert int(optimizer.failed_refreshes) == 0
    assert int(optimizer.skipped_updates) == 0
    for basis in bases_of(optimizer):
        if make is not COAP:
            assert orthonormality_error(basis) < 1e-4
