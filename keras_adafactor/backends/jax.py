"""JAX: variables are values, and a step is one program of XLA."""

import functools

import jax
import keras
import numpy as np
from jax.experimental.sparse import JAXSparse
from keras import ops

from keras_adafactor.backends import reductions
from keras_adafactor.backends.one_process import colocate_with as colocate_with
from keras_adafactor.backends.one_process import (
    creation_scope as creation_scope,
)
from keras_adafactor.backends.one_process import outside_graph as outside_graph
from keras_adafactor.backends.one_process import read as read
from keras_adafactor.backends.one_process import (
    sum_over_replicas as sum_over_replicas,
)
from keras_adafactor.backends.one_process import with_shape as with_shape

# The training step.


def training_step(function):
    return function


def densify(gradient):
    # Keras' sparse layers give `BCOO`.
    return gradient.todense() if isinstance(gradient, JAXSparse) else gradient


def update_variables(optimizer, updates, in_turn):
    before = None
    # The backward pass has the gradient of the last one first.
    for variable, function, (gradient, *rest) in reversed(updates):
        assigned = None
        if isinstance(variable.value, jax.core.Tracer) and _are_whole():
            assigned = in_turn(variable)
        if assigned:
            gradient = _after(before, gradient)
            before = assigned
        function(variable, gradient, *rest)


def _after(variables, tensor):
    """The tensor, once variables have the values they were assigned last.

    On a TPU: there XLA would begin the updates of many variables before it ends
    one, and hold what is half done of each.

    Args:
        variables: List of variables; `None` for none.
        tensor: What the next update begins with.
    """
    if variables is None:
        return tensor
    # The order counts: what stands first is computed first.
    tensor, values = jax.lax.platform_dependent(
        (tensor, [variable.value for variable in variables]),
        tpu=jax.lax.optimization_barrier,
        default=lambda both: both,
    )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return tensor


def vectorize(function, values):
    return ops.vectorized_map(function, values)


# Variables.


def sync_training_state(model):
    model.jax_state_sync()


def has_value(variable):
    # Within `fit` the trainer has it, and a `fit` that raised keeps it.
    return variable._value is not None


def is_tracing():
    return isinstance(ops.zeros(()), jax.core.Tracer)


def is_symbolic(value):
    return isinstance(value, jax.core.Tracer)


def _are_whole():
    """Whether no variable can be split over devices."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return jax.device_count() == 1
    return isinstance(distribution, keras.distribution.DataParallel)


# Arithmetic.


def full_precision():
    return jax.default_matmul_precision("highest")


def select(condition, if_true, if_false):
    return ops.where(condition, if_true, if_false)


def product(x, *factors):
    for factor in factors:
        x = x * factor
    return x


def subtract(x, delta, kept):
    return x - delta


def sqrt(x):
    # One differentiates through a step in meta-learning. NaN stays NaN.
    zero = x == 0
    return ops.sqrt(ops.where(zero, 1.0, x)) - ops.cast(zero, x.dtype)


def eigh(matrix):
    return ops.eigh(matrix)


def by_platform(on_tpu, elsewhere, *arrays):
    if _are_whole():
        return jax.lax.platform_dependent(
            *arrays, tpu=on_tpu, default=elsewhere
        )
    return elsewhere(*arrays)


# Reductions.


def mean(x, axes):
    return ops.mean(x, axis=axes) if axes else x


def mean_square(x, axes, scale=1.0):
    return reductions.staged_mean(reductions.scaled_square(x, scale), axes)


def sum_of_squares(x):
    return ops.sum(ops.square(x))


def square_for_two(x):
    # XLA writes a value that two sums use to memory on a CPU, which takes twice
    # as long as both. These are two values that it cannot see to be one.
    again = jax.lax.platform_dependent(
        x, cpu=jax.lax.optimization_barrier, default=lambda x: x
    )
    return ops.square(x), ops.square(again)


def mean_squares_of_two(a, b, axes, scale=1.0):
    def apart(a, b):
        return mean_square(a, axes, scale), mean_square(b, axes)

    def in_one_pass(a, b):
        return reductions.means_in_one_pass(_sums_of_two, a, b, axes, scale)

    return by_platform(in_one_pass, apart, a, b)


# `lax.reduce` over pairs has no derivative: that of sums is the sums of it.
@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _sums_of_two(a, b, axes):
    zero = np.zeros((), a.dtype)
    sums = jax.lax.reduce(
        (a, b),
        (zero, zero),
        lambda p, q: (p[0] + q[0], p[1] + q[1]),
        axes,
    )
    return [ops.expand_dims(x, axes) for x in sums]


@_sums_of_two.defjvp
def _derivative_of_sums(axes, values, changes):
    of_changes = [jax.numpy.sum(x, axes, keepdims=True) for x in changes]
    return _sums_of_two(*values, axes), of_changes
