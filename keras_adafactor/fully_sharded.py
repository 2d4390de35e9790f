"""Fully sharded training: every variable split over the axis of the batch."""

import collections
from typing import Any

import keras

from keras_adafactor import layouts
from keras_adafactor.backends import backend
from keras_adafactor.checks import check
from keras_adafactor.checks import check_boolean


class FullySharded(keras.distribution.ModelParallel):
    """Splits weights, gradients and all that an optimizer keeps over devices.

    A `keras.distribution` for any model, on JAX. `DataParallel` splits the
    batch and keeps every variable on every device; here each device keeps its
    part of every variable too. The compiler gathers a weight where a layer
    uses it, and sums its gradient to the devices that keep the parts: there is
    no communication in this class, only layouts.

    A variable is split along its largest axis whose size the devices of the
    mesh axis `batch_dim_name` divide; of equal axes along the first, for the
    last is the one that a TPU pads to a multiple of 128. What they do not
    divide, scalars with it, is on every device. For a mesh axis of 8 devices:

    - `(32000, 512)` is split along the first axis, `(512, 2048)` along the
      second, `(1024, 16, 64)` along the first, `(512, 512)` along the first;
    - `(12, 512)` is split along the second axis, `(512,)` is split;
    - `(3, 3, 3, 12)`, `(10,)` and `()` are on every device.

    What an optimizer keeps of a variable's own shape, averages and accumulated
    gradients with it, is split as the variable is. Factors of this library's
    optimizers are split if they run along the axis that is.

    With a `layout_map`, its layouts are kept, and a variable is split over
    `batch_dim_name` along the largest axis that they leave whole: a mesh axis
    for Megatron's tensor parallelism beside that of the batch.

    Set it before the model is made. A batch must be a multiple of the devices.
    What a layer with a split weight returns is split by rows, as the batch is.
    One that returns a scalar too, beside its output, needs the layout `()` in
    a `layout_map`, by its path and `/output`: it is then left to the compiler.

    Args:
        device_mesh: `keras.distribution.DeviceMesh`, or `None` for all devices
            along one axis, `"batch"`; with a `layout_map`, that of the map.
        layout_map: `keras.distribution.LayoutMap` with a mesh, for what is
            split over other axes of it than `batch_dim_name`, and for outputs
            of layers; or `None`. A weight that it splits over `batch_dim_name`
            itself is left as it says.
        batch_dim_name: String, the axis of the mesh that the batch and the
            variables are split over. Defaults to its first.
        auto_shard_dataset: Boolean, as in `keras.distribution.ModelParallel`:
            whether, on several hosts, each takes its part of a
            `tf.data.Dataset`. Defaults to `True`.

    Raises:
        ValueError: If the backend is not JAX, an argument is of another type,
            a mesh is given twice, or it has no axis `batch_dim_name`.

    Example:

    ```python
    keras.distribution.set_distribution(keras_adafactor.FullySharded())
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(1024)])
    model.compile(keras_adafactor.Adafactor(), loss="mse")
    ```

    Reference:

    - ZeRO, stage 3: [Rajbhandari et al., 2020](https://arxiv.org/abs/1910.02054)
    - As layouts of a compiler, "FSDP":
      [Xu et al., 2020](https://arxiv.org/abs/2004.13336)
    """

    def __init__(
        self,
        device_mesh: keras.distribution.DeviceMesh | None = None,
        *,
        layout_map: keras.distribution.LayoutMap | None = None,
        batch_dim_name: str | None = None,
        auto_shard_dataset: bool = True,
    ) -> None:
        layouts.check_layouts(type(self).__name__)
        if layout_map is None:
            layout_map = keras.distribution.LayoutMap(_checked(device_mesh))
        else:
            check(
                isinstance(layout_map, keras.distribution.LayoutMap)
                and layout_map.device_mesh is not None,
                "layout_map",
                "a `keras.distribution.LayoutMap` that has a mesh, or None",
                layout_map,
            )
            check(
                device_mesh in (None, layout_map.device_mesh),
                "device_mesh",
                "None or the mesh of `layout_map`, "
                f"{layout_map.device_mesh}, where a `layout_map` is given",
                device_mesh,
            )
        names = list(layout_map.device_mesh.axis_names)
        check(
            batch_dim_name is None or batch_dim_name in names,
            "batch_dim_name",
            f"None or an axis of the mesh, one of {names}",
            batch_dim_name,
        )
        super().__init__(
            layout_map=layout_map,
            batch_dim_name=batch_dim_name,
            auto_shard_dataset=check_boolean(
                "auto_shard_dataset", auto_shard_dataset
            ),
        )
        # Path of a layer -> names of its variables that are split here.
        self._split: dict[str, set[str]] = collections.defaultdict(set)

    def get_variable_layout(self, variable: keras.Variable) -> Any:
        """The layout of a variable, by its shape.

        Args:
            variable: `keras.Variable`.

        Returns:
            The layout that the variable has, or else a
            `keras.distribution.TensorLayout`.
        """
        layout = super().get_variable_layout(variable)
        if layouts.layout_of(variable) is not None:
            return layout
        shape = tuple(variable.shape)
        # A layout may name fewer axes than the variable has.
        axes = [*layout.axes, *[None] * (len(shape) - len(layout.axes))]
        whole = [
            axis
            for axis, size in enumerate(shape)
            if axes[axis] is None and size % self.num_model_replicas == 0
        ]
        if not whole or self.batch_dim_name in axes:
            return layout
        if not any(axes):
            layer, _, name = variable.path.rpartition("/")
            self._split[layer].add(name)
        # The first of equal axes.
        axes[max(whole, key=shape.__getitem__)] = self.batch_dim_name
        return keras.distribution.TensorLayout(axes, self.device_mesh)

    def get_tensor_layout(self, path: str) -> Any:
        """The layout of what a layer returns: split by rows, as the batch is.

        Without it the compiler may split activations as the weights are, and
        gather the batch on every device. Given in a compiled step alone: the
        rows of what is computed outside of one need not be divisible.

        Args:
            path: String, the path of a layer and `"/output"`.

        Returns:
            That of the `layout_map`; or, for a layer of which a variable is
            split over `batch_dim_name` alone, a
            `keras.distribution.TensorLayout`; or `None`.
        """
        layout = super().get_tensor_layout(path)
        if layout is not None:
            return layout if layout.axes else None
        if not backend.is_tracing() or not self._returns_rows(path):
            return None
        return keras.distribution.TensorLayout(
            [self.batch_dim_name], self.device_mesh
        )

    def _returns_rows(self, path):
        names = path.split("/")[:-1]
        # A layer of a functional model was built before there was a model.
        known = ("/".join(names[i:]) for i in range(len(names)))
        found = [self._split[layer] for layer in known if layer in self._split]
        # A recurrent cell returns a tuple, in a loop of which the rows may be
        # those of a call outside of a compiled step.
        return bool(found) and all(
            "recurrent_kernel" not in variables for variables in found
        )


def _checked(device_mesh):
    if device_mesh is None:
        devices = keras.distribution.list_devices()
        return keras.distribution.DeviceMesh(
            (len(devices),), ["batch"], devices
        )
    check(
        isinstance(device_mesh, keras.distribution.DeviceMesh),
        "device_mesh",
        "a `keras.distribution.DeviceMesh` or None",
        device_mesh,
    )
    return device_mesh
