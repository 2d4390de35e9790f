"""Checkpoints as users have them: which are read, and what is said of others."""

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
