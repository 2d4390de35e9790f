"""Which axis of which weight is split over devices, after Megatron-LM.

Shoeybi et al. (2019): the first matrix of a sublayer is split by columns
(attention: by heads), the second by rows, so that a sublayer needs one sum over
the devices. The embedding is split by rows, and so is the softmax over the
vocabulary. What no pattern names, layer normalisation and the biases that are
added after the sum, is on every device.
"""

import keras

LAYOUTS = {
    r"transformer/.*embedding/embeddings": ("model", None),
    r"transformer/.*/(query|key|value)/kernel": (None, "model", None),
    r"transformer/.*_attention/output/kernel": ("model", None, None),
    r"transformer/.*/feed_forward/inner/kernel": (None, "model"),
    r"transformer/.*/feed_forward/inner/bias": ("model",),
    r"transformer/.*/feed_forward/output/kernel": ("model", None),
}


def layout_map(devices, size):
    """Returns a `keras.distribution.LayoutMap` for a `Transformer`.

    Args:
        devices: Names of devices, as of `keras.distribution.list_devices`.
        size: Devices to split a copy of the model over, a divisor of their
            number. As many copies as that leaves share each batch.
    """
    mesh = keras.distribution.DeviceMesh(
        (len(devices) // size, size), ("data", "model"), devices
    )
    layouts = keras.distribution.LayoutMap(mesh)
    if size > 1:
        for pattern, axes in LAYOUTS.items():
            layouts[pattern] = axes
    return layouts
