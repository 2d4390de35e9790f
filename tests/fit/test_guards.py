"""NaN and infinity: what each guard skips."""

import numpy as np
import pytest

from keras_adafactor import Adafactor
from tests.fit.common import MATRIX
from tests.fit.common import SHAPES
from tests.fit.common import STARTS
from tests.fit.common import VECTOR
from tests.fit.common import assert_close
from tests.fit.common import assert_equal
from tests.fit.common import expected
from tests.fit.common import fit_without_finalizing
from tests.fit.common import oracle_of
from tests.probe import as_numpy
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model
from tests.probe import state
from tests.probe import weights

BAD_STEP = 4  # counted from 0: late enough for an average to be slow


def poisoned(value):
    """Gradients of which one step has one bad element, in "bias"."""
    given = gradients(7, SHAPES)
    given["bias"][BAD_STEP, 2] = value
    return given


def without_step(given, step):
    return np.delete(given, step, axis=0)


BAD = [np.nan, np.inf, -np.inf, 1e25]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    "setting", [{}, {"record_update_rms": True}, {"beta_1": 0.9}], ids=str
)
def test_guard_of_a_variable_skips_the_variable_alone(value, setting):
    given = poisoned(value)
    optimizer = Adafactor(**setting)
    model = probe_model(STARTS, optimizer)
    fit(model, given)
    arguments = {"beta_1": 0.9} if "beta_1" in setting else {}
    oracle = oracle_of(VECTOR, **arguments)
    for step, g in enumerate(given["bias"]):
        if step == BAD_STEP:
            oracle.t += 1  # the counter goes on
        else:
            oracle.step(g)
    desired = expected({"encoder": given["encoder"]},
                       starts={"encoder": MATRIX}, **arguments)  # fmt: skip
    assert_close(weights(model), desired | {"bias": oracle.x})
    assert int(as_numpy(optimizer.skipped_updates)) == 1


@pytest.mark.parametrize("value", BAD)
def test_guard_of_a_variable_sees_into_a_matrix(value):
    given = gradients(3, SHAPES)
    given["encoder"][1, 2, 1] = value
    model = probe_model(STARTS, Adafactor(beta_1=0.9))
    model.optimizer.build(model.trainable_variables)
    rows = [{name: g[i : i + 1] for name, g in given.items()} for i in range(3)]
    fit_without_finalizing(model, rows[0])
    before = state(model)
    fit_without_finalizing(model, rows[1])
    after = state(model)
    for name, x in before.items():
        if "encoder" in name:
            np.testing.assert_array_equal(x, after[name], err_msg=name)
    assert (before["bias"] != after["bias"]).any()
    fit_without_finalizing(model, rows[2])
    assert (state(model)["encoder"] != before["encoder"]).any()


@pytest.mark.parametrize("value", BAD)
def test_guard_of_a_step_skips_the_whole_step(value):
    given = poisoned(value)
    optimizer = Adafactor(
        0.1, skip_nonfinite="step", use_ema=True, ema_momentum=0.5
    )
    model = probe_model(STARTS, optimizer)
    fit(model, given)
    rest = {name: without_step(g, BAD_STEP) for name, g in given.items()}
    clean = probe_model(
        STARTS,
        Adafactor(0.1, skip_nonfinite="step", use_ema=True, ema_momentum=0.5),
    )
    fit(clean, rest)
    assert_equal(weights(model), weights(clean))
    assert int(as_numpy(optimizer.iterations)) == 6
    assert int(as_numpy(optimizer.skipped_updates)) == 1


def test_guard_of_a_step_can_skip_the_first():
    given = gradients(3, SHAPES)
    given["bias"][0] = np.nan
    model = probe_model(STARTS, Adafactor(skip_nonfinite="step"))
    fit(model, given)
    rest = {name: without_step(g, 0) for name, g in given.items()}
    assert_close(weights(model), expected(rest))


def test_guard_of_a_step_keeps_the_accumulated_gradients():
    setting = {"skip_nonfinite": "step", "gradient_accumulation_steps": 2}
    given = gradients(5, SHAPES)
    given["encoder"][1, 0, 0] = np.inf
    model = probe_model(STARTS, Adafactor(0.1, **setting))
    fit(model, given)
    rest = {name: without_step(g, 1) for name, g in given.items()}
    clean = probe_model(STARTS, Adafactor(0.1, **setting))
    fit(clean, rest)
    assert_equal(weights(model), weights(clean))
    assert int(as_numpy(model.optimizer.skipped_updates)) == 1


def test_guard_of_a_variable_drops_the_accumulated_gradient():
    given = gradients(4, SHAPES)
    given["bias"][0, 0] = np.nan
    optimizer = Adafactor(0.1, gradient_accumulation_steps=2)
    model = probe_model(STARTS, optimizer)
    fit(model, given)
    assert int(as_numpy(optimizer.skipped_updates)) == 1
    assert np.isfinite(weights(model)["bias"]).all()
    assert (weights(model)["bias"] != VECTOR).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e25])
@pytest.mark.parametrize("accumulation", [None, 2])
@pytest.mark.parametrize("clip", ["clipnorm", "clipvalue"])
def test_guard_of_a_variable_looks_before_clipping(value, accumulation, clip):
    # Clipped, infinity would be an ordinary value and the rest zero.
    given = gradients(6, SHAPES)
    given["bias"][2, 0] = value
    setting = {clip: 0.5, "gradient_accumulation_steps": accumulation}
    model = probe_model(STARTS, Adafactor(0.1, **setting))
    model.optimizer.build(model.trainable_variables)
    fit(model, {name: g[:2] for name, g in given.items()})
    before = state(model)
    fit(model, {name: g[2:4] for name, g in given.items()}, batch_size=2)
    if accumulation:
        fit(model, {name: g[:1] for name, g in given.items()})
    after = state(model)
    assert int(as_numpy(model.optimizer.skipped_updates)) == 1
    same = [k for k, x in before.items() if np.array_equal(x, after[k])]
    assert {k for k in before if "bias" in k} <= set(same)
    assert not any("encoder" in k for k in same if "accum" not in k)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e25])
def test_guard_of_a_variable_skips_all_that_is_clipped_together(value):
    given = gradients(3, SHAPES)
    given["bias"][1, 0] = value
    model = probe_model(STARTS, Adafactor(0.1, global_clipnorm=0.5))
    fit(model, given)
    rest = {name: without_step(g, 1) for name, g in given.items()}
    clean = probe_model(STARTS, Adafactor(0.1, global_clipnorm=0.5))
    fit(clean, {name: g[:1] for name, g in rest.items()})
    before = state(clean)
    clean.optimizer.iterations.assign(2)
    fit(clean, {name: g[1:] for name, g in rest.items()})
    assert_equal(weights(model), weights(clean))
    assert (weights(model)["encoder"] != before["encoder"]).any()
    assert int(as_numpy(model.optimizer.skipped_updates)) == len(STARTS)


def test_without_guard_nan_reaches_the_weights():
    model = probe_model(STARTS, Adafactor(skip_nonfinite=None))
    fit(model, poisoned(np.nan))
    assert np.isnan(weights(model)["bias"]).all()
    assert np.isfinite(weights(model)["encoder"]).all()
    assert model.optimizer.skipped_updates == 0


def test_first_step_can_be_skipped_for_one_variable():
    given = gradients(3, SHAPES)
    given["encoder"][0] = np.nan
    model = probe_model(STARTS, Adafactor())
    fit(model, given)
    assert np.isfinite(weights(model)["encoder"]).all()
    assert (weights(model)["encoder"] != MATRIX).any()
