"""Checkpoints as users have them: which are read, what is said of others."""

import keras
import numpy as np
import pytest

from keras_adafactor import Adafactor
from keras_adafactor import warm_start
from tests.probe import as_numpy


def schedule():
    return keras.optimizers.schedules.CosineDecay(1e-3, 100)


def model_of(optimizer=None, units=6, **compile_arguments):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(units, name="a"),
            keras.layers.Dense(3, name="b"),
        ],
        name="model",
    )
    if optimizer is not None:
        model.compile(optimizer, "mse", **compile_arguments)
    return model


def fit(model, **arguments):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(8, n)).astype("float32") for n in (4, 3))
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0, **arguments)
    return model


def slots(optimizer):
    return [
        as_numpy(slot)
        for _, named in optimizer.slots()
        for slot in named.values()
    ]


def check_equal(optimizer, other):
    for found, expected in zip(slots(optimizer), slots(other), strict=True):
        np.testing.assert_array_equal(found, expected)


# A `.weights.h5` file, which does not say what is in it.


@pytest.mark.parametrize("make", [keras.optimizers.Adam, Adafactor])
@pytest.mark.parametrize("scheduled", [True, False])
def test_learning_rate_of_a_weights_file_need_not_be_known(
    tmp_path, make, scheduled
):
    rates = (schedule(), 0.5) if scheduled else (0.5, schedule())
    model = fit(model_of(make(rates[0])))
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    expected, found = Adafactor(beta_1=0.9), Adafactor(beta_1=0.9)
    warm_start(expected, model)
    report = warm_start(
        found, path, model.trainable_variables, saved_by=make(rates[1])
    )
    assert report.iterations == 2
    check_equal(found, expected)


def test_what_differs_in_a_weights_file_is_named(tmp_path):
    path = tmp_path / "model.weights.h5"
    fit(model_of("adam")).save_weights(path)
    adam = keras.optimizers.Adam
    with pytest.raises(
        ValueError,
        match=r"there '.*a_kernel_momentum' is of shape \(4, 6\), not",
    ):
        warm_start(model_of(Adafactor(), units=7), path, saved_by=adam())
    frozen = model_of()
    variables = frozen.trainable_variables
    frozen.layers[0].trainable = False
    frozen.compile(Adafactor(), "mse")
    with pytest.raises(
        ValueError, match=r"10 variables .*not 5 .*`saved_by\.build\("
    ):
        warm_start(frozen, path, saved_by=adam())
    saved_by = adam()
    saved_by.build(variables)
    report = warm_start(frozen, path, saved_by=saved_by)
    assert report.complete


# Files that hold a whole model.


@pytest.fixture
def mixed_float16():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("make", [keras.optimizers.Adam, Adafactor])
def test_file_of_a_float16_policy_is_read_under_another(
    tmp_path, mixed_float16, make
):
    path = tmp_path / "model.keras"
    model = fit(model_of(make()))
    scaled = model.optimizer
    assert isinstance(scaled, keras.optimizers.LossScaleOptimizer)
    model.save(path)
    expected, found = Adafactor(), Adafactor()
    warm_start(expected, scaled)
    keras.config.set_dtype_policy("float32")
    # Keras skips the state, with a warning; of ours that is an error.
    with pytest.raises(ValueError, match=r"float16.*set_dtype_policy"):
        warm_start(Adafactor(), keras.models.load_model(path))
    report = warm_start(found, path, model.trainable_variables)
    assert keras.config.dtype_policy().name == "float32"
    assert report.iterations == int(as_numpy(scaled.iterations))
    check_equal(found, expected)


def test_relative_path_of_orbax_is_read(tmp_path, monkeypatch):
    pytest.importorskip("orbax.checkpoint")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3, name="b")(inputs))
    model.compile("adam", "mse")
    monkeypatch.chdir(tmp_path)
    checkpoint = keras.callbacks.OrbaxCheckpoint(
        str(tmp_path / "steps"), save_on_background=False
    )
    fit(model, callbacks=[checkpoint])
    expected, found = Adafactor(), Adafactor()
    warm_start(expected, model)
    warm_start(found, "steps", model.trainable_variables)
    check_equal(found, expected)
    for wrong in (".", "steps/0"):
        with pytest.raises(ValueError, match="directory that holds the steps"):
            warm_start(Adafactor(), wrong, model.trainable_variables)


def test_orbax_checkpoint_of_a_sequential_is_read_as_its_error_says(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    path = tmp_path / "steps"
    checkpoint = keras.callbacks.OrbaxCheckpoint(
        str(path), save_on_background=False
    )
    source = fit(model_of("adam"), callbacks=[checkpoint])
    expected = Adafactor()
    warm_start(expected, source)
    model = model_of(keras.optimizers.Adam(name=source.optimizer.name))
    with pytest.raises(ValueError, match=r"`model\.load_weights\(director"):
        warm_start(Adafactor(), path, model.trainable_variables)
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    adam = model.optimizer
    model.compile(Adafactor(), "mse")
    assert warm_start(model, adam).complete
    check_equal(model.optimizer, expected)


def test_custom_loss_of_a_file_is_asked_for(tmp_path):
    def custom(y_true, y_pred):
        return keras.ops.mean((y_true - y_pred) ** 2)

    path = tmp_path / "model.keras"
    model = model_of()
    model.compile("adam", custom)
    fit(model).save(path)
    with pytest.raises(ValueError, match=r"'custom'.*custom_object_scope\("):
        warm_start(Adafactor(), path, model.trainable_variables)
    with keras.saving.custom_object_scope({"custom": custom}):
        assert warm_start(Adafactor(), path, model.trainable_variables).complete


def test_model_without_a_known_optimizer_is_named_by_its_file(tmp_path):
    path = tmp_path / "model.keras"
    for model, message in (
        (model_of(), "this model is not compiled"),
        (fit(model_of("sgd")), "this model has SGD"),
    ):
        model.save(path)
        with pytest.raises(ValueError, match=f"{message}.*model.keras'$"):
            warm_start(Adafactor(), path, model.trainable_variables)


# What there is no file of.


def test_model_that_is_not_built_is_named():
    adam = fit(model_of("adam")).optimizer
    model = keras.Sequential([keras.layers.Dense(6), keras.layers.Dense(3)])
    model.compile(Adafactor(), "mse")
    with pytest.raises(ValueError, match="build the model first"):
        warm_start(model, adam)


def test_optimizer_that_is_its_own_source_is_an_error():
    model = fit(model_of("adam"))
    model.compile(Adafactor(), "mse")
    for source in (model, model.optimizer):
        with pytest.raises(ValueError, match="`adam = model.optimizer`, befor"):
            warm_start(model, source)


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"),
    reason="this Keras has no MultiOptimizer yet",
)
def test_parts_of_a_multi_optimizer_are_started_one_by_one():
    adam = fit(model_of("adam")).optimizer
    multi = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            Adafactor(), {".*bias": keras.optimizers.Adam()}
        )
    )
    model = model_of(multi)
    with pytest.raises(ValueError, match="give its `optimizers`, one by one"):
        warm_start(model, adam)
    multi.build(model.trainable_variables)
    reports = [warm_start(each, adam) for each in multi.optimizers]
    assert all(report.complete for report in reports)
    assert sum(len(report.rows) for report in reports) == 4
    fit(model)


def test_another_shape_of_the_source_is_the_reason():
    adam = fit(model_of("adam")).optimizer
    report = warm_start(model_of(Adafactor(), units=7), adam)
    reasons = {row.path: set(row.missing.values()) for row in report.rows}
    assert reasons["model/a/kernel"] == {"of shape (4, 6) in the source"}
    assert not reasons["model/b/bias"]
