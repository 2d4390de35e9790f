"""How an optimizer keeps an entry of its state between two steps.

A rule computes in float32. What it keeps may be stored in less: bfloat16 and
float16 are rounded stochastically, int8 is quantised in blocks, both without
bias, so that an average moves even where one step is smaller than half a unit
in the last place.
"""

import math
from dataclasses import dataclass

import numpy as np
from keras import ops

from keras_adafactor.functional import quantization
from keras_adafactor.functional import rounding

LOW_PRECISION = ("bfloat16", "float16")


@dataclass(frozen=True)
class StateSpec:
    """What an update rule keeps for one variable under one name.

    Attributes:
        shape: Tuple of ints.
        axes: For every axis of the entry, the axis of the variable that it
            runs along, or `None`. The entry's layout follows from it.
        dtype: How it is stored. The rule sees floating entries, and int8
            ones, as floats of its own precision; other integers as they are.
        initializer: Keras initializer.
    """

    shape: tuple[int, ...]
    axes: tuple[int | None, ...]
    dtype: str = "float32"
    initializer: str = "zeros"

    @classmethod
    def like(cls, shape, dtype="float32"):
        """An entry of the variable's own shape."""
        return cls(shape, tuple(range(len(shape))), dtype)

    @classmethod
    def along(cls, shape, axes, dtype="float32"):
        """An entry that keeps the given axes of the variable."""
        return cls(tuple(shape[axis] for axis in axes), tuple(axes), dtype)

    @property
    def state_bytes(self):
        """Bytes of one stored array of this shape and dtype."""
        dtype = "uint16" if self.dtype == "bfloat16" else self.dtype
        return math.prod(self.shape) * np.dtype(dtype).itemsize

    def parts(self):
        """The arrays that are stored: suffix of the slot's name -> spec."""
        if self.dtype != "int8":
            return {"": self}
        blocks = quantization.block_shape(self.shape)
        unblocked = (
            axis if block == 1 else None
            for axis, block in zip(self.axes, blocks, strict=True)
        )
        scales = StateSpec(
            quantization.scale_shape(self.shape), tuple(unblocked)
        )
        return {"": self, "_scale": scales}

    def decode(self, parts, dtype):
        """What the rule sees, from the stored arrays."""
        if self.dtype == "int8":
            return ops.cast(quantization.dequantize(*parts), dtype)
        if "float" in self.dtype:
            return ops.cast(parts[0], dtype)
        return ops.convert_to_tensor(parts[0])

    def encode(self, value, t, key):
        """The arrays to store, from what the rule returned.

        Args:
            value: Tensor of the entry's shape.
            t: int32 scalar tensor, the step.
            key: Int, different for every entry of every variable.

        Returns:
            List of tensors, one for every part.
        """
        if self.dtype == "int8":
            value = ops.cast(value, "float32")
            noise = rounding.uniform_noise(self.shape, t, key)
            return list(quantization.quantize(value, noise))
        return [round_to(value, self.dtype, t, key)]


def stored_parts(specs):
    """Slot name -> `StateSpec` of every array stored for one variable."""
    return {
        name + suffix: part
        for name, spec in specs.items()
        for suffix, part in spec.parts().items()
    }


def round_to(value, dtype, t, key):
    """Casts to `dtype`, stochastically where it is of low precision."""
    if dtype not in LOW_PRECISION:
        return ops.cast(value, dtype)
    noise = rounding.uniform_noise(value.shape, t, key)
    return rounding.stochastic_round(ops.cast(value, "float32"), dtype, noise)
