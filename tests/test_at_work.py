"""Every optimizer in `fit`, in files and after an interruption."""

import keras
import numpy as np
import pytest

from tests.optimizers import MAIN_FIRST
from tests.probe import as_numpy
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model
from tests.probe import state

BACKEND = keras.backend.backend()
rows = pytest.mark.parametrize("row", MAIN_FIRST, ids=lambda row: row.name)

EVERYTHING = {
    "gradient_accumulation_steps": 2,
    "use_ema": True,
    "ema_overwrite_frequency": 3,
    "weight_decay": 0.1,
    "clipnorm": 10.0,
}


def starts(row):
    """A vector and a matrix, of shapes that suit the row."""
    rng = np.random.default_rng(0)
    return {
        "bias": rng.normal(size=row.shapes[1]).astype("float32"),
        "kernel": rng.normal(size=row.shapes[3]).astype("float32"),
    }


def given(row, steps, **arguments):
    shapes = {name: start.shape for name, start in starts(row).items()}
    return gradients(steps, shapes, **arguments)


def model_of(row, settings=None, **arguments):
    optimizer = row.optimizer(**(settings or {}))
    return probe_model(starts(row), optimizer, **arguments)


def assert_same(model, other, tolerance=0.0):
    ours, theirs = state(model), state(other)
    for (name, x), (_, y) in zip(ours.items(), theirs.items(), strict=True):
        np.testing.assert_allclose(
            x, y, rtol=tolerance, atol=tolerance, err_msg=name
        )


@rows
def test_compiled_fit_equals_eager_steps_with_every_keyword(row):
    compiled, eager = (
        model_of(row, EVERYTHING, run_eagerly=e) for e in (False, True)
    )
    for model in (compiled, eager):
        fit(model, given(row, 9))
    weights = zip(
        compiled.trainable_variables, eager.trainable_variables, strict=True
    )
    for one, other in weights:
        np.testing.assert_allclose(
            as_numpy(one),
            as_numpy(other),
            rtol=10 * row.tolerance,
            atol=10 * row.tolerance,
        )
        assert np.isfinite(as_numpy(one)).all()


@rows
def test_accumulation_equals_the_large_batch(row):
    large, small = (
        model_of(row),
        model_of(row, {"gradient_accumulation_steps": 2}),
    )
    fit(large, given(row, 8), batch_size=2)
    fit(small, given(row, 8), batch_size=1)
    for one, other in zip(
        large.trainable_variables, small.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(
            as_numpy(one),
            as_numpy(other),
            rtol=10 * row.tolerance,
            atol=10 * row.tolerance,
        )


@rows
def test_resumed_training_is_bit_for_bit_the_same(row, tmp_path):
    # Five steps: between two refreshes, in the middle of an accumulation.
    gradients = given(row, 11)
    first = {name: g[:5] for name, g in gradients.items()}
    second = {name: g[5:] for name, g in gradients.items()}
    model = model_of(row, EVERYTHING)
    fit(model, first)
    model.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    assert type(resumed.optimizer) is row.make
    assert resumed.optimizer.get_config() == model.optimizer.get_config()
    assert_same(model, resumed)
    for each in (model, resumed):
        fit(each, second)
    assert_same(model, resumed)


@pytest.mark.skipif(BACKEND != "jax", reason="Orbax writes arrays of JAX.")
@rows
def test_orbax_checkpoint_resumes_bit_for_bit(row, tmp_path):
    # Without averages, which the end of `fit` would put into the weights.
    settings = {"gradient_accumulation_steps": 2, "weight_decay": 0.1}
    gradients = given(row, 10)
    halves = [
        {name: g[part] for name, g in gradients.items()}
        for part in (slice(0, 5), slice(5, 10))
    ]
    keras.backend.clear_session()
    model = model_of(row, settings)
    callback = keras.callbacks.OrbaxCheckpoint(str(tmp_path / "checkpoints"))
    fit(model, halves[0], callbacks=[callback])
    # Of the same names, as in a new process.
    keras.backend.clear_session()
    resumed = model_of(row, settings)
    resumed.optimizer.build(resumed.trainable_variables)
    resumed.load_weights(tmp_path / "checkpoints")
    assert_same(model, resumed)
    for each in (model, resumed):
        fit(each, halves[1])
    assert_same(model, resumed)


@rows
def test_copy_of_a_model_trains_as_the_model_does(row):
    model = model_of(row)
    fit(model, given(row, 3))
    store = {}
    model.optimizer.save_own_variables(store)
    copied = model_of(row)
    copied.optimizer.build(copied.trainable_variables)
    copied.optimizer.load_own_variables(store)
    copied.set_weights(model.get_weights())
    for each in (model, copied):
        fit(each, given(row, 3, seed=1))
    assert_same(model, copied)
