"""Steps compiled by the TPU compiler. Nothing here is run on a TPU.

What `fit` compiles is compiled for every generation: through TensorFlow's
StableHLO with KERAS_BACKEND=tensorflow, through JAX with KERAS_BACKEND=jax.
Numbers are the compiler's account of the program, never a clock's.
"""

import collections
import contextlib
import functools
import math

import keras
import numpy as np
import pytest

import keras_adafactor
from benchmarks.optimizers import refreshing
from examples.translation.config import TranslationConfig
from examples.translation.layers import FeedForward
from examples.translation.losses import SmoothedCrossEntropy
from examples.translation.losses import means_over_pieces
from examples.translation.model import build_model
from keras_adafactor import Adafactor
from keras_adafactor import layouts
from tests.optimizers import MAIN
from tpu_scripts import tpu_compiler
from tpu_scripts import train_step
from tpu_scripts.decoder import Decoder

BACKEND = keras.backend.backend()
if tpu_compiler.MISSING:
    pytest.skip(
        f"{' and '.join(tpu_compiler.MISSING)} not installed: "
        "pip install -e '.[tpu-compile]' runs these tests.",
        allow_module_level=True,
    )
if BACKEND not in ("tensorflow", "jax"):
    pytest.skip(
        "Only TensorFlow and JAX compile for TPUs: KERAS_BACKEND=tensorflow "
        "or jax runs these tests.",
        allow_module_level=True,
    )
only_jax = pytest.mark.skipif(
    BACKEND != "jax",
    reason="Layouts are applied by JAX alone: KERAS_BACKEND=jax runs this.",
)

GENERATIONS = {
    "v2": "v2:2x2",
    "v3": "v3:2x2",
    "v4": "v4:2x2x1",
    "v5e": "v5e:1x1",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:1x1",
    "tpu7x": "tpu7x:2x2x1",
}
# Options that change the program; the last one also rounds at random.
SETTINGS = {
    "int8_momentum": {"beta_1": 0.9, "momentum_dtype": "int8"},
    "accumulation_and_average": {
        "gradient_accumulation_steps": 2,
        "use_ema": True,
        "weight_decay": 0.1,
    },
    "bfloat16_weights_step_guard": {
        "skip_nonfinite": "step",
        "global_clipnorm": 1.0,
    },
}
ROWS, LENGTH, PIECES = 4, 32, 500


def device(generation="v5e"):
    return tpu_compiler.devices(GENERATIONS[generation])[0]


def translation_model(
    optimizer, policy="mixed_bfloat16", width=64, num_heads=4, dropout=0.0
):
    """The smallest translation model that has every kind of layer."""
    config = TranslationConfig.from_preset(
        num_layers=1,
        model_dim=width,
        ff_dim=4 * width,
        num_heads=num_heads,
        dropout=dropout,
    )
    model = build_model(
        config, vocab_size=512, piece_count=PIECES, dtype=policy
    )
    return compiled(model, optimizer)


def compiled(model, optimizer):
    loss = SmoothedCrossEntropy(0.1, PIECES)
    model.compile(
        optimizer=optimizer,
        loss=loss,
        weighted_metrics=means_over_pieces(loss),
        jit_compile=True,
    )
    return model


def packed_batch(rows=ROWS):
    """A batch as `batching.assemble` makes it; only its shapes matter."""
    ids = np.zeros((rows, LENGTH), "int32")
    features = {
        f"{side}_{what}": ids
        for side in ("source", "target")
        for what in ("ids", "segments", "positions")
    }
    return features, ids, np.zeros((rows, LENGTH), "float32")


@functools.cache
def default_step():
    """The default optimizer's step, traced once for all generations."""
    model = translation_model(Adafactor())
    if BACKEND == "jax":
        return functools.partial(
            train_step.compile_train_step, model, packed_batch()
        )
    hlo = train_step.tensorflow_step(model, packed_batch())
    return functools.partial(tpu_compiler.compile_hlo, hlo)


@pytest.mark.parametrize(
    "generation",
    [
        pytest.param(
            name,
            marks=()
            if name in ("v2", "v5e", "v6e", "tpu7x")
            else pytest.mark.exhaustive,
        )
        for name in GENERATIONS
    ],
)
def test_train_step_compiles_for_every_generation(generation):
    program = default_step()(device(generation))
    assert program.on_host() == []
    assert program.hbm_bytes < tpu_compiler.usable_hbm(device(generation))


@pytest.mark.parametrize(
    "setting",
    [
        "int8_momentum",
        pytest.param("accumulation_and_average", marks=pytest.mark.exhaustive),
        "bfloat16_weights_step_guard",
    ],
)
def test_train_step_compiles_with_every_option(setting):
    policy = "bfloat16" if "bfloat16" in setting else "mixed_bfloat16"
    model = translation_model(Adafactor(**SETTINGS[setting]), policy)
    program = train_step.compile_train_step(model, packed_batch(), device())
    assert program.on_host() == []
    assert_arguments(program, model)


@pytest.mark.exhaustive
@pytest.mark.parametrize("generation", ["v5e", "v6e"])
@pytest.mark.parametrize("row", MAIN, ids=lambda row: row.name)
def test_train_step_compiles_with_every_optimizer(row, generation):
    model = translation_model(row.optimizer(**row.on_tpu))
    program = train_step.compile_train_step(
        model, packed_batch(), device(generation)
    )
    assert program.on_host() == []
    assert_arguments(program, model)


def test_dropout_compiles():
    # In a model of its own: on TensorFlow each dropout takes seconds.
    inputs = keras.Input((LENGTH, 64), batch_size=ROWS)
    outputs = FeedForward(64, 256, dropout=0.1)(inputs)
    model = keras.Model(inputs, outputs)
    model.compile(Adafactor(), "mse", jit_compile=True)
    batch = (np.zeros((ROWS, LENGTH, 64), "float32"),) * 2
    program = train_step.compile_train_step(model, batch, device())
    assert program.on_host() == []
    assert_arguments(program, model, batch)


def assert_arguments(program, model, batch=None):
    """The program takes every variable and the batch, and nothing else."""
    variables = [
        v for kind in train_step.state_of(model).values() for v in kind
    ]
    batch = packed_batch() if batch is None else batch
    given = [*variables, *keras.tree.flatten(batch)]
    assert collections.Counter(
        (a.shape, a.dtype) for a in program.arguments
    ) == collections.Counter((tuple(v.shape), str(v.dtype)) for v in given)
    assert program.argument_bytes == sum(a.hbm_bytes for a in program.arguments)
    # Updated in place, but for the sums of metrics in tuples of their own.
    assert program.output_bytes - program.alias_bytes < 10_000


def test_state_among_the_arguments_is_what_the_report_says():
    programs, models = [], []
    batch = (np.zeros((8, 1024), "float32"),) * 2
    for optimizer in (keras.optimizers.Adam(), Adafactor()):
        inputs = keras.Input((1024,), batch_size=8)
        hidden = keras.layers.Dense(2048, activation="relu")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(1024)(hidden))
        model.compile(optimizer, "mse", jit_compile=True)
        program = train_step.compile_train_step(model, batch, device())
        assert_arguments(program, model, batch)
        programs.append(program)
        models.append(model)
    report = keras_adafactor.state_report(models[1])
    adam, ours = (
        sum(argument.unpadded_bytes for argument in program.arguments)
        for program in programs
    )
    # Beside its slots, Adafactor counts skipped updates in 4 bytes.
    assert adam - ours == report.adam_bytes - report.total_bytes - 4
    # What is saved in arguments is saved in HBM.
    saved = programs[0].hbm_bytes - programs[1].hbm_bytes
    assert saved > 0.95 * (report.adam_bytes - report.total_bytes)


SHAPES = {
    "table": (8192, 512),
    "kernel": (512, 2048),
    "heads": (512, 16, 32),
    "bias": (2048,),
    "scale": (),
}


# Every axis but that of the table has a basis of at most 64.
SMALL_SHAPES = {
    "table": (1024, 64),
    "kernel": (64, 128),
    "heads": (64, 4, 16),
    "bias": (128,),
    "scale": (),
}


def variables_of(shapes, dtype="float32"):
    made = []
    for name, shape in shapes.items():
        with keras.name_scope(name):
            made.append(
                keras.Variable("zeros", shape=shape, dtype=dtype, name="w")
            )
    return made


@pytest.mark.parametrize("row", MAIN, ids=lambda row: row.name)
def test_optimizer_step_of_every_optimizer_compiles(row):
    program = train_step.compile_optimizer_step(
        row.optimizer(**row.on_tpu), variables_of(SMALL_SHAPES), device()
    )
    assert program.on_host() == []
    assert program.output_bytes - program.alias_bytes < 10_000


LARGE = (16384, 8192)


@functools.cache
def large_step(make):
    """The step of one large matrix alone."""
    return step_of(make, LARGE)


def step_of(make, shape):
    """The step of one variable alone."""

    def built():
        optimizer, variables = make(), variables_of({"kernel": shape})
        optimizer.build(variables)
        return optimizer, variables

    made = train_step.without_memory(built) if BACKEND == "jax" else built()
    return train_step.compile_optimizer_step(*made, device())


def test_step_reads_no_more_than_the_gradient_thrice_and_the_weight_twice():
    # g, g, g, w, w read and w written make 24 bytes: the statistics need all
    # of g, the clip all of g again, the update needs it a third time.
    size = math.prod(LARGE)
    assert large_step(Adafactor).bytes_accessed / size < 24.1
    # g, w, m, v read and w, m, v written.
    adam = large_step(keras.optimizers.Adam).bytes_accessed / size
    assert adam == pytest.approx(28, rel=1e-3)


def test_int8_momentum_is_not_laid_out_anew():
    """Reshaped into blocks, it moves 110 bytes a parameter."""
    make = functools.partial(Adafactor, beta_1=0.9, momentum_dtype="int8")
    shape = (4096, 4096)
    assert step_of(make, shape).bytes_accessed / math.prod(shape) < 95


def test_sizes_of_update_and_weight_take_one_pass():
    """In two, the estimate is 1.28 times that of Adam."""
    ours = large_step(Adafactor).estimated_cycles()
    assert ours / large_step(keras.optimizers.Adam).estimated_cycles() < 1.16


@only_jax
@pytest.mark.parametrize("shape", [(512, 512), (512, 8, 64), (512,)], ids=str)
def test_small_variables_take_fewer_cycles_than_with_keras_adafactor(shape):
    """They are many kernels of a few thousand cycles."""
    ours = step_of(Adafactor, shape).estimated_cycles()
    assert ours < step_of(keras.optimizers.Adafactor, shape).estimated_cycles()


def test_factored_variable_needs_no_temporary_of_its_size():
    size = math.prod(LARGE)
    assert large_step(Adafactor).temporary_bytes < 0.01 * size
    # Nor a constant: the program is a megabyte or two, the variable 512.
    assert large_step(Adafactor).code_bytes < 0.1 * size


def test_temporary_of_full_size_is_seen():
    """What the test before would fail on: the second moment, built."""
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415

    def step(x, g, row, col):
        v = jax.lax.optimization_barrier(jnp.outer(row, col))
        return x - g * jax.lax.rsqrt(v)

    arrays = [np.empty(s, "float32") for s in (LARGE[:1], LARGE[1:])]
    x = jax.ShapeDtypeStruct(LARGE, "float32")
    program = tpu_compiler.compile_jax(
        step, tpu_compiler.on_device(device(), [x, x, *arrays]), donate=(0,)
    )
    assert program.temporary_bytes >= 4 * math.prod(LARGE)


# These tests can fail: what is left to the host is seen or refused.


class Unsupported(keras.layers.Layer):
    """A layer that Python computes."""

    def call(self, x):
        if BACKEND == "tensorflow":
            import tensorflow as tf  # noqa: PLC0415

            return tf.ensure_shape(
                tf.numpy_function(np.tanh, [x], tf.float32), x.shape
            )
        import jax  # noqa: PLC0415

        jax.debug.callback(lambda x: None, x)
        return x


@only_jax
def test_gradients_are_not_all_held_at_once(monkeypatch):
    """Of large matrices one update is ended before the next begins."""
    # It is for JAX alone.
    from benchmarks.tpu_compile import compile_training_step  # noqa: PLC0415

    def temporaries():
        step = compile_training_step(keras_adafactor.CAME, device())
        return step["temporary_bytes"]

    # Of twelve matrices, 4 bytes a parameter each.
    assert temporaries() < 2 * 4 / 12
    monkeypatch.setattr(keras_adafactor.CAME, "_in_turn", lambda *of: None)
    assert temporaries() > 5 * 4 / 12


@only_jax
def test_recording_the_rms_of_updates_keeps_none_of_them():
    from benchmarks.tpu_compile import compile_training_step  # noqa: PLC0415

    recording = functools.partial(Adafactor, record_update_rms=True)
    recorded, plain = (
        compile_training_step(make, device())["temporary_bytes"]
        for make in (recording, Adafactor)
    )
    assert recorded <= 1.01 * plain


def test_step_that_calls_python_is_reported():
    inputs = keras.Input((8,), batch_size=8)
    outputs = keras.layers.Dense(8)(Unsupported()(inputs))
    model = keras.Model(inputs, outputs)
    model.compile(Adafactor(), "mse", jit_compile=True)
    batch = (np.zeros((8, 8), "float32"), np.zeros((8, 8), "float32"))
    if BACKEND == "tensorflow":
        with pytest.raises(Exception, match="(?i)unsupported|PyFunc"):
            train_step.compile_train_step(model, batch, device())
        return
    program = train_step.compile_train_step(model, batch, device())
    assert "operation send" in program.on_host()


def test_array_in_host_memory_is_reported():
    import jax  # noqa: PLC0415

    def step(x):
        kept = jax.device_put(x * 2, jax.memory.Space.Host)
        return jax.device_put(kept, jax.memory.Space.Device) + 1

    x = tpu_compiler.on_device(device(), np.empty((1024, 1024), "float32"))
    program = tpu_compiler.compile_jax(step, [x])
    assert "array in host memory" in program.on_host()


def test_program_that_does_not_fit_says_so_in_numbers():
    import jax  # noqa: PLC0415

    x = jax.ShapeDtypeStruct((2**17, 2**16), "float32")  # 32 GiB
    with pytest.raises(tpu_compiler.DoesNotFit) as raised:
        tpu_compiler.compile_jax(
            lambda x: x + 1, tpu_compiler.on_device(device(), [x])
        )
    assert raised.value.required >= 2**35
    assert raised.value.available == round(15.75 * 2**30)


def test_late_message_of_too_little_memory_is_read():
    found = tpu_compiler.DoesNotFit.parse(
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used "
        "15.78G of 15.75G hbm. Exceeded hbm capacity by 28.79M."
    )
    assert found.required == round(15.78 * 2**30)
    assert found.available == round(15.75 * 2**30)
    assert tpu_compiler.DoesNotFit.parse("INTERNAL: something else") is None


def test_mistyped_topology_lists_the_valid_ones():
    with pytest.raises(tpu_compiler.TopologyError, match="v5e:4x5") as raised:
        tpu_compiler.devices("v5e:4x5")
    listed = str(raised.value).split("There are:")[1].split()
    assert "v5e:4x4" in listed
    for topology in listed:
        found = len(tpu_compiler.devices(topology))
        assert found == tpu_compiler.device_count(topology), topology


# Sharded: 256 chips, axes "data" and "model".

LAYOUTS = {
    "table/w|.*embeddings": ("model", "data"),
    "kernel/w|.*inner/kernel": ("data", "model"),
    "heads/w|.*(query|key|value)/kernel": ("data", "model", None),
    "bias/w": ("model",),
    ".*attention/output/kernel": ("model", None, "data"),
    ".*feed_forward/output/kernel": ("model", "data"),
}


@contextlib.contextmanager
def slice_of_256_chips():
    mesh = keras.distribution.DeviceMesh(
        (16, 16), ["data", "model"], tpu_compiler.devices("v5e:16x16")
    )
    layouts = keras.distribution.LayoutMap(mesh)
    for pattern, axes in LAYOUTS.items():
        layouts[pattern] = axes
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(
            layout_map=layouts, batch_dim_name="data"
        )
    )
    try:
        yield
    finally:
        keras.distribution.set_distribution(None)


def exchanged(program):
    """Counter of (kind, bytes that come out) of the collectives."""
    return collections.Counter(
        (c.kind, c.output_bytes) for c in program.collectives()
    )


def sharded_optimizer_step(make):
    def built():
        optimizer, variables = make(), variables_of(SHAPES)
        optimizer.build(variables)
        return optimizer, variables

    with slice_of_256_chips():
        optimizer, variables = train_step.without_memory(built)
        program = train_step.compile_optimizer_step(
            optimizer, variables, device=None
        )
    return optimizer, exchanged(program)


# All-reduced arrays of the step, scalars apart: bytes -> number.
SUMS = {
    # v_row of kernel and heads, 512 / 16 rows; v_col of the table, 512 / 16
    # columns, and of the heads, 16 / 16 x 32; rms(x) and rms(u) of the kernel,
    # which the compiler sums along the columns first.
    4 * 32: 6,
    # v_col of the kernel, 2048 / 16 columns.
    4 * 128: 1,
    # v_row of the table, 8192 / 16 rows; its rms(x) and rms(u).
    4 * 512: 3,
}


@only_jax
@pytest.mark.parametrize(
    "settings",
    [{}, {"beta_1": 0.9}, {"skip_nonfinite": "step"}, {"use_ema": True}],
    ids=str,
)
def test_sharded_step_exchanges_sums_of_statistics_and_no_weight(settings):
    optimizer, found = sharded_optimizer_step(lambda: Adafactor(**settings))
    assert arrays(found) == {("all-reduce", n): k for n, k in SUMS.items()}
    slots = dict(optimizer.slots())
    axes = {
        path: [slots[path][name]._layout.axes for name in ("v_row", "v_col")]
        for path in ("table/w", "kernel/w", "heads/w")
    }
    assert axes == {
        "table/w": [("model",), ("data",)],
        "kernel/w": [("data",), ("model",)],
        "heads/w": [("data",), ("model", None)],
    }


# What an ordinary step of every optimizer exchanges beside scalars: kind and
# bytes that come out -> number. Reduced are statistics of rows, columns and
# blocks, and what a basis projects.
EXCHANGES = {
    "adafactor": {("all-reduce", n): k for n, k in SUMS.items()},
    "adafactor_momentum": {("all-reduce", n): k for n, k in SUMS.items()},
    "adalayer": {},
    "came": {
        ("all-reduce", 128): 9,
        ("all-reduce", 512): 2,
        ("all-reduce", 2048): 3,
    },
    # The table, projected on 256 columns, a sixteenth; so the two kernels.
    "coap": {
        ("all-reduce", 4 * 512 * 256): 1,
        ("all-reduce", 4 * 256 * 128): 1,
        ("all-reduce", 4 * 32 * 256): 1,
    },
    # The RMS of its clips, summed along one axis first.
    "fadam": {("all-reduce", 128): 3, ("all-reduce", 2048): 3},
    "hfac": {
        ("all-reduce", 128): 9,
        ("all-reduce", 512): 2,
        ("all-reduce", 2048): 3,
    },
    "lion": {},
    "signum": {},
    # Squares are other shapes than the variables: a sixteenth of the table
    # and of the kernel, a quarter of its bits, is gathered to reshape it.
    "smmf": {
        ("all-gather", 4096): 2,
        ("all-gather", 8192): 2,
        ("all-gather", 32768): 1,
        ("all-gather", 131072): 1,
        ("all-gather", 262144): 1,
        ("all-gather", 1048576): 1,
        ("all-reduce", 128): 6,
        ("all-reduce", 256): 4,
        ("all-reduce", 512): 2,
        ("all-reduce", 2048): 4,
        ("all-reduce", 4096): 2,
        ("all-reduce", 8192): 2,
    },
    # Heads, turned along axes that are split: of a sixteenth of the variable.
    # Norms of the turned gradient, and which indices ever had one.
    "soap": {
        ("all-gather", 32768): 1,
        ("all-gather", 65536): 2,
        ("all-reduce", 64): 1,
        ("all-reduce", 4096): 2,
        ("all-reduce", 65536): 1,
        ("collective-permute", 8): 1,
    },
    "subset_norm": {
        ("all-reduce", 128): 1,
        ("all-reduce", 512): 1,
        ("all-reduce", 2048): 1,
    },
    # Norms of rows, and the projections of rank 2.
    "subspace_momentum": {
        ("all-reduce", 128): 1,
        ("all-reduce", 256): 1,
        ("all-reduce", 512): 1,
        ("all-reduce", 1024): 1,
        ("all-reduce", 2048): 1,
        ("all-reduce", 4096): 1,
    },
}


@only_jax
@pytest.mark.parametrize("row", MAIN, ids=lambda row: row.name)
def test_sharded_step_of_every_optimizer_exchanges_no_weight(row):
    make = functools.partial(row.optimizer, **row.on_tpu)
    _, found = sharded_optimizer_step(refreshing(make, due=False))
    assert arrays(found) == EXCHANGES[row.name]
    smallest = 4 * math.prod(SHAPES["heads"])
    assert all(size <= smallest for _, size in arrays(found))


# Of a step with a refresh: the largest array that comes out of an exchange, in
# bytes, and how many exchanges there are, scalars apart.
REFRESHES = {
    # The table times the 256 vectors of its sketch, which is decomposed whole.
    "coap": (4 * 8192 * 256, 135),
    # A sixteenth of the heads, as in every step; bases are of 32 and 64.
    "soap": (4 * 512 * 32, 42),
    # The Gram matrix of the smaller axis of the table or the kernel.
    "subspace_momentum": (4 * 512 * 512, 61),
}


@only_jax
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row,
            # It takes as long as all the others.
            marks=[pytest.mark.exhaustive] if row.name == "coap" else [],
            id=row.name,
        )
        for row in MAIN
        if row.name in REFRESHES
    ],
)
def test_sharded_refresh_exchanges_no_weight_but_for_a_sketch(row):
    make = functools.partial(row.optimizer, **row.on_tpu)
    _, found = sharded_optimizer_step(refreshing(make, due=True))
    found = arrays(found)
    largest = max(size for _, size in found)
    assert (largest, sum(found.values())) == REFRESHES[row.name]
    assert largest < 4 * math.prod(SHAPES["table"])


@only_jax
def test_sharded_int8_momentum_gathers_scales_only():
    _, found = sharded_optimizer_step(
        lambda: Adafactor(beta_1=0.9, momentum_dtype="int8")
    )
    gathered = {n: k for (kind, n), k in found.items() if kind != "all-reduce"}
    # Scales of the blocks along the last axis: 512 / 16 rows of 2048 / 512
    # blocks of the kernel. Those of the table lie where its rows do.
    assert gathered == {4 * 32 * 4: 1}


@only_jax
def test_replicated_factors_are_seen(monkeypatch):
    """What the tests before would fail on."""

    def replicated(variable, array):
        distribution = keras.distribution.distribution()
        return keras.distribution.TensorLayout(
            [None] * len(array.axes), distribution.device_mesh
        )

    monkeypatch.setattr(layouts, "derive_layout", replicated)
    optimizer, found = sharded_optimizer_step(Adafactor)
    assert ("all-gather", 4 * 8192) in found
    assert dict(optimizer.slots())["kernel/w"]["v_row"]._layout.axes == (None,)
    _, found = sharded_optimizer_step(lambda: Adafactor(beta_1=0.9))
    assert ("all-gather", 4 * 8192 * 512) in found


def arrays(found):
    return {key: count for key, count in found.items() if key[1] > 4}


@only_jax
def test_sharded_train_step_has_no_other_exchange_than_adams():
    """Adam goes element by element: the rest of the step exchanges as much."""
    found = []
    for make in (Adafactor, keras.optimizers.Adam):

        def built(make=make):
            model = translation_model(make(), width=256, num_heads=16)
            train_step.build(model, packed_batch(rows=32))
            return model

        with slice_of_256_chips():
            program = train_step.compile_train_step(
                train_step.without_memory(built), packed_batch(32), device=None
            )
        assert program.on_host() == []
        found.append(exchanged(program))
    added = found[0] - found[1]
    assert {kind for kind, _ in added} == {"all-reduce"}
    # The longest: statistics of the small variables that are updated together.
    assert max(size for _, size in added) == 4 * 256


# Fully sharded: 256 chips along the axis of the batch.

WIDTH, WORDS = 2048, 8192


@functools.cache
def fully_sharded_step(make, topology="v5e:16x16"):
    """The whole step of a decoder of one layer, a row for each chip."""
    devices = tpu_compiler.devices(topology)
    tokens = np.zeros((len(devices), 128), "int32")

    def built():
        model = Decoder(
            WORDS, 1, WIDTH, 4 * WIDTH, 16, remat=True, dtype="mixed_bfloat16"
        )
        model.build(tokens.shape)
        loss = SmoothedCrossEntropy(0.0, WORDS)
        model.compile(make(), loss, jit_compile=True)
        train_step.build(model, (tokens, tokens))
        return model

    mesh = keras.distribution.DeviceMesh((len(devices),), ["data"], devices)
    with keras_adafactor.FullySharded(mesh).scope():
        program = train_step.compile_train_step(
            train_step.without_memory(built), (tokens, tokens), device=None
        )
    assert program.on_host() == []
    return program


# bfloat16: a kernel of attention; one of the feed-forward, or the embedding.
KERNEL, LARGE_KERNEL = 2 * WIDTH * WIDTH, 2 * WIDTH * 4 * WIDTH
# The whole batch, as it is between two layers.
BATCH = 2 * 256 * 128 * WIDTH


def sgd():
    return keras.optimizers.SGD(0.01)


@only_jax
def test_fully_sharded_step_gathers_weights_and_sums_gradients():
    found = arrays(exchanged(fully_sharded_step(sgd)))
    large = {key: n for key, n in found.items() if key[1] >= KERNEL}
    # The compiler makes no reduce-scatter: gradients are summed, then cut;
    # small weights are gathered as a sum with zeros.
    assert large == {
        # Kernels of the feed-forward, going forward and backward; the
        # embedding.
        ("all-gather", LARGE_KERNEL): 5,
        # Gradients of those two, and of the embedding as it is looked up and
        # as it predicts.
        ("all-reduce", LARGE_KERNEL): 4,
        # Four kernels of attention, forward and backward, and gradients.
        ("all-reduce", KERNEL): 12,
    }
    # Vectors, and nothing between: no activation.
    assert max(size for _, size in found if size < KERNEL) == 2 * 4 * WIDTH
    assert LARGE_KERNEL < BATCH


def everything_kept():
    return Adafactor(beta_1=0.9, use_ema=True, gradient_accumulation_steps=2)


@only_jax
@pytest.mark.parametrize("make", [Adafactor, everything_kept])
def test_fully_sharded_optimizer_exchanges_sums_of_statistics(make):
    ours, theirs = (
        exchanged(fully_sharded_step(optimizer)) for optimizer in (make, sgd)
    )
    assert theirs - ours == collections.Counter()
    # A mean along the axis that is split, of each of seven matrices; those of
    # four more in an RMS, which the compiler sums along an axis first.
    assert arrays(ours - theirs) == {("all-reduce", 4 * WIDTH): 11}


@only_jax
def test_fully_sharded_step_keeps_a_part_of_everything():
    program = fully_sharded_step(everything_kept)
    parameters = 12 * WIDTH**2 + WORDS * WIDTH
    # Weight, average, accumulator and momentum.
    assert 16 * parameters / 256 < program.argument_bytes
    assert program.argument_bytes < 1.1 * 16 * parameters / 256


def largest_exchange():
    """Of the translation model: its batch is larger than any weight."""
    devices = tpu_compiler.devices("v5e:4x4")
    mesh = keras.distribution.DeviceMesh((len(devices),), ["data"], devices)
    rows = 8 * len(devices)

    def built():
        model = translation_model(sgd(), width=256)
        train_step.build(model, packed_batch(rows))
        return model

    with keras_adafactor.FullySharded(mesh).scope():
        program = train_step.compile_train_step(
            train_step.without_memory(built), packed_batch(rows), device=None
        )
    assert 2 * rows * LENGTH * 256 > LARGEST
    return max(size for _, size in exchanged(program))


# Gradient of a feed-forward kernel.
LARGEST = 4 * 256 * 1024


@pytest.mark.exhaustive
@only_jax
def test_layouts_of_outputs_keep_the_batch_where_it_is(monkeypatch):
    assert largest_exchange() <= LARGEST
    # Without them the weights stay, and the batch is gathered.
    monkeypatch.setattr(
        keras_adafactor.FullySharded, "get_tensor_layout", lambda *_: None
    )
    assert largest_exchange() > LARGEST
