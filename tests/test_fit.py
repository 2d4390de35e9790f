"""`model.fit` with every feature that Keras gives an optimizer.

Expected values are the float64 oracle's, or those of another run that must
come to the same.
"""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_adafactor import Adafactor
from tests import oracles
from tests.probe import as_numpy
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model
from tests.probe import slot
from tests.probe import state
from tests.probe import weights

BACKEND = keras.backend.backend()
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


# The learning rate.


def test_schedule_is_used_as_it_is_however_large():
    rates = [3.0, 3.0, 0.2, 0.2, 0.2]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [1], [3.0, 0.2]
    )
    given = gradients(5, SHAPES)
    model = probe_model(STARTS, Adafactor(schedule))
    fit(model, given)
    assert_close(weights(model), expected(given, rates))


def test_callable_learning_rate_is_used_as_it_is():
    given = gradients(3, SHAPES)
    model = probe_model(STARTS, Adafactor(lambda: 2.0))
    fit(model, given)
    assert_close(weights(model), expected(given, [2.0] * 3))


def test_learning_rate_scheduler_callback_sets_every_epoch():
    given = gradients(2, SHAPES)
    model = probe_model(STARTS, Adafactor(9.0, relative_step=False))
    callback = keras.callbacks.LearningRateScheduler(
        lambda epoch: 2.0 / (epoch + 1)
    )
    fit(model, given, epochs=3, callbacks=[callback])
    repeated = {name: np.tile(g, (3, *[1] * (g.ndim - 1)))
                for name, g in given.items()}  # fmt: skip
    rates = [2.0, 2.0, 1.0, 1.0, 2 / 3, 2 / 3]
    assert_close(weights(model), expected(repeated, rates))


def test_learning_rate_scheduler_moves_the_cap_of_the_relative_step():
    given = gradients(2, SHAPES)
    model = probe_model(STARTS, Adafactor(9.0))
    callback = keras.callbacks.LearningRateScheduler(
        lambda epoch: [0.3, 5.0][epoch]
    )
    fit(model, given, epochs=2, callbacks=[callback])
    repeated = {name: np.tile(g, (2, *[1] * (g.ndim - 1)))
                for name, g in given.items()}  # fmt: skip
    rates = [0.3, 0.3, 3**-0.5, 4**-0.5]
    assert_close(weights(model), expected(repeated, rates))


def test_relative_step_caps_a_float():
    given = gradients(6, SHAPES)
    model = probe_model(STARTS, Adafactor(0.6))
    fit(model, given)
    rates = [0.6, 0.6, 3**-0.5, 4**-0.5, 5**-0.5, 6**-0.5]
    assert_close(weights(model), expected(given, rates))


# Weight decay.


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


# Averages of the weights.


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


# Clipping of gradients.


def clip_by_norm(g, norm):
    return g * min(1.0, norm / np.sqrt((g.astype("float64") ** 2).sum()))


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_clipped_gradients_are_what_the_rule_sees(clip):
    given = gradients(6, SHAPES)
    seen = {name: [] for name in given}
    for row in zip(*given.values(), strict=True):
        together = np.concatenate([g.ravel() for g in row])
        for name, g in zip(given, row, strict=True):
            if clip == "clipvalue":
                clipped = np.clip(g, -0.7, 0.7)
            elif clip == "clipnorm":
                clipped = clip_by_norm(g, 0.7)
            else:
                norm = clip_by_norm(together, 0.7)
                size = np.linalg.norm(together)
                clipped = g * np.linalg.norm(norm) / size
            seen[name].append(clipped)
    model = probe_model(STARTS, Adafactor(**{clip: 0.7}))
    fit(model, given)
    assert_close(weights(model), expected(seen))


def test_clipping_acts_on_the_accumulated_mean():
    given = gradients(6, SHAPES)
    large = probe_model(STARTS, Adafactor(clipnorm=0.7))
    fit(large, given, batch_size=3)
    small = probe_model(
        STARTS, Adafactor(clipnorm=0.7, gradient_accumulation_steps=3)
    )
    fit(small, given, batch_size=1)
    assert_close(weights(small), weights(large))


# Loss scaling.


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


SPARSE_SETTINGS = [
    {},
    {"clipnorm": 0.1},
    {"global_clipnorm": 0.1},
    {"clipvalue": 0.01},
    {"loss_scale_factor": 1024.0},
    {"weight_decay": 0.1},
    {"gradient_accumulation_steps": 2},
    {"skip_nonfinite": "step"},
    {"skip_nonfinite": None, "use_ema": True},
    {"factored": False, "beta_1": 0.9},
]


@pytest.mark.parametrize("setting", SPARSE_SETTINGS, ids=str)
def test_repeated_embedding_rows_equal_the_dense_gradient(setting):
    sparse = fit_tokens(Adafactor(0.1, **setting))
    dense = fit_tokens(Adafactor(0.1, **setting), one_hot=True)
    for a, b in zip(sparse.get_weights(), dense.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_loss_scale_factor_changes_nothing_but_the_loss():
    plain = fit_tokens(Adafactor(0.1))
    scaled = fit_tokens(Adafactor(0.1, loss_scale_factor=2.0**12))
    for a, b in zip(scaled.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_loss_scale_factor_is_taken_out_in_float32():
    # 2 ** -30 is nothing in float16; scaled by 2 ** 20 it is 2 ** -10.
    keras.config.set_dtype_policy("float16")
    start = {"encoder": MATRIX}
    model = probe_model(start, Adafactor(loss_scale_factor=2.0**20))
    model.optimizer.build(model.trainable_variables)
    row = np.full(MATRIX.shape, 2.0**-10, dtype="float16")
    model.optimizer.apply([ops.convert_to_tensor(row)])
    np.testing.assert_allclose(
        slot(model.optimizer, "v_row", "encoder/w"), 2.0**-60, rtol=1e-3
    )


def test_overflow_under_loss_scaling_leaves_everything_as_it_was():
    keras.config.set_dtype_policy("mixed_float16")
    optimizer = Adafactor(beta_1=0.9, use_ema=True, skip_nonfinite=None)
    model = probe_model(STARTS, optimizer)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    good = gradients(1, SHAPES)
    # The default scale of 2 ** 15 overflows float16 at first.
    wild = {name: g * 0 + 50.0 for name, g in good.items()}

    def kept():
        inner = {v.path: as_numpy(v) for v in optimizer.variables}
        return weights(model) | inner

    model.optimizer.build(model.trainable_variables)
    before = kept()
    fit_without_finalizing(model, wild)
    assert_equal(kept(), before)
    assert float(as_numpy(model.optimizer.dynamic_scale)) == 2.0**14
    small = {name: g * 1e-3 for name, g in good.items()}
    fit_without_finalizing(model, small)
    after = kept()
    assert int(as_numpy(optimizer.iterations)) == 1
    assert (after["encoder"] != before["encoder"]).any()
    assert np.isfinite(after["encoder"]).all()


def fit_without_finalizing(model, given):
    """One `fit` step, without the averages that `fit` leaves in the model."""
    model.train_on_batch(
        {f"{name}_gradient": g for name, g in given.items()}, np.zeros(1)
    )


def test_loss_scale_optimizer_equals_no_scaling():
    given = gradients(3, SHAPES)
    wrapped = probe_model(
        STARTS, keras.optimizers.LossScaleOptimizer(Adafactor(0.1))
    )
    fit(wrapped, given)
    assert_close(weights(wrapped), expected(given, learning_rate=0.1))


# Other optimizers beside it.


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


# Gradient accumulation.

ACCUMULATED = [
    {},
    {"weight_decay": 0.3},
    {"clipvalue": 0.5},
    {"global_clipnorm": 0.5},
    {"use_ema": True, "ema_momentum": 0.5},
    {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
    {"beta_1": 0.9},
    {"loss_scale_factor": 64.0},
    {"skip_nonfinite": "step"},
    {"skip_nonfinite": None},
    {"warmup_steps": 3},
]


@pytest.mark.parametrize("setting", ACCUMULATED, ids=str)
def test_accumulation_equals_the_large_batch(setting):
    given = gradients(12, SHAPES)
    large = probe_model(STARTS, Adafactor(0.1, **setting))
    fit(large, given, batch_size=3)
    small = probe_model(
        STARTS, Adafactor(0.1, gradient_accumulation_steps=3, **setting)
    )
    fit(small, given)
    assert_close(weights(small), weights(large))
    assert int(as_numpy(small.optimizer.iterations)) == 4


def test_accumulation_equals_the_large_batch_with_a_schedule():
    def schedule():
        return keras.optimizers.schedules.PolynomialDecay(0.5, 4, 0.01)

    given = gradients(12, SHAPES)
    large = probe_model(STARTS, Adafactor(schedule(), weight_decay=0.3))
    fit(large, given, batch_size=3)
    small = probe_model(
        STARTS,
        Adafactor(schedule(), weight_decay=0.3, gradient_accumulation_steps=3),
    )
    fit(small, given)
    assert_close(weights(small), weights(large))
    assert float(as_numpy(small.optimizer.learning_rate)) == pytest.approx(
        float(as_numpy(large.optimizer.learning_rate))
    )


def test_accumulation_equals_the_large_batch_with_an_embedding():
    large = fit_tokens(Adafactor(0.1), batch_size=4)
    small = fit_tokens(
        Adafactor(0.1, gradient_accumulation_steps=4), batch_size=1
    )
    for a, b in zip(small.get_weights(), large.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_accumulating_steps_change_the_accumulators_alone():
    optimizer = Adafactor(
        beta_1=0.9,
        weight_decay=0.5,
        use_ema=True,
        gradient_accumulation_steps=3,
        record_update_rms=True,
    )
    model = probe_model(STARTS, optimizer)
    given = gradients(5, SHAPES)
    rows = [{name: g[i : i + 1] for name, g in given.items()} for i in range(5)]
    for row in rows[:3]:
        fit_without_finalizing(model, row)
    before = state(model)
    for row in rows[3:]:
        fit_without_finalizing(model, row)
    changed = {
        name.partition(":")[2] or name
        for name, value in state(model).items()
        if (value != before[name]).any()
    }
    prefix = optimizer.name
    assert changed == {
        f"{prefix}/iteration",
        f"{prefix}/encoder_w_gradient_accumulator",
        f"{prefix}/bias_w_gradient_accumulator",
    }


def test_accumulators_of_bfloat16_weights_are_exact():
    steps = 600
    keras.config.set_dtype_policy("bfloat16")
    model = probe_model(
        {"encoder": np.ones(3)}, Adafactor(gradient_accumulation_steps=steps)
    )
    fit(model, {"encoder": np.ones((steps - 1, 3))})
    (accumulator,) = (
        v for v in model.optimizer.variables if "accumulator" in v.path
    )
    np.testing.assert_array_equal(as_numpy(accumulator), np.full(3, 599.0))


def test_accumulators_start_again_after_the_update():
    # Were the first mean left in, the second update would still be positive.
    given = {"encoder": np.array([[8.0], [8.0], [-1.0], [-1.0]])}
    model = probe_model(
        {"encoder": np.ones(1)}, Adafactor(gradient_accumulation_steps=2)
    )
    seen = []
    fit(
        model,
        given,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: seen.append(
                    weights(model)["encoder"].item()
                )
            )
        ],
    )
    assert seen[0] == 1.0
    assert seen[1] == seen[2] < 1.0
    assert seen[3] > seen[2]


# Variables out of the ordinary.


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


# Weights of low precision.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_weights_move_as_far_as_float32_ones(dtype):
    keras.config.set_dtype_policy(dtype)
    ones = {"encoder": np.ones((64, 64))}
    constant = {"encoder": np.ones((100, 64, 64), "float32")}
    optimizer = Adafactor(1e-3, beta_1=0.9)
    model = probe_model(ones, optimizer)
    fit(model, constant)
    oracle = oracle_of(ones["encoder"], learning_rate=1e-3, beta_1=0.9)
    for g in constant["encoder"]:
        oracle.step(g)
    # 4096 weights: the noise of their mean is some 1e-4.
    assert weights(model)["encoder"].mean() == pytest.approx(
        oracle.x.mean(), abs=5e-4
    )
    assert model.trainable_variables[0].dtype == dtype
    for slots in dict(optimizer.slots()).values():
        assert {v.dtype for v in slots.values()} == {"float32"}


def test_rounding_to_nearest_never_moves_a_bfloat16_weight():
    keras.config.set_dtype_policy("bfloat16")
    model = probe_model(
        {"encoder": np.ones(8)}, Adafactor(1e-3, stochastic_rounding=False)
    )
    fit(model, {"encoder": np.ones((20, 8), "float32")})
    np.testing.assert_array_equal(weights(model)["encoder"], np.ones(8))


def test_float16_weights_survive_zero_and_tiny_gradients():
    keras.config.set_dtype_policy("float16")
    model = probe_model({"encoder": MATRIX}, Adafactor())
    rows = np.stack([MATRIX * 0, MATRIX * 0 + 6e-8, MATRIX * 0 + 6e4])
    fit(model, {"encoder": rows})
    assert np.isfinite(weights(model)["encoder"]).all()
    assert int(as_numpy(model.optimizer.skipped_updates)) == 0


@pytest.mark.skipif(
    BACKEND == "jax", reason="JAX has no float64 unless jax_enable_x64 is set."
)
@pytest.mark.parametrize("accumulate", [None, 2])
def test_float64_weights_stay_float64(accumulate):
    keras.config.set_dtype_policy("float64")
    given = gradients(4, SHAPES)
    given = {name: np.repeat(g, accumulate or 1, 0)
             for name, g in given.items()}  # fmt: skip
    model = probe_model(
        STARTS, Adafactor(0.1, gradient_accumulation_steps=accumulate)
    )
    fit(model, given)
    once = {name: g[:: accumulate or 1] for name, g in given.items()}
    assert_close(weights(model), expected(once, learning_rate=0.1), 1e-7)
    assert model.trainable_variables[0].dtype == "float64"


def test_mixed_bfloat16_equals_float32_on_exact_gradients():
    keras.config.set_dtype_policy("mixed_bfloat16")
    given = {
        name: np.round(g * 4) for name, g in gradients(3, SHAPES).items()
    }  # fmt: skip
    given = {name: np.clip(g, -128, 128) for name, g in given.items()}
    model = probe_model(STARTS, Adafactor())
    fit(model, given)
    assert_close(weights(model), expected(given))


# Ways to run.


def runs_of_fit():
    eager = {"run_eagerly": True, "jit_compile": False}
    if BACKEND == "torch":
        return [eager, {"jit_compile": False}]
    compiled = {"jit_compile": True}
    if BACKEND == "jax":
        return [eager, compiled]
    return [eager, compiled, {"jit_compile": False}]


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"beta_1": 0.9, "weight_decay": 0.1, "use_ema": True},
        {"gradient_accumulation_steps": 2, "skip_nonfinite": "step"},
    ],
    ids=str,
)
def test_eager_graph_and_compiled_fit_agree(setting):
    given = gradients(4, SHAPES)
    found = []
    for how in runs_of_fit():
        model = probe_model(STARTS, Adafactor(0.1, **setting), **how)
        fit(model, given)
        found.append(weights(model))
    for other in found[1:]:
        assert_close(other, found[0])


def test_eager_and_compiled_stochastic_rounding_agree():
    keras.config.set_dtype_policy("bfloat16")
    given = gradients(4, SHAPES)
    found = []
    for how in runs_of_fit():
        model = probe_model(STARTS, Adafactor(0.01), **how)
        fit(model, given)
        found.append(weights(model))
    for other in found[1:]:
        # The same noise: a rare weight may lie on the edge of a rounding.
        for name, weight in other.items():
            differing = (weight != found[0][name]).mean()
            assert differing < 0.2, name


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch does not trace.")
@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"gradient_accumulation_steps": 2, "use_ema": True},
        {"skip_nonfinite": "step", "beta_1": 0.9},
    ],
    ids=str,
)
def test_fit_traces_once(setting):
    traces = []

    class Traced(Adafactor):
        def update_rule(self, *arguments):
            traces.append(1)
            return super().update_rule(*arguments)

    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    model = probe_model({"encoder": MATRIX}, Traced(schedule, **setting))
    given = gradients(4, {"encoder": (3, 4)})
    fit(model, given)
    first = len(traces)
    assert first
    fit(model, given, epochs=3)
    # A second `fit` makes its function once more, no step does.
    assert len(traces) <= 2 * first
    again = len(traces)
    fit(model, given, epochs=3)
    assert len(traces) - again <= first


@pytest.mark.skipif(
    BACKEND == "torch", reason="PyTorch runs one step per execution."
)
@pytest.mark.parametrize("setting", [{}, {"gradient_accumulation_steps": 2}])
def test_several_steps_per_execution_are_the_same_steps(setting):
    given = gradients(8, SHAPES)
    found = []
    for steps in (1, 4):
        model = probe_model(
            STARTS, Adafactor(0.1, **setting), steps_per_execution=steps
        )
        fit(model, given)
        found.append(weights(model))
    assert_close(*found)


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="tf.Variable and tf.function."
)
def test_custom_loop_of_tensorflow_needs_no_keras_model():
    import tensorflow as tf  # noqa: PLC0415

    optimizer = Adafactor(0.1, weight_decay=0.5, use_ema=True)
    optimizer.exclude_from_weight_decay(var_names=["^bias$"])
    variables = [tf.Variable(s, name=n) for n, s in STARTS.items()]

    @tf.function
    def step(*row):  # builds the optimizer in its first trace
        optimizer.apply_gradients(zip(row, variables, strict=True))

    given = gradients(3, SHAPES)
    for row in zip(*given.values(), strict=True):
        step(*(tf.constant(g) for g in row))
    assert [path for path, _ in optimizer.slots()] == list(STARTS)
    found = dict(zip(STARTS, (v.numpy() for v in variables), strict=True))
    desired = {}
    for name, start in STARTS.items():
        oracle = oracle_of(start, learning_rate=0.1)
        for g in given[name]:
            if name != "bias":
                oracle.x = oracle.x * (1 - 0.5 * 0.1)
            oracle.step(g)
        desired[name] = oracle.x
    assert_close(found, desired)


# NaN and infinity.


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


# What `build` refuses.


def test_wrong_axis_groups_are_the_same_error_every_time():
    def wrong(shape, path):
        return "diagonal"

    optimizer = Adafactor(axis_groups=wrong)
    variables = [keras.Variable(MATRIX, name="a")]
    for _ in range(2):
        with pytest.raises(ValueError, match="Axis groups must be .*'a'"):
            optimizer.build(variables)
