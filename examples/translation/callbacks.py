"""What happens beside the steps of `fit`: measure, save, tell, stop.

The callbacks share one `TrainingState` and one dict of logs, and run in the
order of the list they are given in: those that measure add to the logs, then
`RecordHistory` and `SaveCheckpoint` keep them, then the others show them.
"""

import dataclasses
import datetime
import math
import shutil
import time

import keras
import tensorflow as tf

from examples.translation.checkpoint import TrainingState
from examples.translation.errors import UserError
from examples.translation.evaluate import translate_pairs
from examples.translation.report import state_bytes
from examples.translation.termination import Terminated


@keras.saving.register_keras_serializable(package="examples.translation")
class TokenCount(keras.metrics.Sum):
    """Number of real target tokens, as a weighted metric of `compile`."""

    def update_state(self, labels, logits, sample_weight):
        super().update_state(sample_weight)


class AdvanceState(keras.callbacks.Callback):
    """Counts steps in the state and times the training; must come first.

    The losses that it leaves in the logs are those of `means_over_pieces`.
    """

    def __init__(self, state: TrainingState):
        super().__init__()
        self.state = state

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()
        self._trained = None

    def on_test_begin(self, logs=None):
        # Validation begins: only training counts for the throughput.
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        for prefix in ("", "val_"):
            logs[f"{prefix}loss"] = logs.pop(f"{prefix}token_loss")
        self.state.step += self.params["steps"]
        seconds = (self._trained or time.perf_counter()) - self._began
        logs["steps"] = self.params["steps"]
        logs["seconds"] = seconds
        logs["tokens_per_second"] = logs["tokens"] / seconds


class StopOnTermination(keras.callbacks.Callback):
    """Saves between two batches and leaves `fit` when a signal has come.

    It hooks the beginning of a batch, not the end: a hook there would make
    Keras wait for the device after every step.
    """

    def __init__(self, termination, state, save):
        super().__init__()
        self.termination = termination
        self.state = state
        self.save = save

    def on_train_batch_begin(self, batch, logs=None):
        if self.termination.stops_before_step():
            if batch:
                self.save(
                    self.model,
                    dataclasses.replace(
                        self.state, step=self.state.step + batch
                    ),
                )
            raise Terminated(self.termination.requested)


class WaitForEachBatch(keras.callbacks.Callback):
    """Makes Keras wait for the device after every step, by being there."""

    def on_train_batch_end(self, batch, logs=None):
        pass

    def on_test_batch_end(self, batch, logs=None):
        pass


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Raises `UserError` when the validation loss is NaN or infinite.

    The training loss alone does not stop a run: it is a mean over steps of
    which an optimizer may have skipped one that overflowed.
    """

    def __init__(self, state):
        super().__init__()
        self.state = state

    def on_epoch_end(self, epoch, logs=None):
        if not math.isfinite(logs["val_loss"]):
            raise UserError(
                f"The validation loss is {logs['val_loss']} after step "
                f"{self.state.step}: the training has diverged. Start another "
                "run (--run_dir) with a lower --learning_rate, more "
                "--warmup_steps or --mixed_precision none."
            )


class TranslateSamples(keras.callbacks.Callback):
    """Adds validation BLEU to the logs every so many intervals.

    Args:
        state: `TrainingState`.
        translator: Has `translate(list[str]) -> list[str]`.
        pairs: (source, reference) to translate.
        interval: Steps of an interval.
        every: Intervals between two scores.
    """

    def __init__(self, state, translator, pairs, *, interval, every):
        super().__init__()
        self.state = state
        self.translator = translator
        self.pairs = pairs
        self.period = interval * every
        self.translations = None

    def on_epoch_end(self, epoch, logs=None):
        self.translations = None
        if self.state.step % self.period:
            return
        self.translations = translate_pairs(self.translator, self.pairs)
        logs["val_bleu"] = self.translations.score().bleu


class RecordHistory(keras.callbacks.Callback):
    """Appends the interval's logs to the state's history."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def on_epoch_end(self, epoch, logs=None):
        row = {name: float(value) for name, value in logs.items()}
        row["steps"] = int(row["steps"])
        self.state.history.append({"step": self.state.step, **row})


class SaveCheckpoint(keras.callbacks.Callback):
    """Saves at the end of an interval; comes after what fills the state."""

    def __init__(self, state, save):
        super().__init__()
        self.state = state
        self.save = save

    def on_epoch_end(self, epoch, logs=None):
        self.save(self.model, self.state)


class StopEarly(keras.callbacks.Callback):
    """Ends `fit` when the validation loss has stalled for `patience`."""

    def __init__(self, state, patience):
        super().__init__()
        self.state = state
        self.patience = patience

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = self.state.has_stalled(self.patience)


class WriteTensorBoard(keras.callbacks.Callback):
    """Writes the history's last row and the samples, at the global step.

    Args:
        directory: Log directory; its name is the run's name in TensorBoard.
        state: `TrainingState`.
        samples: `TranslateSamples` whose translations to show, or `None`.
        count: How many of them.
    """

    def __init__(self, directory, state, samples, count):
        super().__init__()
        self.writer = tf.summary.create_file_writer(str(directory))
        self.state = state
        self.samples = samples
        self.count = count

    def on_train_begin(self, logs=None):
        self._write(
            {
                "optimizer_state_bytes": state_bytes(
                    self.model.optimizer.variables
                )
            }
        )

    def on_epoch_end(self, epoch, logs=None):
        self._write(self.state.history[-1])
        if self.samples and self.samples.translations:
            text = "\n\n".join(
                f"{source}  \n→ {hypothesis}  \n= {reference}"
                for source, reference, hypothesis in (
                    self.samples.translations.samples(self.count)
                )
            )
            with self.writer.as_default(step=self.state.step):
                tf.summary.text("translations", text)
        self.writer.flush()

    def _write(self, scalars):
        with self.writer.as_default(step=self.state.step):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)


class PrintProgress(keras.callbacks.Callback):
    """One line an interval, for logs that are not a terminal."""

    def __init__(self, state, total_steps):
        super().__init__()
        self.state = state
        self.total_steps = total_steps

    def on_epoch_end(self, epoch, logs=None):
        parts = [
            f"step {self.state.step:,}/{self.total_steps:,}",
            f"loss {logs['loss']:.3f}",
            f"accuracy {logs['token_accuracy']:.3f}",
            f"val_loss {logs['val_loss']:.3f}",
            f"val_accuracy {logs['val_token_accuracy']:.3f}",
        ]
        if "val_bleu" in logs:
            parts.append(f"BLEU {logs['val_bleu']:.1f}")
        parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
        parts.append(f"{logs['seconds']:.0f} s")
        print("  ".join(parts), flush=True)


class ShowProgress(keras.callbacks.Callback):
    """A bar and the time left, drawn over itself, for a terminal.

    The cursor waits at its beginning, so that what is told next replaces it;
    the last bar stays.
    """

    def __init__(self, state, total_steps):
        super().__init__()
        self.state = state
        self.total_steps = total_steps
        self._calls = 0
        self._began = None
        self._drawn = 0.0

    def on_train_batch_begin(self, batch, logs=None):
        self._draw(self.state.step + batch)

    def on_epoch_end(self, epoch, logs=None):
        self._draw(self.state.step)

    def _draw(self, step):
        now = time.monotonic()
        # The first call compiles: timed, it would foretell hours.
        self._calls += 1
        if self._calls == 2:
            self._began = now, step
        finished = step >= self.total_steps
        if now - self._drawn < 0.1 and not finished:
            return
        self._drawn = now
        left = "-:--:--"
        if self._began and step > self._began[1]:
            began, first = self._began
            seconds = (now - began) / (step - first) * (self.total_steps - step)
            left = str(datetime.timedelta(seconds=round(seconds)))
        text = f"{step:,}/{self.total_steps:,}  {left} left"
        width = min(40, shutil.get_terminal_size().columns - len(text) - 5)
        done = width * step // self.total_steps
        bar = f"[{'#' * done}{'.' * (width - done)}]  " if width > 0 else ""
        end = "\n" if finished else "\r"
        print(f"{bar}{text}\x1b[K", end=end, flush=True)
