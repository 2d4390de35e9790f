"""Unbiased rounding to low precision."""

from keras import ops

# Explicit mantissa bits, and the exponent of the smallest normal number.
_FORMATS = {"bfloat16": (7, -126), "float16": (10, -14)}


def round_to_integer(x, noise):
    """The integer below or above, so that the mean is `x`.

    Args:
        x: float32 tensor.
        noise: float32 tensor of the shape of `x`, uniform in [0, 1).

    Returns:
        float32 tensor. An integer is returned as it is.
    """
    # PyTorch's `floor` takes fifteen times as long.
    above = ops.ceil(x)
    # Not `ceil(x - noise)`: that difference may itself be rounded down.
    return above - ops.cast(noise < above - x, x.dtype)


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
