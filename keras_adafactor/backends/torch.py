"""PyTorch: each operation is a kernel, and memory that is new costs time."""

import contextlib
import math

import torch
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

# `fit` is without gradients already; a loop of a user may forget it.
training_step = torch.no_grad()


def densify(gradient):
    # Of `torch.nn.Embedding(sparse=True)`. Repeated indices are summed.
    sparse = isinstance(gradient, torch.Tensor) and gradient.is_sparse
    return gradient.to_dense() if sparse else gradient


def update_variables(optimizer, updates, in_turn):
    # The backward pass has the gradient of the last one first.
    for variable, function, arguments in reversed(updates):
        function(variable, *arguments)


_vectorized = False


def vectorize(function, values):
    global _vectorized  # noqa: PLW0603
    _vectorized = True
    try:
        return ops.vectorized_map(function, values)
    finally:
        _vectorized = False


# Variables.


def sync_training_state(model):
    pass


def has_value(variable):
    return True


def is_tracing():
    return torch.compiler.is_compiling()


def is_symbolic(value):
    return is_tracing()


# Arithmetic.


def full_precision():
    return contextlib.nullcontext()


def select(condition, if_true, if_false):
    if _is_known(condition):
        return if_true if condition else if_false
    return ops.where(condition, if_true, if_false)


def _is_known(condition):
    """Whether to look at a boolean is free: it is here, and it is one."""
    return condition.device.type == "cpu" and not _has_no_values()


def _has_no_values():
    """Whether tensors have no values, or many at once."""
    return is_tracing() or _vectorized


def product(x, *factors):
    # A second array of the size of `x` takes as long again as the product.
    first, *rest = factors
    result = x * first
    for factor in rest:
        result *= factor
    return result


def subtract(x, delta, kept):
    # As for `product`.
    if (
        _has_no_values()
        or not delta.is_contiguous()
        or (delta.shape, delta.dtype) != (x.shape, x.dtype)
        or _memory(delta) in map(_memory, (x, *kept))
    ):
        return x - delta
    return torch.sub(x, delta, out=delta)


def _memory(tensor):
    return tensor.untyped_storage().data_ptr()


def sqrt(x):
    return ops.sqrt(x)


def eigh(matrix):
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        nan = torch.full_like(matrix, math.nan)
        return nan[0], nan


def by_platform(on_tpu, elsewhere, *arrays):
    return elsewhere(*arrays)


# Reductions.


def mean(x, axes):
    if not axes:
        return x
    leading = tuple(range(len(axes)))
    if axes != leading or len(axes) == len(x.shape):
        return ops.mean(x, axis=axes)
    # A product with a vector takes a tenth of the time of that sum.
    rows = math.prod(x.shape[: len(axes)])
    weights = x.new_full((1, rows), 1.0 / rows)
    return (weights @ x.reshape(rows, -1)).reshape(x.shape[len(axes) :])


def mean_square(x, axes, scale=1.0):
    if len(axes) == len(x.shape):
        square = _square_of_norm(x, scale) / math.prod(x.shape)
        return square[(None,) * len(axes)]
    return reductions.staged_mean(reductions.scaled_square(x, scale), axes)


def sum_of_squares(x):
    return _square_of_norm(x)


def _square_of_norm(x, scale=1.0):
    """`sum((scale * x) ** 2)`, without an array of squares.

    With one it takes ten times as long.
    """
    norm = scale * torch.linalg.vector_norm(x)
    if scale != 1 and not (_is_known(norm) and norm.isfinite()):
        norm = torch.linalg.vector_norm(scale * x)
    return norm * norm


def square_for_two(x):
    square = ops.square(x)
    return square, square


def mean_squares_of_two(a, b, axes, scale=1.0):
    return mean_square(a, axes, scale), mean_square(b, axes)
