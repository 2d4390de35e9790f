"""Unbiased rounding to low precision, from noise that needs no state.

The noise is a hash of (element index, step, key). It is therefore the same on
every replica, shard and backend, survives a restart, and costs no memory.
"""

import math

from keras import ops

# Explicit mantissa bits, and the exponent of the smallest normal number.
_FORMATS = {"bfloat16": (7, -126), "float16": (10, -14)}


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


def uniform_noise(shape, t, key):
    """Noise in [0, 1), a multiple of 2**-16, hashed from index, step and key.

    Args:
        shape: Tuple of ints.
        t: int32 scalar tensor, the step.
        key: Int, different for every tensor that is rounded.

    Returns:
        float32 tensor of the given shape.
    """
    seed = _mix(t * _GOLDEN_RATIO + _int32(key * 0x9E3779B1 % (1 << 32)))
    bits = _mix(ops.bitwise_xor(_mix(_element_index(shape)), seed))
    return ops.cast(_shift_right(bits, 16), "float32") * 2.0**-16


def round_to_integer(x, noise):
    """The integer below or above, so that the mean is `x`.

    Args:
        x: float32 tensor.
        noise: float32 tensor of the shape of `x`, uniform in [0, 1).

    Returns:
        float32 tensor. An integer is returned as it is.
    """
    below = ops.floor(x)
    # Not `floor(x + noise)`: that sum may itself be rounded up.
    return below + ops.cast(noise < x - below, x.dtype)


def stochastic_round(x, dtype, noise):
    """Rounds to one of the two neighbours, so that the mean is `x`.

    Args:
        x: float32 tensor.
        dtype: `"bfloat16"` or `"float16"`.
        noise: float32 tensor of the shape of `x`, uniform in [0, 1).

    Returns:
        Tensor of the given dtype. A representable `x` is returned exactly; NaN
        and infinity are kept. Numbers below 2**-100 are rounded to multiples
        of a coarser step, still without bias.
    """
    mantissa_bits, min_exponent = _FORMATS[dtype]
    # The power of two at or below |x|: its exponent bits, mantissa cleared.
    binade = ops.view(
        ops.bitwise_and(ops.view(x, "int32"), 0x7F800000), "float32"
    )
    # Not below the subnormals, nor where 1 / spacing would overflow.
    binade = ops.maximum(binade, 2.0 ** max(min_exponent, -100))
    spacing = binade * 2.0**-mantissa_bits
    rounded = round_to_integer(x / spacing, noise) * spacing
    return ops.cast(ops.where(ops.isfinite(x), rounded, x), dtype)
