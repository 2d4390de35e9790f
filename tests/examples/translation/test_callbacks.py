import math
import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_adafactor
from examples.translation import callbacks
from examples.translation import report
from examples.translation.checkpoint import TrainingState
from examples.translation.errors import UserError
from examples.translation.termination import Terminated
from examples.translation.termination import Termination

PAIRS = [
    ("one", "eins ist weniger als zwei Dinge"),
    ("two", "zwei Dinge sind mehr als eins"),
]


class Translator:
    """Knows the first `known` pairs."""

    def __init__(self):
        self.known = 0

    def translate(self, sentences):
        found = dict(PAIRS[: self.known])
        return [found.get(sentence, "?") for sentence in sentences]


@pytest.fixture
def fit():
    """Fits a linear model for some intervals of 4 steps of 2 rows."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])

    def run(hooks, epochs=1, optimizer=None, labels=0.0):
        model.compile(
            optimizer or keras.optimizers.SGD(0.1),
            loss="mse",
            weighted_metrics=[
                keras.metrics.MeanAbsoluteError(name="token_accuracy"),
                keras.metrics.MeanSquaredError(name="token_loss"),
                callbacks.TokenCount(name="tokens"),
            ],
        )
        x = np.linspace(-1, 1, 24, dtype="float32").reshape(8, 3)
        y = np.full((8, 2), labels, "float32")
        weights = np.array([1, 1, 1, 0] * 2, "float32")
        model.fit(
            x,
            y,
            sample_weight=weights,
            batch_size=2,
            epochs=epochs,
            validation_data=(x, y, weights),
            shuffle=False,
            callbacks=hooks,
            verbose=0,
        )
        return model

    return run


def test_steps_time_and_tokens_are_counted(fit):
    state = TrainingState(step=100)
    hooks = [callbacks.AdvanceState(state), callbacks.RecordHistory(state)]
    fit(hooks, epochs=2)
    assert state.step == 108
    assert [row["step"] for row in state.history] == [104, 108]
    assert [row["tokens"] for row in state.history] == [6, 6]
    for row in state.history:
        assert row["tokens_per_second"] == 6 / row["seconds"]


def test_termination_saves_between_batches_and_stops(fit):
    state = TrainingState(step=100)
    termination = Termination()
    saved = []

    class Signal(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 1 and state.step == 104:
                termination.requested = signal.SIGTERM

    def save(model, at):
        saved.append((at.step, int(model.optimizer.iterations.numpy())))

    with pytest.raises(Terminated):
        fit(
            [
                callbacks.AdvanceState(state),
                callbacks.StopOnTermination(termination, state, save),
                Signal(),
            ],
            epochs=3,
        )
    assert saved == [(106, 6)]


def test_termination_before_the_first_batch_saves_nothing(fit):
    state = TrainingState(step=100)
    termination = Termination()
    termination.requested = signal.SIGTERM
    with pytest.raises(Terminated):
        fit([callbacks.StopOnTermination(termination, state, save=None)])


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT])
def signal_number(request):
    """Either signal, with the handler of a process in the foreground."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield request.param
    signal.signal(signal.SIGINT, before)


def test_a_signal_is_raised_at_once(signal_number):
    with pytest.raises(Terminated) as stopped, Termination():
        os.kill(os.getpid(), signal_number)
    assert stopped.value.args == (signal_number,)


def test_a_signal_waits_while_deferred(signal_number):
    with pytest.raises(Terminated) as stopped, Termination() as termination:
        with termination.deferred():
            os.kill(os.getpid(), signal_number)
            assert termination.requested == signal_number
    assert stopped.value.args == (signal_number,)


def test_the_second_ctrl_c_does_not_wait(signal_number):
    with pytest.raises(Terminated), Termination() as termination:
        with termination.deferred():
            os.kill(os.getpid(), signal_number)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("It waited.")


def test_the_previous_handler_comes_back(signal_number):
    before = signal.getsignal(signal_number)
    with Termination():
        assert signal.getsignal(signal_number) is not before
    assert signal.getsignal(signal_number) is before


def test_ctrl_c_that_a_shell_has_ignored_stays_ignored(signal_number):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Termination():
        os.kill(os.getpid(), signal.SIGINT)


def test_a_nan_stops_the_run_with_advice(fit):
    state = TrainingState(step=100)
    hooks = [
        callbacks.AdvanceState(state),
        callbacks.StopOnNonFiniteLoss(state),
    ]
    with pytest.raises(
        UserError, match="is nan after step 104: the training has"
    ):
        fit(hooks, labels=math.nan)


def test_history_has_what_the_monitor_shows(fit):
    state = TrainingState()
    monitor = keras_adafactor.OptimizerMonitor()
    hooks = [
        callbacks.AdvanceState(state),
        monitor,
        callbacks.RecordHistory(state),
    ]
    optimizer = keras_adafactor.Adafactor(record_update_rms=True)
    fit(hooks, optimizer=optimizer, epochs=2)
    assert monitor.report.step == state.step
    shown = monitor.report.logs()
    assert {name: state.history[-1][name] for name in shown} == shown
    # `loss_scale` is that of float16.
    assert set(report.HISTORY_COLUMNS) >= set(shown)


def test_bleu_is_scored_every_so_often(fit):
    state = TrainingState()
    translator = Translator()
    samples = callbacks.TranslateSamples(
        state, translator, PAIRS, interval=4, every=2
    )

    class Learn(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            translator.known = [0, 2, 0, 1][epoch]

    hooks = [
        Learn(),
        callbacks.AdvanceState(state),
        samples,
        callbacks.RecordHistory(state),
    ]
    fit(hooks, epochs=4)
    scored = [row["step"] for row in state.history if "val_bleu" in row]
    assert scored == [8, 16]
    assert state.history[1]["val_bleu"] > state.history[3]["val_bleu"]


def test_tensorboard_gets_scalars_and_translations(fit, tmp_path):
    state = TrainingState(step=100)
    samples = callbacks.TranslateSamples(
        state, Translator(), PAIRS, interval=4, every=1
    )
    fit(
        [
            callbacks.AdvanceState(state),
            samples,
            callbacks.RecordHistory(state),
            callbacks.WriteTensorBoard(tmp_path, state, samples, count=1),
        ]
    )
    (path,) = tmp_path.iterdir()
    values = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            values[value.tag] = event.step, tf.make_ndarray(value.tensor)
    assert values["loss"][0] == 104
    np.testing.assert_allclose(values["loss"][1], state.history[0]["loss"])
    assert values["optimizer_state_bytes"][0] == 100
    assert "val_bleu" in values
    text = values["translations"][1].item().decode()
    assert "one" in text and "eins" in text and "two" not in text


def test_progress_is_one_line_an_interval(fit, capsys):
    state = TrainingState(step=100)
    hooks = [
        callbacks.AdvanceState(state),
        callbacks.PrintProgress(state, total_steps=1_000),
    ]
    fit(hooks, epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 104/1,000  loss ")
    assert lines[0].endswith(" s")


def test_a_terminal_gets_one_line_that_is_drawn_over_itself(
    fit, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "60")
    clock = iter(range(1, 100))
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(clock))
    state = TrainingState(step=92)
    fit(
        [
            callbacks.AdvanceState(state),
            callbacks.ShowProgress(state, total_steps=100),
        ],
        epochs=2,
    )
    output = capsys.readouterr().out
    lines = output.replace("\x1b[K", "").splitlines()
    assert output.count("\n") == 1 and output.endswith("\n")
    assert len(lines) == 2 * (4 + 1)
    assert all(len(line) < 60 for line in lines)
    assert lines[0].endswith("]  92/100  -:--:-- left")
    # A second a step since the second one, and one for what is between.
    assert lines[2].endswith("]  94/100  0:00:06 left")
    bar = "#" * 34
    assert lines[-1] == f"[{bar}]  100/100  0:00:00 left"


def test_a_bar_has_room_on_a_narrow_terminal(fit, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10")
    state = TrainingState()
    fit([callbacks.AdvanceState(state), callbacks.ShowProgress(state, 4)])
    assert "[" not in capsys.readouterr().out.replace("\x1b[K", "")
