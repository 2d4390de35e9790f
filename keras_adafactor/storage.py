"""How an optimizer keeps an entry of its state between two steps.

A rule computes in float32. What it keeps may be stored in less: bfloat16 and
float16 are rounded stochastically, int8 is quantised in blocks, both without
bias, so that an average moves even where one step is smaller than half a unit
in the last place. Signs are packed, eight to a byte.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import replace
from typing import Any

import numpy as np
from keras import ops

from keras_adafactor.arguments import choice
from keras_adafactor.functional import bits
from keras_adafactor.functional import quantization
from keras_adafactor.functional.noise import uniform_noise
from keras_adafactor.functional.rounding import stochastic_round

LOW_PRECISION = ("bfloat16", "float16")
# Below it the scales are not worth their trouble.
MIN_SIZE_TO_QUANTIZE = 4096


@dataclass(frozen=True)
class StateSpec:
    """What an update rule keeps for one variable under one name.

    Attributes:
        shape: Tuple of ints.
        axes: For every axis of the entry, the axis of the variable that it
            runs along, or `None`. The entry's layout follows from it.
        storage: How it is stored: a dtype; `"int8_blocks"`, 8-bit codes with
            a scale for each block; `"sign_bits"`, one bit an element, where
            the rule sees -1 for what is not positive and 1; or
            `"ternary_bits"`, two bits, where it sees -1, 0 and 1. Whatever the
            storage, the rule sees floating entries as floats of its own
            precision; entries of an integer dtype as they are.
        initializer: Keras initializer.
        sees_gradient: Whether NaN or infinity anywhere in the gradient, or in
            its square, makes this entry non-finite. The guard then asks the
            entry, which costs no pass over the gradient.
        refreshed: Whether `refresh` may change it.
        apart: Axes of the entry, of which no two indices share a scale where
            it is stored in 8 bits: what is divided by a number for each of
            them must not be rounded by that of another.
    """

    shape: tuple[int, ...]
    axes: tuple[int | None, ...]
    storage: str = "float32"
    initializer: str = "zeros"
    sees_gradient: bool = False
    refreshed: bool = False
    apart: tuple[int, ...] = ()

    @classmethod
    def like(
        cls, shape: tuple[int, ...], storage: str = "float32", **attributes: Any
    ) -> "StateSpec":
        """An entry of the variable's own shape."""
        return cls(shape, tuple(range(len(shape))), storage, **attributes)

    @classmethod
    def along(
        cls,
        shape: tuple[int, ...],
        axes: Iterable[int],
        storage: str = "float32",
        **attributes: Any,
    ) -> "StateSpec":
        """An entry that keeps the given axes of the variable."""
        kept = tuple(shape[axis] for axis in axes)
        return cls(kept, tuple(axes), storage, **attributes)

    @property
    def kind(self) -> Any:
        return KINDS.get(self.storage, Plain)

    def arrays(self) -> dict[str, "Array"]:
        """The arrays that are stored: suffix of the slot's name -> `Array`."""
        return self.kind.arrays(self)

    def decode(self, arrays: list[Any], dtype: str) -> Any:
        """What the rule sees.

        Args:
            arrays: List of the stored tensors, in the order of `arrays()`.
            dtype: String, the precision of the rule.
        """
        return self.kind.decode(self, arrays, dtype)

    def encode(self, value: Any, t: Any, key: int) -> list[Any]:
        """The tensors to store, from what the rule returned.

        Args:
            value: Tensor of the entry's shape.
            t: int32 scalar tensor, the step.
            key: Int, different for every entry of every variable.

        Returns:
            List of tensors, in the order of `arrays()`.
        """
        return self.kind.encode(self, value, t, key)


@dataclass(frozen=True)
class Array:
    """One array of a `StateSpec`, as it is stored."""

    shape: tuple[int, ...]
    axes: tuple[int | None, ...]
    dtype: str
    initializer: str = "zeros"

    @property
    def nbytes(self):
        dtype = "uint16" if self.dtype == "bfloat16" else self.dtype
        return math.prod(self.shape) * np.dtype(dtype).itemsize


class Plain:
    """One array of the entry's shape and of a dtype."""

    @staticmethod
    def arrays(spec):
        return {
            "": Array(spec.shape, spec.axes, spec.storage, spec.initializer)
        }

    @staticmethod
    def decode(spec, arrays, dtype):
        (array,) = arrays
        if "float" in spec.storage:
            return ops.cast(array, dtype)
        return ops.convert_to_tensor(array)

    @staticmethod
    def encode(spec, value, t, key):
        return [round_to(value, spec.storage, t, key)]


class Int8Blocks:
    """Codes of the entry's shape, and a float32 scale for each block."""

    @staticmethod
    def arrays(spec):
        blocks = quantization.block_shape(spec.shape, spec.apart)
        unblocked = (
            axis if block == 1 else None
            for axis, block in zip(spec.axes, blocks, strict=True)
        )
        scales = (n // b for n, b in zip(spec.shape, blocks, strict=True))
        return {
            "": Array(spec.shape, spec.axes, "int8"),
            "_scale": Array(tuple(scales), tuple(unblocked), "float32"),
        }

    @staticmethod
    def decode(spec, arrays, dtype):
        return ops.cast(quantization.dequantize(*arrays), dtype)

    @staticmethod
    def encode(spec, value, t, key):
        noise = uniform_noise(spec.shape, t, key)
        value = ops.cast(value, "float32")
        _, scale = Int8Blocks.arrays(spec).values()
        return list(quantization.quantize(value, noise, scale.shape))


class SignBits:
    """One bit an element: whether it is positive."""

    @staticmethod
    def arrays(spec):
        axes = spec.axes or (None,)
        return {"": Array(bits.packed_shape(spec.shape), axes, "uint8")}

    @staticmethod
    def decode(spec, arrays, dtype):
        positive = bits.unpack_bits(arrays[0], spec.shape)
        return 2.0 * ops.cast(positive, dtype) - 1.0

    @staticmethod
    def encode(spec, value, t, key):
        return [bits.pack_bits(value > 0)]


class TernaryBits:
    """Two bits an element: whether it is positive, and whether negative."""

    @staticmethod
    def arrays(spec):
        (plane,) = SignBits.arrays(spec).values()
        return {"_positive": plane, "_negative": plane}

    @staticmethod
    def decode(spec, arrays, dtype):
        positive, negative = (
            ops.cast(bits.unpack_bits(plane, spec.shape), dtype)
            for plane in arrays
        )
        return positive - negative

    @staticmethod
    def encode(spec, value, t, key):
        return [bits.pack_bits(value > 0), bits.pack_bits(value < 0)]


KINDS = {
    "int8_blocks": Int8Blocks,
    "sign_bits": SignBits,
    "ternary_bits": TernaryBits,
}

MOMENTUM_DTYPES = ("float32", "bfloat16", "int8")


def momentum_dtype(doc="", **relations):
    """Declares the argument that says how a momentum is stored."""
    return choice(
        "float32",
        choices=MOMENTUM_DTYPES,
        doc='How the momentum is stored. `"int8"` has blocks along the last '
        "axis that share a scale; variables under 4,096 elements stay float32. "
        f"bfloat16 and int8 are rounded without bias. {doc}",
        **relations,
    )


def momentum_spec(shape, dtype, **attributes):
    """An average of the variable's shape, in one of `MOMENTUM_DTYPES`.

    Fewer than 4,096 elements, or 16 in a block, stay float32 where int8 is
    asked for.
    """
    return in_dtype(StateSpec.like(shape, **attributes), dtype)


def in_dtype(spec, dtype):
    """`spec`, stored in one of `MOMENTUM_DTYPES`."""
    if dtype == "int8":
        block = quantization.block_shape(spec.shape, spec.apart)
        small = (
            math.prod(spec.shape) < MIN_SIZE_TO_QUANTIZE
            or math.prod(block) < quantization.SMALL_BLOCK_SIZE
        )
        return replace(spec, storage="float32" if small else "int8_blocks")
    return replace(spec, storage=dtype)


def stored_arrays(specs):
    """Slot name -> `Array`, of everything stored for one variable."""
    return {
        name + suffix: array
        for name, spec in specs.items()
        for suffix, array in spec.arrays().items()
    }


def round_to(value, dtype, t, key):
    """Casts to `dtype`, stochastically where it is of low precision."""
    if dtype not in LOW_PRECISION:
        return ops.cast(value, dtype)
    noise = uniform_noise(value.shape, t, key)
    return stochastic_round(ops.cast(value, "float32"), dtype, noise)
