"""Chooses the devices to train on, and says which."""

import contextlib
import dataclasses
import functools
import glob
import json
import os
import zlib

import keras
import numpy as np

from examples.translation.errors import UserError
from examples.translation.errors import notice
from examples.translation.layouts import layout_map
from keras_adafactor import FullySharded


@dataclasses.dataclass(frozen=True)
class Devices:
    """Where the model lives and how a batch is split.

    Attributes:
        description: For the log, such as `MirroredStrategy over 2 GPUs`.
        replicas: Number of copies of the model; divides the batch.
        strategy: `tf.distribute.Strategy`, or `None`.
        mirrored: Whether `strategy` is a `MirroredStrategy`, not a
            `TPUStrategy`.
        process: Index of this process among those that train together.
        processes: Their number.
        part: Which part of each batch this process feeds, of how many.
        joined: Whether JAX tells the processes of one another.
        in_lockstep: Whether a step must end before the next one begins: on
            CPUs of several processes, one that had begun some more went on
            for minutes after another was killed.
    """

    description: str
    replicas: int = 1
    strategy: object | None = None
    mirrored: bool = False
    process: int = 0
    processes: int = 1
    part: tuple[int, int] = (0, 1)
    joined: bool = False
    in_lockstep: bool = False

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


def choose_devices(
    strategy="auto",
    virtual_devices=1,
    model_parallel=1,
    *,
    fully_sharded=False,
):
    """Returns the `Devices` of the Keras backend in use.

    Must be called before anything has run on a device.

    Args:
        strategy: `auto` takes a TPU if there is one, else all GPUs if there
            are several, else one device. `default`, `mirrored` and `tpu`
            insist on one device, all devices, and a TPU.
        virtual_devices: Number of devices to make of the CPU.
        model_parallel: Number of devices to split each copy of the model
            over; JAX only.
        fully_sharded: Whether to split every variable over the devices that
            share a batch; JAX only.

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
    return choose(strategy, virtual_devices, model_parallel, fully_sharded)


def _tensorflow(strategy, virtual_devices, model_parallel, fully_sharded):
    import tensorflow as tf  # noqa: PLC0415

    if model_parallel > 1 or fully_sharded:
        flag = (
            "--sharding fully_sharded"
            if fully_sharded
            else f"--model_parallel {model_parallel}"
        )
        raise UserError(
            f"{flag} needs Keras' JAX backend: set KERAS_BACKEND=jax. "
            "Received: KERAS_BACKEND=tensorflow"
        )

    _refuse_several_hosts()
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


def _jax(strategy, virtual_devices, model_parallel, fully_sharded):
    import jax  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415

    # TensorFlow only reads data here; it must not take the GPUs' memory.
    tf.config.set_visible_devices([], "GPU")
    if virtual_devices > 1:
        try:
            if jax.config.jax_num_cpu_devices != virtual_devices:
                jax.config.update("jax_num_cpu_devices", virtual_devices)
                _make_threads_for(virtual_devices)
        except RuntimeError as error:
            raise _too_late(virtual_devices) from error
    _join_processes(virtual_devices)
    processes = jax.process_count()
    if processes > 1 and strategy == "default":
        raise UserError(
            "--strategy default is one device; it cannot go with several "
            f"processes. Received: {processes} processes"
        )
    platform = jax.default_backend()
    version = f"JAX {jax.__version__}, Keras {keras.version()}"
    if strategy == "tpu" and platform != "tpu":
        raise UserError(
            f"--strategy tpu, but {version} has no TPU: its devices are of "
            f"type {platform}."
        )
    count = jax.device_count()
    described = f"{count} {platform} devices, {version}"
    if processes > 1:
        described = f"{count} {platform} devices of {processes} processes, "
        described += version
    # The devices of a process side by side: its rows of a batch are, too.
    devices = [
        f"{device.platform}:{device.id}"
        for device in sorted(
            jax.devices(), key=lambda device: (device.process_index, device.id)
        )
    ]
    if count % model_parallel:
        raise UserError(
            "--model_parallel must divide the number of devices, which is "
            f"{described}. Received: {model_parallel}"
        )
    replicas = count // model_parallel
    if model_parallel > 1 or fully_sharded:
        layouts = layout_map(devices, model_parallel)
        if fully_sharded:
            distribution = FullySharded(layout_map=layouts)
        else:
            distribution = keras.distribution.ModelParallel(
                layout_map=layouts, batch_dim_name="data"
            )
        described = (
            f"{type(distribution).__name__} over {described}: mesh (data "
            f"{replicas}, model {model_parallel})"
        )
    elif strategy == "mirrored" or (strategy != "default" and count > 1):
        distribution = keras.distribution.DataParallel(devices=devices)
        described = f"DataParallel over {described}"
    else:
        return Devices(
            f"one {platform} device, {version}",
            joined=jax.distributed.is_initialized(),
        )
    # Each process reads its own part of the data.
    distribution.auto_shard_dataset = False
    keras.distribution.set_distribution(distribution)
    return Devices(
        described,
        replicas,
        process=jax.process_index(),
        processes=processes,
        part=(distribution.data_shard_id, min(processes, replicas)),
        joined=jax.distributed.is_initialized(),
        in_lockstep=processes > 1 and platform == "cpu",
    )


def check_alike(devices, facts):
    """Raises `UserError` unless all processes have the same facts.

    Args:
        devices: `Devices`.
        facts: Dict from what the user calls it to a JSON-able value.
    """
    if devices.processes == 1:
        return
    from jax.experimental import multihost_utils  # noqa: PLC0415

    sums = [zlib.crc32(json.dumps(fact).encode()) for fact in facts.values()]
    found = multihost_utils.process_allgather(np.array(sums, "uint32"))
    different = [
        name
        for name, column in zip(facts, found.T, strict=True)
        if len(set(column.tolist())) > 1
    ]
    if different:
        raise UserError(
            "Processes that train together must be started alike. "
            f"Different: {', '.join(different)}"
        )


def gathered(variables):
    """Returns the whole values of variables as NumPy arrays.

    All processes must call it, also those that have no use for them.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return [keras.ops.convert_to_numpy(variable) for variable in variables]
    import jax  # noqa: PLC0415

    everywhere = jax.sharding.NamedSharding(
        distribution.device_mesh.backend_mesh, jax.sharding.PartitionSpec()
    )
    copy = jax.jit(lambda values: values, out_shardings=everywhere)
    return list(map(np.asarray, copy([v.value for v in variables])))


@contextlib.contextmanager
def undistributed():
    """Creates variables for this process alone, on one device."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def _join_processes(virtual_devices):
    """Joins the processes that a launcher has started, if it has several.

    Keras' variables and JAX' say where they are; on a TPU, and under Slurm or
    Open MPI, JAX finds them itself.
    """
    import jax  # noqa: PLC0415

    if jax.distributed.is_initialized():
        return
    named = any(map(os.environ.get, _ADDRESSES))
    several = any(int(os.environ.get(name, 1)) > 1 for name in _COUNTS)
    if not (named or several or _tpu_is_attached()):
        return
    _make_threads_for(virtual_devices)
    try:
        keras.distribution.initialize()
    except (ValueError, RuntimeError) as error:
        if named or several or len(_tpu_hosts()) > 1:
            raise UserError(
                f"The processes could not be joined: {error}"
            ) from error
        notice(f"Training on this host alone: {error}")


def _make_threads_for(devices):
    """Asks XLA for more threads than devices of a CPU can wait in.

    Each exchange of a device waits for the others in a thread. With one for
    each device, two exchanges under way may wait for each other without end.
    """
    count = max(os.cpu_count(), 8 * devices)
    os.environ.setdefault("NPROC", f"{count}")


_ADDRESSES = ("KERAS_DISTRIBUTION_JOB_ADDRESSES", "JAX_COORDINATOR_ADDRESS")
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def _tpu_hosts():
    return os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")


def _refuse_several_hosts():
    hosts = _tpu_hosts()
    cluster = json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster", {})
    hosts = max(hosts, cluster.get("worker", []), key=len)
    if len(hosts) > 1:
        raise UserError(
            "With TensorFlow the example trains on one host. On several, run "
            "the same command with KERAS_BACKEND=jax on each of them. "
            f"Received: {len(hosts)} hosts, {', '.join(hosts)}"
        )


def _too_late(virtual_devices):
    return UserError(
        f"--virtual_devices {virtual_devices} came too late: this process has "
        "already used its CPU."
    )
