"""Other optimizers, other variables and constraints beside it."""

import keras
import numpy as np
import pytest

from keras_adafactor import Adafactor
from tests import oracles
from tests.fit.common import MATRIX
from tests.fit.common import SHAPES
from tests.fit.common import STARTS
from tests.fit.common import VECTOR
from tests.fit.common import assert_close
from tests.fit.common import expected
from tests.fit.common import oracle_of
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model
from tests.probe import weights


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"),
    reason="this Keras has no MultiOptimizer yet",
)
def test_multi_optimizer_gives_each_its_own_variables():
    given = gradients(3, SHAPES)
    ours, adam = Adafactor(0.1), keras.optimizers.Adam(0.1)
    model = probe_model(
        STARTS,
        keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(ours, {"bias/.*": adam})
        ),
    )
    fit(model, given)
    reference = oracles.Adam(VECTOR, 0.1, 0.9, 0.999, 1e-7)
    for g in given["bias"]:
        reference.step(g)
    desired = expected(given, learning_rate=0.1)
    desired["bias"] = reference.x
    assert_close(weights(model), desired, tolerance=1e-5)
    assert [path for path, _ in ours.slots()] == ["encoder/w"]


def test_unknown_variables_are_refused():
    optimizer = Adafactor()
    fit(probe_model(STARTS, optimizer), gradients(1, SHAPES))
    with pytest.raises(ValueError, match="Unknown variable|was built with"):
        fit(
            probe_model({"other": MATRIX}, optimizer),
            gradients(1, {"other": (3, 4)}),
        )


def test_constraints_hold_after_the_step():
    given = gradients(4, SHAPES)
    model = probe_model(
        STARTS,
        Adafactor(0.5),
        constraints={"bias": keras.constraints.NonNeg()},
    )
    fit(model, given)
    free = oracle_of(MATRIX, learning_rate=0.5)
    held = oracle_of(VECTOR, learning_rate=0.5)
    for g, h in zip(given["encoder"], given["bias"], strict=True):
        free.step(g)
        held.x = np.maximum(held.step(h), 0)
    desired = {"encoder": free.x, "bias": held.x}
    assert_close(weights(model), desired)
