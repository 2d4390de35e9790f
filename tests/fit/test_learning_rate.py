"""The learning rate in `fit`: schedules, callables, callbacks."""

import keras
import numpy as np

from keras_adafactor import Adafactor
from tests.fit.common import SHAPES
from tests.fit.common import STARTS
from tests.fit.common import assert_close
from tests.fit.common import expected
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model
from tests.probe import weights


def test_schedule_is_used_as_it_is_however_large():
    rates = [3.0, 3.0, 0.2, 0.2, 0.2]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [1], [3.0, 0.2]
    )
    given = gradients(5, SHAPES)
    model = probe_model(STARTS, Adafactor(schedule))
    fit(model, given)
    assert_close(weights(model), expected(given, rates))


def test_callable_learning_rate_is_used_as_it_is():
    given = gradients(3, SHAPES)
    model = probe_model(STARTS, Adafactor(lambda: 2.0))
    fit(model, given)
    assert_close(weights(model), expected(given, [2.0] * 3))


def test_learning_rate_scheduler_callback_sets_every_epoch():
    given = gradients(2, SHAPES)
    model = probe_model(STARTS, Adafactor(9.0, relative_step=False))
    callback = keras.callbacks.LearningRateScheduler(
        lambda epoch: 2.0 / (epoch + 1)
    )
    fit(model, given, epochs=3, callbacks=[callback])
    repeated = {name: np.tile(g, (3, *[1] * (g.ndim - 1)))
                for name, g in given.items()}  # fmt: skip
    rates = [2.0, 2.0, 1.0, 1.0, 2 / 3, 2 / 3]
    assert_close(weights(model), expected(repeated, rates))


def test_learning_rate_scheduler_moves_the_cap_of_the_relative_step():
    given = gradients(2, SHAPES)
    model = probe_model(STARTS, Adafactor(9.0))
    callback = keras.callbacks.LearningRateScheduler(
        lambda epoch: [0.3, 5.0][epoch]
    )
    fit(model, given, epochs=2, callbacks=[callback])
    repeated = {name: np.tile(g, (2, *[1] * (g.ndim - 1)))
                for name, g in given.items()}  # fmt: skip
    rates = [0.3, 0.3, 3**-0.5, 4**-0.5]
    assert_close(weights(model), expected(repeated, rates))


def test_relative_step_caps_a_float():
    given = gradients(6, SHAPES)
    model = probe_model(STARTS, Adafactor(0.6))
    fit(model, given)
    rates = [0.6, 0.6, 3**-0.5, 4**-0.5, 5**-0.5, 6**-0.5]
    assert_close(weights(model), expected(given, rates))
