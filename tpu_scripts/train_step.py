"""The training step of a Keras model, as `fit` compiles it, for a TPU."""

import keras

from tpu_scripts import tpu_compiler


def compile_train_step(model, batch, device):
    """Compiles the step of a compiled model for one device.

    Forward, loss, backward, optimizer and metrics are one program, in which
    weights and optimizer state are updated in place. On JAX a model that was
    built `without_memory` will do, and under a `keras.distribution` the step
    is compiled for all devices of its mesh.

    Args:
        model: `keras.Model`, compiled. It is built here if it is not.
        batch: What `fit` gives to a step: a tuple of features, labels and
            maybe weights, of anything that has a shape and a dtype.
        device: One of `tpu_compiler.devices`; ignored under a distribution.

    Returns:
        `tpu_compiler.Program`.

    Raises:
        tpu_compiler.DoesNotFit: If the step needs more HBM than there is.
        ValueError: If the backend is not TensorFlow or JAX.
    """
    if keras.backend.backend() == "tensorflow":
        return tpu_compiler.compile_hlo(tensorflow_step(model, batch), device)
    if keras.backend.backend() == "jax":
        return _compile_jax_step(model, batch, device)
    raise ValueError(
        "KERAS_BACKEND must be tensorflow or jax. Received: "
        f"{keras.backend.backend()}"
    )


def tensorflow_step(model, batch):
    """The step as `tpu_compiler.compile_hlo` takes it, for any device."""
    import tensorflow as tf  # noqa: PLC0415

    build(model, batch)
    step = tf.function(
        model.train_step, jit_compile=True, reduce_retracing=True
    )
    batch = keras.tree.map_structure(
        lambda leaf: tf.zeros(leaf.shape, leaf.dtype), batch
    )
    return tpu_compiler.tensorflow_hlo(step, [batch])


def _compile_jax_step(model, batch, device):
    build(model, batch)
    state = tuple(
        _placed(variables, device) for variables in state_of(model).values()
    )
    distribution = keras.distribution.distribution()
    if distribution is None:
        batch = tpu_compiler.on_device(device, batch)
    else:
        batch = keras.tree.map_structure(
            lambda leaf: tpu_compiler.sharded(
                leaf,
                distribution.get_data_layout(tuple(leaf.shape)).backend_layout,
            ),
            batch,
        )
    return tpu_compiler.compile_jax(
        model.train_step,
        [state, batch],
        donate=(0,),
        out_shardings=(None, tpu_compiler.shardings(state)),
        # `fit` drops what makes no difference, such as the old `velocity` of
        # Keras' Adafactor, but it is in HBM until the step is done.
        keep_unused=True,
    )


def compile_optimizer_step(optimizer, variables, device):
    """Compiles the update of `variables` alone, gradients given.

    Args:
        optimizer: Keras optimizer. It is built here if it is not.
        variables: List of `keras.Variable`.
        device: As in `compile_train_step`.

    Returns:
        `tpu_compiler.Program`.
    """
    optimizer.build(variables)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf  # noqa: PLC0415

        gradients = [tf.zeros(v.shape, v.dtype) for v in variables]
        step = tf.function(
            lambda gradients: optimizer.apply(gradients), jit_compile=True
        )
        return tpu_compiler.compile_tensorflow(step, [gradients], device)
    state = _placed(optimizer.variables, device)
    weights = _placed(variables, device)
    return tpu_compiler.compile_jax(
        optimizer.stateless_apply,
        [state, weights, weights],
        donate=(0, 2),
        out_shardings=tpu_compiler.shardings((weights, state)),
    )


def _placed(variables, device):
    """Shapes of variables, on one device or as the distribution has them."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return tpu_compiler.on_device(device, list(variables))
    return [
        tpu_compiler.sharded(
            v, distribution.get_variable_layout(v).backend_layout
        )
        for v in variables
    ]


def state_of(model):
    """The variables of a step by kind, in the order of the program.

    Returns:
        Dict from `"weights"`, `"non_trainable"`, `"optimizer"` and
        `"metrics"` to lists of `keras.Variable`.
    """
    return {
        "weights": model.trainable_variables,
        "non_trainable": model.non_trainable_variables,
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }


def build(model, batch):
    """Makes every variable of a step, the metrics' too, as `fit` does."""
    model._symbolic_build(data_batch=batch)


def without_memory(make):
    """What `make()` returns, whose variables have a shape and no value.

    The model is made while JAX traces, so that initializers are not run and
    models of any size can be asked about. Only for JAX.
    """
    import jax  # noqa: PLC0415

    made = []
    jax.eval_shape(lambda: made.append(make()))
    return made[0]
