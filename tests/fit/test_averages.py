"""Averages of the weights: `use_ema`."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_adafactor import Adafactor
from tests.fit.common import SHAPES
from tests.fit.common import STARTS
from tests.fit.common import assert_close
from tests.fit.common import oracle_of
from tests.probe import as_numpy
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model
from tests.probe import weights


def averaged(given, momentum, frequency=None, starts=STARTS):
    """Weights and averages of a hand computation."""
    found, averages = {}, {}
    for name, start in starts.items():
        oracle = oracle_of(start)
        average = None
        for step, g in enumerate(given[name], start=1):
            oracle.step(g)
            if average is None:
                average = oracle.x
            average = momentum * average + (1 - momentum) * oracle.x
            if frequency and step % frequency == 0:
                oracle.x = average
        found[name], averages[name] = oracle.x, average
    return found, averages


@pytest.mark.parametrize("frequency", [None, 1, 3])
def test_ema_is_the_hand_computation(frequency):
    given = gradients(7, SHAPES)
    optimizer = Adafactor(
        use_ema=True, ema_momentum=0.6, ema_overwrite_frequency=frequency
    )
    model = probe_model(STARTS, optimizer)
    seen = []
    fit(
        model,
        given,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: seen.append(
                    weights(model)
                )
            )
        ],
    )
    found, averages = averaged(given, 0.6, frequency)
    assert_close(seen[-1], found)
    # Keras leaves the averages in the model at the end of `fit`.
    assert_close(weights(model), averages)


def test_ema_leaves_a_variable_without_gradients_alone():
    class HalfUsed(keras.layers.Layer):
        def build(self, shape):
            for name in ("used", "unused"):
                weight = self.add_weight(
                    shape=(3,), initializer="ones", name=name
                )
                setattr(self, name, weight)

        def call(self, x):
            return ops.sum(x * self.used, axis=-1)

    model = keras.Sequential([keras.Input((3,)), HalfUsed(name="half")])
    model.compile(Adafactor(use_ema=True), loss=lambda y_true, y_pred: y_pred)
    with warnings.catch_warnings():
        # JAX has no missing gradients, they are 0.
        warnings.filterwarnings("ignore", "Gradients do not exist")
        model.fit(np.ones((2, 3)), np.zeros(2), batch_size=1, verbose=0)
    used, unused = (as_numpy(v) for v in model.trainable_variables)
    np.testing.assert_array_equal(unused, np.ones(3))
    assert (used < 1).all()


def test_ema_is_not_spoiled_by_a_skipped_first_step():
    given = gradients(3, SHAPES)
    given["encoder"][0, 0, 0] = np.nan
    model = probe_model(STARTS, Adafactor(use_ema=True, ema_momentum=0.9))
    fit(model, given)
    # Averages of where the weights have been: never anywhere near zero.
    assert_close(weights(model), STARTS, tolerance=0.1)


def test_swap_ema_weights_evaluates_with_the_averages():
    given = gradients(4, SHAPES)
    optimizer = Adafactor(0.5, use_ema=True, ema_momentum=0.6)
    model = probe_model(STARTS, optimizer)
    seen = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(weights(model))
    )
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    fit(model, given, callbacks=[swap, record])
    plain = probe_model(STARTS, Adafactor(0.5, use_ema=True, ema_momentum=0.6))
    fit(plain, given)
    assert_close(seen[-1], weights(plain), tolerance=1e-5)
