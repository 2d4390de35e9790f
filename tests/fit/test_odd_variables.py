"""Variables out of the ordinary."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_adafactor import Adafactor
from tests.fit.common import MATRIX
from tests.fit.common import VECTOR
from tests.probe import as_numpy
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model
from tests.probe import state
from tests.probe import weights


@pytest.mark.parametrize("shape", [(4, 3), (3, 1), (12,), ()], ids=str)
def test_gradient_of_another_shape_is_an_error(shape):
    variable = keras.Variable(MATRIX, name="a")
    with pytest.raises(Exception, match=r"(?i)shape.*\[?\(?3, ?4"):
        Adafactor().apply([ops.ones(shape)], [variable])
    np.testing.assert_array_equal(as_numpy(variable), MATRIX)


def test_variable_without_a_gradient_keeps_everything():
    variables = [
        keras.Variable(MATRIX, name="a"), keras.Variable(VECTOR, name="b")
    ]  # fmt: skip
    optimizer = Adafactor(0.1, weight_decay=0.5, use_ema=True)
    given = gradients(3, {"a": (3, 4), "b": (5,)})
    optimizer.apply([given["a"][0], given["b"][0]], variables)
    before = [as_numpy(v) for v in (variables[1], *optimizer.variables)]
    names = ["b", *(v.path for v in optimizer.variables)]
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([given["a"][1], None], variables)
    after = [as_numpy(v) for v in (variables[1], *optimizer.variables)]
    for name, x, y in zip(names, before, after, strict=True):
        if "b_v" in name or name == "b":
            np.testing.assert_array_equal(x, y, err_msg=name)
    assert (as_numpy(variables[0]) != MATRIX).any()


def test_overwrite_with_gradient_variable_is_overwritten():
    variables = [keras.Variable(MATRIX, name="a"), keras.Variable(1.0)]
    variables[1].overwrite_with_gradient = True
    optimizer = Adafactor(0.1, weight_decay=0.5, use_ema=True, beta_1=0.9)
    given = gradients(3, {"a": (3, 4)})["a"]
    for g in given:
        optimizer.apply(
            [ops.convert_to_tensor(g), ops.convert_to_tensor(7.0)], variables
        )
    assert float(as_numpy(variables[1])) == 7.0
    assert dict(optimizer.slots()[1:]) == {variables[1].path: {}}
    optimizer.finalize_variable_values(variables)
    assert float(as_numpy(variables[1])) == 7.0


@pytest.mark.parametrize("beta_1", [None, 0.9])
@pytest.mark.parametrize("guard", ["variable", "step", None])
def test_odd_shapes_train(beta_1, guard):
    shapes = {
        "empty": (0, 3),
        "empty_vector": (0,),
        "scalar": (),
        "one": (1, 1),
        "rank_5": (2, 1, 3, 2, 2),
    }
    starts = {name: np.ones(shape) for name, shape in shapes.items()}
    optimizer = Adafactor(
        0.1, beta_1=beta_1, skip_nonfinite=guard, record_update_rms=True
    )
    model = probe_model(starts, optimizer)
    fit(model, gradients(3, shapes))
    for name, weight in weights(model).items():
        assert np.isfinite(weight).all(), name
        assert (weight != 1).all(), name
    assert all(np.isfinite(v).all() for v in state(model).values())
    assert int(as_numpy(ops.convert_to_tensor(optimizer.skipped_updates))) == 0


def test_wrong_axis_groups_are_the_same_error_every_time():
    def wrong(shape, path):
        return "diagonal"

    optimizer = Adafactor(axis_groups=wrong)
    variables = [keras.Variable(MATRIX, name="a")]
    for _ in range(2):
        with pytest.raises(ValueError, match="Axis groups must be .*'a'"):
            optimizer.build(variables)
