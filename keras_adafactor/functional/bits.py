"""Booleans packed eight to a byte, along one axis."""

import math

from keras import ops

BITS = 8


def packing_axis(shape):
    """The axis along which booleans of a shape are packed.

    The first that eight divides, so that it is split over devices as the
    unpacked one is and no byte is padded; else the longest.

    Args:
        shape: Tuple of ints, not empty.
    """
    whole = (axis for axis, size in enumerate(shape) if size % BITS == 0)
    return next(whole, shape.index(max(shape)))


def packed_shape(shape):
    """Shape of the bytes: the packing axis divided by eight, rounded up."""
    if not shape:
        return (1,)
    axis = packing_axis(shape)
    bytes_along = -(-shape[axis] // BITS)
    return (*shape[:axis], bytes_along, *shape[axis + 1 :])


def _split(shape):
    """`(before, bytes, 8, after)`: a byte's bits are neighbours."""
    axis = packing_axis(shape)
    return (
        math.prod(shape[:axis]),
        packed_shape(shape)[axis],
        BITS,
        math.prod(shape[axis + 1 :]),
    )


def _positions():
    return ops.reshape(ops.arange(BITS, dtype="int32"), (1, 1, BITS, 1))


def pack_bits(booleans):
    """Packs booleans.

    Args:
        booleans: Boolean tensor.

    Returns:
        uint8 tensor of shape `packed_shape(booleans.shape)`. Bit `k` of a byte
        is its `k`-th element along the packing axis; missing ones are 0.
    """
    shape = tuple(booleans.shape) or (1,)
    bits = ops.reshape(ops.cast(booleans, "int32"), shape)
    axis = packing_axis(shape)
    missing = -shape[axis] % BITS
    if missing:
        padding = [(0, missing if a == axis else 0) for a in range(len(shape))]
        bits = ops.pad(bits, padding)
    bits = ops.reshape(bits, _split(shape))
    packed = ops.sum(ops.left_shift(bits, _positions()), axis=2)
    return ops.cast(ops.reshape(packed, packed_shape(shape)), "uint8")


def unpack_bits(packed, shape):
    """The inverse of `pack_bits`.

    Args:
        packed: uint8 tensor of shape `packed_shape(shape)`.
        shape: Tuple of ints.

    Returns:
        Boolean tensor of the given shape.
    """
    full = tuple(shape) or (1,)
    before, count, _, after = _split(full)
    packed = ops.reshape(ops.cast(packed, "int32"), (before, count, 1, after))
    bits = ops.bitwise_and(ops.right_shift(packed, _positions()), 1)
    axis = packing_axis(full)
    padded = (*full[:axis], count * BITS, *full[axis + 1 :])
    bits = ops.reshape(bits, padded)
    kept = tuple(slice(0, size) for size in full)
    return ops.reshape(ops.cast(bits[kept], "bool"), shape)
