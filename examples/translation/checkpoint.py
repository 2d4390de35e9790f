"""Checkpoints that a kill at any moment cannot spoil.

A checkpoint is a directory `step-00000400` with

    arrays.npz      every model and optimizer variable, bit for bit
    state.json      step, history, and what the arrays are called
    manifest.json   size and SHA-256 of the other two

It is written under another name, synced to disk and then renamed, so that a
directory with the final name is whole. Random state needs no file of its own:
dropout seeds are model variables, and the batches follow from the step.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil

import keras
import ml_dtypes
import numpy as np
from absl import logging

from examples.translation.errors import UserError

ARRAYS, STATE, MANIFEST = "arrays.npz", "state.json", "manifest.json"
_STEP_NAME = re.compile(r"step-(\d{8,})")
_UNFINISHED = ".unfinished-"


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


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: Where they live; created when missing.
        interval: Steps between two checkpoints. One at another step, that an
            interruption caused, is kept only while it is the newest.
        keep: Number of newest checkpoints to keep.
        identity: JSON-able dict of what a resumed run must have in common
            with the saved one, such as fingerprints of data and vocabulary.
    """

    def __init__(self, directory, *, interval, keep, identity):
        self.directory = pathlib.Path(directory)
        self.interval = interval
        self.keep = keep
        self.identity = identity
        self.directory.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()

    def steps(self):
        """Returns the steps that have a whole checkpoint, ascending."""
        return sorted(
            int(match[1])
            for path in self.directory.iterdir()
            if (match := _STEP_NAME.fullmatch(path.name)) and _is_whole(path)
        )

    def path(self, step):
        """Returns the directory of the checkpoint of `step`."""
        return self.directory / f"step-{step:08d}"

    def check_identity(self):
        """Raises `UserError` if the checkpoints are of another run."""
        for step in self.steps():
            self._check_identity(self.path(step))

    def save(self, model, optimizer, state):
        """Writes a checkpoint and removes those no longer kept.

        Args:
            model: Built model.
            optimizer: Built optimizer.
            state: `TrainingState` to go with them.
        """
        final = self.path(state.step)
        unfinished = self.directory / f"{_UNFINISHED}{final.name}"
        unfinished.mkdir()
        groups = _groups(model, optimizer)
        with open(unfinished / ARRAYS, "wb") as file:
            np.savez(
                file,
                **{
                    f"{group}/{index}": _to_storable(variable)
                    for group, variables in groups.items()
                    for index, variable in enumerate(variables)
                },
            )
            _sync_file(file)
        description = {
            "identity": self.identity,
            "training": dataclasses.asdict(state),
            "variables": {
                group: [_signature(variable) for variable in variables]
                for group, variables in groups.items()
            },
        }
        write_synced(unfinished / STATE, _to_json(description))
        manifest = {
            name: _size_and_hash(unfinished / name) for name in (ARRAYS, STATE)
        }
        write_synced(unfinished / MANIFEST, _to_json(manifest))
        _sync_directory(unfinished)
        if final.exists():
            self._remove(final)
        os.rename(unfinished, final)
        _sync_directory(self.directory)
        self._prune()

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
        for step in reversed(self.steps()):
            path = self.path(step)
            if not _is_intact(path):
                logging.warning("%s is damaged and is not used.", path)
                continue
            self._check_identity(path)
            description = json.loads((path / STATE).read_text())
            groups = _groups(model, optimizer)
            for group, variables in groups.items():
                _check_variables(path, group, variables, description)
            with np.load(path / ARRAYS) as arrays:
                for group, variables in groups.items():
                    for index, variable in enumerate(variables):
                        value = arrays[f"{group}/{index}"]
                        variable.assign(_from_storable(value, variable.dtype))
            training = description["training"]
            return TrainingState(training["step"], training["history"])
        return None

    def load_weights(self, model, steps):
        """Puts the mean of the weights of some checkpoints into a model.

        Integer variables, such as dropout seeds, come from the last one.

        Args:
            model: Built model.
            steps: Non-empty list of steps that have a checkpoint.
        """
        means = [np.float64(0.0)] * len(model.variables)
        for step in steps:
            path = self.path(step)
            description = json.loads((path / STATE).read_text())
            _check_variables(path, "model", model.variables, description)
            with np.load(path / ARRAYS) as arrays:
                for index, variable in enumerate(model.variables):
                    value = _from_storable(
                        arrays[f"model/{index}"], variable.dtype
                    )
                    if keras.backend.is_float_dtype(variable.dtype):
                        value = means[index] + value.astype("float64") / len(
                            steps
                        )
                    means[index] = value
        for variable, mean in zip(model.variables, means, strict=True):
            variable.assign(mean.astype(numpy_dtype(variable.dtype)))

    def _check_identity(self, path):
        saved = json.loads((path / STATE).read_text())["identity"]
        for name, value in self.identity.items():
            if saved.get(name) != value:
                raise UserError(
                    f"{path} cannot be continued: its {name} is "
                    f"{saved.get(name)}, this run's is {value}. Use another "
                    "--run_dir, or the settings of that run."
                )

    def _prune(self):
        steps = self.steps()
        regular = [
            step
            for step in steps
            if step % self.interval == 0 or step == steps[-1]
        ]
        for step in set(steps) - set(regular[-self.keep :]):
            self._remove(self.path(step))

    def _remove(self, path):
        # Renamed first: a deletion cut short must not leave half a
        # checkpoint under a whole one's name.
        doomed = self.directory / f"{_UNFINISHED}removed-{path.name}"
        os.rename(path, doomed)
        shutil.rmtree(doomed)

    def _remove_unfinished(self):
        for path in self.directory.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(path)


def write_synced(path, text):
    """Writes a text file and waits until it is on the disk."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        _sync_file(file)


def write_atomically(path, text):
    """Replaces a text file so that a reader sees the old or the new one."""
    path = pathlib.Path(path)
    unfinished = path.with_name(f"{_UNFINISHED}{path.name}")
    write_synced(unfinished, text)
    os.replace(unfinished, path)
    _sync_directory(path.parent)


def _to_json(value):
    return json.dumps(value, indent=1) + "\n"


def _sync_file(file):
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size_and_hash(path):
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _is_whole(path):
    """Whether the manifest and the files it lists are there, full size."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        return all(
            (path / name).stat().st_size == entry["size"]
            for name, entry in manifest.items()
        )
    except (OSError, ValueError):
        return False


def _is_intact(path):
    """Whether the files are also byte for byte what was written."""
    manifest = json.loads((path / MANIFEST).read_text())
    return all(
        _size_and_hash(path / name) == entry for name, entry in manifest.items()
    )


def numpy_dtype(dtype):
    """Returns the numpy type of a Keras dtype name, bfloat16 included."""
    return np.dtype(getattr(ml_dtypes, dtype, dtype))


def _to_storable(variable):
    """Returns the value; types unknown to numpy as integers of their bits."""
    value = np.asarray(keras.ops.convert_to_numpy(variable))
    if value.dtype.isbuiltin != 1:
        value = value.view(f"u{value.dtype.itemsize}")
    return value


def _from_storable(value, dtype):
    dtype = numpy_dtype(dtype)
    return value if value.dtype == dtype else value.view(dtype)


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
