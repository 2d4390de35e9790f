"""Checkpoints that a kill at any moment cannot spoil, written by Orbax.

A checkpoint is a directory `step_00000400` with

    model/         every variable of the model, bit for bit
    optimizer/     every variable of the optimizer
    description/   step, history, what the variables are called, their sums

Orbax writes it in the background under another name, each process its own
parts, and gives it the final name when it is whole. It can be read by another
number of processes or devices. Random state needs no file of its own: dropout
seeds are model variables, and the batches follow from the step.
"""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import zlib

import jax
import keras
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from examples.translation.errors import UserError

if keras.backend.backend() != "jax":
    # Orbax asks JAX for the processes; the accelerator is another's.
    jax.config.update("jax_platforms", "cpu")

GROUPS = ("model", "optimizer")
_TOLD, _CRC = "description", "crc32"
_NAMES = ocp.path.step.standard_name_format(
    step_prefix="step", step_format_fixed_length=8
)


@dataclasses.dataclass
class TrainingState:
    """Where a run is, apart from its variables.

    Attributes:
        step: Batches trained on. The data position follows from it.
        history: One JSON-able dict for each finished interval.
    """

    step: int = 0
    history: list[dict] = dataclasses.field(default_factory=list)

    def best_interval(self):
        """Returns the index of the first row with the lowest `val_loss`."""
        losses = [row["val_loss"] for row in self.history]
        return losses.index(min(losses))

    def has_stalled(self, patience):
        """Whether `val_loss` has not fallen for `patience` intervals.

        Args:
            patience: At least 1, or `None` for never.
        """
        if not patience or not self.history:
            return False
        return len(self.history) - 1 - self.best_interval() >= patience


@dataclasses.dataclass(frozen=True)
class _Preserved(ocp.checkpoint_managers.PreservationPolicy):
    """The newest of those at an interval, and the newest of all."""

    interval: int
    keep: int

    def should_preserve(self, checkpoints, *, context):
        steps = [checkpoint.step for checkpoint in checkpoints]
        regular = [
            step
            for step in steps
            if step % self.interval == 0 or step == steps[-1]
        ]
        return [step in regular[-self.keep :] for step in steps]


class Checkpoints:
    """The checkpoints of one run, used by all of its processes alike.

    Args:
        directory: Where they live; a local path, or one of an object store
            such as `gs://bucket/run`.
        interval: Steps between two checkpoints. One at another step, that an
            interruption caused, is kept only while it is the newest.
        keep: Number of newest checkpoints to keep.
        identity: JSON-able dict of what a resumed run must have in common
            with the saved one, such as fingerprints of data and vocabulary.
    """

    def __init__(self, directory, *, interval, keep, identity):
        self._open(
            directory,
            identity,
            preservation_policy=_Preserved(interval, keep),
            cleanup_tmp_directories=True,
        )

    @classmethod
    def of(cls, directory):
        """Opens those that another process may be writing, to read only."""
        checkpoints = cls.__new__(cls)
        checkpoints._open(directory, {}, create=False)
        return checkpoints

    def _open(self, directory, identity, **options):
        remote = "://" in str(directory)
        if not remote:
            directory = os.path.abspath(directory)
        self.identity = identity
        try:
            self._manager = ocp.CheckpointManager(
                directory,
                options=ocp.CheckpointManagerOptions(
                    step_name_format=_NAMES, **options
                ),
            )
        except Exception as error:
            # Each client of an object store has errors of its own.
            if remote:
                raise UserError(
                    "--checkpoint_dir must be a directory or a bucket that "
                    f"can be written. Received: {directory} "
                    f"({' '.join(_first_words(error).split())})"
                ) from error
            raise

    def steps(self):
        """Returns the steps that have a whole checkpoint, ascending."""
        self.wait()
        return sorted(self._manager.all_steps())

    def path(self, step):
        """Returns the directory of the checkpoint of `step`."""
        return self._manager.directory / _NAMES.build_name(step)

    def check_identity(self):
        """Raises `UserError` if the checkpoints are of another run."""
        for step in self.steps():
            # What is damaged is not continued either.
            with contextlib.suppress(*_DAMAGES):
                self._check_identity(step, self.describe(step))

    def save(self, model, optimizer, state):
        """Writes a checkpoint and removes those no longer kept.

        Returns when the values have been taken; they are written meanwhile.

        Args:
            model: Built model.
            optimizer: Built optimizer.
            state: `TrainingState` to go with them.

        Raises:
            OSError: This one or the one before could not be written.
        """
        groups = _groups(model, optimizer)
        values = {
            group: [_value(variable) for variable in variables]
            for group, variables in groups.items()
        }
        description = {
            "identity": self.identity,
            "training": dataclasses.asdict(state),
            "variables": {
                group: [_signature(variable) for variable in variables]
                for group, variables in groups.items()
            },
        }
        self.write(state.step, values, description)

    def write(self, step, values, description):
        """Writes the values and the description of a checkpoint.

        Args:
            step: Its step.
            values: Dict of lists of arrays, as of `arrays`.
            description: Dict, as of `describe`.
        """
        sums = {group: _sums(values[group]) for group in GROUPS}
        description = description | {"sums": sums}
        self.wait()
        self._check_space(values)
        with _as_os_error():
            if step in self._manager.all_steps():
                # It was found to be damaged.
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        group: ocp.args.StandardSave(values[group])
                        for group in GROUPS
                    },
                    description=ocp.args.JsonSave(
                        {_TOLD: description, _CRC: _crc(description)}
                    ),
                ),
                force=True,
            )

    def _check_space(self, values):
        """Raises `OSError` where the disk is too full, before Orbax does.

        It ends in a message, where Orbax leaves pages of them.
        """
        directory = str(self._manager.directory)
        if "://" in directory:
            return
        needed = sum(
            value.size * value.dtype.itemsize
            for group in GROUPS
            for value in values[group]
        )
        if shutil.disk_usage(directory).free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{os.strerror(errno.ENOSPC)}: a checkpoint takes "
                f"{needed:,} bytes",
                directory,
            )

    def wait(self):
        """Returns when what was saved is written.

        Raises:
            OSError: It could not be.
        """
        with _as_os_error():
            self._manager.wait_until_finished()

    def restore(self, model, optimizer):
        """Puts the newest intact checkpoint into the variables.

        A damaged checkpoint is named in the log and passed over.

        Args:
            model: Built model.
            optimizer: Built optimizer.

        Returns:
            Its `TrainingState`, or `None` when there is no checkpoint.

        Raises:
            UserError: The checkpoint is of another run, or its variables are
                not those of `model` and `optimizer`.
        """
        groups = _groups(model, optimizer)
        for step in reversed(self.steps()):
            try:
                description = self.describe(step)
                self._check_identity(step, description)
                values = {
                    group: self._restore(step, description, group, variables)
                    for group, variables in groups.items()
                }
            except _DAMAGES as error:
                logging.warning(
                    "%s is damaged and is not used: %s",
                    self.path(step),
                    _first_words(error),
                )
                continue
            for group, variables in groups.items():
                for variable, value in zip(
                    variables, values[group], strict=True
                ):
                    variable.assign(value)
            return TrainingState(**description["training"])
        return None

    def load_weights(self, model, steps):
        """Puts the mean of the weights of some checkpoints into a model.

        Integer variables, such as dropout seeds, come from the last one.

        Args:
            model: Built model.
            steps: Non-empty list of steps that have a checkpoint.
        """
        variables = model.variables
        means = [None] * len(variables)
        for number, step in enumerate(steps, start=1):
            values = self._restore(
                step, self.describe(step), "model", variables
            )
            for index, value in enumerate(values):
                if number > 1 and keras.backend.is_float_dtype(
                    variables[index].dtype
                ):
                    mean = means[index]
                    value = value.astype("float32")
                    value = mean + (value - mean) / number
                means[index] = value
        for variable, mean in zip(variables, means, strict=True):
            variable.assign(mean.astype(variable.dtype))

    def describe(self, step):
        """Returns the description of a checkpoint, a dict.

        Raises:
            ValueError: It is damaged; also KeyError or OSError.
        """
        written = self._manager.restore(
            step, args=ocp.args.Composite(description=ocp.args.JsonRestore())
        )["description"]
        if _crc(written[_TOLD]) != written[_CRC]:
            raise ValueError("its description is another")
        return written[_TOLD]

    def arrays(self, step):
        """Returns what a checkpoint holds: group -> list of NumPy arrays.

        Raises:
            ValueError: It is damaged; also KeyError or OSError.
        """
        description = self.describe(step)
        return {
            group: self._read(
                step,
                description,
                group,
                [
                    np.empty(shape, dtype)
                    for _, shape, dtype in description["variables"][group]
                ],
            )
            for group in GROUPS
        }

    def _restore(self, step, description, group, variables):
        """The values of a group, laid out as its variables."""
        _check_variables(self.path(step), group, variables, description)
        return self._read(step, description, group, map(_template, variables))

    def _read(self, step, description, group, templates):
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{group: ocp.args.StandardRestore(list(templates))}
            ),
        )
        # Orbax notices a file that is cut or missing, not one that is
        # changed.
        if _sums(restored[group]) != description["sums"][group]:
            raise ValueError(f"the sums of its {group} are others")
        return restored[group]

    def _check_identity(self, step, description):
        for name, value in self.identity.items():
            saved = description["identity"].get(name)
            if saved != value:
                raise UserError(
                    f"{self.path(step)} cannot be continued: its {name} is "
                    f"{saved}, this run's is {value}. Use another "
                    "--run_dir, or the settings of that run."
                )


# What reading a damaged checkpoint raises.
_DAMAGES = (KeyError, OSError, ValueError)


@contextlib.contextmanager
def _as_os_error():
    """Raises what Orbax says of a full disk, and the like, as `OSError`."""
    try:
        yield
    except ValueError as error:
        raise OSError(_first_words(error)) from error


def _first_words(error):
    """What is said before Orbax' specification of all that it did."""
    return str(error).partition(" [")[0]


def _value(variable):
    """What Orbax takes: an array of JAX, however laid out, or of NumPy."""
    if keras.backend.backend() == "jax":
        return variable.value
    # A copy: it is written while the training goes on.
    return np.array(keras.ops.convert_to_numpy(variable))


def _template(variable):
    """What Orbax is to make of an array: the type, shape and layout."""
    if keras.backend.backend() == "jax":
        value = variable.value
        return jax.ShapeDtypeStruct(
            value.shape, value.dtype, sharding=value.sharding
        )
    return np.empty(variable.shape, variable.dtype)


def _sums(values):
    """A sum of the bits of each array; one changed bit changes it.

    It is the same for every layout over devices and processes.
    """
    if all(isinstance(value, np.ndarray) for value in values):
        return [int(_sum(value)) for value in values]
    return [int(number) for number in jax.jit(_sum_each)(values)]


def _sum_each(values):
    return [_sum(value) for value in values]


def _sum(value):
    if value.dtype == bool:
        value = value.astype("uint8")
    bits = 8 * value.dtype.itemsize
    return value.view(f"uint{bits}").sum(dtype=f"uint{max(bits, 32)}")


def _crc(description):
    return zlib.crc32(json.dumps(description, sort_keys=True).encode())


def _groups(model, optimizer):
    return {"model": model.variables, "optimizer": optimizer.variables}


def _signature(variable):
    return [variable.path, list(variable.shape), variable.dtype]


def _check_variables(path, group, variables, description):
    """Raises `UserError` unless saved and present variables are the same."""
    saved = [_words(entry) for entry in description["variables"][group]]
    present = [_words(_signature(variable)) for variable in variables]
    if saved == present:
        return
    only_saved = [entry for entry in saved if entry not in set(present)]
    only_present = [entry for entry in present if entry not in set(saved)]
    raise UserError(
        f"{path} does not fit the {group} of this run: it has {len(saved)} "
        f"variables, the run {len(present)}.\n"
        f"  Only in the checkpoint: {_first(only_saved)}\n"
        f"  Only in the run: {_first(only_present)}"
    )


def _words(signature):
    path, shape, dtype = signature
    return f"{path} {tuple(shape)} {dtype}"


def _first(entries, count=3):
    more = f" and {len(entries) - count} more" if len(entries) > count else ""
    return (", ".join(entries[:count]) or "none") + more
