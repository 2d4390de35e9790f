"""Noise that needs no state: a hash of (element index, step, key).

It is therefore the same on every replica, shard and backend, survives a
restart, and costs no memory.
"""

import math

from keras import ops


def _int32(bits):
    return bits - (1 << 32) if bits >= 1 << 31 else bits


# The finalizer of MurmurHash3 and Knuth's multiplicative constant, as int32
# because PyTorch has no arithmetic on uint32. Products wrap around.
_MULTIPLIER_1 = _int32(0x85EBCA6B)
_MULTIPLIER_2 = _int32(0xC2B2AE35)
_GOLDEN_RATIO = _int32(0x9E3779B1)


def _shift_right(bits, count):
    # `right_shift` of a negative int32 fills with ones: mask them.
    return ops.bitwise_and(ops.right_shift(bits, count), (1 << 32 - count) - 1)


def _mix(bits):
    bits = ops.bitwise_xor(bits, _shift_right(bits, 16)) * _MULTIPLIER_1
    bits = ops.bitwise_xor(bits, _shift_right(bits, 13)) * _MULTIPLIER_2
    return ops.bitwise_xor(bits, _shift_right(bits, 16))


def _element_index(shape):
    # A sum of one arange an axis, not a reshaped one: it stays elementwise,
    # so that a shard makes its own part of it.
    index = ops.zeros((1,) * len(shape), dtype="int32")
    for axis, size in enumerate(shape):
        stride = _int32(math.prod(shape[axis + 1 :]) % (1 << 32))
        along = [1] * len(shape)
        along[axis] = size
        index = index + stride * ops.reshape(
            ops.arange(size, dtype="int32"), along
        )
    return index


def _seed(t, key):
    if isinstance(key, int):
        key = _int32(key * 0x9E3779B1 % (1 << 32))
    else:
        key = key * _GOLDEN_RATIO
    return _mix(t * _GOLDEN_RATIO + key)


def _bits(shape, t, key):
    return _mix(ops.bitwise_xor(_mix(_element_index(shape)), _seed(t, key)))


def _product_of_hashes(shape, t, key):
    """Random odd numbers of 32 bits, of which any two are independent.

    Each is the product of one random odd number for each of its indices. Odd
    numbers form a group: `a c` and `a d` are as independent as `c` and `d`.
    Only the last product is as large as the tensor.
    """
    seed = _seed(t, key)
    product = ops.reshape(ops.bitwise_or(_mix(seed), 1), (1,) * len(shape))
    for axis, size in enumerate(shape):
        along = [1] * len(shape)
        along[axis] = size
        index = ops.arange(size, dtype="int32") + _int32(
            axis * 0x9E3779B1 % (1 << 32)
        )
        factor = _mix(ops.bitwise_xor(_mix(index), seed))
        product = product * ops.reshape(ops.bitwise_or(factor, 1), along)
    return product


def uniform_noise(shape, t, key):
    """Noise in [0, 1), a multiple of 2**-16, hashed from index, step and key.

    Any two elements are independent. More are not, which rounding that is
    right in the mean does not ask for.

    Args:
        shape: Tuple of ints.
        t: int32 scalar tensor, the step.
        key: Int, or int32 scalar, different for every tensor that is rounded.

    Returns:
        float32 tensor of the given shape.
    """
    # Of the odd numbers the upper half is uniform; as it has a sign, it is in
    # [-0.5, 0.5).
    high = ops.right_shift(_product_of_hashes(shape, t, key), 16)
    noise = ops.cast(high, "float32")
    noise *= 2.0**-16
    noise += 0.5
    return noise


def normal_noise(shape, t, key):
    """Standard normal noise, hashed from index, step and key.

    Box and Muller's transform of two 16-bit halves of one hash: no value is
    beyond 4.9.

    Args:
        shape: Tuple of ints.
        t: int32 scalar tensor, the step.
        key: Int, or int32 scalar, different for every tensor that is drawn.

    Returns:
        float32 tensor of the given shape.
    """
    bits = _bits(shape, t, key)
    high = ops.cast(_shift_right(bits, 16), "float32")
    low = ops.cast(ops.bitwise_and(bits, 0xFFFF), "float32")
    # Half a unit up: the logarithm never sees 0.
    radius = ops.sqrt(-2.0 * ops.log((high + 0.5) * 2.0**-16))
    return radius * ops.cos((2 * math.pi * 2.0**-16) * low)
