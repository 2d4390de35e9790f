"""What a training step needs of a slice, by the compiler's account.

The step is that of JAX: forward, loss, backward, optimizer and the accuracy,
as `fit` compiles it. No weight is allocated.
"""

import contextlib
import functools
import math

import jax
import keras

import keras_adafactor
from examples.translation.layouts import model_parallel
from examples.translation.losses import SmoothedCrossEntropy
from examples.translation.losses import masked_accuracy
from examples.translation.model import build_model
from examples.translation.optimizers import build_optimizer
from examples.translation.tokenizer import padded_vocabulary
from tpu_scripts import tpu_compiler
from tpu_scripts import train_step
from tpu_scripts.decoder import Decoder
from tpu_scripts.measurement import Measurement

# The translation model's come from the example, with its schedules.
DECODER_OPTIMIZERS = {
    "adafactor": keras_adafactor.Adafactor,
    "keras_adafactor": keras.optimizers.Adafactor,
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
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
    make = {"translation": _translation, "decoder": _decoder}[request.model]
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
        return _compiled(model, DECODER_OPTIMIZERS[optimizer](), loss, batch)

    return build, batch


def _compiled(model, optimizer, loss, batch):
    model.compile(
        optimizer=optimizer,
        loss=loss,
        weighted_metrics=[
            keras.metrics.MeanMetricWrapper(
                masked_accuracy, name="token_accuracy"
            )
        ],
        jit_compile=True,
    )
    train_step.build(model, batch)
    return model


@contextlib.contextmanager
def _distributed(request, devices):
    """Weights split over devices, the batch over the axis `data`.

    The translation model's as the example does it: over `model` alone. Each
    matrix of the decoder is split over `model` along heads, feed-forward width
    or vocabulary, and over `data` along the width of the model, from where it
    is gathered when it is used (fully sharded data parallelism). A size that
    an axis does not divide is not split.
    """
    if len(devices) == 1:
        yield
        return
    split = _decoder_parallel
    if request.model == "translation":
        split = _translation_parallel
    keras.distribution.set_distribution(split(request, devices))
    try:
        yield
    finally:
        keras.distribution.set_distribution(None)


def _translation_parallel(request, devices):
    return model_parallel(devices, request.model_parallel)


def _decoder_parallel(request, devices):
    shape = request.mesh_shape(len(devices))
    mesh = keras.distribution.DeviceMesh(shape, ["data", "model"], devices)
    sizes = request.sizes()
    sizes["vocab"] = padded_vocabulary(sizes["vocab"])

    def split(**along):
        """Mesh axis of every axis of a weight, from its size's name."""
        return tuple(
            axis if axis and sizes[name] % shape[axis == "model"] == 0 else None
            for name, axis in along.items()
        )

    layouts = keras.distribution.LayoutMap(mesh)
    for pattern, axes in {
        r".*embedding/embeddings": split(vocab="model", width="data"),
        r".*/(query|key|value)/kernel": (
            *split(width="data", heads="model"),
            None,
        ),
        r".*attention/output/kernel": (
            *split(heads="model"),
            None,
            *split(width="data"),
        ),
        r".*feed_forward/inner/kernel": split(width="data", ff="model"),
        r".*feed_forward/inner/bias": split(ff="model"),
        r".*feed_forward/output/kernel": split(ff="model", width="data"),
        # What a block returns.
        r".*/layer_\d+/output": ("data", None, None),
    }.items():
        layouts[pattern] = axes
    return keras.distribution.ModelParallel(
        layout_map=layouts, batch_dim_name="data"
    )


def _shard_bytes(variable):
    distribution = keras.distribution.distribution()
    shape = tuple(variable.shape)
    if distribution is not None:
        layout = distribution.get_variable_layout(variable)
        shape = layout.backend_layout.shard_shape(shape)
    return tpu_compiler.Argument(shape, str(variable.dtype), 0).unpadded_bytes
