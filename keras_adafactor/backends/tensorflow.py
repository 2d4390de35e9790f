"""TensorFlow: replicas, sparse gradients, and graphs with or without XLA."""

import contextlib
import math

import keras
import tensorflow as tf
from keras import ops

from keras_adafactor.backends import reductions

# The training step.

# Wraps what takes a step, written as it is meant. `fit` is without AutoGraph
# already; in a `tf.function` of a user it would convert all that is called
# from here, and take most of the tracing.
training_step = tf.autograph.experimental.do_not_convert


def densify(gradient):
    """A dense gradient; the repeated rows of a sparse one are summed."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.convert_to_tensor(gradient)
    return gradient


def with_shape(gradient, shape):
    """The gradient, whose shape is static from here on.

    In a graph a size, or their number, may be unknown. `tf.ensure_shape` would
    compare every size, but make what XLA compiles a program of dynamic shapes:
    with dropout in the model, a step half as long again.

    Args:
        gradient: Dense tensor.
        shape: Tuple of ints.

    Returns:
        Tensor, or `None` if the gradient cannot be of that shape.
    """
    if not gradient.shape.is_compatible_with(shape):
        return None
    if gradient.shape.is_fully_defined():
        return gradient
    return tf.reshape(gradient, shape)


def sum_over_replicas(gradients):
    """All-reduces gradients; every replica gets the same sums."""
    context = tf.distribute.get_replica_context()
    if context is None:
        return gradients
    return context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)


def update_variables(optimizer, updates, in_turn):
    """Calls `function(variable, *arguments)` for each update, on its replicas.

    Slots may only be assigned in cross-replica context: assigned in replica
    context, they drift apart without an error.

    Args:
        optimizer: The optimizer.
        updates: List of tuples of a variable, a function and its arguments, of
            which the first is the gradient.
        in_turn: Function of a variable that returns the list of what its update
            assigns if XLA is to end that before it begins the next such update,
            else `None`. Only JAX can say so.
    """

    def across_replicas(strategy, arguments):
        # By now the arguments are of all replicas.
        for (variable, function, _), args in zip(
            updates, arguments, strict=True
        ):
            if isinstance(variable, keras.Variable):
                variable = variable.value
            strategy.extended.update(variable, function, args=args, group=False)

    tf.__internal__.distribute.interim.maybe_merge_call(
        across_replicas,
        optimizer._distribution_strategy,
        [arguments for *_, arguments in updates],
    )


def vectorize(function, values):
    """Calls a function for each slice of tensors along their first axis.

    Args:
        function: Function of a nest of tensors that returns another.
        values: The nest, of tensors with a leading axis.
    """
    return ops.vectorized_map(function, values)


# Variables.


@contextlib.contextmanager
def creation_scope(optimizer):
    """Variables made here are mirrored as the optimizer's own are."""
    strategy = optimizer._distribution_strategy
    if tf.distribute.get_strategy() is strategy:
        yield
    else:
        with strategy.scope():
            yield


def colocate_with(optimizer, variable):
    """Variables made here live on the devices of `variable`."""
    if isinstance(variable, keras.Variable):
        variable = variable.value
    return optimizer._distribution_strategy.extended.colocate_vars_with(
        variable
    )


def read(variable):
    """The value of a variable, of Keras or of the backend, as a tensor."""
    # Of Keras' variables `ops.convert_to_tensor` makes no tensor.
    return tf.convert_to_tensor(variable)


def outside_graph():
    """Assigns now what is assigned here, even while a step is traced."""
    return tf.init_scope()


def sync_training_state(model):
    """Gives variables their values within `fit`, where the trainer has them."""


def has_value(variable):
    """Whether a variable has a value now: a `fit` that raised may have it."""
    return True


def is_tracing():
    """Whether what is computed now is compiled, with what is around it."""
    return not tf.executing_eagerly()


def is_symbolic(value):
    """Whether a value is a tensor without a value as yet."""
    return tf.is_tensor(value) and tf.is_symbolic_tensor(value)


def _on_tpu():
    strategy = tf.distribute.get_strategy()
    return isinstance(strategy, tf.distribute.TPUStrategy)


def _by_xla():
    """Whether XLA compiles what is made here."""
    return tf.__internal__.get_enclosing_xla_context() is not None


# Arithmetic.


def full_precision():
    """A scope in which products of float32 are float32 on a TPU, not bfloat16.

    A basis of Gram matrices rounded to bfloat16 is not orthogonal. TensorFlow
    and PyTorch have no such scope.
    """
    return contextlib.nullcontext()


def select(condition, if_true, if_false):
    """One of two tensors of one shape, by a boolean scalar.

    `tf.where` broadcasts the scalar element by element: without XLA it takes
    three times as long.
    """
    return tf.raw_ops.Select(condition=condition, x=if_true, y=if_false)


def product(x, *factors):
    """`x` times factors that broadcast, in one array of its size."""
    return math.prod(factors, start=x)


def subtract(x, delta, kept):
    """`x - delta`.

    Args:
        x: Tensor.
        delta: Tensor, which may be lost.
        kept: Iterable of tensors that must stay what they are.
    """
    return x - delta


def sqrt(x):
    """The root, of which the derivative at 0 is 0 on JAX, and no NaN."""
    return ops.sqrt(x)


def eigh(matrix):
    """Eigenvalues, ascending, and eigenvectors of a finite matrix.

    NaN if the iteration does not converge.
    """
    return ops.eigh(matrix)


def by_platform(on_tpu, elsewhere, *arrays):
    """One of two functions of the arrays, by where it is computed.

    On a TPU only of arrays that are not split over devices: it may cut them.

    Args:
        on_tpu: Function of tensors.
        elsewhere: Function of tensors that gives the same.
        *arrays: Tensors.
    """
    return on_tpu(*arrays) if _on_tpu() else elsewhere(*arrays)


# Reductions. Where XLA does not compile them, each is a kernel.

# XLA on a CPU unrolls a sum of at most so many, and makes many side by side. A
# longer one it splits in passes of its own, before which it writes what is
# summed to memory, and along the last axis it adds one by one.
_SHORT = 32


def _is_large_on_cpu(x):
    return math.prod(x.shape) >= _SHORT**2 and not (
        _on_tpu() or tf.config.list_logical_devices("GPU")
    )


def mean(x, axes):
    """Mean over some axes, which are dropped."""
    if not axes:
        return x
    if not _is_large_on_cpu(x):
        return ops.mean(x, axis=axes)
    if _by_xla():
        return _mean_by_short_sums(x, axes)
    leading = tuple(range(len(axes)))
    if axes != leading or len(axes) == len(x.shape):
        return ops.mean(x, axis=axes)
    # A product with a vector takes a quarter of the time of that sum.
    rest = x.shape[len(axes) :]
    rows = math.prod(x.shape[: len(axes)])
    weights = tf.fill((1, rows), tf.constant(1.0 / rows, x.dtype))
    x = tf.reshape(x, (rows, math.prod(rest)))
    return tf.reshape(weights @ x, rest)


def mean_square(x, axes, scale=1.0):
    """`mean((scale * x) ** 2)` over some axes, which are kept at size 1.

    Args:
        x: Tensor.
        axes: Tuple of ints.
        scale: Float, a power of 2.
    """
    if _is_large_on_cpu(x):
        if _by_xla():
            square = reductions.scaled_square(x, scale)
            return ops.expand_dims(_mean_by_short_sums(square, axes), axes)
        if len(axes) == len(x.shape):
            square = _square_of_norm(x, scale) / math.prod(x.shape)
            return square[(None,) * len(axes)]
    return reductions.staged_mean(reductions.scaled_square(x, scale), axes)


def sum_of_squares(x):
    """`sum(x ** 2)`."""
    if not _is_large_on_cpu(x):
        return ops.sum(ops.square(x))
    if _by_xla():
        axes = tuple(range(len(x.shape)))
        return math.prod(x.shape) * _mean_by_short_sums(ops.square(x), axes)
    return _square_of_norm(x)


def _square_of_norm(x, scale=1.0):
    """`sum((scale * x) ** 2)`, in kernels that make no array of squares.

    With one it takes three times as long.
    """
    half = tf.nn.l2_loss(x)
    if scale != 1:
        half = tf.cond(
            tf.math.is_finite(half),
            lambda: scale**2 * half,
            lambda: tf.nn.l2_loss(scale * x),
        )
    return 2.0 * half


def _mean_by_short_sums(x, axes):
    """Mean over some axes, which are dropped.

    First over short pieces of an axis. What is left is a long sum again, or
    both would be one that is not unrolled.
    """
    for axis in sorted(axes, reverse=True):
        *before, size = x.shape[: axis + 1]
        after = x.shape[axis + 1 :]
        if size < _SHORT**2 // 2 and axis - 1 in axes:
            x = ops.reshape(x, [*before[:-1], before[-1] * size, *after])
            continue
        pieces = range(1, min(_SHORT, size // (_SHORT + 1)) + 1)
        short = max((n for n in pieces if size % n == 0), default=1)
        x = ops.reshape(x, [*before, short, size // short, *after])
        x = ops.mean(ops.mean(x, axis=axis), axis=axis)
    return x


def square_for_two(x):
    """`x ** 2`, for each of two sums.

    Args:
        x: Tensor.

    Returns:
        Tuple of two tensors.
    """
    square = ops.square(x)
    return square, square


def mean_squares_of_two(a, b, axes, scale=1.0):
    """`mean_square(a, axes, scale)` and `mean_square(b, axes)`.

    On a TPU in one pass over both, of which XLA makes two if it is given two
    sums; but not of arrays that may be split over devices, which it would
    gather for that. Of 1e10 numbers, right up to 1e14 / `scale` and 1e14.

    Args:
        a, b: Tensors of one shape.
        axes, scale: As there.

    Returns:
        Tuple of two tensors.
    """

    def apart(a, b):
        return mean_square(a, axes, scale), mean_square(b, axes)

    def in_one_pass(a, b):
        return reductions.means_in_one_pass(_sums_of_two, a, b, axes, scale)

    if a.dtype != tf.float32:
        return apart(a, b)
    return by_platform(in_one_pass, apart, a, b)


def _sums_of_two(a, b, axes):
    both = tf.reduce_sum(tf.complex(a, b), axes, keepdims=True)
    return tf.math.real(both), tf.math.imag(both)
