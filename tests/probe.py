"""A model whose gradients are its inputs.

`fit` then takes any gradient a test can think of through the whole training
step: the gradient of a weight is the mean of its inputs over the batch.
"""

import keras
import numpy as np
from keras import ops

from keras_adafactor import OptimizerMonitor


@keras.saving.register_keras_serializable(package="tests")
class Probe(keras.layers.Layer):
    """`sum(x * w)` over all axes but the batch."""

    def __init__(self, shape, constraint=None, **kwargs):
        super().__init__(**kwargs)
        self.shape = tuple(shape)
        self.constraint = keras.constraints.get(constraint)
        self.w = self.add_weight(
            shape=self.shape,
            initializer="zeros",
            constraint=self.constraint,
            name="w",
        )

    def call(self, x):
        axes = tuple(range(1, len(self.shape) + 1))
        product = x * self.w
        return ops.sum(product, axis=axes) if axes else product

    def compute_output_shape(self, input_shape):
        return input_shape[:1]

    def get_config(self):
        constraint = keras.constraints.serialize(self.constraint)
        config = {"shape": self.shape, "constraint": constraint}
        return super().get_config() | config


@keras.saving.register_keras_serializable(package="tests")
def mean_output(y_true, y_pred):
    return y_pred


def probe_model(starts, optimizer=None, constraints=None, **compile_arguments):
    """A compiled model with a weight `<name>/w` for each of `starts`.

    Args:
        starts: Dict from name to array, the initial weights.
        optimizer: Optimizer; not compiled without.
        constraints: Dict from name to constraint.
        **compile_arguments: Passed to `compile`.
    """
    inputs, outputs = {}, []
    for name, start in starts.items():
        shape = np.shape(start)
        given = keras.Input(shape, name=f"{name}_gradient")
        constraint = (constraints or {}).get(name)
        probe = Probe(shape, constraint=constraint, name=name)
        inputs[given.name] = given
        outputs.append(probe(given))
        probe.w.assign(start)
    output = outputs[0] if len(outputs) == 1 else keras.layers.add(outputs)
    model = keras.Model(inputs, output)
    if optimizer is not None:
        model.compile(optimizer, loss=mean_output, **compile_arguments)
    return model


def fit(model, gradients, batch_size=1, **arguments):
    """One step per row of `gradients`, in order.

    Args:
        model: From `probe_model`.
        gradients: Dict from name to array with a leading axis of samples.
        batch_size: Samples a step.
        **arguments: Passed to `fit`.
    """
    samples = len(next(iter(gradients.values())))
    return model.fit(
        {f"{name}_gradient": g for name, g in gradients.items()},
        np.zeros(samples, "float32"),
        batch_size=batch_size,
        shuffle=False,
        verbose=0,
        **arguments,
    )


class Reports(keras.callbacks.Callback):
    """Keeps every report of a monitor; comes after it."""

    def __init__(self, monitor):
        super().__init__()
        self.monitor = monitor
        self.found = []

    def _look(self):
        report = self.monitor.report
        if report and report not in self.found:
            self.found.append(report)

    def on_train_batch_begin(self, batch, logs=None):
        self._look()

    def on_epoch_end(self, epoch, logs=None):
        self._look()


def reports_of(model, given, monitor=None, epochs=1, batch_size=1, more=()):
    """The reports of an `OptimizerMonitor` in `fit`, or of one a step.

    Args:
        model: From `probe_model`.
        given: Dict of gradients.
        monitor: `OptimizerMonitor`.
        epochs: Int.
        batch_size: Samples a step.
        more: Callbacks that come after it.
    """
    monitor = monitor or OptimizerMonitor(log_freq=1)
    reports = Reports(monitor)
    callbacks = [monitor, reports, *more]
    fit(model, given, batch_size, epochs=epochs, callbacks=callbacks)
    return reports.found


def weights(model):
    """Dict from name to the weight; within `fit` too."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
    return {
        v.path.rpartition("/")[0]: as_numpy(v)
        for v in model.trainable_variables
    }


def state(model):
    """Dict from name to array: the weights and all the optimizer keeps."""
    optimizer = {
        f"{i}:{v.path}": as_numpy(v)
        for i, v in enumerate(model.optimizer.variables)
    }
    return weights(model) | optimizer


def as_numpy(variable):
    """The exact values of a variable, low precision as float32."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if dtype in ("bfloat16", "float16"):
        variable = ops.cast(variable, "float32")
    return ops.convert_to_numpy(variable)


def slot(optimizer, name, path):
    """The slot of that name, of the variable of that path."""
    return as_numpy(dict(optimizer.slots())[path][name])


def gradients(steps, shapes, seed=0):
    """Dict from name to `steps` gradients over two decades."""
    rng = np.random.default_rng(seed)
    return {
        name: (
            rng.normal(size=(steps, *shape))
            * 10.0 ** rng.uniform(-1, 1, size=(steps, *[1] * len(shape)))
        ).astype("float32")
        for name, shape in shapes.items()
    }
