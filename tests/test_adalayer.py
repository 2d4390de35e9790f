"""Adalayer: blocks, the freeze, and what it is a case of."""

import numpy as np
import pytest

from keras_adafactor import Adalayer
from tests import harness
from tests import oracles

MODE = harness.MODE


def final(optimizer, x, gradients):
    (variable,) = harness.run(optimizer, [x], [[g] for g in gradients], MODE)
    return harness.values([variable])[0]


def slot(optimizer, name):
    ((_, slots),) = optimizer.slots()
    return harness.values([slots[name]])[0]


def follow(oracle, gradients):
    for g in gradients:
        oracle.step(g)
    return oracle.x


@pytest.mark.parametrize("blocks", ["columns", "rows", 7])
def test_with_an_entry_a_block_is_adam(blocks):
    x, gradients = harness.problem((7,), steps=6)
    adam = oracles.Adam(x, 1e-2, 0.9, 0.95, 1e-15)
    got = final(Adalayer(1e-2, blocks={"w": blocks}), x, gradients)
    np.testing.assert_allclose(got, follow(adam, gradients), atol=1e-6)


def test_parts_are_variables_of_their_own():
    x, gradients = harness.problem((4, 6), steps=6)
    together = final(Adalayer(blocks={"w": 3}), x, gradients)
    for part in range(3):
        columns = slice(2 * part, 2 * part + 2)
        alone = final(Adalayer(), x[:, columns], gradients[:, :, columns])
        np.testing.assert_allclose(together[:, columns], alone, atol=1e-6)


def test_the_first_expression_that_is_found_decides():
    optimizer = Adalayer(
        blocks={"out/kernel": "columns", "embed": "rows", "kernel": 3, "b": 1}
    )
    for path, shape, sizes in [
        ("out/kernel", (4, 6), (6,)),
        ("in/kernel", (4, 6), (3,)),
        ("embed", (4, 6), (4,)),
        ("in/bias", (6,), (1,)),
        ("norm/gamma", (6,), ()),
        ("embed/scale", (), ()),
    ]:
        assert optimizer.state_spec(shape, path)["v"].shape == sizes


@pytest.mark.parametrize("blocks", ["variable", "columns", "rows", 2])
def test_blocks_without_gradient_stay_still(blocks):
    x, gradients = harness.problem((4, 6), steps=4)
    gradients[:, :2] = 0.0
    gradients[:, :, :3] = 0.0
    got = final(Adalayer(blocks={"w": blocks}), x, gradients)
    np.testing.assert_array_equal(got[:2], x[:2])
    np.testing.assert_array_equal(got[:, :3], x[:, :3])
    assert (got[2:, 3:] != x[2:, 3:]).all()


def test_steps_are_bounded_after_the_last_gradient():
    x, gradients = harness.problem((4, 6), steps=200, decades=0.0)
    gradients[5:] = 0.0
    got = final(Adalayer(1e-3), x, gradients)
    # Nowhere is momentum larger than sqrt(24) times the root of `v`.
    assert np.abs(got - x).max() <= 200 * 1e-3 * np.sqrt(24)


def test_measures_then_freezes():
    x, gradients = harness.problem((4, 6), steps=5, decades=0.0)
    optimizer = Adalayer(0.1, freeze_after=3, weight_decay=0.1)
    (variable,) = variables = harness.variables([x])
    step = harness.make_step(optimizer, variables, MODE)
    squares = (gradients**2).mean((1, 2))
    for t, g in enumerate(gradients, start=1):
        step([g])
        (now,) = harness.values([variable])
        # Not even its decay moves a weight that is measured.
        assert np.array_equal(now, x) == (t <= 3)
        counted = squares[: min(t, 3)]
        np.testing.assert_allclose(
            slot(optimizer, "v"), counted.sum() / (len(counted) + 1), rtol=1e-6
        )


@pytest.mark.parametrize("late", [0, 1])
def test_a_block_without_gradient_is_measured_when_it_has_one(late):
    x, gradients = harness.problem((4, 6), steps=8, decades=0.0)
    gradients[: 3 + late, 0] = 0.0
    optimizer = Adalayer(1e-3, blocks={"w": "rows"}, freeze_after=3)
    got = final(optimizer, x, gradients)
    # Nowhere was it divided by epsilon.
    assert np.abs(got - x).max() < 5 * 1e-3 * np.sqrt(6) * 10
    first = np.mean(np.square(gradients[3 + late, 0]))
    assert slot(optimizer, "v")[0] == pytest.approx(first, rel=1e-6)
    assert (got[0] != x[0]).all()


def test_what_keeps_adapting_is_not_frozen():
    x, gradients = harness.problem((4, 6), steps=6, decades=0.0)
    arguments = {"learning_rate": 1e-2, "freeze_after": 3}
    optimizer = Adalayer(keep_adapting=["^w"], **arguments)
    oracle = oracles.Adalayer(x, keep_adapting=True, **arguments)
    got = final(optimizer, x, gradients)
    np.testing.assert_allclose(got, follow(oracle, gradients), atol=1e-6)
    np.testing.assert_allclose(
        slot(optimizer, "v"), np.squeeze(oracle.v), rtol=1e-6
    )


def test_a_poisoned_gradient_leaves_what_is_frozen():
    x, gradients = harness.problem((4, 6), steps=3, decades=0.0)
    optimizer = Adalayer(freeze_after=1)
    (variable,) = variables = harness.variables([x])
    step = harness.make_step(optimizer, variables, MODE)
    step([gradients[0]])
    step([gradients[1]])
    before = [*harness.values([variable]), slot(optimizer, "v")]
    for poison in (np.nan, np.inf, 1e30):
        bad = gradients[2].copy()
        bad[0, 0] = poison
        step([bad])
        after = [*harness.values([variable]), slot(optimizer, "v")]
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(old, new)
    assert int(optimizer.skipped_updates) == 3


def test_saves_its_blocks():
    optimizer = Adalayer(blocks={"out": "columns", "qkv": 3})
    again = Adalayer.from_config(optimizer.get_config())
    assert again.blocks == {"out": "columns", "qkv": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocks": "columns"}, "`blocks` must be a dict from regular"),
        ({"blocks": {"w": "heads"}}, "`blocks` must be a dict from regular"),
        ({"blocks": {"w": 0}}, "`blocks` must be a dict from regular"),
        ({"blocks": {"w": True}}, "`blocks` must be a dict from regular"),
        (
            {"blocks": {"(": "rows"}},
            "`blocks` must be a valid regular",
        ),
        ({"freeze_after": 0}, "`freeze_after` must be an integer >= 1"),
        ({"keep_adapting": "w"}, "None unless `freeze_after` is given"),
        ({"epsilon": 0.0}, "`epsilon` must be a number > 0"),
        ({"momentum_dtype": "float8"}, "`momentum_dtype` must be one of"),
    ],
)
def test_refuses_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Adalayer(**arguments)


def test_refuses_parts_that_do_not_divide_the_last_axis():
    variables = harness.variables([np.zeros((4, 6))])
    with pytest.raises(ValueError, match="a divisor of the last axis of .*w0"):
        Adalayer(blocks={"w": 4}).build(variables)
