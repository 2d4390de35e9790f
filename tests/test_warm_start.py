"""An optimizer that takes over has the statistics it would have had by then."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_adafactor import CAME
from keras_adafactor import COAP
from keras_adafactor import SMMF
from keras_adafactor import SOAP
from keras_adafactor import Adafactor
from keras_adafactor import Adalayer
from keras_adafactor import AdamWRule
from keras_adafactor import AxisGroups
from keras_adafactor import FAdam
from keras_adafactor import HFac
from keras_adafactor import Lion
from keras_adafactor import Signum
from keras_adafactor import SubsetNorm
from keras_adafactor import SubspaceMomentum
from keras_adafactor import warm_start
from tests.harness import MODE
from tests.harness import run
from tests.harness import values
from tests.optimizers import MAIN
from tests.probe import as_numpy

SHAPES = [(4, 6), (5,), (2, 3, 8)]
STEPS = 6


def tensors(seed=0, shapes=SHAPES, steps=STEPS):
    """Starts, and gradients that differ from entry to entry and have a mean."""
    rng = np.random.default_rng(seed)
    starts = [rng.normal(size=s).astype("float32") for s in shapes]
    means = [rng.normal(size=s) for s in shapes]
    given = [
        [(m + rng.normal(size=m.shape)).astype("float32") for m in means]
        for _ in range(steps)
    ]
    return starts, given


def trained(optimizer, given=None, starts=None):
    """The variables that an optimizer was trained on."""
    start, gradients = tensors()
    given = given or gradients
    mode = MODE if len(given) > 10 else "eager"
    return run(optimizer, starts or start, given, mode)


def second_moments(given, beta, debias=True):
    """Of every variable, in float64: `E[g ** 2]` as its definition has it."""
    weights = (1 - beta) * beta ** np.arange(len(given))[::-1]
    scale = weights.sum() if debias else 1.0
    return [
        sum(w * np.square(row[i], dtype="float64")
            for w, row in zip(weights, given, strict=True)) / scale
        for i in range(len(given[0]))
    ]  # fmt: skip


def slots(optimizer):
    """Slot name -> array, of every variable."""
    return [
        {name: as_numpy(slot) for name, slot in named.items()}
        for _, named in optimizer.slots()
    ]


# Adam's statistics, and others', in Adafactor.


def keras_adafactor_moment(given):
    """What `keras.optimizers.Adafactor` divides by, from its definition."""
    moments = []
    for i in range(len(given[0])):
        v = row = col = 0.0
        for t, gradients in enumerate(given, 1):
            g = np.square(gradients[i], dtype="float64") + 1e-30
            beta = 1.0 - t**-0.8
            v = beta * v + (1 - beta) * g
            if g.ndim > 1:
                row = beta * row + (1 - beta) * g.mean(-1, keepdims=True)
                col = beta * col + (1 - beta) * g.mean(-2, keepdims=True)
        if v.ndim > 1:
            v = row / row.mean(-2, keepdims=True) * col
        moments.append(v)
    return moments


def amsgrad_moment(given):
    largest = []
    for i in range(len(given[0])):
        v = highest = 0.0
        for gradients in given:
            v = 0.9 * v + 0.1 * np.square(gradients[i], dtype="float64")
            highest = np.maximum(highest, v)
        largest.append(highest / (1 - 0.9 ** len(given)))
    return largest


SOURCES = {
    "adam": (
        lambda: keras.optimizers.Adam(0.1),
        lambda given: second_moments(given, 0.999),
    ),
    "adamw": (
        lambda: keras.optimizers.AdamW(0.1, beta_2=0.95),
        lambda given: second_moments(given, 0.95),
    ),
    "amsgrad": (
        lambda: keras.optimizers.Adam(0.1, beta_2=0.9, amsgrad=True),
        amsgrad_moment,
    ),
    "rmsprop": (
        lambda: keras.optimizers.RMSprop(0.1, rho=0.8, momentum=0.5),
        lambda given: second_moments(given, 0.8),
    ),
    "adafactor": (
        lambda: keras.optimizers.Adafactor(0.1),
        keras_adafactor_moment,
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_factors_are_means_of_the_second_moment(name):
    made, expected = SOURCES[name]
    _, given = tensors()
    source = made()
    trained(source)
    optimizer = Adafactor(
        axis_groups={"w2": AxisGroups(rows=(1,), cols=(2,), batch=(0,))}
    )
    report = warm_start(optimizer, source)
    assert report.complete and report.iterations == STEPS
    assert int(as_numpy(optimizer.iterations)) == STEPS
    matrix, vector, stack = expected(given)
    for found, means in zip(
        slots(optimizer),
        (
            {"v_row": matrix.mean(1), "v_col": matrix.mean(0)},
            {"v": vector},
            {"v_row": stack.mean(2), "v_col": stack.mean(1)},
        ),
        strict=True,
    ):
        assert found.keys() == means.keys()
        for entry, value in means.items():
            np.testing.assert_allclose(found[entry], value, rtol=1e-5)


@pytest.mark.parametrize("beta_2_cap", [None, 0.9])
def test_next_step_continues_from_adams_statistics(beta_2_cap):
    adam = keras.optimizers.Adam(0.1)
    shared = trained(adam)
    before = values(shared)
    _, given = tensors()
    (now,) = tensors(seed=1, steps=1)[1]
    settings = {"relative_step": False, "multiply_by_parameter_scale": False}
    optimizer = Adafactor(0.1, **settings, beta_2_cap=beta_2_cap)
    warm_start(optimizer, adam)
    optimizer.apply([ops.convert_to_tensor(g) for g in now], shared)
    rate = (STEPS + 1) ** -0.8
    if beta_2_cap is not None:
        rate = max(rate, 1 - beta_2_cap)
    groups = [((0,), (1,)), None, ((0, 1), (2,))]
    for x, old, g, moment, axes in zip(
        values(shared),
        before,
        now,
        second_moments(given, 0.999),
        groups,
        strict=True,
    ):
        g = g.astype("float64")
        v = (1 - rate) * moment + rate * g**2
        if axes:
            row = v.mean(axes[1], keepdims=True)
            col = v.mean(axes[0], keepdims=True)
            v = row * col / row.mean()
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt(np.mean(u**2)))
        np.testing.assert_allclose(x, old - 0.1 * u, rtol=2e-5, atol=1e-6)


# Averages are linear in what they are of: with the decays of Adam an optimizer
# ends where it would have, had it been there from the start.

LINEAR = {
    "adafactor": (lambda: Adafactor(beta_2=0.95), {}),
    "not_factored": (lambda: Adafactor(beta_2=0.95, factored=False), {}),
    "came": (lambda: CAME(beta_2=0.95), {"m", "s_row", "s_col"}),
    "hfac": (lambda: HFac(beta_2=0.95), {}),
    "fadam": (lambda: FAdam(beta_2=0.95), {"m"}),
    "signum": (lambda: Signum(), {}),
    "lion": (lambda: Lion(beta_2=0.9), {}),
    "adalayer": (
        lambda: Adalayer(beta_2=0.95, blocks={"w0": "columns", "w2": 4}),
        {},
    ),
    "subset_norm": (lambda: SubsetNorm(beta_2=0.95), {}),
    "subset_norm_blocks": (lambda: SubsetNorm(beta_2=0.95, subsets=4), {}),
    "rmsprop_sn": (lambda: SubsetNorm(beta_2=0.95, variant="rmsprop"), {}),
    "subspace_momentum": (lambda: SubspaceMomentum(beta_2=0.95), {}),
    "coap": (lambda: COAP(beta_2=0.95, rank=1000), {}),
    "coap_int8": (
        lambda: COAP(beta_2=0.95, rank=1000, state_dtype="int8"),
        {},
    ),
    "adamw_rule": (
        lambda: Adafactor(fallback={".": AdamWRule(beta_2=0.95)}),
        {},
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_statistics_are_those_of_a_run_from_the_start(name):
    make, approximate = LINEAR[name]
    adam = keras.optimizers.Adam(0.1, beta_1=0.9, beta_2=0.95)
    trained(adam)
    from_start, taking_over = make(), make()
    trained(from_start)
    report = warm_start(taking_over, adam)
    assert report.complete, str(report)
    for found, expected in zip(
        slots(taking_over), slots(from_start), strict=True
    ):
        assert found.keys() == expected.keys()
        for entry in found.keys() - approximate:
            np.testing.assert_allclose(
                found[entry], expected[entry], rtol=2e-5, atol=1e-6
            )


@pytest.mark.parametrize(
    "make",
    [
        lambda: Adafactor(beta_1=0.9, beta_2=0.999),
        lambda: CAME(),
        lambda: FAdam(),
    ],
    ids=["adafactor", "came", "fadam"],
)
def test_momentum_of_updates_is_nearly_that_of_a_run_from_the_start(make):
    starts, given = tensors(shapes=[(24, 32), (64,)], steps=200)
    adam, from_start, taking_over = keras.optimizers.Adam(0.01), make(), make()
    for optimizer in (adam, from_start):
        trained(optimizer, given, starts)
    warm_start(taking_over, adam)
    for found, expected in zip(
        slots(taking_over), slots(from_start), strict=True
    ):
        for entry in found.keys() - {"v", "v_row", "v_col", "fim"}:
            a, b = found[entry].ravel(), expected[entry].ravel()
            error = np.linalg.norm(a - b) / np.linalg.norm(b)
            assert error < 0.12, (entry, error)


def test_smmf_keeps_what_its_factors_can():
    rng = np.random.default_rng(0)
    # Of rank one, as a square matrix.
    size = np.outer(rng.uniform(1, 2, 6), rng.uniform(1, 2, 4))
    sign = np.sign(rng.normal(size=size.shape))
    given = [[(sign * size).astype("float32")]] * STEPS
    adam, optimizer = keras.optimizers.Adam(0.1), SMMF()
    trained(adam, given, [size])
    warm_start(optimizer, adam)
    back = keras.optimizers.Adam(0.1)
    warm_start(back, optimizer)
    for found, expected in zip(back.variables, adam.variables, strict=True):
        np.testing.assert_allclose(
            as_numpy(found), as_numpy(expected), rtol=1e-5, atol=1e-6
        )


def test_soap_carries_what_has_no_basis():
    adam, optimizer = keras.optimizers.Adam(0.1), SOAP()
    trained(adam)
    report = warm_start(optimizer, adam)
    matrix, vector, _ = report.rows
    assert not matrix.carried and set(matrix.missing) == {
        "m", "v", "gram_0", "basis_0", "gram_1", "basis_1",
    }  # fmt: skip
    assert vector.carried == {"m": "converted", "v": "converted"}
    shared = adam._trainable_variables
    # A variable with a basis begins as in a first call, and finds one.
    for given in tensors(seed=1)[1]:
        optimizer.apply([ops.convert_to_tensor(g) for g in given], shared)
    assert np.isfinite(
        np.concatenate([v.ravel() for v in values(shared)])
    ).all()


def test_soap_tells_adam_what_it_knows_in_its_basis():
    _, given = tensors(shapes=[(3, 4)], steps=60)
    soap, adam = SOAP(beta_1=0.9, beta_2=0.99), keras.optimizers.Adam()
    trained(soap, given, [np.zeros((3, 4), "float32")])
    assert warm_start(adam, soap).complete
    (expected,) = second_moments(given[1:], 0.99)
    # Mixed in the basis, the means of squares keep their sum.
    found = as_numpy(adam._velocities[0]) / (1 - 0.999**60)
    np.testing.assert_allclose(found.sum(), expected.sum(), rtol=0.1)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.5


@pytest.mark.parametrize("row", MAIN, ids=lambda row: row.name)
def test_every_optimizer_takes_over_and_hands_back(row):
    adam, optimizer = keras.optimizers.Adam(0.01), row.optimizer()
    shared = trained(adam)
    # No `adopt` returns what is not kept, or in another shape.
    for carried in warm_start(optimizer, adam).rows:
        assert carried.carried.keys() | carried.missing == set(
            optimizer.state_spec(carried.shape, carried.path)
        )
    for given in tensors(seed=1, steps=2)[1]:
        optimizer.apply([ops.convert_to_tensor(g) for g in given], shared)
    assert all(np.isfinite(x).all() for x in values(shared))
    report = warm_start(keras.optimizers.Adam(), optimizer)
    assert report.iterations == STEPS + 2
    again = row.optimizer()
    assert warm_start(again, optimizer).complete


# The way back.


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "RMSprop", "Adafactor"])
def test_there_and_back_is_where_it_was(kind):
    # With an unfactored second moment, and the momentum in between.
    source = getattr(keras.optimizers, kind)(0.1)
    trained(source)
    between = Adafactor(factored=False, beta_1=0.9, clip_threshold=None)
    back = getattr(keras.optimizers, kind)(0.1)
    warm_start(between, source)
    report = warm_start(back, between)
    assert report.complete
    for found, expected in zip(back.variables, source.variables, strict=True):
        np.testing.assert_allclose(
            as_numpy(found), as_numpy(expected), rtol=2e-5, atol=1e-6
        )


def test_adam_gets_the_product_of_the_factors():
    optimizer, adam = Adafactor(), keras.optimizers.Adam(beta_2=0.99)
    trained(optimizer)
    report = warm_start(adam, optimizer)
    assert report.rows[0].missing == {"m": "does not follow from the source"}
    kept = slots(optimizer)[0]
    v = np.outer(kept["v_row"], kept["v_col"]) / kept["v_row"].mean()
    found = as_numpy(adam._velocities[0])
    np.testing.assert_allclose(found, v * (1 - 0.99**STEPS), rtol=1e-5)
    assert not as_numpy(adam._momentums[0]).any()


# One of ours with other settings.


def test_same_settings_are_kept_bit_for_bit():
    for make in (
        lambda: Adafactor(beta_1=0.9, momentum_dtype="int8", use_ema=True),
        lambda: SOAP(),
        lambda: SMMF(),
        lambda: COAP(rank=2),
    ):
        source, optimizer = make(), make()
        shapes = [(64, 65), (5,)]
        starts, given = tensors(shapes=shapes, steps=3)
        shared = run(source, starts, given)
        optimizer.build(shared)
        report = warm_start(optimizer, source)
        assert report.complete and all(
            set(row.carried.values()) <= {"kept"} for row in report.rows
        )
        for ours, theirs in zip(
            optimizer.variables, source.variables, strict=True
        ):
            if ours.name != "learning_rate":
                np.testing.assert_array_equal(as_numpy(ours), as_numpy(theirs))


def test_momentum_changes_its_dtype():
    shapes, wide = [(64, 65)], Adafactor(beta_1=0.9)
    starts, given = tensors(shapes=shapes)
    trained(wide, given, starts)
    (expected,) = (kept["m"] for kept in slots(wide))
    for dtype, error in (("bfloat16", 0.01), ("int8", 0.02)):
        narrow = Adafactor(beta_1=0.9, momentum_dtype=dtype)
        warm_start(narrow, wide)
        again = Adafactor(beta_1=0.9)
        warm_start(again, narrow)
        (found,) = (kept["m"] for kept in slots(again))
        assert 0 < np.abs(found - expected).max() < error * expected.max()


def test_a_basis_is_carried_whole_or_not_at_all():
    source = SOAP()
    trained(source)
    report = warm_start(SOAP(one_sided=True), source)
    assert not report.rows[0].carried
    assert report.rows[1].carried == {"m": "kept", "v": "kept"}
    assert warm_start(SOAP(momentum_dtype="bfloat16"), source).complete


def test_entries_of_another_meaning_are_not_kept():
    source = SubsetNorm()
    trained(source)
    for row in warm_start(SubsetNorm(variant="adagrad"), source).rows:
        assert not row.carried


@pytest.mark.parametrize(
    ("make", "before", "after", "entry"),
    [
        (SubsetNorm, {"beta_2": 0.999}, {"beta_2": 0.95}, "v"),
        (Signum, {"beta_1": 0.99}, {"beta_1": 0.9}, "m"),
        (Adafactor, {"beta_1": 0.99}, {"beta_1": 0.9}, "m"),
    ],
)
def test_another_decay_leaves_an_average_without_bias(
    make, before, after, entry
):
    source, optimizer = make(**before), make(**after)
    trained(source)
    warm_start(optimizer, source)
    ((beta,), (new_beta,)) = before.values(), after.values()
    weight = (1 - new_beta**STEPS) / (1 - beta**STEPS)
    for found, expected in zip(slots(optimizer), slots(source), strict=True):
        np.testing.assert_allclose(
            found[entry], weight * expected[entry], rtol=1e-4
        )


# Averages, accumulation, counts.


def test_averages_are_carried_or_start_at_the_weights():
    source = keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.9)
    shared = trained(source)
    for optimizer in (
        Adafactor(use_ema=True),
        keras.optimizers.RMSprop(use_ema=True),
    ):
        warm_start(optimizer, source)
        for found, expected in zip(
            optimizer._model_variables_moving_average,
            source._model_variables_moving_average,
            strict=True,
        ):
            np.testing.assert_array_equal(as_numpy(found), as_numpy(expected))
    plain, optimizer = keras.optimizers.Adam(0.1), Adafactor(use_ema=True)
    shared = trained(plain)
    report = warm_start(optimizer, plain)
    assert report.rows[0].carried["average"] == "of the variable"
    found = [kept["average"] for kept in _all_slots(optimizer)]
    for average, x in zip(found, values(shared), strict=True):
        np.testing.assert_array_equal(average, x)


def _all_slots(optimizer):
    return [
        {name: as_numpy(slot) for name, slot in kept.slots.items()}
        for kept in optimizer._tracked
    ]


def test_accumulation_goes_on_where_both_accumulate_as_many():
    source = keras.optimizers.Adam(0.1, gradient_accumulation_steps=4)
    trained(source)  # One update, and two gradients on top.
    same = Adafactor(gradient_accumulation_steps=4)
    warm_start(same, source)
    assert int(as_numpy(same._iterations)) == STEPS
    _, given = tensors()
    np.testing.assert_allclose(
        _all_slots(same)[0]["gradient_accumulator"],
        given[4][0] + given[5][0],
        rtol=1e-6,
    )
    other = Adafactor(gradient_accumulation_steps=2)
    report = warm_start(other, source)
    assert report.rows[0].unused == ["m", "gradient_accumulator"]
    assert int(as_numpy(other._iterations)) == 2
    assert not _all_slots(other)[0]["gradient_accumulator"].any()


def test_learning_rate_is_the_optimizers_own():
    source, optimizer = Adafactor(0.5), Adafactor(0.25)
    trained(source)
    warm_start(optimizer, source)
    assert float(as_numpy(optimizer.learning_rate)) == 0.25


def test_loss_scale_is_carried():
    source, optimizer = (
        keras.optimizers.LossScaleOptimizer(inner, dynamic_growth_steps=4)
        for inner in (keras.optimizers.Adam(0.1), Adafactor())
    )
    model = model_of(source)
    fit(model, steps=5)
    model.compile(optimizer, "mse")
    warm_start(model, source)
    assert as_numpy(optimizer.dynamic_scale) == 2.0**16
    for name in ("dynamic_scale", "step_counter", "iterations"):
        found = as_numpy(getattr(optimizer, name))
        assert found == as_numpy(getattr(source, name)), name
    fit(model)


# No bump.


def regression(optimizer, shared, steps):
    """Losses of full-batch steps on an ill-conditioned regression."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)) * 10.0 ** np.linspace(-1, 0, 8)
    y = x @ rng.normal(size=(8, 4)) + 0.1 * rng.normal(size=(64, 4))
    losses = []
    for _ in range(steps):
        error = x @ values(shared)[0] - y
        losses.append(float(np.mean(error**2)))
        gradient = 2 * x.T @ error / len(x)
        gradient = ops.convert_to_tensor(gradient, dtype="float32")
        optimizer.apply([gradient], shared)
    return losses


def largest_rise(losses):
    return max(np.maximum.accumulate(losses[::-1])[::-1] - losses)


ABSOLUTE = {"relative_step": False, "multiply_by_parameter_scale": False}
CHANGES = {
    "adafactor": lambda: Adafactor(0.02, **ABSOLUTE),
    "momentum": lambda: Adafactor(0.02, beta_1=0.9, **ABSOLUTE),
    "came": lambda: CAME(0.02),
    "smmf": lambda: SMMF(0.02),
    "hfac": lambda: HFac(0.02),
    "fadam": lambda: FAdam(0.02, weight_decay=None),
    "adalayer": lambda: Adalayer(0.02),
    "subset_norm": lambda: SubsetNorm(0.02),
}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            make,
            id=name,
            marks=()
            if name in ("momentum", "came", "smmf")
            else pytest.mark.exhaustive,
        )
        for name, make in CHANGES.items()
    ],
)
def test_loss_has_no_bump_after_a_warm_start(make):
    def losses(change):
        adam = keras.optimizers.Adam(0.02)
        shared = [keras.Variable(np.zeros((8, 4), "float32"), name="w")]
        regression(adam, shared, 400)
        return regression(change(adam), shared, 40)

    def warm(adam):
        optimizer = make()
        warm_start(optimizer, adam)
        return optimizer

    on, after, cold = (losses(c) for c in (lambda a: a, warm, lambda a: make()))
    assert largest_rise(after) <= largest_rise(on) + 1e-6
    # Of a loss of 0.0087, to which two digits are noise.
    assert largest_rise(cold) > 5e-6


# Which variable is which.


def named(starts, names):
    return [
        keras.Variable(start, name=name)
        for start, name in zip(starts, names, strict=True)
    ]


def source_named(names, shapes):
    rng = np.random.default_rng(0)
    shared = named([rng.normal(size=s) for s in shapes], names)
    adam = keras.optimizers.Adam(0.1)
    adam.build(shared)
    adam.apply([ops.convert_to_tensor(v) for v in values(shared)], shared)
    return adam


MATCHES = {
    "reordered": (["a", "b", "c"], ["c", "a", "b"], ["c", "a", "b"]),
    "frozen": (["a", "b", "c"], ["b"], ["b"]),
    "unfrozen": (["b"], ["a", "b", "c"], [None, "b", None]),
    "new_layer": (["a", "b"], ["a", "z", "b"], ["a", None, "b"]),
}


@pytest.mark.parametrize("name", MATCHES)
def test_variables_are_matched_by_path(name):
    before, after, expected = MATCHES[name]
    adam = source_named(before, [(3, 4)] * len(before))
    shared = named([np.zeros((3, 4), "float32")] * len(after), after)
    optimizer = Adafactor()
    report = warm_start(optimizer, adam, shared)
    assert [row.source for row in report.rows] == expected
    assert report.unused_variables == [n for n in before if n not in expected]
    second = dict(zip(before, adam._velocities, strict=True))
    for found, path in zip(slots(optimizer), expected, strict=True):
        if path is None:
            assert not found["v_row"].any()
        else:
            v = as_numpy(second[path]).mean(1) / 0.001
            np.testing.assert_allclose(found["v_row"], v, rtol=1e-4)


def model_of(optimizer, names=(None, None), sizes=(6, 3)):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            *(keras.layers.Dense(s, name=n)
              for s, n in zip(sizes, names, strict=True)),
        ]
    )  # fmt: skip
    model.compile(optimizer, "mse")
    return model


def fit(model, steps=2):
    rng = np.random.default_rng(0)
    x, y = (
        rng.normal(size=(4 * steps, *shape[1:])).astype("float32")
        for shape in (model.input_shape, model.output_shape)
    )
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)


def test_layers_named_anew_are_matched_in_order():
    model = model_of("adam", ("first", "second"))
    fit(model)
    other = model_of(Adafactor(), ("second", "third"))
    report = warm_start(other, model)
    assert [row.source for row in report.rows] == [
        variable.path for variable in model.trainable_variables
    ]
    assert "second/kernel <- " in str(report)


def test_a_shape_that_differs_is_not_matched():
    model = model_of("adam", ("body", "head"))
    fit(model)
    # Another model, so of another name, which all paths begin with.
    other = model_of(Adafactor(), ("body", "head"), sizes=(6, 5))
    report = warm_start(other, model)
    assert not report.complete
    names = {row.path.split("/")[-2]: row for row in report.rows}
    assert names["body"].carried and not names["body"].missing
    assert set(names["head"].missing.values()) <= {
        f"of shape {shape} in the source" for shape in ((6, 3), (3,))
    }
    assert [p.split("/")[-2] for p in report.unused_variables] == ["head"] * 2


def test_training_goes_on_after_the_change():
    model = model_of("adam")
    fit(model)
    adam = model.optimizer
    model.compile(Adafactor(use_ema=True, beta_1=0.9), "mse")
    report = warm_start(model, adam)
    fit(model)
    assert int(as_numpy(model.optimizer.iterations)) == report.iterations + 2
    # And the old one is still whole.
    model.compile(adam, "mse")
    fit(model)
    assert int(as_numpy(adam.iterations)) == 4


# Files.


def saved(tmp_path, optimizer, ending, **settings):
    model = model_of(optimizer, ("a", "b"), **settings)
    fit(model)
    path = tmp_path / f"model.{ending}"
    if ending == "keras":
        model.save(path)
    else:
        model.save_weights(path)
    return model, path


@pytest.mark.parametrize("ending", ["keras", "weights.h5"])
@pytest.mark.parametrize("scaled", [False, True])
def test_file_of_adam_is_read(tmp_path, ending, scaled):
    adam = keras.optimizers.Adam(0.1, use_ema=True)
    wrapped = keras.optimizers.LossScaleOptimizer(adam) if scaled else adam
    model, path = saved(tmp_path, wrapped, ending)
    expected = Adafactor(use_ema=True)
    warm_start(expected, adam)
    found = Adafactor(use_ema=True)
    given = {}
    if ending == "weights.h5":
        given["saved_by"] = keras.optimizers.Adam(0.1, use_ema=True)
    report = warm_start(found, path, model.trainable_variables, **given)
    assert report.complete and report.source == "Adam"
    for ours, theirs in zip(_all_slots(found), _all_slots(expected),
                            strict=True):  # fmt: skip
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


def orbax_checkpoint(tmp_path, model):
    rng = np.random.default_rng(0)
    path = tmp_path / "checkpoints"
    model.fit(
        rng.normal(size=(8, 4)),
        rng.normal(size=(8, 3)),
        batch_size=4,
        verbose=0,
        callbacks=[
            keras.callbacks.OrbaxCheckpoint(str(path), save_on_background=False)
        ],
    )
    return path


def test_orbax_checkpoint_is_read(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3, name="b")(inputs))
    model.compile("adam", "mse")
    path = orbax_checkpoint(tmp_path, model)
    expected, found = Adafactor(), Adafactor()
    warm_start(expected, model)
    warm_start(found, path, model.trainable_variables)
    for ours, theirs in zip(slots(found), slots(expected), strict=True):
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("make", [keras.optimizers.Adam, SOAP])
def test_orbax_checkpoint_that_keras_does_not_restore_is_an_error(
    tmp_path, make
):
    pytest.importorskip("orbax.checkpoint")
    # A `Sequential` is named otherwise once it is loaded.
    model = model_of(make(), ("a", "b"))
    path = orbax_checkpoint(tmp_path, model)
    with pytest.raises(ValueError, match="statistics are not all 0"):
        warm_start(Adafactor(), path, model.trainable_variables)


RESTORED = {
    "momentum": ({}, {"beta_1": 0.9}, {"m"}),
    "no_momentum": ({"beta_1": 0.9}, {}, set()),
    "guard": ({}, {"skip_nonfinite": None}, set()),
    "schedule": (
        {},
        {"learning_rate": keras.optimizers.schedules.CosineDecay(0.1, 100)},
        set(),
    ),
    "averages": ({}, {"use_ema": True}, set()),
}


@pytest.mark.parametrize("ending", ["keras", "weights.h5"])
@pytest.mark.parametrize("name", RESTORED)
def test_what_fits_of_our_own_file_is_kept(tmp_path, name, ending):
    before, after, missing = RESTORED[name]
    source = Adafactor(**({"learning_rate": 0.1} | before))
    _, path = saved(tmp_path, source, ending)
    model = model_of(Adafactor(**({"learning_rate": 0.1} | after)), ("a", "b"))
    model.build()
    if ending == "weights.h5":
        # The strict load says what to call.
        model.optimizer.build(model.trainable_variables)
        with pytest.raises(ValueError, match=r"keras_adafactor\.warm_start\("):
            model.load_weights(path)
    report = warm_start(model, path)
    assert all(set(row.missing) == missing for row in report.rows)
    assert report.iterations == 2
    for ours, theirs in zip(slots(model.optimizer), slots(source),
                            strict=True):  # fmt: skip
        for entry in ours.keys() & theirs.keys():
            np.testing.assert_array_equal(ours[entry], theirs[entry])
    fit(model)


def test_waiting_state_that_does_not_fit_is_replaced(tmp_path):
    _, path = saved(tmp_path, Adafactor(), "weights.h5")
    model = model_of(Adafactor(beta_1=0.9), ("a", "b"))
    model.load_weights(path)
    with pytest.raises(ValueError, match="does not fit"):
        fit(model)
    warm_start(model, path)
    fit(model)
    assert int(as_numpy(model.optimizer.iterations)) == 4


def test_unfrozen_layer_of_a_weights_file(tmp_path):
    frozen = model_of(Adafactor(), ("a", "b"))
    frozen.layers[0].trainable = False
    frozen.compile(Adafactor(), "mse")
    fit(frozen)
    path = tmp_path / "model.weights.h5"
    frozen.save_weights(path)
    kept = slots(frozen.optimizer)
    model = model_of(Adafactor(beta_1=0.9), ("a", "b"))
    with pytest.raises(ValueError, match="`saved_by` must be .* its 2 var"):
        warm_start(model, path)
    saved_by = Adafactor()
    saved_by.build(model.layers[1].trainable_variables)
    report = warm_start(model, path, saved_by=saved_by)
    assert [bool(row.carried) for row in report.rows] == [False] * 2 + [
        True
    ] * 2
    for ours, theirs in zip(slots(model.optimizer)[2:], kept, strict=True):
        for entry in theirs:
            np.testing.assert_array_equal(ours[entry], theirs[entry])


def test_unfrozen_layer_of_a_keras_file(tmp_path):
    model = model_of(Adafactor(), ("a", "b"))
    model.layers[0].trainable = False
    model.compile("adam", "mse")
    fit(model)
    model.save(tmp_path / "model.keras")
    # Loaded, a `Sequential` has paths without its name.
    other = model_of(Adafactor(), ("a", "b"))
    report = warm_start(other, tmp_path / "model.keras")
    assert [row.source for row in report.rows] == [
        None, None, "b/kernel", "b/bias",
    ]  # fmt: skip


def test_bfloat16_momentum_is_read_from_a_weights_file(tmp_path):
    settings = {"beta_1": 0.9, "momentum_dtype": "bfloat16"}
    model, path = saved(tmp_path, Adafactor(**settings), "weights.h5")
    optimizer = Adafactor(**settings)
    assert warm_start(optimizer, path, model.trainable_variables).complete
    for ours, theirs in zip(slots(optimizer), slots(model.optimizer),
                            strict=True):  # fmt: skip
        np.testing.assert_array_equal(ours["m"], theirs["m"])


# What is wrong is said before anything is assigned.


def test_wrong_arguments_are_named(tmp_path):
    adam = keras.optimizers.Adam()
    trained(adam)
    missing = str(tmp_path / "none.keras")
    text = tmp_path / "text.txt"
    text.write_text("no checkpoint")
    cases = [
        ("optimizer", "adam"),
        ("optimizer", keras.optimizers.SGD()),
        ("source", keras.optimizers.SGD()),
        ("source", keras.optimizers.Adam()),
        ("source", missing),
        ("source", str(text)),
        ("source", None),
        ("saved_by", adam),
    ]
    for name, value in cases:
        arguments = {"optimizer": Adafactor(), "source": adam, name: value}
        with pytest.raises(
            ValueError,
            match=rf"^Argument `{name}` must be .* Received: {name}=",
        ):
            warm_start(**arguments)
    with pytest.raises(ValueError, match="`step_offset` must be below 6"):
        warm_start(Adafactor(step_offset=6), adam)
    warm_start(Adafactor(step_offset=5), adam)
    fresh = keras.optimizers.Adam()
    fresh.build(adam._trainable_variables)
    with pytest.raises(ValueError, match="has taken a step"):
        warm_start(Adafactor(), fresh)
    with pytest.raises(ValueError, match="of the same variables"):
        other = [keras.Variable(np.zeros((2, 2)), name="w0")]
        warm_start(Adafactor(), adam, other)


def test_wrong_files_are_named(tmp_path):
    model, path = saved(tmp_path, "adam", "weights.h5")
    shared = model.trainable_variables
    for wrong, message in (
        (None, "`saved_by` must be .* was saved with, which is no Adafactor"),
        (Adafactor(), "`saved_by` must be an optimizer .*, of Keras"),
        (keras.optimizers.RMSprop(), "has 10 variables of its own, not 5 and"),
    ):
        with pytest.raises(ValueError, match=message):
            warm_start(Adafactor(), path, shared, saved_by=wrong)
    (tmp_path / "came").mkdir()
    _, came = saved(tmp_path / "came", CAME(), "weights.h5")
    with pytest.raises(ValueError, match="`saved_by` must be"):
        warm_start(Adafactor(beta_1=0.9), came, shared)
    assert warm_start(Adafactor(), came, shared, saved_by=CAME()).complete
    bare = keras.Sequential([keras.Input((4,)), *model.layers])
    bare.save_weights(tmp_path / "bare.weights.h5")
    with pytest.raises(ValueError, match="with the state of an optimizer"):
        warm_start(Adafactor(), tmp_path / "bare.weights.h5", shared)
    with pytest.raises(ValueError, match="Argument `variables` must be given"):
        warm_start(Adafactor(), path)


def test_statistics_that_are_not_finite_stay_behind():
    adam = keras.optimizers.Adam()
    shared = trained(adam)
    adam._velocities[0].assign(np.full((4, 6), np.nan))
    optimizer = Adafactor()
    report = warm_start(optimizer, adam)
    assert set(report.rows[0].missing.values()) == {"not finite in the source"}
    assert report.rows[1].carried
    given = tensors(seed=1)[1][0]
    optimizer.apply([ops.convert_to_tensor(g) for g in given], shared)
    assert np.isfinite(values(shared)[0]).all()


def test_error_of_a_rule_leaves_the_optimizer_as_it_was():
    class Wrong(Adafactor):
        def adopt(self, moments, shape, path, t):
            wrong = super().adopt(moments, shape, path, t)
            return wrong | {"v": wrong["v"][:2]} if "v" in wrong else wrong

    adam, optimizer = keras.optimizers.Adam(), Wrong()
    shared = trained(adam)
    optimizer.build(shared)
    before = [as_numpy(v) for v in optimizer.variables]
    with pytest.raises(
        ValueError, match="'v' of variable 'w1'.*shape=\\(2,\\)"
    ):
        warm_start(optimizer, adam)
    for variable, value in zip(optimizer.variables, before, strict=True):
        np.testing.assert_array_equal(as_numpy(variable), value)
