"""`OptimizerMonitor`: what it shows, when it looks, and what that costs.

Replicas and layouts are in `test_replicas.py` and `test_layouts.py`.
"""

import math
import sys
import warnings

import keras
import numpy as np
import pytest

from keras_adafactor import Adafactor
from keras_adafactor import Lion
from keras_adafactor import OptimizerMonitor
from keras_adafactor import monitor as module
from keras_adafactor.backends import backend
from tests.harness import rms
from tests.optimizers import MAIN
from tests.probe import Reports
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model
from tests.probe import reports_of
from tests.probe import weights

BACKEND = keras.backend.backend()
STARTS = {
    "encoder": np.linspace(-1.0, 2.0, 12, dtype="float32").reshape(3, 4),
    "bias": np.array([0.5, -1.0, 2.0, 0.1, 1.0], dtype="float32"),
}
SHAPES = {name: start.shape for name, start in STARTS.items()}

no_torch_executions = pytest.mark.skipif(
    BACKEND == "torch", reason="PyTorch runs one step per execution."
)


class Weights(keras.callbacks.Callback):
    """The weights before every execution, and after the last."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_train_batch_begin(self, batch, logs=None):
        self.found.append(weights(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.found.append(weights(self.model))


def row_of(report, name):
    (row,) = (row for row in report.rows if row.path == f"{name}/w")
    return row


def clipped_start():
    """A gradient that is far larger than those before it: it is clipped."""
    given = gradients(4, SHAPES)
    given["bias"][:3] = 1e-3
    given["bias"][3] = 1.0
    return given


# What it shows.


def test_every_number_is_that_of_the_step():
    optimizer = Adafactor(0.1, record_update_rms=True)
    model = probe_model(STARTS, optimizer)
    seen = Weights()
    found = reports_of(model, clipped_start(), more=[seen])
    assert [report.step for report in found] == [1, 2, 3, 4]
    for i, report in enumerate(found):
        rate = min(0.1, 1 / math.sqrt(i + 1))
        assert report.learning_rates == pytest.approx({optimizer.name: rate})
        for name in STARTS:
            row = row_of(report, name)
            old, new = seen.found[i][name], seen.found[i + 1][name]
            assert row.shape == SHAPES[name]
            assert row.weight_rms == pytest.approx(rms(old), rel=1e-5)
            assert row.change_rms == pytest.approx(rms(new - old), rel=1e-4)
            # x - rate * rms(x) * u / max(1, rms(u)), without momentum.
            clipped = min(1.0, row.update_rms) * rate * row.weight_rms
            assert row.change_rms == pytest.approx(clipped, rel=1e-4)
            assert row.clipped == (row.update_rms > 1.0)
    # The decay of step 4 is 1 - 4 ** -0.8.
    last = row_of(found[3], "bias")
    share = 4**-0.8
    expected = 1 / math.sqrt(share + (1 - share) * 1e-6)
    assert last.update_rms == pytest.approx(expected, rel=1e-4)
    assert last.clipped and not row_of(found[0], "bias").clipped


def test_totals_are_over_all_elements():
    optimizer = Adafactor(0.1, record_update_rms=True)
    model = probe_model(STARTS, optimizer)
    seen = Weights()
    report = reports_of(model, clipped_start(), more=[seen])[3]
    old, new = (
        np.concatenate([w.ravel() for w in at.values()])
        for at in seen.found[3:5]
    )
    logs = report.logs()
    updates = [row.update_rms for row in report.rows]
    assert logs["weight_rms"] == pytest.approx(rms(old), rel=1e-5)
    assert logs["change_rms"] == pytest.approx(rms(new - old), rel=1e-4)
    assert logs["update_rms"] == pytest.approx(np.mean(updates))
    assert logs["clipped_fraction"] == np.mean([u > 1 for u in updates]) > 0
    assert logs["effective_learning_rate"] == pytest.approx(0.1)
    assert logs["skipped_updates"] == 0
    assert list(logs) == [
        "effective_learning_rate",
        "weight_rms",
        "change_rms",
        "update_rms",
        "clipped_fraction",
        "skipped_updates",
    ]


def test_rate_is_the_one_that_is_used_past_the_cap():
    model = probe_model(STARTS, Adafactor(0.5))
    found = reports_of(model, gradients(9, SHAPES))
    rates = [report.logs()["effective_learning_rate"] for report in found]
    assert rates == pytest.approx(
        [min(0.5, 1 / math.sqrt(t)) for t in range(1, 10)]
    )


@pytest.mark.parametrize(
    ("make", "rates"),
    [
        (keras.optimizers.Adafactor, [0.6, 0.6, 3**-0.5]),
        (keras.optimizers.Adam, [0.6, 0.6, 0.6]),
        (
            lambda rate: keras.optimizers.SGD(
                keras.optimizers.schedules.InverseTimeDecay(rate, 1, 1)
            ),
            [0.6, 0.3, 0.2],
        ),
        (lambda rate: Lion(lambda: rate), [0.6, 0.6, 0.6]),
    ],
    ids=["keras_adafactor", "adam", "schedule", "callable"],
)
def test_optimizers_of_others_are_watched_from_outside(make, rates):
    model = probe_model(STARTS, make(0.6))
    seen = Weights()
    found = reports_of(model, gradients(3, SHAPES), more=[seen])
    assert [r.logs()["effective_learning_rate"] for r in found] == (
        pytest.approx(rates)
    )
    for i, report in enumerate(found):
        assert "update_rms" not in report.logs()
        assert "clipped_fraction" not in report.logs()
        for name in STARTS:
            change = seen.found[i + 1][name] - seen.found[i][name]
            row = row_of(report, name)
            assert row.change_rms == pytest.approx(rms(change), rel=1e-4)
            assert row.update_rms is None and row.clipped is None


@pytest.mark.parametrize("row", MAIN, ids=lambda row: row.name)
def test_every_optimizer_of_the_family_can_be_watched(row):
    model = probe_model(STARTS, row.optimizer())
    found = reports_of(model, gradients(3, SHAPES))
    assert len(found) == 3
    for report in found:
        assert math.isfinite(report.logs()["change_rms"])
        assert report.logs()["skipped_updates"] == 0
    assert found[-1].logs()["change_rms"] > 0


def test_nothing_is_clipped_without_a_threshold():
    optimizer = Adafactor(0.1, clip_threshold=None, record_update_rms=True)
    model = probe_model(STARTS, optimizer)
    last = reports_of(model, clipped_start())[-1]
    assert row_of(last, "bias").update_rms > 1
    assert last.logs()["clipped_fraction"] == 0.0


def test_low_precision_weights_are_measured_in_float32():
    keras.config.set_dtype_policy("bfloat16")
    starts = {"w": np.full((64, 64), 1.0)}
    model = probe_model(starts, Adafactor(1e-3))
    (report,) = reports_of(model, {"w": np.ones((1, 64, 64), "float32")})
    # Rounded stochastically: one in eight moves by 2 ** -8, or so.
    assert 1e-3 < report.logs()["change_rms"] < 2e-3
    assert report.logs()["weight_rms"] == 1.0


def test_large_variables_are_measured_on_a_sample(monkeypatch):
    rng = np.random.default_rng(0)
    shapes = {"kernel": (70, 30), "bias": (40,)}
    starts = {
        name: rng.normal(size=shape).astype("float32")
        for name, shape in shapes.items()
    }
    given = gradients(2, shapes)
    exact = reports_of(probe_model(starts, Adafactor(0.1)), given)
    monkeypatch.setattr(module, "SAMPLE", 300)
    sampled = reports_of(probe_model(starts, Adafactor(0.1)), given)
    for whole, part in zip(exact, sampled, strict=True):
        assert row_of(part, "bias") == row_of(whole, "bias")
        row, other = row_of(whole, "kernel"), row_of(part, "kernel")
        assert other != row
        assert other.weight_rms == pytest.approx(row.weight_rms, rel=0.1)
        assert other.change_rms == pytest.approx(row.change_rms, rel=0.1)


def test_sample_is_spread_over_all_axes():
    kept = module.sample_of((300, 300, 3), 10_000)
    assert kept == (slice(None, None, 9), slice(None, None, 9), slice(None))
    assert module.sample_of((100, 100), 10_000) == (slice(None),) * 2
    assert module.sample_of((), 10_000) == ()


def test_report_is_a_table_and_data():
    optimizer = Adafactor(0.1, record_update_rms=True)
    model = probe_model(STARTS, optimizer)
    report = reports_of(model, clipped_start())[-1]
    lines = str(report).splitlines()
    assert lines[0].split() == (
        "variable shape weight rms change rms update rms clipped".split()
    )
    assert any(line.startswith("bias/w ") and "yes" in line for line in lines)
    assert "step 4" in lines[-1] and "skipped_updates 0" in lines[-1]
    data = report.as_dict()
    assert data["step"] == 4
    assert data["logs"] == report.logs()
    assert data["variables"][0] == {
        "path": "bias/w" if row_of(report, "bias") is report.rows[0]
        else "encoder/w",
        "shape": list(report.rows[0].shape),
        "weight_rms": report.rows[0].weight_rms,
        "change_rms": report.rows[0].change_rms,
        "update_rms": report.rows[0].update_rms,
        "clipped": report.rows[0].clipped,
    }  # fmt: skip


def test_there_is_no_report_before_the_first():
    monitor = OptimizerMonitor()
    assert monitor.report is None


# When it looks.


@pytest.mark.parametrize(
    ("log_freq", "epochs", "steps"),
    [
        (1, 1, list(range(1, 11))),
        (4, 1, [1, 4, 8]),
        (4, 2, [1, 4, 8, 12, 16, 20]),
        (7, 2, [1, 7, 14]),
        (100, 2, [1]),
        ("epoch", 3, [10, 20, 30]),
    ],
)
def test_first_step_and_every_nth_or_the_last_of_an_epoch(
    log_freq, epochs, steps
):
    model = probe_model(STARTS, Adafactor(0.1))
    monitor = OptimizerMonitor(log_freq)
    found = reports_of(model, gradients(10, SHAPES), monitor, epochs)
    assert [report.step for report in found] == steps


def endless(model_given):
    """Batches of a generator, whose number Keras does not know."""
    count = len(next(iter(model_given.values())))

    def batches():
        for i in range(count):
            inputs = {
                f"{name}_gradient": g[i : i + 1]
                for name, g in model_given.items()
            }
            yield inputs, np.zeros(1, "float32")

    return batches()


@pytest.mark.filterwarnings("ignore:.*ran out of data")
def test_epoch_of_unknown_length_is_measured_late_in_it():
    model = probe_model(STARTS, Adafactor(0.1))
    monitor = OptimizerMonitor()
    reports = Reports(monitor)
    given = gradients(11, SHAPES)
    model.fit(endless(given), callbacks=[monitor, reports], verbose=0)
    # Every power of two: the last one is past the middle.
    assert [report.step for report in reports.found] == [1, 2, 3, 5, 9]


@no_torch_executions
def test_execution_of_several_steps_is_measured_as_one():
    model = probe_model(STARTS, Adafactor(0.1), steps_per_execution=4)
    seen = Weights()
    monitor = OptimizerMonitor(10)
    given = gradients(24, SHAPES)
    found = reports_of(model, given, monitor, more=[seen])
    assert [report.step for report in found] == [4, 12, 20]
    change = seen.found[3]["bias"] - seen.found[2]["bias"]
    assert row_of(found[1], "bias").change_rms == pytest.approx(
        rms(change), rel=1e-4
    )
    model = probe_model(STARTS, Adafactor(0.1), steps_per_execution=4)
    found = reports_of(model, given, OptimizerMonitor(), epochs=2)
    assert [report.step for report in found] == [24, 48]


@pytest.mark.parametrize("log_freq", [1, 6, "epoch"])
def test_window_holds_one_update_of_accumulated_gradients(log_freq):
    optimizer = Adafactor(0.1, gradient_accumulation_steps=3)
    model = probe_model(STARTS, optimizer)
    found = reports_of(
        model, gradients(13, SHAPES), OptimizerMonitor(log_freq), epochs=2
    )
    assert len(found) >= 2
    assert all(report.logs()["change_rms"] > 0 for report in found)
    assert found[-1].step in (7, 8)


def test_validation_and_swapped_weights_are_not_measured():
    class Swap(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            for variable in self.model.trainable_variables:
                variable.assign(variable * 0.0)

    given = gradients(2, SHAPES)
    validation = {f"{name}_gradient": g for name, g in given.items()}
    found = []
    for arguments in ({}, {"validation_data": (validation, np.zeros(2))}):
        model = probe_model(STARTS, Adafactor(0.1, name="adafactor"))
        monitor = OptimizerMonitor()
        fit(model, given, callbacks=[monitor, Swap()], **arguments)
        found.append(monitor.report)
    assert found[0] == found[1]


def test_one_monitor_serves_several_fits():
    model = probe_model(STARTS, Adafactor(0.1))
    monitor = OptimizerMonitor(2)
    given = gradients(3, SHAPES)
    first = reports_of(model, given, monitor)
    second = reports_of(model, given, monitor)
    assert [report.step for report in first] == [1, 2]
    assert [report.step for report in second][-2:] == [4, 5]


# Where it shows.


def test_logs_have_it_at_the_end_of_every_epoch():
    optimizer = Adafactor(0.1, record_update_rms=True)
    model = probe_model(STARTS, optimizer)
    monitor = OptimizerMonitor()
    history = fit(
        model, gradients(4, SHAPES), epochs=3, callbacks=[monitor]
    ).history
    assert {len(values) for values in history.values()} == {3}
    last = {name: history[name][-1] for name in monitor.report.logs()}
    assert last == monitor.report.logs()


def test_progress_bar_shows_totals_and_no_variable(capfd):
    optimizer = Adafactor(0.1, record_update_rms=True)
    model = probe_model(STARTS, optimizer)
    given = gradients(4, SHAPES)
    model.fit(
        {f"{name}_gradient": g for name, g in given.items()},
        np.zeros(4, "float32"),
        batch_size=1,
        callbacks=[OptimizerMonitor(2)],
        verbose=1,
    )
    output = capfd.readouterr().out
    assert "effective_learning_rate: 0.1000" in output
    assert "clipped_fraction: " in output
    assert "bias/w" not in output


def test_logs_of_a_batch_have_the_latest_that_was_measured():
    shown = []

    class Logs(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            shown.append(logs.get("effective_learning_rate"))

    model = probe_model(STARTS, Adafactor(0.9))
    callbacks = [OptimizerMonitor(3), Logs()]
    fit(model, gradients(6, SHAPES), callbacks=callbacks)
    # Step 1 is closed when step 2 begins, step 3 when step 4 does.
    expected = [0.9, 0.9, 3**-0.5, 3**-0.5, 3**-0.5]
    assert shown[0] is None and shown[1:] == pytest.approx(expected)


def events_of(directory):
    """Dict from tag to a list of pairs of step and value."""
    tf = pytest.importorskip("tensorflow")
    found = {}
    for path in sorted(directory.rglob("events*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.tag != "keras":
                    number = float(tf.make_ndarray(value.tensor))
                    found.setdefault(value.tag, []).append((event.step, number))
    return found


def test_tensorboard_of_keras_writes_the_logs(tmp_path):
    pytest.importorskip("tensorflow")
    optimizer = Adafactor(0.5, record_update_rms=True)
    model = probe_model(STARTS, optimizer)
    monitor = OptimizerMonitor()
    board = keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    fit(model, gradients(9, SHAPES), epochs=2, callbacks=[monitor, board])
    found = events_of(tmp_path)
    rate = monitor.report.logs()["effective_learning_rate"]
    # Keras has a `learning_rate` of its own: the one that is set.
    assert found["epoch_learning_rate"][-1] == (1, 0.5)
    assert found["epoch_effective_learning_rate"][-1] == (
        1,
        pytest.approx(rate),
    )
    assert rate == pytest.approx(18**-0.5)
    assert "epoch_clipped_fraction" in found


def test_log_dir_gets_every_variable(tmp_path):
    pytest.importorskip("tensorflow")
    optimizer = Adafactor(0.1, record_update_rms=True)
    model = probe_model(STARTS, optimizer)
    monitor = OptimizerMonitor(2, log_dir=tmp_path)
    reports = reports_of(model, gradients(4, SHAPES), monitor)
    found = events_of(tmp_path / "optimizer")
    for name in STARTS:
        for quantity in ("weight_rms", "change_rms", "update_rms"):
            assert found[f"{quantity}/{name}/w"] == [
                (report.step, pytest.approx(getattr(row_of(report, name),
                                                    quantity)))
                for report in reports
            ]  # fmt: skip
    for name, value in reports[-1].logs().items():
        assert found[name][-1] == (4, pytest.approx(value))


def test_log_dir_without_tensorflow_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monitor = OptimizerMonitor(log_dir=tmp_path)
    with pytest.raises(ImportError, match="`log_dir` needs TensorFlow"):
        monitor.on_train_begin()


# What it costs.


class Counted:
    """Counts every call of a module's functions."""

    def __init__(self, wrapped):
        self.wrapped = wrapped
        self.calls = 0

    def __getattr__(self, name):
        self.calls += 1
        return getattr(self.wrapped, name)


def test_steps_that_are_not_measured_cost_nothing(monkeypatch):
    operations = Counted(keras.ops)
    synced = []
    sync = backend.sync_training_state
    monkeypatch.setattr(module, "ops", operations)
    monkeypatch.setattr(
        backend,
        "sync_training_state",
        lambda model: (synced.append(1), sync(model)),
    )
    monitor = OptimizerMonitor(10)
    calls = []

    class Calls(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            calls.append((operations.calls, len(synced)))

    model = probe_model(STARTS, Adafactor(0.1))
    fit(model, gradients(25, SHAPES), callbacks=[monitor, Calls()])
    spent = [
        step for step in range(1, len(calls)) if calls[step] != calls[step - 1]
    ]
    # Opened before the steps 1, 10 and 20, closed after them.
    assert spent == [1, 9, 10, 19, 20]


def test_measuring_reads_two_arrays_whatever_the_number_of_variables(
    monkeypatch,
):
    reads = []
    read = keras.ops.convert_to_numpy
    monkeypatch.setattr(
        keras.ops,
        "convert_to_numpy",
        lambda x: (reads.append(1), read(x))[1],
    )
    counts = []
    for names in ("ab", "abcdef"):
        starts = dict.fromkeys(names, STARTS["bias"])
        model = probe_model(starts, Adafactor(0.1, record_update_rms=True))
        given = gradients(2, dict.fromkeys(names, (5,)))
        del reads[:]
        monitor = OptimizerMonitor()
        fit(model, given, callbacks=[monitor])
        assert len(monitor.report.rows) == len(names)
        counts.append(len(reads))
    assert counts[0] == counts[1]


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch does not trace.")
@pytest.mark.parametrize("log_freq", [1, 3, "epoch"])
def test_step_is_compiled_as_it_is_without(log_freq):
    counts = []
    for callbacks in ([], [OptimizerMonitor(log_freq)]):
        traces = []

        class Traced(Adafactor):
            def update_rule(self, *arguments, traces=traces):
                traces.append(1)
                return super().update_rule(*arguments)

        model = probe_model(STARTS, Traced(0.1))
        fit(model, gradients(8, SHAPES), epochs=2, callbacks=callbacks)
        counts.append(len(traces))
    assert counts[0] == counts[1] > 0


def test_weights_are_bit_for_bit_those_without():
    given = gradients(6, SHAPES)
    found = []
    for callbacks in ([], [OptimizerMonitor(1)]):
        model = probe_model(STARTS, Adafactor(0.1, beta_1=0.9))
        fit(model, given, epochs=2, callbacks=callbacks)
        found.append(weights(model))
    for name in STARTS:
        np.testing.assert_array_equal(found[0][name], found[1][name])


@pytest.mark.skipif(
    BACKEND == "tensorflow", reason="Keras waits for TensorFlow in any case."
)
def test_keras_does_not_wait_for_the_device_after_every_step():
    model = probe_model(STARTS, Adafactor(0.1))
    monitor = OptimizerMonitor()
    callbacks = keras.callbacks.CallbackList([monitor], model=model)
    assert callbacks._async_train


# Skips.


def poisoned(steps, bad):
    given = gradients(steps, SHAPES)
    given["bias"][list(bad), 2] = np.nan
    return given


def warnings_of(model, given, monitor, **arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, given, callbacks=[monitor], **arguments)
    return [w for w in caught if "in a row" in str(w.message)]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ([], 0),
        ([2], 0),
        ([1, 2, 5, 6, 9, 10], 0),
        ([1, 2, 3], 1),
        (range(12), 1),
        ([1, 2, 3, 6, 7, 8, 9], 1),
    ],
)
def test_skips_that_go_on_are_told_once(bad, told):
    model = probe_model(STARTS, Adafactor(0.1))
    monitor = OptimizerMonitor(1)
    found = warnings_of(model, poisoned(12, bad), monitor)
    assert len(found) == told
    assert monitor.report.logs()["skipped_updates"] == len(bad)


def test_skips_between_measured_steps_are_counted():
    model = probe_model(STARTS, Adafactor(0.1))
    # In every period of four steps one, and none in a measured step.
    found = warnings_of(
        model, poisoned(16, [1, 5, 9, 13]), OptimizerMonitor(4, patience=4)
    )
    assert len(found) == 1
    message = str(found[0].message)
    assert "4 periods" in message and "4 updates" in message


@pytest.mark.parametrize("guard", ["variable", "step"])
def test_epochs_that_all_skip_are_told_of(guard):
    model = probe_model(STARTS, Adafactor(0.1, skip_nonfinite=guard))
    monitor = OptimizerMonitor(patience=2)
    given = poisoned(3, [0, 1, 2])
    assert len(warnings_of(model, given, monitor, epochs=4)) == 1
    assert len(warnings_of(model, given, monitor, epochs=4)) == 0


def test_skips_of_an_earlier_fit_do_not_count():
    model = probe_model(STARTS, Adafactor(0.1))
    fit(model, poisoned(3, [0, 1]))
    monitor = OptimizerMonitor(1, patience=1)
    assert not warnings_of(model, gradients(3, SHAPES), monitor)


@pytest.mark.parametrize(
    ("initial", "bad", "log_freq", "told"),
    [
        # How any run begins.
        (2.0**15, range(8), 1, 0),
        (8.0, range(8), 1, 1),
        # Soon there is nothing left that could fall.
        (2.0**-125, range(12), 4, 1),
        # Growth and the overflow that ends it, again and again.
        (0.5, [2, 5, 8, 11], 3, 0),
    ],
)
def test_loss_scale_that_goes_on_falling_is_told_of(
    initial, bad, log_freq, told
):
    optimizer = keras.optimizers.LossScaleOptimizer(
        Adafactor(0.1), initial_scale=initial, dynamic_growth_steps=2
    )
    model = probe_model(STARTS, optimizer)
    monitor = OptimizerMonitor(log_freq)
    found = warnings_of(model, poisoned(12, bad), monitor)
    assert len(found) == told
    assert all("loss scale fell" in str(w.message) for w in found)
    assert monitor.report.logs()["skipped_updates"] == 0
    assert monitor.report.logs()["loss_scale"] == pytest.approx(
        float(keras.ops.convert_to_numpy(optimizer.dynamic_scale))
    )


# With what.


@pytest.mark.parametrize(
    "inner",
    [
        lambda: Adafactor(0.1, record_update_rms=True),
        lambda: keras.optimizers.Adam(0.1),
    ],
    ids=["adafactor", "adam"],
)
def test_inside_of_a_loss_scale_optimizer(inner):
    given = gradients(3, SHAPES)
    plain = reports_of(probe_model(STARTS, inner()), given)
    optimizer = keras.optimizers.LossScaleOptimizer(inner(), initial_scale=8.0)
    scaled = reports_of(probe_model(STARTS, optimizer), given)
    for ours, theirs in zip(scaled, plain, strict=True):
        logs = ours.logs()
        assert logs.pop("loss_scale") == 8.0
        assert logs == pytest.approx(theirs.logs(), rel=1e-4)


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"),
    reason="this Keras has no MultiOptimizer yet",
)
def test_inside_of_a_multi_optimizer():
    ours = Adafactor(0.5, record_update_rms=True, name="ours")
    adam = keras.optimizers.Adam(0.1, name="adam")
    model = probe_model(
        STARTS,
        keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(ours, {"bias/.*": adam})
        ),
    )
    report = reports_of(model, gradients(5, SHAPES))[-1]
    logs = report.logs()
    assert report.step == 5
    assert logs["effective_learning_rate_ours"] == pytest.approx(5**-0.5)
    assert logs["effective_learning_rate_adam"] == pytest.approx(0.1)
    assert row_of(report, "bias").update_rms is None
    assert logs["update_rms"] == row_of(report, "encoder").update_rms > 0
    assert logs["skipped_updates"] == 0


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"),
    reason="this Keras has no MultiOptimizer yet",
)
def test_multi_optimizer_may_choose_when_it_is_built():
    inner = {
        "bias/w": keras.optimizers.SGD(0.2, name="sgd"),
        "encoder/w": Adafactor(0.1, gradient_accumulation_steps=2, name="ours"),
    }
    model = probe_model(
        STARTS,
        keras.optimizers.LossScaleOptimizer(
            keras.optimizers.MultiOptimizer(lambda v: inner[v.path])
        ),
    )
    monitor = OptimizerMonitor(4)
    report = reports_of(model, gradients(8, SHAPES), monitor)[-1]
    assert report.step == 8
    assert report.learning_rates == pytest.approx({"sgd": 0.2, "ours": 0.1})
    assert all(row.change_rms > 0 for row in report.rows)
    assert report.loss_scale == 2.0**15


def test_without_a_guard_there_are_no_skips_to_show():
    model = probe_model(STARTS, Adafactor(0.1, skip_nonfinite=None))
    (report,) = reports_of(model, poisoned(1, [0]))
    assert "skipped_updates" not in report.logs()
    assert math.isnan(report.logs()["change_rms"])


@pytest.mark.parametrize(
    "how",
    [
        {"run_eagerly": True, "jit_compile": False},
        {"jit_compile": True},
        {"jit_compile": False},
    ],
    ids=["eager", "compiled", "graph"],
)
def test_eager_graph_and_compiled_steps_show_the_same(how):
    if BACKEND == "torch" and how.get("jit_compile"):
        pytest.skip("PyTorch has no compiled step in Keras.")
    given = gradients(3, SHAPES)
    found = []
    for arguments in ({}, how):
        model = probe_model(
            STARTS, Adafactor(0.1, record_update_rms=True), **arguments
        )
        found.append(reports_of(model, given)[-1].logs())
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_model_without_variables_shows_nothing():
    model = probe_model({"empty": np.zeros((0, 3), "float32")}, Adafactor(0.1))
    assert not reports_of(model, {"empty": np.zeros((2, 0, 3), "float32")})


# What is wrong with its arguments.


@pytest.mark.parametrize(
    "arguments",
    [
        {"log_freq": 0},
        {"log_freq": -1},
        {"log_freq": 1.5},
        {"log_freq": "batch"},
        {"log_freq": True},
        {"log_freq": None},
        {"patience": 0},
        {"patience": "3"},
        {"log_dir": 3},
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments):
    (name,) = arguments
    with pytest.raises(
        ValueError, match=f"^Argument `{name}` must be .* Received: {name}="
    ):
        OptimizerMonitor(**arguments)
