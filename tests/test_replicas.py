"""Replicas of TensorFlow: bitwise equal, and equal to one device.

Every replica gets data of its own. What holds under `MirroredStrategy` is run
on virtual CPU devices; what `TPUStrategy` would compile is traced.
"""

import functools
import math

import keras
import numpy as np
import pytest

from keras_adafactor import Adafactor
from keras_adafactor import warm_start
from tests.probe import as_numpy
from tests.probe import fit
from tests.probe import gradients
from tests.probe import mean_output
from tests.probe import probe_model
from tests.probe import reports_of
from tests.probe import slot
from tests.probe import weights

if keras.backend.backend() != "tensorflow":
    pytest.skip(
        "Replicas with variables of their own are TensorFlow's: "
        "KERAS_BACKEND=tensorflow runs these tests.",
        allow_module_level=True,
    )

import tensorflow as tf

from tests.fake_tpu import count_ops
from tests.fake_tpu import fake_tpu_strategy
from tests.fake_tpu import nodes_of
from tests.fake_tpu import replica_assignments
from tests.optimizers import MAIN

pytestmark = pytest.mark.virtual_devices

STARTS = {
    "encoder": np.linspace(-1.0, 2.0, 12, dtype="float32").reshape(3, 4),
    "bias": np.array([0.5, -1.0, 2.0, 0.1, 1.0], dtype="float32"),
}
SHAPES = {name: start.shape for name, start in STARTS.items()}
# Large enough for int8 momentum to be int8.
LARGE = {"encoder": np.linspace(-1, 1, 4096, dtype="float32").reshape(64, 64)}


@functools.cache
def mirrored(replicas):
    # A second strategy would use the collectives of the first: one for all
    # tests, and no collectives for the other size. No default: the cache
    # would take `mirrored()` and `mirrored(2)` for two.
    cross_device_ops = (
        None if replicas == 2 else tf.distribute.ReductionToOneDevice()
    )
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(replicas)], cross_device_ops
    )


def assert_in_sync(model):
    optimizer = model.optimizer
    for variable in (*model.trainable_variables, *optimizer.variables):
        first, *others = model.distribute_strategy.experimental_local_results(
            variable.value
        )
        assert others, variable.path
        for other in others:
            np.testing.assert_array_equal(
                as_numpy(first), as_numpy(other), err_msg=variable.path
            )


class AssertInSync(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        assert_in_sync(self.model)


def train(
    strategy,
    settings,
    given,
    starts=STARTS,
    batch_size=2,
    wrap=None,
    **arguments,
):
    """A model after `fit` under a strategy."""
    with strategy.scope():
        optimizer = Adafactor(**settings)
        model = probe_model(starts, wrap(optimizer) if wrap else optimizer)
    fit(model, given, batch_size=batch_size, **arguments)
    return model


def test_warm_start_gives_every_replica_the_same():
    given = gradients(4, SHAPES)

    def change(strategy):
        with strategy.scope():
            model = probe_model(STARTS, keras.optimizers.Adam(0.1))
        fit(model, given, batch_size=2)
        adam = model.optimizer
        with strategy.scope():
            settings = {"beta_1": 0.9, "use_ema": True}
            model.compile(Adafactor(0.1, **settings), loss=mean_output)
            warm_start(model, adam)
        fit(model, given, batch_size=2)
        return model

    together, alone = change(mirrored(2)), change(tf.distribute.get_strategy())
    assert_in_sync(together)
    for found, expected in zip(
        together.optimizer.variables, alone.optimizer.variables, strict=True
    ):
        np.testing.assert_allclose(
            as_numpy(found), as_numpy(expected), rtol=1e-5, atol=1e-6
        )


def assert_equal_to_one_device(model, settings, given, **arguments):
    single = train(tf.distribute.get_strategy(), settings, given, **arguments)
    for name, weight in weights(single).items():
        np.testing.assert_allclose(
            weights(model)[name], weight, rtol=2e-6, atol=2e-6, err_msg=name
        )
    pairs = zip(
        single.optimizer.variables, model.optimizer.variables, strict=True
    )
    for alone, together in pairs:
        np.testing.assert_allclose(
            as_numpy(together),
            as_numpy(alone),
            rtol=1e-5,
            atol=1e-6,
            err_msg=alone.path,
        )


SETTINGS = [
    {},
    {"beta_1": 0.9, "weight_decay": 0.1},
    {"gradient_accumulation_steps": 2},
    {
        "gradient_accumulation_steps": 2,
        "use_ema": True,
        "ema_overwrite_frequency": 2,
        "weight_decay": 0.1,
        "clipnorm": 0.5,
        "skip_nonfinite": "step",
    },
    {"use_ema": True},
    {"use_ema": True, "ema_overwrite_frequency": 3, "ema_momentum": 0.5},
    {"clipnorm": 0.5},
    {"global_clipnorm": 0.5},
    {"clipvalue": 0.2},
    {"loss_scale_factor": 256.0},
    {"skip_nonfinite": "step"},
    {"skip_nonfinite": None, "factored": False},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_replicas_are_in_sync_and_equal_to_one_device(settings):
    given = gradients(12, SHAPES)
    settings = {"learning_rate": 0.1, **settings}
    model = train(
        mirrored(2), settings, given, epochs=2, callbacks=[AssertInSync()]
    )
    assert_equal_to_one_device(model, settings, given, epochs=2)
    assert (weights(model)["encoder"] != STARTS["encoder"]).any()


EIGHT = [
    pytest.param(
        {"gradient_accumulation_steps": 2}, marks=pytest.mark.exhaustive
    ),
    {
        "gradient_accumulation_steps": 2,
        "beta_1": 0.9,
        "use_ema": True,
        "ema_overwrite_frequency": 2,
        "weight_decay": 0.1,
        "skip_nonfinite": "step",
        "global_clipnorm": 0.5,
    },
    {"loss_scale_factor": 256.0, "clipnorm": 0.5},
]


@pytest.mark.parametrize("settings", EIGHT, ids=str)
def test_eight_replicas_are_in_sync_and_equal_to_one_device(settings):
    given = {"encoder": gradients(24, SHAPES)["encoder"]}
    arguments = {
        "starts": {"encoder": STARTS["encoder"]},
        "batch_size": 8,
        "epochs": 2,
    }
    model = train(
        mirrored(8), settings, given, callbacks=[AssertInSync()], **arguments
    )
    assert_equal_to_one_device(model, settings, given, **arguments)


@pytest.mark.parametrize(
    "replicas", [2, pytest.param(8, marks=pytest.mark.exhaustive)]
)
@pytest.mark.parametrize("row", MAIN, ids=lambda row: row.name)
def test_every_optimizer_is_in_sync_and_equal_to_one_device(row, replicas):
    rng = np.random.default_rng(0)
    starts = {
        "bias": rng.normal(size=row.shapes[1]).astype("float32"),
        "kernel": rng.normal(size=row.shapes[3]).astype("float32"),
    }
    given = gradients(
        5 * replicas, {name: start.shape for name, start in starts.items()}
    )
    models = []
    for strategy in (mirrored(replicas), tf.distribute.get_strategy()):
        with strategy.scope():
            optimizer = row.optimizer(weight_decay=0.1)
            models.append(probe_model(starts, optimizer))
        fit(models[-1], given, batch_size=replicas)
    assert_in_sync(models[0])
    together, alone = (weights(model) for model in models)
    for name, weight in alone.items():
        np.testing.assert_allclose(
            together[name],
            weight,
            rtol=20 * row.tolerance,
            atol=20 * row.tolerance,
            err_msg=name,
        )


@pytest.mark.parametrize(
    ("guard", "value"),
    [
        ("variable", np.inf),
        ("step", np.nan),
        pytest.param("variable", np.nan, marks=pytest.mark.exhaustive),
        pytest.param("step", np.inf, marks=pytest.mark.exhaustive),
    ],
)
def test_one_bad_replica_of_eight_stops_all(guard, value):
    keras.config.set_dtype_policy("bfloat16")
    given = {"encoder": gradients(24, SHAPES)["encoder"]}
    given["encoder"][8 + 5, 1, 2] = value  # the sixth replica's, second step
    with mirrored(8).scope():
        model = probe_model(
            {"encoder": STARTS["encoder"]}, Adafactor(skip_nonfinite=guard)
        )
        model.optimizer.build(model.trainable_variables)
    seen = []

    def look(batch, logs):
        assert_in_sync(model)
        seen.append(weights(model)["encoder"])

    look_at_every_step = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    fit(model, given, 8, callbacks=[look_at_every_step])
    np.testing.assert_array_equal(seen[0], seen[1])
    assert (seen[1] != seen[2]).any()
    assert int(as_numpy(model.optimizer.skipped_updates)) == 1


def test_schedule_is_the_same_on_every_replica():
    def settings():
        schedule = keras.optimizers.schedules.CosineDecay(0.5, 6)
        return {"learning_rate": schedule, "weight_decay": 0.1}

    given = gradients(12, SHAPES)
    model = train(mirrored(2), settings(), given)
    assert_in_sync(model)
    assert_equal_to_one_device(model, settings(), given)


@pytest.mark.parametrize("momentum_dtype", ["bfloat16", "int8"])
def test_low_precision_momentum_is_the_same_on_every_replica(momentum_dtype):
    settings = {"beta_1": 0.9, "momentum_dtype": momentum_dtype}
    # Small integers: the mean over replicas is exact, and the noise is shared.
    given = {
        "encoder": np.random.default_rng(0)
        .integers(-8, 9, size=(8, 64, 64))
        .astype("float32")
    }
    model = train(mirrored(2), settings, given, starts=LARGE)
    assert_in_sync(model)
    slots = dict(dict(model.optimizer.slots())["encoder/w"])
    assert slots["m"].dtype == momentum_dtype
    single = train(tf.distribute.get_strategy(), settings, given, starts=LARGE)
    np.testing.assert_allclose(
        weights(model)["encoder"], weights(single)["encoder"], atol=1e-6
    )


@pytest.mark.parametrize("accumulate", [None, 2])
def test_stochastic_rounding_is_the_same_on_every_replica(accumulate):
    keras.config.set_dtype_policy("bfloat16")
    settings = {"gradient_accumulation_steps": accumulate, "use_ema": True}
    given = {
        "encoder": np.random.default_rng(0)
        .integers(-8, 9, size=(8, 64, 64))
        .astype("float32")
    }
    model = train(mirrored(2), settings, given, starts=LARGE)
    assert_in_sync(model)
    single = train(tf.distribute.get_strategy(), settings, given, starts=LARGE)
    differing = weights(model)["encoder"] != weights(single)["encoder"]
    assert differing.mean() < 1e-3


@pytest.mark.parametrize(
    ("clip", "expected"),
    [("global_clipnorm", [0.6, 0.8]), ("clipnorm", [0.6, 0.8])],
)
def test_clipping_acts_on_the_reduced_gradient(clip, expected):
    # Means over the batch of [30, 0] and [0, 40], one replica each.
    given = {"encoder": np.array([[60.0, 0.0], [0.0, 80.0]], "float32")}
    model = train(
        mirrored(2), {clip: 1.0}, given, starts={"encoder": np.ones(2)}
    )
    seen = np.sqrt(slot(model.optimizer, "v", "encoder/w"))
    np.testing.assert_allclose(seen, expected, rtol=1e-6)


def test_repeated_embedding_rows_are_summed_over_replicas():
    def build(one_hot):
        tokens = keras.Input((3,), dtype="int32")
        if one_hot:
            rows = keras.ops.one_hot(tokens, 5)
            embedded = keras.layers.Dense(2, use_bias=False)(rows)
        else:
            embedded = keras.layers.Embedding(5, 2)(tokens)
        model = keras.Model(tokens, embedded)
        model.set_weights([np.linspace(-1, 1, 10).reshape(5, 2)])
        return model

    tokens = np.array([[0, 0, 1], [0, 3, 3]], "int32")
    targets = np.random.default_rng(0).normal(size=(2, 3, 2))
    found = []
    for strategy, one_hot in (
        (mirrored(2), False),
        (tf.distribute.get_strategy(), True),
    ):
        with strategy.scope():
            model = build(one_hot)
            model.compile(Adafactor(0.1, clipnorm=0.1), loss="mse")
        model.fit(tokens, targets, batch_size=2, epochs=3, verbose=0)
        found.append(model.get_weights()[0])
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)


# NaN and infinity on one replica only.

BAD_BATCH = 2


def poisoned(value):
    given = gradients(12, SHAPES)
    given["bias"][2 * BAD_BATCH + 1, 3] = value  # the second replica's
    return given


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_bad_replica_skips_the_step_on_all(value):
    settings = {"skip_nonfinite": "step", "beta_1": 0.9}
    model = train(mirrored(2), settings, poisoned(value))
    assert_in_sync(model)
    bad = [2 * BAD_BATCH, 2 * BAD_BATCH + 1]
    rest = {
        name: np.delete(g, bad, axis=0) for name, g in poisoned(value).items()
    }
    clean = train(mirrored(2), settings, rest)
    for name, weight in weights(clean).items():
        np.testing.assert_array_equal(weights(model)[name], weight)
    assert int(as_numpy(model.optimizer.iterations)) == 5
    assert int(as_numpy(model.optimizer.skipped_updates)) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("accumulate", [None, 2])
def test_one_bad_replica_skips_the_variable_on_all(value, accumulate):
    settings = {"gradient_accumulation_steps": accumulate}
    model = train(mirrored(2), settings, poisoned(value))
    assert_in_sync(model)
    assert_equal_to_one_device(model, settings, poisoned(value))
    assert int(as_numpy(model.optimizer.skipped_updates)) == 1
    assert np.isfinite(weights(model)["bias"]).all()


def test_loss_scale_optimizer_keeps_replicas_in_sync():
    given = gradients(8, SHAPES)
    wrap = keras.optimizers.LossScaleOptimizer
    settings = {"use_ema": True, "beta_1": 0.9}
    model = train(mirrored(2), settings, given, wrap=wrap)
    assert_in_sync(model)
    single = train(tf.distribute.get_strategy(), settings, given, wrap=wrap)
    for name, weight in weights(single).items():
        np.testing.assert_allclose(
            weights(model)[name], weight, rtol=2e-6, atol=2e-6
        )


def test_loss_scale_optimizer_overlooks_a_replica_but_the_guard_does_not():
    # Keras asks the first replica alone whether the gradients are finite.
    settings = {"skip_nonfinite": "step"}
    model = train(
        mirrored(2),
        settings,
        poisoned(np.inf),
        wrap=keras.optimizers.LossScaleOptimizer,
    )
    assert_in_sync(model)
    inner = model.optimizer.inner_optimizer
    assert int(as_numpy(inner.skipped_updates)) == 1
    assert all(np.isfinite(w).all() for w in weights(model).values())


# Where the optimizer is made and built.


def test_optimizer_built_outside_the_scope_is_mirrored():
    strategy = mirrored(2)
    with strategy.scope():
        optimizer = Adafactor(0.1, use_ema=True, beta_1=0.9)
        model = probe_model(STARTS, optimizer)
    optimizer.build(model.trainable_variables)
    given = gradients(8, SHAPES)
    fit(model, given, batch_size=2)
    assert_in_sync(model)
    settings = {"learning_rate": 0.1, "use_ema": True, "beta_1": 0.9}
    assert_equal_to_one_device(model, settings, given)


def test_optimizer_made_outside_the_scope_is_refused():
    optimizer = Adafactor()
    with mirrored(2).scope():
        model = probe_model(STARTS)
    with pytest.raises((ValueError, RuntimeError)):
        model.compile(optimizer, loss=mean_output)
        fit(model, gradients(4, SHAPES), batch_size=2)


@pytest.mark.parametrize("accumulate", [None, 2])
def test_mirrored_model_is_saved_and_resumed_on_one_device(
    tmp_path, accumulate
):
    settings = {
        "beta_1": 0.9,
        "use_ema": True,
        "gradient_accumulation_steps": accumulate,
    }
    given = gradients(12, SHAPES)
    first = {name: g[:6] for name, g in given.items()}
    second = {name: g[6:] for name, g in given.items()}
    model = train(mirrored(2), settings, first)
    model.save(tmp_path / "model.keras")
    fit(model, second, batch_size=2)
    single = keras.models.load_model(tmp_path / "model.keras")
    fit(single, second, batch_size=2)
    with mirrored(2).scope():
        again = keras.models.load_model(tmp_path / "model.keras")
    fit(again, second, batch_size=2)
    assert_in_sync(again)
    for name, weight in weights(model).items():
        np.testing.assert_array_equal(weights(again)[name], weight)
        np.testing.assert_allclose(
            weights(single)[name], weight, rtol=2e-6, atol=2e-6
        )


def test_state_that_waits_for_its_slots_reaches_every_replica(tmp_path):
    settings = {"learning_rate": 0.1, "beta_1": 0.9, "use_ema": True}
    given = gradients(8, SHAPES)
    first = train(mirrored(2), settings, given)
    path = tmp_path / "model.weights.h5"
    first.save_weights(path)
    with mirrored(2).scope():
        model = probe_model(STARTS, Adafactor(**settings))
        model.load_weights(path)
    assert not model.optimizer.built
    fit(first, given, batch_size=2)
    fit(model, given, batch_size=2)
    assert_in_sync(model)
    for ours, theirs in zip(
        first.optimizer.variables, model.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(as_numpy(ours), as_numpy(theirs))


# What a TPU would compile.

TPU_SHAPES = [(64, 64), (3, 3, 4, 8), (5,), (), (1025, 1024)]


def tpu_step(settings, dtype="float32", wrap=None, make=Adafactor):
    """The step of an optimizer under a `TPUStrategy`, traced.

    Returns:
        Tuple of the counts of operations in its graph, and the names of the
        variables that a replica assigned for itself.
    """
    strategy = fake_tpu_strategy()
    with strategy.scope():
        variables = [
            keras.Variable(np.ones(shape), dtype=dtype, name=f"w{i}")
            for i, shape in enumerate(TPU_SHAPES)
        ]
        optimizer = make(**settings)
        if wrap:
            optimizer = wrap(optimizer)
        optimizer.build(variables)
    specs = [tf.TensorSpec(shape, dtype) for shape in TPU_SHAPES]

    def step(*gradients):
        optimizer.apply(list(gradients), variables)

    with replica_assignments(variables[0].value) as assigned:
        nodes = nodes_of(strategy, step, *specs)
    return count_ops(nodes), assigned


@pytest.mark.parametrize(
    "settings",
    [
        *SETTINGS,
        {"gradient_accumulation_steps": 2, "skip_nonfinite": None},
        {"gradient_accumulation_steps": 2, "skip_nonfinite": "variable"},
        {"gradient_accumulation_steps": 2, "skip_nonfinite": "step"},
        {"beta_1": 0.9, "momentum_dtype": "int8"},
        {"record_update_rms": True, "warmup_steps": 10},
    ],
    ids=str,
)
def test_tpu_step_sums_every_gradient_once(settings):
    count, assigned = tpu_step(settings)
    assert count["CrossReplicaSum"] == len(TPU_SHAPES)
    assert count["TPUReplicateMetadata"] == 1
    assert not assigned
    assert not [op for op in count if "Scatter" in op or "PyFunc" in op]


@pytest.mark.parametrize("row", MAIN, ids=lambda row: row.name)
def test_tpu_step_of_every_optimizer_sums_every_gradient_once(row):
    count, assigned = tpu_step({"weight_decay": 0.1}, make=row.optimizer)
    assert count["CrossReplicaSum"] == len(TPU_SHAPES)
    assert not assigned
    # Nothing is drawn but by a hash of the step, nothing is on the host.
    stray = ("Scatter", "Random", "PyFunc")
    assert not [op for op in count if any(word in op for word in stray)]


def test_tpu_step_reads_update_and_weight_in_one_pass():
    """The sum of complex numbers is what XLA does not take apart."""
    count, _ = tpu_step({})
    # More than 2**20 numbers in two stages: the last axis, then the others.
    stages = [2 if math.prod(shape) > 2**20 else 1 for shape in TPU_SHAPES]
    assert count["Complex"] == sum(stages)
    assert {1, 2} == set(stages)


@pytest.mark.parametrize("guard", ["variable", "step", None])
def test_tpu_step_of_bfloat16_weights_sums_every_gradient_once(guard):
    count, assigned = tpu_step({"skip_nonfinite": guard}, "bfloat16")
    assert count["CrossReplicaSum"] == len(TPU_SHAPES)
    assert not assigned
    assert not [op for op in count if "Scatter" in op or "Random" in op]


def test_tpu_step_under_loss_scaling_traces():
    count, assigned = tpu_step(
        {"gradient_accumulation_steps": 2},
        wrap=keras.optimizers.LossScaleOptimizer,
    )
    assert count["CrossReplicaSum"] == len(TPU_SHAPES)
    # Keras' wrapper lets every replica count for itself.
    assert all(name.startswith("loss_scale_optimizer") for name in assigned)


def test_assignment_by_a_replica_is_seen():
    """That no optimizer here assigns so is no accident of the test."""
    strategy = fake_tpu_strategy()
    with strategy.scope():
        own = keras.Variable(np.ones(3), name="own")
    with replica_assignments(own.value) as assigned:
        nodes_of(strategy, lambda: own.assign_add(np.ones(3)))
    assert assigned == ["own:0"]


@pytest.mark.parametrize("wrap", [None, keras.optimizers.LossScaleOptimizer])
@pytest.mark.parametrize("accumulation", [None, 2])
def test_monitor_shows_what_it_shows_of_one_device(wrap, accumulation):
    given = gradients(12, SHAPES)
    given["bias"][4:6] = np.nan
    found = []
    for strategy in (mirrored(2), tf.distribute.get_strategy()):
        with strategy.scope():
            optimizer = Adafactor(
                0.1,
                record_update_rms=True,
                gradient_accumulation_steps=accumulation,
            )
            model = probe_model(STARTS, wrap(optimizer) if wrap else optimizer)
        found.append(reports_of(model, given, batch_size=2))
    assert len(found[1]) == (3 if accumulation else 6)
    for together, alone in zip(*found, strict=True):
        assert together.step == alone.step
        assert together.logs() == pytest.approx(alone.logs(), rel=1e-4)
