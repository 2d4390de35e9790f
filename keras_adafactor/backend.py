"""Where the backends differ: replicas, sparse gradients and layouts.

The only file of the library that looks at the backend. TensorFlow's replicas
are separate variables that a strategy updates, and its embeddings have sparse
gradients, as Keras' sparse layers have on JAX. Layouts are
`keras.distribution`'s.
"""

import contextlib
import math

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


if keras.backend.backend() == "torch":
    import torch

    # `fit` has it already; a loop of a user may forget it.
    no_grad = torch.no_grad()

    def product(x, *factors):
        """`x` times factors that broadcast, in one array of its size.

        A second one takes as long again, as its memory is new.
        """
        first, *rest = factors
        result = x * first
        for factor in rest:
            result *= factor
        return result

    def subtract(x, delta, kept):
        """`x - delta`, in the array of `delta` unless it is needed.

        A new one takes as long again, as its memory is new.

        Args:
            x: Tensor.
            delta: Tensor, which may be lost.
            kept: Iterable of tensors that must stay what they are.
        """
        if (
            torch.compiler.is_compiling()
            or not delta.is_contiguous()
            or (delta.shape, delta.dtype) != (x.shape, x.dtype)
            or _memory(delta) in map(_memory, (x, *kept))
        ):
            return x - delta
        return torch.sub(x, delta, out=delta)

    def _memory(tensor):
        return tensor.untyped_storage().data_ptr()

    def eigh(matrix):
        """Eigenvalues, ascending, and eigenvectors of a finite matrix.

        Returns NaN if the iteration does not converge, where PyTorch raises.
        """
        try:
            return torch.linalg.eigh(matrix)
        except torch.linalg.LinAlgError:
            nan = torch.full_like(matrix, math.nan)
            return nan[0], nan

    def _is_known(condition):
        """Whether to look at a boolean is free: it is here, and not traced."""
        return condition.device.type == "cpu" and not (
            torch.compiler.is_compiling()
        )

else:

    def no_grad(function):
        """The function, of which PyTorch would record how to differentiate."""
        return function

    def product(x, *factors):
        return math.prod(factors, start=x)

    def subtract(x, delta, kept):
        return x - delta

    def eigh(matrix):
        return keras.ops.eigh(matrix)

    def _is_known(condition):
        return False


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

    def may_have_shape(gradient, shape):
        """Whether a tensor has a shape, as far as that is known."""
        return gradient.shape.is_compatible_with(shape)

    def with_static_shape(gradient, shape):
        """The gradient, whose shape is static from here on.

        `tf.ensure_shape` would compare every size, but make what XLA compiles
        a program of dynamic shapes: with dropout in the model, a step half as
        long again.
        """
        if gradient.shape.is_fully_defined():
            return gradient
        return tf.reshape(gradient, shape)

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

    def update_variables(optimizer, update, variables, *columns, in_turn=None):
        """Calls `update(variable, *row)` for every variable, on its replicas.

        Slots may only be assigned in cross-replica context: assigned in
        replica context, they drift apart without an error.

        Args:
            optimizer: The optimizer.
            update: Function of a variable and a row of `columns`.
            variables: List of variables.
            *columns: Lists of as many.
            in_turn: Function of a variable that returns the list of what its
                update assigns if XLA is to end that before it begins the next
                such update, else `None`. Only asked where JAX can say so.
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

    def may_have_shape(gradient, shape):
        return tuple(gradient.shape) == shape

    def with_static_shape(gradient, shape):
        return gradient

    def select(condition, if_true, if_false):
        if _is_known(condition):
            return if_true if condition else if_false
        return keras.ops.where(condition, if_true, if_false)

    def sum_over_replicas(gradients):
        return gradients

    def update_variables(optimizer, update, variables, *columns, in_turn=None):
        before = None
        rows = list(zip(variables, *columns, strict=True))
        # The backward pass has the gradient of the last one first.
        for variable, first, *row in reversed(rows):
            assigned = _can_wait(variable) and in_turn and in_turn(variable)
            if assigned:
                first = _after(before, first)
                before = assigned
            update(variable, first, *row)

    def creation_scope(optimizer):
        return contextlib.nullcontext()

    def outside_graph():
        return contextlib.nullcontext()

    def colocate_with(optimizer, variable):
        return contextlib.nullcontext()


def _can_wait(variable):
    """Whether the order of updates can be said: traced by JAX, none split."""
    return (
        keras.backend.backend() == "jax"
        and isinstance(variable.value, jax.core.Tracer)
        and _variables_are_whole()
    )


def _after(variables, tensor):
    """The tensor, once variables have the values they were assigned last.

    On a TPU: there XLA would begin the updates of many variables before it ends
    one, and hold what is half done of each.

    Args:
        variables: List of variables; `None` for none.
        tensor: What the next update begins with.
    """
    if variables is None:
        return tensor
    # The order counts: what stands first is computed first.
    tensor, values = jax.lax.platform_dependent(
        (tensor, [variable.value for variable in variables]),
        tpu=jax.lax.optimization_barrier,
        default=lambda both: both,
    )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return tensor


def mean(x, axes):
    """Mean over some axes, which are dropped."""
    if not axes:
        return x
    if _runs_kernels(x):
        leading = tuple(range(len(axes)))
        if axes == leading and len(axes) < len(x.shape):
            return _mean_of_rows(x, len(axes))
    elif _needs_short_sums(x):
        return _mean_by_short_sums(x, axes)
    return keras.ops.mean(x, axis=axes)


def _mean_of_rows(x, axes):
    """Mean over the leading axes, by a product with a vector.

    What sums over them takes TensorFlow four times as long, PyTorch ten.
    """
    rest = tuple(x.shape[axes:])
    rows = math.prod(x.shape[:axes])
    matrix = (rows, math.prod(rest))
    if keras.backend.backend() == "torch":
        weights = x.new_full((1, rows), 1.0 / rows)
        return (weights @ x.reshape(matrix)).reshape(rest)
    weights = tf.fill((1, rows), tf.constant(1.0 / rows, x.dtype))
    return tf.reshape(weights @ tf.reshape(x, matrix), rest)


def square_for_two(x):
    """`x ** 2`, for each of two sums.

    JAX's XLA writes a value that two sums use to memory on a CPU, which takes
    twice as long as both. There they are two values that it cannot see to be
    one.

    Args:
        x: Tensor.

    Returns:
        Tuple of two tensors.
    """
    square = keras.ops.square(x)
    if keras.backend.backend() != "jax":
        return square, square
    again = jax.lax.platform_dependent(
        x, cpu=jax.lax.optimization_barrier, default=lambda x: x
    )
    return square, keras.ops.square(again)


def mean_square(x, axes, scale=1.0):
    """`mean((scale * x) ** 2)` over some axes, which are kept at size 1.

    Args:
        x: Tensor.
        axes: Tuple of ints.
        scale: Float, a power of 2.
    """
    if _runs_kernels(x) and len(axes) == len(x.shape):
        square = _square_of_norm(x, scale) / math.prod(x.shape)
        return square[(None,) * len(axes)]
    square = keras.ops.square(scale * x if scale != 1 else x)
    if _needs_short_sums(x):
        means = _mean_by_short_sums(square, axes)
        return keras.ops.expand_dims(means, axes)
    for stage in _stages(axes):
        square = keras.ops.mean(square, axis=stage, keepdims=True)
    return square


def sum_of_squares(x):
    """`sum(x ** 2)`."""
    if _runs_kernels(x):
        return _square_of_norm(x)
    square = keras.ops.square(x)
    if _needs_short_sums(x):
        axes = tuple(range(len(x.shape)))
        return math.prod(x.shape) * _mean_by_short_sums(square, axes)
    return keras.ops.sum(square)


def _square_of_norm(x, scale=1.0):
    """`sum((scale * x) ** 2)`, in kernels that make no array of squares.

    With one it takes TensorFlow three times as long, PyTorch ten.
    """
    if keras.backend.backend() == "torch":
        norm = scale * torch.linalg.vector_norm(x)
        if scale != 1 and not (_is_known(norm) and norm.isfinite()):
            norm = torch.linalg.vector_norm(scale * x)
        return norm * norm
    half = tf.nn.l2_loss(x)
    if scale != 1:
        half = tf.cond(
            tf.math.is_finite(half),
            lambda: scale**2 * half,
            lambda: tf.nn.l2_loss(scale * x),
        )
    return 2.0 * half


def _runs_kernels(x):
    """Whether each operation is a kernel: PyTorch, TensorFlow without XLA."""
    if keras.backend.backend() == "torch":
        return True
    return _is_large_on_cpu(x) and not _by_xla()


def _is_large_on_cpu(x):
    """Whether TensorFlow computes with `x`, which is not small, on a CPU."""
    return (
        keras.backend.backend() == "tensorflow"
        and math.prod(x.shape) >= _SHORT**2
        and not (_on_tpu_strategy() or tf.config.list_logical_devices("GPU"))
    )


def _by_xla():
    """Whether TensorFlow compiles what is made here."""
    return tf.__internal__.get_enclosing_xla_context() is not None


def _on_tpu_strategy():
    strategy = tf.distribute.get_strategy()
    return isinstance(strategy, tf.distribute.TPUStrategy)


def _needs_short_sums(x):
    """Whether `_mean_by_short_sums` is faster than one long sum.

    TensorFlow's XLA on a CPU unrolls a sum of at most `_SHORT` and makes many
    of them side by side. A longer one it splits in passes of its own, before
    which it writes what is summed to memory, and along the last axis it adds
    one by one.
    """
    return _is_large_on_cpu(x) and _by_xla()


_SHORT = 32


def _mean_by_short_sums(x, axes):
    """Mean over some axes, which are dropped.

    First over short pieces of an axis. What is left is a long sum again, or
    both would be one that is not unrolled.
    """
    for axis in sorted(axes, reverse=True):
        *before, size = x.shape[: axis + 1]
        after = x.shape[axis + 1 :]
        if size < _SHORT**2 // 2 and axis - 1 in axes:
            x = keras.ops.reshape(x, [*before[:-1], before[-1] * size, *after])
            continue
        pieces = range(1, min(_SHORT, size // (_SHORT + 1)) + 1)
        short = max((n for n in pieces if size % n == 0), default=1)
        x = keras.ops.reshape(x, [*before, short, size // short, *after])
        x = keras.ops.mean(keras.ops.mean(x, axis=axis), axis=axis)
    return x


def _variables_are_whole():
    """Whether no variable of JAX can be split over devices."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return jax.device_count() == 1
    return isinstance(distribution, keras.distribution.DataParallel)


def mean_squares_of_two(a, b, axes, scale=1.0):
    """`mean_square(a, axes, scale)` and `mean_square(b, axes)`.

    On a TPU in one pass over both, of which XLA makes two if it is given two
    sums; but not of arrays that may be split over devices, which it would
    gather for that. Of 1e10 numbers, right up to 1e14 / `scale` and 1e14.

    Args:
        a, b: Tensors of one shape.
        axes, scale: As there.

    Returns:
        Tuple of two tensors.
    """

    def apart(a, b):
        return mean_square(a, axes, scale), mean_square(b, axes)

    def in_one_pass(a, b):
        sums = keras.ops.square(scale * a), keras.ops.square(b)
        # The second stage costs 2,000 cycles, and makes large arrays faster.
        small = math.prod(a.shape) <= 2**20
        for stage in [axes] if small else _stages(axes):
            # No mean: to divide in between would be a kernel of its own.
            sums = sums_of_two(*sums, stage)
        count = math.prod(a.shape[i] for i in axes)
        return sums[0] / count, sums[1] / count

    if keras.backend.backend() == "jax":

        def sums_of_two(a, b, stage):
            zero = np.zeros((), a.dtype)
            sums = jax.lax.reduce(
                (a, b),
                (zero, zero),
                lambda p, q: (p[0] + q[0], p[1] + q[1]),
                stage,
            )
            return [keras.ops.expand_dims(x, stage) for x in sums]

    elif keras.backend.backend() == "tensorflow" and a.dtype == tf.float32:

        def sums_of_two(a, b, stage):
            both = tf.reduce_sum(tf.complex(a, b), stage, keepdims=True)
            return tf.math.real(both), tf.math.imag(both)

    else:
        return apart(a, b)
    return by_platform(in_one_pass, apart, a, b)


def by_platform(on_tpu, elsewhere, *arrays):
    """One of two functions of the arrays, by where it is computed.

    On a TPU only of arrays that are not split over devices: it may cut them.

    Args:
        on_tpu: Function of tensors.
        elsewhere: Function of tensors that gives the same.
        *arrays: Tensors.
    """
    if keras.backend.backend() == "jax" and _variables_are_whole():
        return jax.lax.platform_dependent(
            *arrays, tpu=on_tpu, default=elsewhere
        )
    if keras.backend.backend() == "tensorflow" and _on_tpu_strategy():
        return on_tpu(*arrays)
    return elsewhere(*arrays)


def _stages(axes):
    """The axes to reduce, the last one first.

    XLA reduces to a scalar on one core of a CPU only.
    """
    return [stage for stage in (axes[-1:], axes[:-1]) if stage]


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
