"""Small variables of one kind are updated together, as one array.

Nothing but time may tell: what each becomes is what it becomes alone.
"""

import keras
import numpy as np
import pytest
from keras import ops

from keras_adafactor import SOAP
from keras_adafactor import Adafactor
from keras_adafactor import Adalayer
from keras_adafactor import AdamWRule
from keras_adafactor import AxisGroups
from keras_adafactor import StateSpec
from keras_adafactor import UpdateRuleOptimizer
from tests import harness
from tests.optimizers import MAIN

SHAPES = [(7,), (3, 4), (7,), (2, 3, 4), (3, 4), (), (7,), (2, 3, 4), ()]
# XLA and TensorFlow sum in another order: some last bits of what is summed.
TOLERANCE = {"tensorflow": 1e-5, "jax": 1e-5, "torch": 1e-7}[harness.BACKEND]


def problems(shapes, steps, spoiled=()):
    rng = np.random.default_rng(1)
    starts = [rng.normal(size=s).astype("float32") for s in shapes]
    gradients = [
        [rng.normal(size=s).astype("float32") for s in shapes]
        for _ in range(steps)
    ]
    for step, position in spoiled:
        gradients[step][position].flat[0] = np.nan
    return starts, gradients


def after(make, largest, monkeypatch, dtype="float32", **given):
    """All variables of model and optimizer, and the optimizer."""
    monkeypatch.setattr(UpdateRuleOptimizer, "_largest_together", largest)
    optimizer = make()
    starts, gradients = problems(SHAPES, 5, **given)
    made = harness.run(optimizer, starts, gradients, harness.MODE, dtype)
    slots = [v for _, s in optimizer.slots() for v in s.values()]
    return harness.values([*made, *slots]), optimizer


def kinds_of(optimizer, shapes, **given):
    """Positions of the variables that are updated together."""
    variables = [
        keras.Variable(np.zeros(shape, "float32"), **given) for shape in shapes
    ]
    optimizer.build(variables)
    members = optimizer._tracked
    return sorted(optimizer._kinds_of(members))


EXTRAS = [
    {},
    {
        "weight_decay": 0.1,
        "use_ema": True,
        "ema_overwrite_frequency": 3,
        "clipnorm": 1.0,
    },
]


@pytest.mark.parametrize("extra", EXTRAS, ids=["plain", "keywords"])
@pytest.mark.parametrize("row", MAIN, ids=lambda row: row.name)
def test_each_is_updated_as_it_is_alone(row, extra, monkeypatch):
    given = {"spoiled": [(3, 2), (4, 4)]}

    def make():
        return row.optimizer(**extra)

    together, optimizer = after(make, 4096, monkeypatch, **given)
    alone, _ = after(make, 0, monkeypatch, **given)
    assert int(ops.convert_to_numpy(optimizer.skipped_updates)) == 2
    assert len(optimizer._kinds_of(optimizer._tracked)) < len(SHAPES)
    for got, expected in zip(together, alone, strict=True):
        scale = np.abs(expected).max(initial=1e-30)
        assert np.abs(got - expected).max(initial=0) <= TOLERANCE * scale


@pytest.mark.parametrize("guard", [None, "step"])
def test_the_other_guards_hold(guard, monkeypatch):
    def make():
        return Adafactor(skip_nonfinite=guard)

    spoiled = [] if guard is None else [(2, 0)]
    together, _ = after(make, 4096, monkeypatch, spoiled=spoiled)
    alone, _ = after(make, 0, monkeypatch, spoiled=spoiled)
    for got, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_noise_is_each_one_s_own(monkeypatch):
    def make():
        return Adafactor(0.001, beta_1=0.9, momentum_dtype="bfloat16")

    together, _ = after(make, 4096, monkeypatch, dtype="bfloat16")
    alone, _ = after(make, 0, monkeypatch, dtype="bfloat16")
    for got, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-2)
        assert (got == expected).mean() > 0.9

    same = np.full((3, 50), 0.1, "float32")
    made = harness.run(
        Adafactor(1e-4), [same] * 4, [[same] * 4], harness.MODE, "bfloat16"
    )
    assert len({array.tobytes() for array in harness.values(made)}) == 4


def test_some_of_a_kind_may_have_no_gradient():
    starts, (gradients,) = problems([(3, 4)] * 3, 1)
    made = harness.variables(starts)
    optimizer = Adafactor()
    optimizer.build(made)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply(
            [ops.convert_to_tensor(gradients[0]), None]
            + [ops.convert_to_tensor(gradients[2])]
        )
    moved = [
        not np.array_equal(value, start)
        for value, start in zip(harness.values(made), starts, strict=True)
    ]
    assert moved == [True, False, True]


def test_what_is_of_one_kind():
    small = [(3, 4), (5,), (3, 4), (5,)]
    assert kinds_of(Adafactor(), small) == [[0, 2], [1, 3]]
    large = [(64, 65), (64, 65), (64, 64), (64, 64)]
    assert kinds_of(Adafactor(), large) == [[0], [1], [2, 3]]
    # A condition would compute all of its branches.
    assert kinds_of(SOAP(), small) == [[0], [1, 3], [2]]
    each = [[i] for i in range(4)]
    accumulating = Adafactor(gradient_accumulation_steps=2)
    assert kinds_of(accumulating, small) == each


@pytest.mark.parametrize(
    "make",
    [
        lambda: Adafactor(exclude_from_parameter_scale="norm"),
        lambda: Adafactor(
            axis_groups={"norm": AxisGroups(), ".*": AxisGroups((0,), (1,))}
        ),
        lambda: Adalayer(blocks={"norm": "rows", ".*": "columns"}),
        lambda: Adafactor(fallback={"norm": AdamWRule()}),
    ],
    ids=["scale", "axis_groups", "blocks", "fallback"],
)
def test_what_a_path_decides_tells_kinds_apart(make):
    variables = [
        keras.Variable(np.ones((3, 4), "float32"), name=name)
        for name in ("kernel", "norm", "other")
    ]
    optimizer = make()
    optimizer.build(variables)
    assert sorted(optimizer._kinds_of(optimizer._tracked)) == [[0, 2], [1]]


def test_a_variable_that_does_not_decay_is_of_another_kind():
    variables = [
        keras.Variable(np.ones(4, "float32"), name=name)
        for name in ("kernel", "bias")
    ]
    optimizer = Adafactor(weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(variables)
    assert sorted(optimizer._kinds_of(optimizer._tracked)) == [[0], [1]]


class ByPath(UpdateRuleOptimizer):
    """A rule that asks its step for the path."""

    def __init__(self, learning_rate=0.1, **kwargs):
        super().__init__(learning_rate, **kwargs)

    def state_spec(self, shape, path):
        return {"m": StateSpec.like(shape)}

    def update_rule(self, g, x, state, step):
        rate = 2.0 if "first" in step.path else 1.0
        return rate * step.lr * g, state


class ByPathToo(Adafactor):
    def update_rule(self, g, x, state, step):
        delta, state = super().update_rule(g, x, state, step)
        return (2.0 if "first" in step.path else 1.0) * delta, state


@pytest.mark.parametrize("make", [ByPath, ByPathToo])
def test_a_rule_that_may_read_the_path_sees_each_variable_s(make):
    one = np.ones((3, 4), "float32")
    variables = [keras.Variable(one, name=name) for name in ("first", "second")]
    optimizer = make(0.01)
    optimizer.apply([ops.convert_to_tensor(one)] * 2, variables)
    first, second = (1.0 - value for value in harness.values(variables))
    np.testing.assert_allclose(first, 2.0 * second, rtol=1e-4)
