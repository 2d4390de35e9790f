"""JAX: every variable split over the axis of the batch, on eight devices.

What is kept is an eighth of it; what comes out is what one device computes,
also where training goes on under another sharding.
"""

import functools

import keras
import numpy as np
import pytest

from keras_adafactor import Adafactor
from keras_adafactor import FullySharded
from tests.optimizers import MAIN
from tests.probe import as_numpy

if keras.backend.backend() != "jax":
    pytest.skip(
        "Layouts are applied by JAX alone: KERAS_BACKEND=jax runs these tests.",
        allow_module_level=True,
    )

import jax

pytestmark = pytest.mark.virtual_devices

DEVICES = 8
LENGTH, PIECES, CLASSES = 16, 64, 10


def spec(variable):
    """The mesh axis of every axis of a variable, as placed on devices."""
    found = tuple(variable.value.sharding.spec)
    return found + (None,) * (len(variable.shape) - len(found))


def mesh(*shape, names=("data", "model")):
    return keras.distribution.DeviceMesh(
        shape, names[: len(shape)], keras.distribution.list_devices("cpu")
    )


def layout_map(layouts, device_mesh=None):
    made = keras.distribution.LayoutMap(device_mesh or mesh(4, 2))
    for pattern, axes in layouts.items():
        made[pattern] = axes
    return made


# Layouts.


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((32000, 512), 0),
        ((512, 2048), 1),
        ((1024, 16, 64), 0),
        ((16, 64, 1024), 2),
        # The largest is not divided.
        ((12, 8), 1),
        ((30522, 768), 1),
        ((3, 3, 16, 32), 3),
        # Equal: the first.
        ((512, 512), 0),
        ((4, 24, 24), 1),
        ((8,), 0),
        ((3, 3, 3, 12), None),
        ((10,), None),
        ((1,), None),
        ((), None),
    ],
    ids=str,
)
def test_largest_axis_that_the_devices_divide_is_split(shape, axis):
    with FullySharded().scope():
        variable = keras.Variable("zeros", shape=shape)
    assert spec(variable) == tuple(
        "batch" if i == axis else None for i in range(len(shape))
    )
    shards = variable.value.addressable_shards
    assert len({shard.device for shard in shards}) == DEVICES
    parts = 1 if axis is None else DEVICES
    assert {shard.data.size * parts for shard in shards} == {
        int(np.prod(shape))
    }


@pytest.mark.parametrize(
    ("given", "shape", "axes"),
    [
        ((None, "model"), (16, 64), ("data", "model")),
        (("model", None), (64, 16), ("model", "data")),
        # Split over `model` already, though it is the largest.
        ((None, "model", None), (16, 64, 32), (None, "model", "data")),
        # Fewer axes than the variable has.
        (("model",), (16, 8, 4), ("model", "data", None)),
        (("model",), (64,), ("model",)),
        (("model", None), (64, 15), ("model", None)),
        # What it says of the axis of the batch.
        (("data", None), (16, 64), ("data", None)),
        ((), (16, 64), (None, "data")),
    ],
    ids=str,
)
def test_layouts_of_a_map_are_kept_and_the_rest_is_split(given, shape, axes):
    distribution = FullySharded(layout_map=layout_map({".*kernel": given}))
    with distribution.scope():
        with keras.name_scope("layer"):
            kernel = keras.Variable("zeros", shape=shape, name="kernel")
            other = keras.Variable("zeros", shape=(6, 20), name="other")
    assert spec(kernel) == axes
    # The devices of `data` alone count.
    assert spec(other) == (None, "data")


def test_axis_of_the_batch_is_the_first_or_the_one_named():
    both = mesh(2, 4, names=("replica", "shard"))
    for name, axes in (
        (None, ("replica", None)),
        ("replica", ("replica", None)),
        ("shard", (None, "shard")),
    ):
        distribution = FullySharded(both, batch_dim_name=name)
        assert distribution.get_data_layout((8, 4)).axes == (
            name or "replica",
            None,
        )
        with distribution.scope():
            assert spec(keras.Variable("zeros", shape=(6, 4))) == axes


def test_layout_that_a_variable_was_given_is_kept():
    distribution = FullySharded(mesh(8))
    whole = keras.distribution.TensorLayout(
        (None, None), distribution.device_mesh
    )
    with distribution.scope():
        variable = keras.Variable("zeros", shape=(16, 64), layout=whole)
    assert spec(variable) == (None, None)
    assert distribution.get_variable_layout(variable) is whole


def test_bad_arguments_are_named():
    made = layout_map({})
    for arguments, message in (
        ({"device_mesh": (8,)}, "Argument `device_mesh` must be a `keras.dist"),
        ({"layout_map": {}}, "Argument `layout_map` must be a `keras.distrib"),
        (
            {"layout_map": keras.distribution.LayoutMap(None)},
            "`layout_map` must be .* that has a mesh",
        ),
        (
            {"device_mesh": mesh(8), "layout_map": made},
            r"`device_mesh` must be None or the mesh of `layout_map`.*\(4, 2\)"
            r".*Received: device_mesh=.*\(8,\)",
        ),
        (
            {"layout_map": made, "batch_dim_name": "batch"},
            r"`batch_dim_name` must be .* one of \['data', 'model'\]\. "
            "Received: batch_dim_name='batch'",
        ),
        (
            {"auto_shard_dataset": 1},
            "`auto_shard_dataset` must be a boolean",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            FullySharded(**arguments)


# Training.


def transformer(optimizer, dropout=0.1):
    """A classifier with an embedding, attention, norms, vectors, dropout."""
    keras.utils.set_random_seed(0)
    ids = keras.Input((LENGTH,), dtype="int32")
    x = keras.layers.Embedding(PIECES, 32)(ids)
    normal = keras.layers.LayerNormalization()(x)
    # A bias of the keys has no gradient but rounding.
    attention = keras.layers.MultiHeadAttention(4, 8, use_bias=False)
    x = x + attention(normal, normal)
    hidden = keras.layers.Dense(128, activation="relu", name="inner")(x)
    x = x + keras.layers.Dropout(dropout)(
        keras.layers.Dense(32, name="outer")(hidden)
    )
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(ids, keras.layers.Dense(CLASSES)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    return model


def fit(model, epochs=1):
    """Four steps of 16 rows an epoch; the loss of every epoch."""
    rng = np.random.default_rng(0)
    ids = rng.integers(PIECES, size=(64, LENGTH))
    labels = rng.integers(CLASSES, size=(64,))
    history = model.fit(
        ids, labels, batch_size=16, shuffle=False, epochs=epochs, verbose=0
    )
    return history.history["loss"]


def variables(model):
    return [*model.variables, *model.optimizer.variables]


def adafactor():
    # Accumulation ends in the middle: an accumulator has something to keep.
    return Adafactor(
        0.01, beta_1=0.9, use_ema=True, gradient_accumulation_steps=3
    )


ROWS = {row.name: row for row in MAIN}
OPTIMIZERS = {
    "adafactor": adafactor,
    "came": lambda: ROWS["came"].optimizer(learning_rate=1e-3),
    "subset_norm": lambda: ROWS["subset_norm"].optimizer(learning_rate=1e-3),
    "keras_adam": lambda: keras.optimizers.Adam(1e-3),
}


@functools.cache
def one_device(make, name):
    assert keras.distribution.distribution() is None
    model = make(OPTIMIZERS[name]())
    losses = fit(model, epochs=2)
    return losses, [as_numpy(v) for v in variables(model)]


def assert_trains_as_one_device(distribution, make, name):
    with distribution.scope():
        model = make(OPTIMIZERS[name]())
        model.optimizer.build(model.trainable_variables)
        before = [spec(v) for v in variables(model)]
        losses = fit(model, epochs=2)
        assert [spec(v) for v in variables(model)] == before
    expected_losses, expected = one_device(make, name)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert losses[0] != losses[1]
    for variable, value in zip(variables(model), expected, strict=True):
        np.testing.assert_allclose(
            as_numpy(variable),
            value,
            rtol=1e-3,
            atol=2e-5,
            err_msg=variable.path,
        )
    return model


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_equals_one_device(name):
    model = assert_trains_as_one_device(FullySharded(), transformer, name)
    for variable in model.trainable_variables:
        assert ("batch" in spec(variable)) == any(
            size % DEVICES == 0 for size in variable.shape
        )


def test_averages_accumulators_and_slots_are_split_as_their_weights():
    with FullySharded().scope():
        model = transformer(adafactor())
        fit(model)
    optimizer = model.optimizer
    by_name = {v.path.partition("/")[2]: v for v in optimizer.variables}
    whole = 0
    for variable, (path, slots) in zip(
        model.trainable_variables, optimizer.slots(), strict=True
    ):
        axes = spec(variable)
        prefix = path.replace("/", "_")
        for name in ("average", "gradient_accumulator", "m"):
            kept = by_name[f"{prefix}_{name}"]
            assert spec(kept) == axes
            assert kept.value.sharding.shard_shape(kept.shape) == (
                variable.value.sharding.shard_shape(variable.shape)
            )
        if "v" in slots:
            assert spec(slots["v"]) == axes
        else:
            # Each axis of a weight is one of the rows' or of the columns'.
            assert spec(slots["v_row"]) + spec(slots["v_col"]) == axes
        if "batch" not in axes:
            whole += np.prod(variable.shape)
    # The bias of the classes.
    assert whole == CLASSES
    total = model.count_params()
    kept = sum(
        np.prod(v.value.sharding.shard_shape(v.shape))
        for v in model.trainable_variables
    )
    assert kept == (total - whole) / DEVICES + whole


def megatron():
    return FullySharded(
        layout_map=layout_map(
            {
                ".*(query|key|value)/kernel": (None, "model", None),
                ".*attention_output/kernel": ("model", None, None),
                ".*inner/kernel": (None, "model"),
                ".*inner/bias": ("model",),
                ".*outer/kernel": ("model", None),
            }
        )
    )


@pytest.mark.parametrize("name", ["adafactor", "came"])
def test_training_over_both_axes_of_a_mesh_equals_one_device(name):
    model = assert_trains_as_one_device(megatron(), transformer, name)
    found = {spec(v) for v in model.trainable_variables}
    assert {("data", "model"), ("model", "data"), ("model",)} <= found
    assert ("data", "model", None) in found


def recurrent(optimizer):
    """Convolutions, batch normalisation and a cell that returns its state."""
    keras.utils.set_random_seed(0)
    ids = keras.Input((LENGTH,), dtype="int32")
    x = keras.layers.Embedding(PIECES, 16)(ids)
    # The normalisation takes a bias away.
    x = keras.layers.Conv1D(24, 3, padding="same", use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.LSTM(16)(x)
    model = keras.Model(ids, keras.layers.Dense(CLASSES)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    return model


def test_other_layers_equal_one_device():
    distribution = FullySharded()
    model = assert_trains_as_one_device(distribution, recurrent, "adafactor")
    assert all("batch" in spec(v) for v in model.trainable_variables[:-1])
    rng = np.random.default_rng(0)
    ids = rng.integers(PIECES, size=(16, LENGTH))
    # Outside of a compiled step any number of rows will do.
    with distribution.scope():
        np.testing.assert_allclose(
            model(ids[:3]), model.predict(ids, verbose=0)[:3], atol=1e-5
        )


def test_outputs_of_layers_with_a_split_weight_are_split_by_rows():
    """Without it the compiler may gather the batch and not the weights."""
    distribution = FullySharded()

    def layouts(paths):
        found = [distribution.get_tensor_layout(path) for path in paths]
        return [layout and layout.axes for layout in found]

    with distribution.scope():
        transformer(adafactor())
        paths = [
            "functional/inner/output",
            "functional/global_average_pooling1d/output",
            "functional/output",
        ]
        traced = []
        jax.eval_shape(lambda: traced.append(layouts(paths)))
    assert traced == [[("batch",), None, None]]
    assert layouts(paths) == [None] * 3
    # A map knows better.
    distribution = FullySharded(
        layout_map=layout_map({".*inner/output": ("data", None, "model")})
    )
    with distribution.scope():
        transformer(adafactor())
    assert layouts(paths[:1]) == [("data", None, "model")]


class Routed(keras.layers.Layer):
    """Returns a scalar beside its output, as a mixture of experts does."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], shape[-1]))

    def call(self, x):
        y = keras.ops.matmul(x, self.w)
        return y, keras.ops.mean(y)


def test_layer_with_a_scalar_among_its_outputs_is_left_out_by_a_map():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.routed = Routed(name="routed")

        def call(self, x):
            y, _ = self.routed(x)
            return y

    x = np.ones((16, 32), "float32")

    def fit(layouts):
        distribution = FullySharded(layout_map=layout_map(layouts, mesh(8)))
        with distribution.scope():
            model = Model()
            model.compile(adafactor(), "mse")
            model.fit(x, x, batch_size=16, verbose=0)
            return spec(model.routed.w)

    with pytest.raises(ValueError, match="rank"):
        fit({})
    assert fit({".*routed/output": ()}) == ("data", None)


# Saved under one sharding, resumed under another.


def replicated():
    return keras.distribution.DataParallel(device_mesh=mesh(8, names=["batch"]))


CHANGES = {
    "split": (replicated, FullySharded),
    "whole": (FullySharded, replicated),
    "both_axes": (FullySharded, megatron),
}
# Each change with one form of file; the others by hand.
FORMS = {"split": "keras", "whole": "weights.h5", "both_axes": "orbax"}


@pytest.mark.parametrize(
    ("change", "form"),
    [
        pytest.param(
            change,
            form,
            marks=[] if FORMS[change] == form else pytest.mark.exhaustive,
        )
        for change in CHANGES
        for form in ("keras", "weights.h5", "orbax")
    ],
)
def test_training_goes_on_under_another_sharding(change, form, tmp_path):
    before, after = CHANGES[change]

    def fresh():
        # Keras saves no state of a generator of random numbers.
        model = transformer(adafactor(), dropout=0.0)
        model.optimizer.build(model.trainable_variables)
        return model

    path = tmp_path / f"model.{form}"
    # Orbax' files go by names, which count up.
    keras.backend.clear_session()
    with before().scope():
        model = fresh()
        callbacks = []
        if form == "orbax":
            pytest.importorskip(
                "orbax.checkpoint",
                reason="`pip install orbax-checkpoint` runs this.",
            )
            callbacks = [keras.callbacks.OrbaxCheckpoint(str(path))]
        fit_with(model, callbacks)
        if form == "keras":
            model.save(path)
        elif form == "weights.h5":
            model.save_weights(path)
        straight = fit(model, epochs=2)
    keras.backend.clear_session()
    with after().scope():
        if form == "keras":
            resumed = keras.models.load_model(path)
        else:
            resumed = fresh()
            resumed.load_weights(path)
        layouts = [spec(v) for v in variables(resumed)]
        assert layouts == [spec(v) for v in variables(fresh())]
        losses = fit(resumed, epochs=2)
        assert [spec(v) for v in variables(resumed)] == layouts
    assert losses == pytest.approx(straight, rel=1e-5)
    assert int(resumed.optimizer.iterations) == int(model.optimizer.iterations)


def fit_with(model, callbacks):
    rng = np.random.default_rng(1)
    model.fit(
        rng.integers(PIECES, size=(64, LENGTH)),
        rng.integers(CLASSES, size=(64,)),
        batch_size=16,
        shuffle=False,
        callbacks=callbacks,
        verbose=0,
    )


# Models of KerasHub, made at random.


BACKBONE = {
    "vocabulary_size": PIECES,
    "num_layers": 2,
    "hidden_dim": 32,
    "intermediate_dim": 64,
}
HEADS = {"num_heads": 4, "max_sequence_length": LENGTH, "dropout": 0.0}
QUERY_HEADS = {"num_query_heads": 4, "num_key_value_heads": 1, "head_dim": 8}


@pytest.mark.parametrize(
    ("backbone", "settings"),
    [
        ("GPT2Backbone", HEADS),
        ("GemmaBackbone", QUERY_HEADS),
        ("BertBackbone", HEADS),
    ],
)
def test_backbones_of_keras_hub_train_as_on_one_device(backbone, settings):
    hub = pytest.importorskip(
        "keras_hub", reason="`pip install keras-hub` runs this."
    )
    rng = np.random.default_rng(0)
    ids = rng.integers(PIECES, size=(32, LENGTH))
    labels = rng.integers(CLASSES, size=(32, LENGTH))

    def trained():
        keras.utils.set_random_seed(0)
        body = getattr(hub.models, backbone)(**BACKBONE | settings)
        given = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
        features = {
            name: given.get(name, np.zeros_like(ids)) for name in body.input
        }
        output = body.output
        if isinstance(output, dict):
            output = output["sequence_output"]
        model = keras.Model(body.input, keras.layers.Dense(CLASSES)(output))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(adafactor(), loss)
        history = model.fit(
            features, labels, batch_size=8, shuffle=False, epochs=2, verbose=0
        )
        return model, history.history["loss"]

    with FullySharded().scope():
        model, losses = trained()
    whole = [v for v in model.trainable_variables if "batch" not in spec(v)]
    # The bias of the classes.
    assert [tuple(v.shape) for v in whole] == [(CLASSES,)]
    _, expected = trained()
    assert losses == pytest.approx(expected, rel=1e-5)
