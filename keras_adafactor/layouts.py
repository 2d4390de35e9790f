"""The layouts of `keras.distribution`, which only the JAX backend applies."""

import keras


def check_layouts(what):
    """Raises `ValueError` where the backend applies no layouts.

    Args:
        what: String, the name of what needs them.
    """
    if keras.backend.backend() != "jax":
        raise ValueError(
            f"{what} needs Keras' JAX backend, which alone applies layouts: "
            "set KERAS_BACKEND=jax. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}"
        )


def layout_of(variable):
    """The layout that a variable was given, or `None`."""
    return getattr(variable, "_layout", None)


def derive_layout(variable, array):
    """The layout of a slot, from the layout of its variable.

    Args:
        variable: `keras.Variable` that the slot belongs to.
        array: `Array`: for every axis of the slot its size, and the axis of
            the variable that it runs along, or `None` where it is not sharded.
            An axis that the devices do not divide is not sharded either.

    Returns:
        `keras.distribution.TensorLayout`, or `None` outside a distribution.
        Never `None` inside one: Keras would then match the slot's name
        against the layout map, and shard a vector by a matrix' rule.
    """
    layout = layout_of(variable)
    if isinstance(layout, keras.distribution.TensorLayout):
        mesh = layout.device_mesh
        devices = dict(zip(mesh.axis_names, mesh.shape, strict=True))
        # A layout may name fewer axes than the variable has.
        sharded = dict(enumerate(layout.axes))
        names = (sharded.get(axis) for axis in array.axes)
        return keras.distribution.TensorLayout(
            [
                name if name and size % devices[name] == 0 else None
                for name, size in zip(names, array.shape, strict=True)
            ],
            mesh,
        )
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    return keras.distribution.TensorLayout(
        [None] * len(array.axes), distribution.device_mesh
    )


def is_split(variable):
    """Whether a variable is split over devices, by its layout."""
    layout = layout_of(variable)
    if isinstance(layout, keras.distribution.TensorLayout):
        return any(layout.axes)
    return layout is not None
