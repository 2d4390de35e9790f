"""What the optimizer does, step by step, as a Keras callback."""

import math
import os
import warnings
from dataclasses import asdict
from dataclasses import dataclass
from typing import Any
from typing import Literal
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_adafactor.backends import backend
from keras_adafactor.checks import check
from keras_adafactor.checks import check_integer
from keras_adafactor.optimizer import inner_optimizers
from keras_adafactor.optimizer import path_of
from keras_adafactor.step import compute_dtype
from keras_adafactor.tables import dimensions
from keras_adafactor.tables import lines_of_table

# Elements of a variable that are looked at: a copy of them is kept for the
# length of a measured step, of all variables at once.
SAMPLE = 2**20


@dataclass(frozen=True)
class VariableUpdate:
    """What a step has done to one variable.

    Attributes:
        path: String, the variable's path.
        shape: Tuple of ints, the variable's shape.
        weight_rms: Float, RMS of its values before the step: the parameter
            scale, by which a relative step is multiplied.
        change_rms: Float, RMS of the change of its values.
        update_rms: Float, RMS of the update before clipping and before it is
            multiplied by the step size; `None` where that is not recorded.
        clipped: Boolean, whether the update was clipped; `None` likewise.
    """

    path: str
    shape: tuple[int, ...]
    weight_rms: float
    change_rms: float
    update_rms: float | None = None
    clipped: bool | None = None


@dataclass(frozen=True)
class UpdateReport:
    """What a step has done: a table when printed, rows as data.

    Attributes:
        step: Int, the updates that the optimizer has made.
        learning_rates: Dict from the name of an optimizer, or of each inside
            of a `MultiOptimizer`, to the learning rate that the step used.
        rows: List of `VariableUpdate`, one a variable.
        skipped_updates: Int, the optimizer's count of what it has skipped so
            far, or `None` if it has none.
        loss_scale: Float, of a `LossScaleOptimizer`, else `None`.
        failed_refreshes: Int, the refreshes so far that failed, or `None` for
            optimizers without a refresh.
    """

    step: int
    learning_rates: dict[str, float]
    rows: list[VariableUpdate]
    skipped_updates: int | None = None
    loss_scale: float | None = None
    failed_refreshes: int | None = None

    def logs(self) -> dict[str, Any]:
        """The report in total, as in the logs of Keras.

        Returns:
            Dict from name to number. RMS of weights and of changes are over
            all elements, that of updates is the mean over the variables.
        """
        rates = list(self.learning_rates.items())
        name = "effective_learning_rate"
        found = (
            {name: rates[0][1]}
            if len(rates) == 1
            else {f"{name}_{key}": rate for key, rate in rates}
        )
        sizes = [math.prod(row.shape) for row in self.rows]
        for name in ("weight_rms", "change_rms"):
            squares = [getattr(row, name) ** 2 for row in self.rows]
            found[name] = float(np.sqrt(np.average(squares, weights=sizes)))
        updates = [r.update_rms for r in self.rows if r.update_rms is not None]
        if updates:
            clipped = [bool(row.clipped) for row in self.rows]
            found["update_rms"] = float(np.mean(updates))
            found["clipped_fraction"] = sum(clipped) / len(updates)
        for name in ("skipped_updates", "failed_refreshes", "loss_scale"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        return found

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "step": self.step,
            "logs": self.logs(),
            "variables": [
                asdict(row) | {"shape": list(row.shape)} for row in self.rows
            ],
        }

    def __str__(self) -> str:
        header = ("variable", "shape", "weight rms", "change rms")
        table = [(*header, "update rms", "clipped")] + [
            (
                row.path,
                dimensions(row.shape),
                f"{row.weight_rms:.3g}",
                f"{row.change_rms:.3g}",
                "" if row.update_rms is None else f"{row.update_rms:.3g}",
                {None: "", False: "no", True: "yes"}[row.clipped],
            )
            for row in self.rows
        ]
        lines = lines_of_table(table, right_aligned=4)
        lines.append(lines[1])
        totals = [f"{name} {value:.4g}" for name, value in self.logs().items()]
        lines.append(f"step {self.step:,}: " + ", ".join(totals))
        return "\n".join(lines)


class _Window(NamedTuple):
    """What is kept from the beginning of a measured step to its end.

    Attributes:
        end: Int, the batch of the epoch at which it ends.
        variables: List of `keras.Variable`.
        values: List of tensors, a sample of each.
        rates: Tensor, the learning rate of every optimizer.
    """

    end: int
    variables: list[Any]
    values: list[Any]
    rates: Any


class OptimizerMonitor(keras.callbacks.Callback):
    """Shows what the optimizer does to the weights, every so many steps.

    The logs of a batch and of an epoch get these, the latest that were
    measured, and with them the progress bar, `History`, and every callback
    that comes *after* this one: `keras.callbacks.TensorBoard`, `CSVLogger`.

    - `effective_learning_rate`: the learning rate that is used. Adafactor's is
      not `learning_rate` past the cap of its relative step.
      `effective_learning_rate_<name>` for each in a `MultiOptimizer`.
    - `weight_rms`: RMS of all weights, what a relative step is relative to.
    - `change_rms`: RMS of what the step has changed, as it is found in the
      weights: with weight decay, rounding and constraints.
    - `update_rms`, `clipped_fraction`: RMS of the update before clipping, the
      mean over the variables, and the share of variables whose update was
      clipped; from an `Adafactor` with `record_update_rms=True`.
    - `skipped_updates`: those so far, for NaN or infinity in a gradient.
    - `failed_refreshes`: those so far, from an optimizer that has bases.
    - `loss_scale`: that of a `LossScaleOptimizer`.

    Variable by variable they are in `report`, which prints as a table, and in
    the files of `log_dir`. All of this works with any Keras optimizer, but for
    what it does not record.

    A warning is given, once, if in `patience` periods in a row updates were
    skipped, or the loss scale, below 1 already, fell.

    The training step stays as it is, and beside a step that is not measured
    nothing is computed or read. After a measured one the host waits for the
    device, and while it runs there is a copy of the weights: of a variable of
    more than 2**20 elements, of every third along its longest axis, and so on
    until no more than that are left. RMS of it are those of this sample.

    Args:
        log_freq: Integer >= 1 or `"epoch"`: which steps are measured. The
            first and every so many, or the last of each epoch; where Keras
            does not know how many those are, the 1st, 2nd, 3rd, 5th, 9th and
            so on. `steps_per_execution` steps are measured as one, as are
            `gradient_accumulation_steps`. Defaults to `"epoch"`.
        log_dir: Path or `None`. Where to write everything for TensorBoard, in
            a directory `optimizer`, beside those of the
            `keras.callbacks.TensorBoard` that has the same `log_dir`; by the
            step of the optimizer. Needs TensorFlow, as that does. Defaults to
            `None`.
        patience: Integer >= 1, the number of periods, of `log_freq` steps or
            an epoch, with skipped updates in a row after which a warning is
            given. Defaults to 3.

    Attributes:
        report: `UpdateReport` of the latest step that was measured, or `None`
            before that.

    Raises:
        ValueError: If an argument is out of range.
        ImportError: When `fit` begins, with `log_dir` and no TensorFlow.

    Example:

    ```python
    monitor = keras_adafactor.OptimizerMonitor(log_freq=100)
    model.compile(keras_adafactor.Adafactor(record_update_rms=True), "mse")
    model.fit(x, y, callbacks=[monitor, keras.callbacks.TensorBoard("logs")])
    print(monitor.report)
    ```
    """

    # Keras need not wait for the device to call `on_train_batch_end`.
    async_safe = True

    def __init__(
        self,
        log_freq: int | Literal["epoch"] = "epoch",
        log_dir: str | os.PathLike[str] | None = None,
        patience: int = 3,
    ) -> None:
        super().__init__()
        self.log_freq = log_freq
        if log_freq != "epoch":
            check(
                isinstance(log_freq, int | np.integer)
                and not isinstance(log_freq, bool)
                and log_freq >= 1,
                "log_freq",
                "an integer >= 1 or 'epoch'",
                log_freq,
            )
        check(
            log_dir is None or isinstance(log_dir, str | os.PathLike),
            "log_dir",
            "a path or None",
            log_dir,
        )
        self.log_dir = log_dir
        self.patience = check_integer("patience", patience, 1)
        self.report: UpdateReport | None = None
        self._logs: dict[str, Any] = {}
        self._write: Any = None
        self._warned = False

    # When to look. These are called in every step, and must cost nothing.

    def on_train_begin(self, logs=None):
        if self.log_dir is not None and self._write is None:
            directory = os.path.join(self.log_dir, "optimizer")
            self._write = _scalar_writer(directory)
        self._execution = self.model.steps_per_execution
        self._meet_optimizers()
        self._earlier = 0  # steps of earlier epochs
        self._began = 0  # the batch that began last
        self._window: Any = None
        self._found: UpdateReport | None = None
        self._periods = 0  # in a row that skipped
        self._before_periods = 0
        self._skipped: int | None = None
        self._scale: Any = None

    def _meet_optimizers(self):
        self._optimizers = inner_optimizers(self.model.optimizer)
        accumulated = [o.gradient_accumulation_steps for o in self._optimizers]
        # The fewest steps with an update among them.
        self._length = max([self._execution, *filter(None, accumulated)])

    def on_epoch_begin(self, epoch, logs=None):
        self._began = 0

    def on_train_batch_begin(self, batch, logs=None):
        self._began = batch
        if self._window is not None and batch >= self._window.end:
            self._close()
        if self._window is None and self._is_due(batch):
            self._open(batch)

    def on_train_batch_end(self, batch, logs=None):
        # In a thread of Keras': nothing but this.
        if isinstance(logs, dict):
            logs.update(self._logs)

    def on_test_begin(self, logs=None):
        # Validation: other callbacks may give the model other weights now.
        self._end_epoch()

    def on_epoch_end(self, epoch, logs=None):
        self._end_epoch()
        done = self._began + self._execution
        self._earlier += min(done, self.params.get("steps") or done)
        if isinstance(logs, dict):
            logs.update(self._logs)

    def _is_due(self, batch):
        if self.log_freq != "epoch":
            count = self._earlier + batch
            rest = self.log_freq - count % self.log_freq
            return count == 0 or rest <= self._length
        steps = self.params.get("steps")
        if steps is None:
            return batch & (batch - 1) == 0
        return batch + self._length >= steps

    def _end_epoch(self):
        window, self._window = self._window, None
        # One that the epoch has cut off may hold no update.
        if window and (
            self._found is None or self._began + self._execution >= window.end
        ):
            self._window = window
            self._close()

    # What to look at.

    def _open(self, batch):
        backend.sync_training_state(self.model)
        variables = [
            v for v in self.model.trainable_variables if math.prod(v.shape)
        ]
        # A `MultiOptimizer` may find its optimizers in its first step only.
        self._meet_optimizers()
        if not variables or not self._optimizers:
            return
        if self._skipped is None:
            _, self._skipped, _, self._scale = self._read_counters()
        self._window = _Window(
            batch + self._length,
            variables,
            [_sample(variable) for variable in variables],
            ops.stack([_used_rate(o) for o in self._optimizers]),
        )

    def _close(self):
        window, self._window = self._window, None
        backend.sync_training_state(self.model)
        squares = []
        for variable, old in zip(window.variables, window.values, strict=True):
            change = _sample(variable) - old
            squares += [_mean_square(old), _mean_square(change)]
        found = ops.convert_to_numpy(
            ops.concatenate([window.rates, ops.stack(squares)])
        ).tolist()
        count = len(self._optimizers)
        roots = [math.sqrt(square) for square in found[count:]]
        step, skipped, failed, scale = self._read_counters()
        updates: dict[str, Any] = {}
        for optimizer in self._optimizers:
            if getattr(optimizer, "record_update_rms", False):
                limit = optimizer.clip_threshold or math.inf
                for path, rms in optimizer.update_rms().items():
                    updates[path] = rms, rms > limit
        report = UpdateReport(
            step=step,
            learning_rates=dict(
                zip(
                    [optimizer.name for optimizer in self._optimizers],
                    found[:count],
                    strict=True,
                )
            ),
            rows=[
                VariableUpdate(
                    path_of(variable),
                    tuple(variable.shape),
                    weight,
                    change,
                    *updates.get(path_of(variable), ()),
                )
                for variable, weight, change in zip(
                    window.variables, roots[::2], roots[1::2], strict=True
                )
            ],
            skipped_updates=skipped,
            loss_scale=scale,
            failed_refreshes=failed,
        )
        self.report = self._found = report
        self._logs = report.logs()
        if self._write:
            self._write(report.step, self._logs | _by_variable(report))
        self._warn_of_skips(skipped, scale)

    def _read_counters(self):
        """Updates made, updates skipped, refreshes failed, and the loss scale.

        Each but the first is `None` if no optimizer counts it.
        """
        optimizer = self.model.optimizer
        skipped = [
            inner.skipped_updates
            for inner in self._optimizers
            if getattr(inner, "skip_nonfinite", None)
        ]
        failed = [
            inner.failed_refreshes
            for inner in self._optimizers
            if isinstance(
                getattr(inner, "failed_refreshes", None), keras.Variable
            )
        ]
        step, *counts = ops.convert_to_numpy(
            ops.stack(
                [
                    ops.cast(ops.copy(counter), "int32")
                    for counter in (optimizer.iterations, *skipped, *failed)
                ]
            )
        ).tolist()
        skips, failures = counts[: len(skipped)], counts[len(skipped) :]
        scale = None
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            scale = optimizer.initial_scale
            if optimizer.built:
                scale = ops.convert_to_numpy(ops.copy(optimizer.dynamic_scale))
        return (
            step,
            sum(skips) if skips else None,
            sum(failures) if failures else None,
            None if scale is None else float(scale),
        )

    def _warn_of_skips(self, skipped, scale):
        new = (skipped or 0) - (self._skipped or 0)
        fell = False
        if scale is not None:
            # It falls from its initial value in any run, and ends at 0.
            fell = scale == 0 or scale < min(1.0, self._scale)
        if not self._periods:
            self._before_periods = self._skipped or 0
        self._periods = self._periods + 1 if new > 0 or fell else 0
        self._skipped, self._scale = skipped, scale
        if self._warned or self._periods < self.patience:
            return
        self._warned = True
        period = (
            "1 epoch"
            if self.log_freq == "epoch"
            else f"{self.log_freq} step{'s' * (self.log_freq > 1)}"
        )
        count = (skipped or 0) - self._before_periods
        what = (
            f"{count} update{'s' * (count > 1)} skipped"
            if count
            else f"the loss scale fell, to {scale:.3g}"
        )
        warnings.warn(
            f"Optimizer '{self.model.optimizer.name}': in {self._periods} "
            f"periods of {period} in a row gradients held NaN or infinity "
            f"({what}). Look at the data, or lower the learning rate.",
            stacklevel=2,
        )


def sample_of(shape, limit):
    """Slices that leave at most `limit` elements of a variable.

    Every third along the axis of which most is left, again and again: three,
    because structure in weights (heads, gates, pairs) comes in powers of two.
    """
    strides = [1] * len(shape)

    def left():
        return [-(-size // s) for size, s in zip(shape, strides, strict=True)]

    while math.prod(left()) > limit:
        strides[left().index(max(left()))] *= 3
    return tuple(slice(None, None, s if s > 1 else None) for s in strides)


def _sample(variable):
    """A copy: JAX donates what it steps from, PyTorch writes over it."""
    kept = sample_of(tuple(variable.shape), SAMPLE)
    strided = any(axis.step for axis in kept)
    values = ops.copy(variable[kept] if strided else variable)
    return ops.cast(values, compute_dtype(variable))


def _mean_square(x):
    return ops.cast(ops.mean(ops.square(x)), "float32")


def _used_rate(optimizer):
    """The learning rate of the next update, of any Keras optimizer."""
    rate = getattr(optimizer, "effective_learning_rate", None)
    if rate is None:
        rate = optimizer.learning_rate
    rate = ops.cast(ops.copy(rate), "float32")
    if isinstance(optimizer, keras.optimizers.Adafactor):
        # Whatever its `relative_step`.
        t = ops.cast(optimizer.iterations, "float32") + 1.0
        rate = ops.minimum(rate, ops.rsqrt(t))
    return rate


def _by_variable(report):
    """Name and path -> number, of every variable."""
    return {
        f"{name}/{row.path}": getattr(row, name)
        for row in report.rows
        for name in ("weight_rms", "change_rms", "update_rms")
        if getattr(row, name) is not None
    }


def _scalar_writer(directory):
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
