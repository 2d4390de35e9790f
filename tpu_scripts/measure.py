"""What a training step needs of a slice, by the compiler's account.

The step is that of JAX: forward, loss, backward, optimizer and the accuracy,
as `fit` compiles it. No weight is allocated.
"""

import contextlib
import functools
import importlib
import math

import jax
import keras

import keras_adafactor
from examples.translation.errors import UserError
from examples.translation.layouts import layout_map
from examples.translation.losses import SmoothedCrossEntropy
from examples.translation.losses import means_over_pieces
from examples.translation.model import build_model
from examples.translation.optimizers import build_optimizer
from examples.translation.tokenizer import padded_vocabulary
from tpu_scripts import tpu_compiler
from tpu_scripts import train_step
from tpu_scripts.decoder import Decoder
from tpu_scripts.measurement import Measurement

# The translation model's come from the example, with its schedules.
OPTIMIZERS = {
    "adafactor": keras_adafactor.Adafactor,
    "keras_adafactor": keras.optimizers.Adafactor,
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "sgd": functools.partial(keras.optimizers.SGD, 0.01, momentum=0.9),
}


def measure(request, optimizer):
    """Compiles the step of a request for one optimizer.

    Args:
        request: `precompile.Request`.
        optimizer: Name of one of the example's optimizers, as in
            `"adafactor"`; with a dtype policy after an `@` instead of the
            request's, as in `"adafactor@bfloat16"`.

    Returns:
        `Measurement`.
    """
    name, _, policy = optimizer.partition("@")
    devices = tpu_compiler.devices(request.topology)
    available = _usable_hbm(request.topology)
    make = {"translation": _translation, "decoder": _decoder}.get(
        request.model, _of_user
    )
    with _distributed(request, devices):
        build, batch = make(request, name, policy or request.policy)
        model = train_step.without_memory(build)
        state = train_step.state_of(model)
        parameters = sum(math.prod(v.shape) for v in state["weights"])
        try:
            program = train_step.compile_train_step(model, batch, devices[0])
        except tpu_compiler.DoesNotFit as error:
            sizes = {
                kind: sum(map(_shard_bytes, variables))
                for kind, variables in state.items()
            }
            return Measurement(
                parameters=parameters,
                weights=sizes["weights"],
                optimizer_state=sizes["optimizer"],
                others=sizes["non_trainable"] + sizes["metrics"],
                program=0,
                required=error.required,
                available=error.available,
                fits=False,
            )
    arguments = iter(program.arguments)
    sizes = {
        kind: sum(next(arguments).hbm_bytes for _ in variables)
        for kind, variables in state.items()
    }
    return Measurement(
        parameters=parameters,
        weights=sizes["weights"],
        optimizer_state=sizes["optimizer"],
        others=program.argument_bytes - sizes["weights"] - sizes["optimizer"],
        program=program.code_bytes,
        required=program.hbm_bytes,
        available=available,
        fits=True,
        cycles=program.text and program.estimated_cycles(),
    )


@functools.cache
def _usable_hbm(topology):
    return tpu_compiler.usable_hbm(tpu_compiler.devices(topology)[0])


def _translation(request, optimizer, policy):
    config = request.translation_config(optimizer)
    vocabulary = padded_vocabulary(config.vocab_size)
    tokens = jax.ShapeDtypeStruct(
        (request.global_batch, config.max_length), "int32"
    )
    weights = jax.ShapeDtypeStruct(tokens.shape, "float32")
    features = {
        f"{side}_{what}": tokens
        for side in ("source", "target")
        for what in ("ids", "segments", "positions")
    }
    batch = (features, tokens, weights)

    def build():
        model = build_model(
            config,
            vocab_size=vocabulary,
            piece_count=config.vocab_size,
            dtype=policy,
        )
        loss = SmoothedCrossEntropy(config.label_smoothing, config.vocab_size)
        return _compiled(model, build_optimizer(config), loss, batch)

    return build, batch


def _decoder(request, optimizer, policy):
    vocabulary = padded_vocabulary(request.vocab_size)
    tokens = jax.ShapeDtypeStruct(
        (request.global_batch, request.length), "int32"
    )
    batch = (tokens, tokens)

    def build():
        model = Decoder(
            vocab_size=vocabulary,
            num_layers=request.layers,
            width=request.width,
            ff_dim=request.ff_dim,
            num_heads=request.heads,
            remat=request.remat,
            dtype=policy,
        )
        model.build(tokens.shape)
        loss = SmoothedCrossEntropy(0.0, vocabulary)
        return _compiled(model, _optimizer(request, optimizer), loss, batch)

    return build, batch


def _optimizer(request, name):
    steps = request.gradient_accumulation_steps
    return OPTIMIZERS[name](
        gradient_accumulation_steps=steps if steps > 1 else None
    )


def _of_user(request, optimizer, policy):
    """A model of `--model module:function`: see `precompile`."""
    module, _, function = request.model.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"--model {request.model}: {error}") from error
    keras.config.set_dtype_policy(policy)
    # The shapes are asked for first. The model is made once more, where what
    # has no memory is kept.
    made = train_step.without_memory(make)
    if not isinstance(made, tuple) or len(made) != 2 or not made[0].compiled:
        raise UserError(
            f"--model {request.model} must return a tuple of a compiled "
            f"keras.Model and the shapes of a row. Received: {made}"
        )
    batch = keras.tree.map_structure(
        lambda leaf: jax.ShapeDtypeStruct(
            (request.global_batch, *leaf.shape),
            keras.backend.standardize_dtype(leaf.dtype),
        ),
        made[1],
    )

    def build():
        model, _ = make()
        model.optimizer = _optimizer(request, optimizer)
        train_step.build(model, batch)
        return model

    return build, batch


def _compiled(model, optimizer, loss, batch):
    model.compile(
        optimizer=optimizer,
        loss=loss,
        weighted_metrics=means_over_pieces(loss),
        jit_compile=True,
    )
    train_step.build(model, batch)
    return model


@contextlib.contextmanager
def _distributed(request, devices):
    """The layouts that a request asks for; the batch over the axis `data`."""
    if len(devices) == 1:
        yield
        return
    with _distribution(request, devices).scope():
        yield


def _distribution(request, devices):
    if request.model_parallel == 1:
        mesh = keras.distribution.DeviceMesh((len(devices),), ["data"], devices)
        if request.sharding == "fully_sharded":
            return keras_adafactor.FullySharded(mesh)
        return keras.distribution.DataParallel(device_mesh=mesh)
    layouts = {"translation": _translation_layouts, "decoder": _decoder_layouts}
    split = {
        "fully_sharded": keras_adafactor.FullySharded,
        "model_parallel": keras.distribution.ModelParallel,
    }
    return split[request.sharding](
        layout_map=layouts[request.model](request, devices),
        batch_dim_name="data",
    )


def _translation_layouts(request, devices):
    return layout_map(devices, request.model_parallel)


def _decoder_layouts(request, devices):
    """Heads, feed-forward width and vocabulary over `model`, if it divides."""
    size = request.model_parallel
    mesh = keras.distribution.DeviceMesh(
        (len(devices) // size, size), ["data", "model"], devices
    )

    def split(count):
        return "model" if count % size == 0 else None

    heads, ff_dim = split(request.heads), split(request.ff_dim)
    vocabulary = split(padded_vocabulary(request.vocab_size))
    layouts = keras.distribution.LayoutMap(mesh)
    for pattern, axes in {
        r".*embedding/embeddings": (vocabulary, None),
        r".*/(query|key|value)/kernel": (None, heads, None),
        r".*attention/output/kernel": (heads, None, None),
        r".*feed_forward/inner/kernel": (None, ff_dim),
        r".*feed_forward/inner/bias": (ff_dim,),
        r".*feed_forward/output/kernel": (ff_dim, None),
        # What a block returns.
        r".*/layer_\d+/output": ("data", None, None),
    }.items():
        layouts[pattern] = axes
    return layouts


def _shard_bytes(variable):
    distribution = keras.distribution.distribution()
    shape = tuple(variable.shape)
    if distribution is not None:
        layout = distribution.get_variable_layout(variable)
        shape = layout.backend_layout.shard_shape(shape)
    return tpu_compiler.Argument(shape, str(variable.dtype), 0).unpadded_bytes
