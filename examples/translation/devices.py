"""Chooses the devices to train on, and says which."""

import contextlib
import dataclasses
import functools
import glob
import os

import keras

from examples.translation.errors import UserError
from examples.translation.layouts import model_parallel as lay_out


@dataclasses.dataclass(frozen=True)
class Devices:
    """Where the model lives and how a batch is split.

    Attributes:
        description: For the log, such as `MirroredStrategy over 2 GPUs`.
        replicas: Number of copies of the model; divides the batch.
        strategy: `tf.distribute.Strategy`, or `None`.
        mirrored: Whether `strategy` is a `MirroredStrategy`, not a
            `TPUStrategy`.
    """

    description: str
    replicas: int = 1
    strategy: object | None = None
    mirrored: bool = False

    @property
    def on_tpu(self):
        """Whether a `TPUStrategy` compiles for every shape it is given."""
        return self.strategy is not None and not self.mirrored

    @property
    def takes_jit_compile(self):
        """Whether Keras may be asked for XLA: never under a strategy."""
        return self.strategy is None and host_has_xla()

    def scope(self):
        """Returns the context in which variables must be created."""
        if self.strategy is None:
            return contextlib.nullcontext()
        return self.strategy.scope()


def choose_devices(strategy="auto", virtual_devices=1, model_parallel=1):
    """Returns the `Devices` of the Keras backend in use.

    Must be called before anything has run on a device.

    Args:
        strategy: `auto` takes a TPU if there is one, else all GPUs if there
            are several, else one device. `default`, `mirrored` and `tpu`
            insist on one device, all devices, and a TPU.
        virtual_devices: Number of devices to make of the CPU.
        model_parallel: Number of devices to split each copy of the model
            over; JAX only.

    Raises:
        UserError: The devices asked for are not there or cannot be shared out
            so, or the CPU can no longer be split.
    """
    choose = {"tensorflow": _tensorflow, "jax": _jax}.get(
        keras.backend.backend()
    )
    if choose is None:
        raise UserError(
            "KERAS_BACKEND must be tensorflow or jax. Received: "
            f"{keras.backend.backend()}"
        )
    return choose(strategy, virtual_devices, model_parallel)


def _tensorflow(strategy, virtual_devices, model_parallel):
    import tensorflow as tf  # noqa: PLC0415

    if model_parallel > 1:
        raise UserError(
            "--model_parallel needs Keras' JAX backend: set KERAS_BACKEND=jax. "
            f"Received: --model_parallel {model_parallel} with "
            "KERAS_BACKEND=tensorflow"
        )

    version = f"TensorFlow {tf.__version__}, Keras {keras.version()}"
    if virtual_devices > 1:
        (cpu, *_) = tf.config.list_physical_devices("CPU")
        split = [tf.config.LogicalDeviceConfiguration()] * virtual_devices
        try:
            if tf.config.get_logical_device_configuration(cpu) != split:
                tf.config.set_logical_device_configuration(cpu, split)
        except RuntimeError as error:
            raise _too_late(virtual_devices) from error
    elif strategy == "tpu" or (strategy == "auto" and _tpu_is_attached()):
        return _tpu(tf, version)
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    if virtual_devices > 1:
        kind = "CPU"
    names = [device.name for device in tf.config.list_logical_devices(kind)]
    if strategy == "mirrored" or (strategy == "auto" and len(names) > 1):
        return Devices(
            f"MirroredStrategy over {len(names)} {kind} devices, {version}",
            len(names),
            tf.distribute.MirroredStrategy(names),
            mirrored=True,
        )
    return Devices(f"one {kind}, {version}")


@functools.cache
def host_has_xla():
    """Whether `jit_compile=True` works outside of a strategy: tries it.

    A TensorFlow that was built for TPUs compiles for them alone: on the host it
    fails with "could not find registered transfer manager for platform Host".
    """
    if keras.backend.backend() != "tensorflow":
        return True
    import tensorflow as tf  # noqa: PLC0415

    try:
        tf.function(lambda: tf.zeros(()) + 1.0, jit_compile=True)()
    except tf.errors.NotFoundError:
        return False
    return True


def _tpu_is_attached():
    # v2 to v4, and what came after.
    found = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(os.environ.get("TPU_NAME") or found)


def _tpu(tf, version):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
            tpu=os.environ.get("TPU_NAME", "local")
        )
        tf.tpu.experimental.initialize_tpu_system(resolver)
        strategy = tf.distribute.TPUStrategy(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise UserError(
            f"No TPU could be used by {version}: {str(error).splitlines()[0]}"
        ) from error
    cores = strategy.num_replicas_in_sync
    return Devices(
        f"TPUStrategy over {cores} TPU cores, {version}", cores, strategy
    )


def _jax(strategy, virtual_devices, model_parallel):
    import jax  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415

    # TensorFlow only reads data here; it must not take the GPUs' memory.
    tf.config.set_visible_devices([], "GPU")
    if virtual_devices > 1:
        try:
            if jax.config.jax_num_cpu_devices != virtual_devices:
                jax.config.update("jax_num_cpu_devices", virtual_devices)
        except RuntimeError as error:
            raise _too_late(virtual_devices) from error
    if jax.process_count() > 1:
        raise UserError(
            "The example trains in one process: it feeds whole batches and "
            "writes whole checkpoints. Received: "
            f"{jax.process_count()} processes of jax.distributed. A model over "
            "several hosts needs keras.callbacks.OrbaxCheckpoint."
        )
    platform = jax.default_backend()
    version = f"JAX {jax.__version__}, Keras {keras.version()}"
    if strategy == "tpu" and platform != "tpu":
        raise UserError(
            f"--strategy tpu, but {version} has no TPU: its devices are of "
            f"type {platform}."
        )
    count = jax.device_count()
    if model_parallel > 1:
        return _jax_model_parallel(
            model_parallel, count, f"{platform} devices, {version}"
        )
    if strategy == "mirrored" or (strategy != "default" and count > 1):
        distribution = keras.distribution.DataParallel()
        keras.distribution.set_distribution(distribution)
        return Devices(
            f"DataParallel over {count} {platform} devices, {version}", count
        )
    return Devices(f"one {platform} device, {version}")


def _jax_model_parallel(size, count, devices):
    if count % size:
        raise UserError(
            "--model_parallel must divide the number of devices, which is "
            f"{count}: {devices}. Received: {size}"
        )
    distribution = lay_out(keras.distribution.list_devices(), size)
    keras.distribution.set_distribution(distribution)
    replicas = count // size
    return Devices(
        f"ModelParallel over {count} {devices}: mesh (data {replicas}, model "
        f"{size})",
        replicas,
    )


def _too_late(virtual_devices):
    return UserError(
        f"--virtual_devices {virtual_devices} came too late: this process has "
        "already used its CPU."
    )
