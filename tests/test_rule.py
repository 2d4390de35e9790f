"""What the shell promises to any rule, shown with small rules of this file."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import ops

from keras_adafactor import Adafactor
from keras_adafactor import AdamWRule
from keras_adafactor import Signum
from keras_adafactor import StateSpec
from keras_adafactor import UpdateRuleOptimizer
from keras_adafactor import state_report
from tests import harness
from tests import oracles

MATRIX = np.linspace(-1.0, 2.0, 12, dtype="float32").reshape(3, 4)
G = np.linspace(0.5, -1.0, 12, dtype="float32").reshape(3, 4)
MODE = harness.MODE


class Rule(UpdateRuleOptimizer):
    """Plain gradient descent, to be given state."""

    def __init__(self, learning_rate=0.1, **kwargs):
        super().__init__(learning_rate, **kwargs)

    def state_spec(self, shape, path):
        return {}

    def update_rule(self, g, x, state, step):
        return step.lr * g, state


def stepper(optimizer, start=MATRIX, mode=MODE):
    """The variable, and a function that takes a step with a gradient."""
    (variable,) = variables = harness.variables([start])
    step = harness.make_step(optimizer, variables, mode)
    return variable, lambda g: step([ops.convert_to_tensor(g)])


def value(variable):
    (array,) = harness.values([variable])
    return array


def slots_of(optimizer):
    ((_, slots),) = optimizer.slots()
    return {name: value(slot) for name, slot in slots.items()}


def spoiled(g, bad):
    g = np.array(g)
    g.flat[1] = bad
    return g


# What a rule returns.


class Returned(Rule):
    """Returns as the step what it was given, or keeps."""

    def __init__(self, what, **kwargs):
        super().__init__(**kwargs)
        self.what = what

    def state_spec(self, shape, path):
        return {"old": StateSpec.like(shape), "new": StateSpec.like(shape)}

    def update_rule(self, g, x, state, step):
        new = state["new"] + g
        found = {"g": g, "x": x, "old": state["old"], "new": new}
        return ops.reshape(found[self.what], x.shape), state | {"new": new}


@pytest.mark.parametrize("what", ["g", "x", "old", "new"])
def test_the_step_may_be_what_a_rule_was_given_or_keeps(what):
    optimizer = Returned(what)
    variable, step = stepper(optimizer)
    g = ops.convert_to_tensor(G)
    step(g)
    taken = {"g": G, "x": MATRIX, "old": np.zeros_like(G), "new": G}[what]
    np.testing.assert_array_equal(value(variable), MATRIX - taken)
    np.testing.assert_array_equal(ops.convert_to_numpy(g), G)
    slots = slots_of(optimizer)
    np.testing.assert_array_equal(slots["old"], np.zeros_like(G))
    np.testing.assert_array_equal(slots["new"], G)


# The guard.


class FullAndBasis(Rule):
    """A momentum and a basis that has not seen the gradient."""

    def state_spec(self, shape, path):
        return {"m": StateSpec.like(shape), "basis": StateSpec((2,), (None,))}

    def update_rule(self, g, x, state, step):
        m = 0.9 * state["m"] + g
        return step.lr * m, {"m": m, "basis": state["basis"] + 1.0}


class IntegersOnly(Rule):
    def state_spec(self, shape, path):
        return {"n": StateSpec((3,), (None,), "int32")}

    def update_rule(self, g, x, state, step):
        return step.lr * g, {"n": state["n"] + 1}


class ScalarOnly(Rule):
    def state_spec(self, shape, path):
        return {"last": StateSpec((), ())}

    def update_rule(self, g, x, state, step):
        return step.lr * g, {"last": step.t}


class Declared(Rule):
    """An entry that says that it sees the gradient, and does not."""

    def state_spec(self, shape, path):
        return {"n": StateSpec((), (), sees_gradient=True)}

    def update_rule(self, g, x, state, step):
        return step.lr * g, {"n": state["n"] + 1.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("rule", [Rule, FullAndBasis, IntegersOnly, ScalarOnly])
def test_guard_asks_the_gradient_where_no_entry_has_seen_it(rule, bad):
    optimizer = rule()
    variable, step = stepper(optimizer)
    step(G)
    before, slots = value(variable), slots_of(optimizer)
    step(spoiled(G, bad))
    np.testing.assert_array_equal(value(variable), before)
    for name, kept in slots_of(optimizer).items():
        np.testing.assert_array_equal(kept, slots[name])
    assert int(optimizer.skipped_updates) == 1


def test_guard_asks_the_entry_that_declares_it():
    # What is declared is believed: no pass over the gradient is made.
    variable, step = stepper(Declared())
    step(spoiled(G, np.nan))
    assert np.isnan(value(variable)).any()


# What a rule leaves alone.


class Untouched(Rule):
    """Every kind of storage, written in the first step only."""

    def state_spec(self, shape, path):
        return {
            "codes": StateSpec.like(shape, "int8_blocks"),
            "half": StateSpec.like(shape, "bfloat16"),
            "signs": StateSpec.like(shape, "sign_bits"),
            "moved": StateSpec.like(shape, "int8_blocks", refreshed=True),
        }

    def is_refresh_due(self, count):
        return ops.equal(count, 0)

    def refresh(self, g, x, state, step):
        return {"moved": g}

    def update_rule(self, g, x, state, step):
        return step.lr * g, state


def test_entry_that_a_step_leaves_alone_stays_bit_for_bit():
    rng = np.random.default_rng(0)
    start = rng.normal(size=(64, 64)).astype("float32")
    optimizer = Untouched()
    variable, step = stepper(optimizer, start)
    step(start)
    ((_, slots),) = optimizer.slots()
    for name in ("codes", "codes_scale", "half", "signs"):
        slot = slots[name]
        drawn = rng.integers(1, 100, size=slot.shape)
        slot.assign(ops.cast(ops.convert_to_tensor(drawn), slot.dtype))
    before = slots_of(optimizer)
    for _ in range(3):
        step(start)
    for name, kept in slots_of(optimizer).items():
        if name != "count":
            np.testing.assert_array_equal(kept, before[name], err_msg=name)
    assert before["moved"].any()


# Refreshes.


class Refreshing(Rule):
    """Keeps the gradient of every third of its steps as a basis."""

    def state_spec(self, shape, path):
        return {
            "basis": StateSpec.like(shape, refreshed=True),
            "m": StateSpec.like(shape),
        }

    def is_refresh_due(self, count):
        return ops.equal(count % 3, 0)

    def refresh(self, g, x, state, step):
        return {"basis": g + state["m"]}

    def update_rule(self, g, x, state, step):
        m = state["m"] + g
        return step.lr * state["basis"], state | {"m": m}


def refreshing(gradients, **arguments):
    """The weights after every gradient, and the optimizer."""
    optimizer = Refreshing(**arguments)
    variable, step = stepper(optimizer)
    found = []
    for g in gradients:
        step(g)
        found.append(value(variable))
    return found, optimizer


def expected_of_refreshing(gradients):
    """The same by hand; `None` is a step that is skipped."""
    x, m, basis, count, found = MATRIX, 0.0, None, 0, []
    for g in gradients:
        if g is not None:
            if count % 3 == 0:
                basis = g + m
            x, m, count = x - 0.1 * basis, m + g, count + 1
        found.append(x)
    return found


GRADIENTS = [G * (1 + i) for i in range(8)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("skipped", [None, 0, 1, 3, 6])
@pytest.mark.parametrize("guard", ["variable", "step"])
def test_refresh_comes_every_third_step_that_is_taken(guard, skipped, bad):
    # Steps 0, 3 and 6 refresh: one that is skipped is made up for.
    given, taken = list(GRADIENTS), list(GRADIENTS)
    if skipped is not None:
        given[skipped], taken[skipped] = spoiled(G, bad), None
    found, optimizer = refreshing(given, skip_nonfinite=guard)
    np.testing.assert_allclose(found, expected_of_refreshing(taken), rtol=1e-5)
    assert int(slots_of(optimizer)["count"]) == 8 - (skipped is not None)


def test_refresh_waits_for_a_gradient_that_is_not_zero():
    zero = np.zeros_like(G)
    found, optimizer = refreshing([zero, zero, G, G, G, zero, G])
    np.testing.assert_array_equal(found[1], MATRIX)
    # Due after three steps with a basis: zero then, so the next one.
    assert int(slots_of(optimizer)["count"]) == 4
    np.testing.assert_allclose(slots_of(optimizer)["basis"], 4 * G, rtol=1e-6)


def test_variable_without_a_gradient_is_refreshed_when_it_has_one():
    optimizer = Refreshing()
    variables = harness.variables([MATRIX, MATRIX])
    optimizer.build(variables)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([None, ops.convert_to_tensor(G)])
    for _ in range(2):
        optimizer.apply([ops.convert_to_tensor(G)] * 2)
    late, early = (slots for _, slots in optimizer.slots())
    assert (int(late["count"]), int(early["count"])) == (2, 3)
    np.testing.assert_allclose(value(late["basis"]), G, rtol=1e-6)


class Failing(Refreshing):
    """Its refresh fails for a gradient that begins with 7."""

    def state_spec(self, shape, path):
        specs = super().state_spec(shape, path)
        identity = replace(specs["basis"], initializer="identity")
        return specs | {"basis": identity}

    def refresh(self, g, x, state, step):
        return {"basis": ops.where(ops.equal(g[0, 0], 7.0), float("nan"), g)}


FAILS = np.where(np.arange(12).reshape(3, 4) == 0, 7.0, G).astype("float32")


@pytest.mark.parametrize("guard", ["variable", "step", None])
def test_failed_first_refresh_takes_the_initial_value(guard):
    optimizer = Failing(skip_nonfinite=guard)
    _, step = stepper(optimizer)
    for g in (FAILS, G, G):
        step(g)
    np.testing.assert_array_equal(slots_of(optimizer)["basis"], np.eye(3, 4))
    step(G)  # the fourth, in which a refresh is due
    np.testing.assert_allclose(slots_of(optimizer)["basis"], G, rtol=1e-6)
    assert int(optimizer.failed_refreshes) == 1
    assert int(optimizer.skipped_updates) == 0


@pytest.mark.parametrize("guard", ["variable", "step", None])
def test_failed_refresh_keeps_the_old_basis_and_tries_again(guard):
    optimizer = Failing(skip_nonfinite=guard)
    variable, step = stepper(optimizer)
    for g in (G, G, G):
        step(g)
    for failures in (1, 2):
        before = value(variable)
        step(FAILS)
        assert int(optimizer.failed_refreshes) == failures
        assert int(slots_of(optimizer)["count"]) == 3
        np.testing.assert_allclose(slots_of(optimizer)["basis"], G, rtol=1e-6)
        assert (value(variable) != before).all()
    step(2 * G)
    assert int(slots_of(optimizer)["count"]) == 4
    np.testing.assert_allclose(slots_of(optimizer)["basis"], 2 * G, rtol=1e-6)
    assert int(optimizer.failed_refreshes) == 2


def test_rule_without_a_refresh_counts_no_failures():
    optimizer = Signum()
    optimizer.build(harness.variables([MATRIX]))
    assert optimizer.failed_refreshes == 0
    assert "failed_refreshes" not in [v.name for v in optimizer.variables]


def test_refresh_with_accumulation_counts_updates():
    given = [g for g in GRADIENTS for _ in range(2)]
    found, _ = refreshing(given, gradient_accumulation_steps=2)
    np.testing.assert_allclose(
        found[1::2], expected_of_refreshing(GRADIENTS), rtol=1e-5
    )


@pytest.mark.skipif(harness.BACKEND != "jax", reason="The program is JAX'.")
def test_refresh_is_computed_under_one_condition():
    import jax  # noqa: PLC0415

    optimizer = Refreshing()
    variables = harness.variables([MATRIX])
    optimizer.build(variables)
    program = jax.make_jaxpr(optimizer.stateless_apply)(
        [v.value for v in optimizer.variables], [G], [variables[0].value]
    )
    names = [equation.primitive.name for equation in program.eqns]
    assert names.count("cond") == 1


# Weight decay, fallback, names.


@pytest.mark.parametrize("order", ["before", "after", "rule"])
def test_weight_decay_comes_when_the_rule_wants_it(order):
    class Decaying(Rule):
        weight_decay_order = order

        def update_rule(self, g, x, state, step):
            delta = step.lr * x
            if order == "rule":
                delta = delta + 100.0 * step.decay
            return delta, state

    variable, step = stepper(Decaying(0.1, weight_decay=0.5))
    step(G)
    expected = {
        "before": MATRIX * 0.95 * 0.9,
        "after": MATRIX * 0.9 * 0.95,
        "rule": MATRIX * 0.9 - 50.0,
    }
    np.testing.assert_allclose(value(variable), expected[order], rtol=1e-6)


def test_fallback_is_decided_by_the_first_pattern_in_the_path():
    x, gradients = harness.problem((7,), steps=20)
    optimizer = Adafactor(
        0.01,
        fallback={
            "embedding": AdamWRule(beta_1=0.5, learning_rate_ratio=0.1),
            "head|embedding": AdamWRule(),
        },
    )
    variables = []
    for name in ("embedding", "head", "other"):
        with keras.name_scope(name):
            variables.append(keras.Variable(x, name="w"))
    step = harness.make_step(optimizer, variables, MODE)
    for g in gradients:
        step([ops.convert_to_tensor(g)] * 3)
    wanted = (
        oracles.AdamW(x, 0.001, 0.5, 0.999),
        oracles.AdamW(x, 0.01),
        oracles.Adafactor(x),
    )
    for variable, oracle in zip(variables, wanted, strict=True):
        for g in gradients:
            oracle.step(g)
        np.testing.assert_allclose(
            value(variable), oracle.x, rtol=1e-5, atol=1e-6
        )
    report = state_report(optimizer)
    assert [row.rule for row in report.rows] == [
        "AdamWRule",
        "AdamWRule",
        "Adafactor",
    ]
    assert report.total_bytes == 4 * (14 + 14 + 7)


def test_adamw_of_a_fallback_agrees_with_pytorch():
    torch = pytest.importorskip("torch", reason="pip install torch")
    x, gradients = harness.problem((6, 4), steps=10)
    weight = torch.nn.Parameter(torch.tensor(x.astype("float64")))
    theirs = torch.optim.AdamW([weight], lr=0.01, weight_decay=0.1)
    for g in gradients:
        weight.grad = torch.tensor(g.astype("float64"))
        theirs.step()
    ours = Adafactor(
        0.01, relative_step=False, weight_decay=0.1, fallback=["w0"]
    )
    got = harness.trace(ours, x, gradients, MODE)[-1]
    np.testing.assert_allclose(got, weight.detach().numpy(), atol=1e-6)


def test_any_number_of_entries_has_noise_of_its_own():
    class Many(Rule):
        def state_spec(self, shape, path):
            return {
                f"e{i}": StateSpec.like(shape, "bfloat16") for i in range(40)
            }

        def update_rule(self, g, x, state, step):
            return g, {name: old + 1.001 for name, old in state.items()}

    optimizer = Many()
    _, step = stepper(optimizer, np.zeros((64,), "float32"))
    step(np.ones((64,), "float32"))
    found = list(slots_of(optimizer).values())
    assert len({array.tobytes() for array in found}) == 40


@pytest.mark.parametrize("name", ["count", "average", "gradient_accumulator"])
def test_names_of_the_shell_are_no_names_of_entries(name):
    class Taken(Rule):
        def state_spec(self, shape, path):
            return {name: StateSpec.like(shape)}

    with pytest.raises(ValueError, match=f"must not be named.*{name}"):
        Taken().build(harness.variables([MATRIX]))


def test_noise_of_a_step_is_the_same_again_and_different_later():
    steps = [harness.step_at(t, 0.1) for t in (1, 1, 2)]
    first, same, later = (
        ops.convert_to_numpy(step.normal((400, 25))) for step in steps
    )
    np.testing.assert_array_equal(first, same)
    assert abs(np.corrcoef(first.ravel(), later.ravel())[0, 1]) < 0.05
    salted = ops.convert_to_numpy(steps[0].normal((400, 25), salt=1))
    assert abs(np.corrcoef(first.ravel(), salted.ravel())[0, 1]) < 0.05
    assert abs(first.mean()) < 0.05
    assert abs(first.std() - 1) < 0.03
    assert np.abs(first).max() < 5
