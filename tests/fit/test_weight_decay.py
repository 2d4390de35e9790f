"""Weight decay, and who is excluded from it."""

import keras
import pytest

from keras_adafactor import Adafactor
from tests.fit.common import SHAPES
from tests.fit.common import STARTS
from tests.fit.common import assert_close
from tests.fit.common import expected
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model
from tests.probe import weights


def run_with_decay(exclude, given):
    optimizer = Adafactor(0.1, relative_step=False, weight_decay=0.5)
    model = probe_model(STARTS, optimizer)
    optimizer.exclude_from_weight_decay(**exclude(model))
    fit(model, given)
    return model


@pytest.mark.parametrize(
    ("exclude", "decayed"),
    [
        (lambda m: {}, {"encoder", "bias"}),
        (lambda m: {"var_names": ["bias"]}, {"encoder"}),
        (lambda m: {"var_names": ["^encoder/"]}, {"bias"}),
        # The whole path: the variables' own names are all "w".
        (lambda m: {"var_names": ["enc.*/w$", "nothing"]}, {"bias"}),
        (lambda m: {"var_names": ["w"]}, set()),
        (lambda m: {"var_list": [m.trainable_variables[1]]}, {"encoder"}),
        (
            lambda m: {
                "var_list": [m.trainable_variables[1]],
                "var_names": ["encoder"],
            },
            set(),
        ),
    ],
)
def test_weight_decay_leaves_out_what_was_excluded(exclude, decayed):
    given = gradients(3, SHAPES)
    model = run_with_decay(exclude, given)
    desired = expected(given, [0.1] * 3, {name: 0.5 for name in decayed})
    assert_close(weights(model), desired)


def test_weight_decay_follows_the_schedule():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [0, 1], [0.3, 0.2, 0.1]
    )
    given = gradients(3, SHAPES)
    model = probe_model(STARTS, Adafactor(schedule, weight_decay=0.5))
    fit(model, given)
    decay = dict.fromkeys(STARTS, 0.5)
    desired = expected(given, [0.3, 0.2, 0.1], decay)
    assert_close(weights(model), desired)


def test_weight_decay_exclusion_survives_the_config():
    optimizer = Adafactor(0.1, relative_step=False, weight_decay=0.5)
    model = probe_model(STARTS)
    optimizer.exclude_from_weight_decay(
        var_list=[model.trainable_variables[0]], var_names=["nothing"]
    )
    copy = Adafactor.from_config(optimizer.get_config())
    model.compile(copy, loss=lambda y_true, y_pred: y_pred)
    given = gradients(3, SHAPES)
    fit(model, given)
    assert_close(weights(model), expected(given, [0.1] * 3, {"bias": 0.5}))


def test_exclusion_after_build_is_an_error():
    optimizer = Adafactor(weight_decay=0.5)
    optimizer.build(probe_model(STARTS).trainable_variables)
    with pytest.raises(ValueError, match="before the optimizer is built"):
        optimizer.exclude_from_weight_decay(var_names=["bias"])
