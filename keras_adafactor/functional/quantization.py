"""Block-wise symmetric 8-bit integers with unbiased rounding."""

import math

from keras import ops

from keras_adafactor.backends import backend

MIN_BLOCK_SIZE = 202  # 4 bytes of scale for 202 codes: under 2 %
MAX_BLOCK_SIZE = 512
# What a block of fewer entries takes is no longer 8 bits an entry.
SMALL_BLOCK_SIZE = 16
_ABOVE_1 = 1 + 2.0**-20
_MAX_PIECES = 128


def block_shape(shape, apart=()):
    """The block along every axis that shares one scale.

    Blocks lie along the last axis, since rows (tokens of an embedding, say)
    differ in size: its largest divisor between `MIN_BLOCK_SIZE` and
    `MAX_BLOCK_SIZE`, or the whole axis. Where that is fewer than
    `MIN_BLOCK_SIZE` elements, as much of the axis before joins, and so on; all
    of it only where there were fewer than `SMALL_BLOCK_SIZE`.

    Args:
        shape: Tuple of ints.
        apart: Axes of which no two indices share a scale, whatever the size
            of a block then is.

    Returns:
        Tuple of ints, a divisor of each dimension of `shape`.
    """
    block = [1] * len(shape)
    for axis in reversed(range(len(shape))):
        inside = math.prod(block)
        if axis in apart or inside >= MIN_BLOCK_SIZE:
            continue
        divisors = (
            size
            for size in range(MAX_BLOCK_SIZE // inside, 0, -1)
            if size * inside >= MIN_BLOCK_SIZE and shape[axis] % size == 0
        )
        alone = 1 if inside >= SMALL_BLOCK_SIZE else shape[axis]
        block[axis] = next(divisors, alone)
    return tuple(block)


def _blocked(x, scales):
    # (d_0, d_1, ...) -> (d_0 / b_0, b_0, d_1 / b_1, b_1, ...)
    pairs = ((n, size // n) for n, size in zip(scales, x.shape, strict=True))
    return ops.reshape(x, [size for pair in pairs for size in pair])


def _by_platform(in_pieces, in_blocks, x, scales, *more):
    """`in_pieces(x, *more)` on a TPU, of rows of several blocks.

    A TPU keeps the last two axes in tiles: to reshape them is to write all of
    the array again. There rows are cut, if not into too many pieces.
    """
    if 1 < scales[-1] < x.shape[-1] and scales[-1] <= _MAX_PIECES:
        return backend.by_platform(in_pieces, in_blocks, x, *more)
    return in_blocks(x, *more)


def _largest(x, scales):
    """`max |x|` over every block."""

    def in_pieces(x):
        pieces = ops.split(ops.abs(x), scales[-1], axis=-1)
        largest = [ops.max(piece, axis=-1, keepdims=True) for piece in pieces]
        return ops.concatenate(largest, axis=-1)

    def in_blocks(x):
        x = _blocked(x, scales)
        within = tuple(range(1, len(x.shape), 2))
        return ops.maximum(ops.max(x, within), -ops.min(x, within))

    return _by_platform(in_pieces, in_blocks, x, scales)


def _times(x, factor):
    """`x * factor`, each block by its own."""
    scales = factor.shape

    def in_pieces(x, factor):
        piece = (*x.shape[:-1], x.shape[-1] // scales[-1])
        pieces = ops.split(factor, scales[-1], axis=-1)
        spread = [ops.broadcast_to(one, piece) for one in pieces]
        return x * ops.concatenate(spread, axis=-1)

    def in_blocks(x, factor):
        spread = [size for n in scales for size in (n, 1)]
        blocks = _blocked(x, scales) * ops.reshape(factor, spread)
        return ops.reshape(blocks, x.shape)

    return _by_platform(in_pieces, in_blocks, x, scales, factor)


def quantize(x, noise, scales):
    """Codes and scales whose product is `x` in the mean.

    `scale = max |x| / 127` over the block, `code = x / scale` rounded up or
    down at random.

    Args:
        x: float32 tensor.
        noise: float32 tensor of the shape of `x`, uniform in [0, 1),
            multiples of 2**-16.
        scales: Tuple of ints, the number of blocks along every axis.

    Returns:
        Tuple of int8 codes in [-127, 127], of the shape of `x`, and float32
        scales of shape `scales`. A block of zeros has scale 0.
    """
    scale = _largest(x, scales) / 127.0
    # Of a scale that is no normal number the codes are 0. A few roundings
    # larger, so that no entry is more than 127 of it.
    divisor = ops.where(scale > 1e-37, scale * _ABOVE_1, ops.ones_like(scale))
    units = _times(x, 1.0 / divisor)
    # Both are below 128 and the noise is a multiple of 2**-16: no integer is
    # rounded down.
    units -= noise
    return ops.cast(ops.ceil(units), "int8"), scale


def dequantize(codes, scale):
    """`codes * scale`, of int8 codes, each block by its own, as float32."""
    return _times(ops.cast(codes, "float32"), scale)
