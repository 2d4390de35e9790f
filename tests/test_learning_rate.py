"""The learning rate: schedules, callbacks, and the rate that is used."""

import warnings

import keras
import numpy as np
import pytest

from keras_adafactor import SMMF
from keras_adafactor import Adafactor
from tests.probe import as_numpy
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model

STARTS = {"bias": np.array([0.5, -1.0, 2.0], dtype="float32")}
SHAPES = {"bias": (3,)}


def used(optimizer):
    return float(as_numpy(keras.ops.cast(
        optimizer.effective_learning_rate, "float32")))  # fmt: skip


def test_rate_that_is_used_is_the_cap_once_that_is_lower():
    optimizer = Adafactor(0.5)
    model = probe_model(STARTS, optimizer)
    assert used(optimizer) == 0.5
    fit(model, gradients(15, SHAPES))
    assert used(optimizer) == pytest.approx(0.25)  # 1 / sqrt(16)
    assert float(as_numpy(optimizer.learning_rate)) == 0.5


def test_rate_that_is_used_is_the_learning_rate_of_other_optimizers():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [2], [1.0, 0.5]
    )
    optimizer = SMMF(schedule)
    model = probe_model(STARTS, optimizer)
    assert used(optimizer) == 1.0
    fit(model, gradients(4, SHAPES))
    assert used(optimizer) == 0.5


@pytest.mark.parametrize("steps_per_epoch", [1, 20])
def test_callback_that_lowers_a_rate_not_in_force_is_told_so(steps_per_epoch):
    optimizer = Adafactor(0.5)
    model = probe_model(STARTS, optimizer)
    rates = [0.5, 0.4, 0.3]
    callback = keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch])
    given = gradients(steps_per_epoch, SHAPES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, given, epochs=3, callbacks=[callback])
    told = [w for w in caught if "changes nothing" in str(w.message)]
    # After one step an epoch the cap, 0.7, is not in force.
    assert len(told) == (0 if steps_per_epoch == 1 else 2)


def test_schedule_that_replaces_the_relative_step_is_told_so():
    optimizer = Adafactor(0.5)
    schedule = keras.optimizers.schedules.CosineDecay(0.5, 10)
    with pytest.warns(UserWarning, match="no relative step"):
        optimizer.learning_rate = schedule
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Adafactor(0.5, relative_step=False).learning_rate = schedule
        Adafactor(schedule)
