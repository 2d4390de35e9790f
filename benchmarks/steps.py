"""Steps of an optimizer alone, to be timed: weights and gradients are given."""

import math
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np


class Step(NamedTuple):
    """One optimizer on its own weights.

    Attributes:
        take: Takes one step, and returns when it is done.
        state_bytes: Of the optimizer.
        temporary_bytes: What the compiled step holds besides weights,
            gradients and state; `None` where no compiler says it.
    """

    take: Callable
    state_bytes: int
    temporary_bytes: int | None = None


def of_keras(make, weights, gradients, mode):
    """A `Step` of a Keras optimizer, on the backend in use.

    Args:
        make: Function that returns the optimizer.
        weights: Iterable of NumPy arrays.
        gradients: Iterable of NumPy arrays.
        mode: `"graph"` or `"jit"` of TensorFlow, `"jit"` of JAX, `"eager"` of
            PyTorch.
    """
    variables = [keras.Variable(weight) for weight in weights]
    gradients = [keras.ops.convert_to_tensor(g) for g in gradients]
    optimizer = make()
    optimizer.build(variables)
    size = sum(
        math.prod(v.shape) * np.dtype(v.dtype).itemsize
        for v in optimizer.variables
    )
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf  # noqa: PLC0415

        apply = tf.function(optimizer.apply, jit_compile=mode == "jit")
        return Step(lambda: apply(gradients), size)
    if backend == "torch":
        import torch  # noqa: PLC0415

        def take():
            with torch.no_grad():
                optimizer.apply(gradients)

        return Step(take, size)

    return _of_jax(
        optimizer.stateless_apply,
        [v.value for v in variables],
        [v.value for v in optimizer.variables],
        gradients,
    )


def of_optax(make, weights, gradients):
    """A `Step` of an optax `GradientTransformation`; arguments as above."""
    import jax.numpy as jnp  # noqa: PLC0415
    import optax  # noqa: PLC0415

    weights, gradients = (
        list(map(jnp.asarray, w)) for w in (weights, gradients)
    )
    transformation = make()

    def apply(state, gradients, weights):
        updates, state = transformation.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state

    return _of_jax(apply, weights, transformation.init(weights), gradients)


def of_torch(make, weights, gradients):
    """A `Step` of a `torch.optim.Optimizer`; arguments as above."""
    import torch  # noqa: PLC0415

    parameters = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    optimizer = make(parameters)
    # The state is made by the first step.
    optimizer.step()
    state = [
        entry
        for entries in optimizer.state.values()
        for entry in entries.values()
        if isinstance(entry, torch.Tensor)
    ]
    return Step(optimizer.step, sum(entry.nbytes for entry in state))


def _of_jax(apply, weights, state, gradients):
    import jax  # noqa: PLC0415

    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    compiled = (
        jax.jit(apply, donate_argnums=(0, 2))
        .lower(state, gradients, weights)
        .compile()
    )

    def take():
        nonlocal state, weights
        weights, state = compiled(state, gradients, weights)
        jax.block_until_ready(weights)

    memory = compiled.memory_analysis()
    return Step(take, size, memory and memory.temp_size_in_bytes)
