"""What these tests share: weights, the oracle on them, and an embedding."""

import keras
import numpy as np
from keras import ops

from tests import oracles

TOLERANCE = 2e-6

MATRIX = np.linspace(-1.0, 2.0, 12, dtype="float32").reshape(3, 4)
VECTOR = np.array([0.5, -1.0, 2.0, 0.1, 1.0], dtype="float32")
STARTS = {"encoder": MATRIX, "bias": VECTOR}
SHAPES = {name: start.shape for name, start in STARTS.items()}


def oracle_of(start, **arguments):
    rows, cols = ((0,), (1,)) if np.ndim(start) == 2 else ((), ())
    return oracles.Adafactor(start, rows=rows, cols=cols, **arguments)


def expected(
    given, learning_rates=None, weight_decay=None, starts=STARTS, **arguments
):
    """The oracle's weights after one step per row of `given`.

    Args:
        given: Dict from name to gradients.
        learning_rates: List of floats, one a step, used as they are.
        weight_decay: Dict from name to float, where it is not 0.
        starts: Dict from name to the initial weights.
        **arguments: The oracle's.
    """
    if learning_rates is not None:
        arguments["relative_step"] = False
    found = {}
    for name, start in starts.items():
        oracle = oracle_of(start, **arguments)
        decay = (weight_decay or {}).get(name, 0.0)
        for i, g in enumerate(given[name]):
            if learning_rates is not None:
                oracle.learning_rate = learning_rates[i]
            oracle.x = oracle.x * (1 - decay * oracle.learning_rate)
            oracle.step(g)
        found[name] = oracle.x
    return found


def assert_close(actual, desired, tolerance=TOLERANCE):
    assert actual.keys() == desired.keys()
    for name, value in actual.items():
        np.testing.assert_allclose(
            value, desired[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


def assert_equal(actual, desired):
    assert actual.keys() == desired.keys()
    for name, value in actual.items():
        np.testing.assert_array_equal(value, desired[name], err_msg=name)


def embedding_model(optimizer, one_hot=False):
    """An embedding, or the same as a matrix product with one-hot rows."""
    tokens = keras.Input((4,), dtype="int32")
    if one_hot:
        encoded = ops.one_hot(tokens, 6)
        embedded = keras.layers.Dense(3, use_bias=False, name="table")(encoded)
    else:
        embedded = keras.layers.Embedding(6, 3, name="table")(tokens)
    output = keras.layers.Dense(2, name="head")(embedded)
    model = keras.Model(tokens, output)
    rng = np.random.default_rng(1)
    model.set_weights(
        [rng.normal(size=v.shape) for v in model.trainable_variables]
    )
    model.compile(optimizer, loss="mse")
    return model


# Every row of tokens repeats one.
TOKENS = np.array(
    [[0, 1, 1, 2], [3, 3, 3, 3], [1, 0, 5, 5], [2, 2, 0, 1]], dtype="int32"
)
TARGETS = np.random.default_rng(2).normal(size=(4, 4, 2))


def fit_tokens(optimizer, batch_size=2, one_hot=False, epochs=3):
    model = embedding_model(optimizer, one_hot)
    model.fit(
        TOKENS,
        TARGETS,
        batch_size=batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=0,
    )
    return model


def fit_without_finalizing(model, given):
    """One `fit` step, without the averages that `fit` leaves in the model."""
    model.train_on_batch(
        {f"{name}_gradient": g for name, g in given.items()}, np.zeros(1)
    )
