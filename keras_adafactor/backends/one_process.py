"""What JAX and PyTorch share: a variable is one, and a shape is known.

Replicas with variables of their own, and gradients of unknown shape, are
TensorFlow's; see there.
"""

import contextlib

from keras import ops


def with_shape(gradient, shape):
    return gradient if tuple(gradient.shape) == shape else None


def sum_over_replicas(gradients):
    return gradients


def creation_scope(optimizer):
    return contextlib.nullcontext()


def colocate_with(optimizer, variable):
    return contextlib.nullcontext()


def read(variable):
    return ops.convert_to_tensor(variable)


def outside_graph():
    return contextlib.nullcontext()
