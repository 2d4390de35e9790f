"""Where the backends differ: replicas, sparse gradients and layouts.

The only file of the library that looks at the backend. TensorFlow's replicas
are separate variables that a strategy updates, and its embeddings have sparse
gradients, as Keras' sparse layers have on JAX. Layouts are
`keras.distribution`'s.
"""

import contextlib

import keras
import numpy as np

if keras.backend.backend() == "jax":
    import jax
    from jax.experimental.sparse import JAXSparse

    def _is_sparse(gradient):
        return isinstance(gradient, JAXSparse)

    def full_precision():
        """Products made here are float32 on a TPU too, not bfloat16.

        A basis of Gram matrices rounded to bfloat16 is not orthogonal.
        """
        return jax.default_matmul_precision("highest")

    def sync_training_state(model):
        """Gives variables their values within `fit`: the trainer has them."""
        model.jax_state_sync()

    def has_value(variable):
        """Whether a variable has one: a `fit` that raised may have it."""
        return variable._value is not None

    def is_tracing():
        """Whether what is computed now is compiled, with what is around it."""
        return isinstance(keras.ops.zeros(()), jax.core.Tracer)

else:

    def _is_sparse(gradient):
        return False

    def full_precision():
        # Neither TensorFlow nor PyTorch has such a scope.
        return contextlib.nullcontext()

    def sync_training_state(model):
        pass

    def has_value(variable):
        return True


if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    # `fit` has its way already. In a `tf.function` of a user AutoGraph would
    # convert all that is called from here, and take most of the tracing.
    without_autograph = tf.autograph.experimental.do_not_convert

    def densify(gradient):
        """A dense gradient; the repeated rows of a sparse one are summed."""
        if isinstance(gradient, tf.IndexedSlices):
            return tf.convert_to_tensor(gradient)
        return gradient

    def ensure_shape(gradient, shape):
        """The gradient, if it has the shape, which is static from here on."""
        return tf.ensure_shape(gradient, shape)

    def has_static_shape(gradient):
        """Whether every size of a tensor is known while it is traced."""
        return gradient.shape.is_fully_defined()

    def select(condition, if_true, if_false):
        """One of two tensors of one shape, by a boolean scalar.

        `tf.where` broadcasts the scalar element by element: without XLA it
        takes three times as long.
        """
        return tf.raw_ops.Select(condition=condition, x=if_true, y=if_false)

    def sum_over_replicas(gradients):
        """All-reduces gradients; every replica gets the same sums."""
        context = tf.distribute.get_replica_context()
        if context is None:
            return gradients
        return context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)

    def update_variables(optimizer, update, variables, *columns):
        """Calls `update(variable, *row)` for every variable, on its replicas.

        Slots may only be assigned in cross-replica context: assigned in
        replica context, they drift apart without an error.
        """

        def across_replicas(strategy, variables, *columns):
            for variable, *row in zip(variables, *columns, strict=True):
                strategy.extended.update(
                    variable, update, args=tuple(row), group=False
                )

        variables = [
            v.value if isinstance(v, keras.Variable) else v for v in variables
        ]
        tf.__internal__.distribute.interim.maybe_merge_call(
            across_replicas,
            optimizer._distribution_strategy,
            variables,
            *columns,
        )

    @contextlib.contextmanager
    def creation_scope(optimizer):
        """Variables made here are mirrored as the optimizer's own are."""
        strategy = optimizer._distribution_strategy
        if tf.distribute.get_strategy() is strategy:
            yield
        else:
            with strategy.scope():
                yield

    def outside_graph():
        """Assigns now what is assigned here, even while a step is traced."""
        return tf.init_scope()

    def colocate_with(optimizer, variable):
        """Variables made here live on the devices of `variable`."""
        if isinstance(variable, keras.Variable):
            variable = variable.value
        return optimizer._distribution_strategy.extended.colocate_vars_with(
            variable
        )

else:

    def without_autograph(function):
        """The function, which TensorFlow would trace as it is written."""
        return function

    def densify(gradient):
        # `BCOO` of JAX.
        return gradient.todense() if _is_sparse(gradient) else gradient

    def ensure_shape(gradient, shape):
        return gradient

    def has_static_shape(gradient):
        return True

    def select(condition, if_true, if_false):
        return keras.ops.where(condition, if_true, if_false)

    def sum_over_replicas(gradients):
        return gradients

    def update_variables(optimizer, update, variables, *columns):
        for variable, *row in zip(variables, *columns, strict=True):
            update(variable, *row)

    def creation_scope(optimizer):
        return contextlib.nullcontext()

    def outside_graph():
        return contextlib.nullcontext()

    def colocate_with(optimizer, variable):
        return contextlib.nullcontext()


def sums_of_two(a, b, axes):
    """Sums of two tensors of one shape, with the axes kept at size 1.

    On a TPU in one pass over both, of which XLA makes two if it is given two
    sums.

    Args:
        a, b: Tensors.
        axes: Tuple of at least one int.

    Returns:
        List of two tensors.
    """

    def apart(a, b):
        return [keras.ops.sum(x, axes, keepdims=True) for x in (a, b)]

    if keras.backend.backend() == "jax":

        def together(a, b):
            zero = np.zeros((), a.dtype)
            sums = jax.lax.reduce(
                (a, b),
                (zero, zero),
                lambda p, q: (p[0] + q[0], p[1] + q[1]),
                axes,
            )
            return [keras.ops.expand_dims(x, axes) for x in sums]

        return jax.lax.platform_dependent(a, b, tpu=together, default=apart)
    if keras.backend.backend() == "tensorflow" and a.dtype == tf.float32:
        if isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy):
            both = tf.reduce_sum(tf.complex(a, b), axes, keepdims=True)
            return [tf.math.real(both), tf.math.imag(both)]
    return apart(a, b)


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


def scalar_writer(directory):
    """Returns a function that writes numbers for TensorBoard.

    Args:
        directory: Path.

    Returns:
        Function of a step and a dict from name to number.
    """
    try:
        from tensorflow import summary  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            "Argument `log_dir` needs TensorFlow, whatever the backend, as "
            "`keras.callbacks.TensorBoard` does: `pip install tensorflow`. "
            f"Received: log_dir={directory}"
        ) from error
    writer = summary.create_file_writer(str(directory))

    def write(step, scalars):
        with writer.as_default(step=step):
            for name, value in scalars.items():
                summary.scalar(name, value)
        writer.flush()

    return write
