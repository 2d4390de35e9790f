import csv
import io
import subprocess

import keras
import pytest

from examples.translation import report

ROW = {
    "step": 10,
    "steps": 10,
    "loss": 2.5,
    "val_loss": 2.25,
    "token_accuracy": 0.5,
    "val_token_accuracy": 0.5,
    "seconds": 3.0,
    "tokens": 30.0,
    "tokens_per_second": 10.0,
}


def variables():
    keras.utils.clear_session()
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Conv2D(4, 3),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
            keras.layers.LayerNormalization(),
        ]
    )
    return model.trainable_variables


@pytest.mark.parametrize(
    ("new_optimizer", "expected"),
    [
        (keras.optimizers.Adam, report.adam_state_bytes),
        (keras.optimizers.Adafactor, report.keras_adafactor_state_bytes),
    ],
)
def test_bytes_of_the_rivals_are_those_they_take(new_optimizer, expected):
    optimizer = new_optimizer()
    optimizer.build(variables())
    counters = [
        variable
        for variable in optimizer.variables
        if variable.name in ("iteration", "learning_rate")
    ]
    assert expected(variables()) == (
        report.state_bytes(optimizer.variables) - report.state_bytes(counters)
    )


def test_bytes_follow_the_type():
    half = keras.Variable(keras.ops.zeros((3, 4)), dtype="bfloat16")
    flag = keras.Variable(keras.ops.zeros((5,)), dtype="int8")
    assert report.state_bytes([half, flag]) == 24 + 5


def test_history_is_a_table():
    text = report.history_csv([ROW, ROW | {"step": 20, "val_bleu": 7.5}])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["step"] for row in rows] == ["10", "20"]
    assert [row["val_bleu"] for row in rows] == ["", "7.5"]


def test_plot_is_a_png_with_the_title(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        report.Figure,
        "savefig",
        lambda self, path, **options: titles.append(self.axes[0].get_title()),
    )
    report.plot_history([ROW | {"val_bleu": 5.0}], "synthetic v1", "-")
    assert titles == ["synthetic v1"]
    monkeypatch.undo()
    report.plot_history([ROW], "synthetic v1", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_commit_is_that_of_the_code(monkeypatch):
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if head.returncode:
        assert report.commit() is None
    else:
        assert report.commit().removesuffix("-dirty") == head.stdout.strip()
    monkeypatch.setenv("PATH", "")
    assert report.commit() is None


def test_versions_are_those_of_what_ran():
    versions = report.versions()
    assert versions["keras"] == keras.version()
    assert versions["backend"] == keras.backend.backend()
    assert {"python", "numpy", "sentencepiece"} <= set(versions)


def test_report_names_source_state_and_scores():
    score = {
        "sentences": 1_000,
        "bleu": 91.25,
        "chrf": 95.0,
        "exact_match": 70.0,
        "bleu_signature": "nrefs:1",
        "chrf_signature": "nc:6",
    }
    text = report.format_report(
        {
            "data": "synthetic grammar v1 (not WMT14)",
            "devices": "one CPU",
            "optimizer": "adafactor",
            "steps": 2_500,
            "training_seconds": 300.0,
            "process_seconds": 480.0,
            "loss": 1.5,
            "val_loss": 1.25,
            "parameters": 1_000_000,
            "optimizer_state_bytes": 70_000,
            "adam_state_bytes": 8_000_000,
            "keras_adafactor_state_bytes": 4_100_000,
            "scores": {"final": {"test": score}, "avg5": {"test": score}},
        }
    )
    assert "synthetic grammar v1 (not WMT14)" in text
    assert "training time    5.0 min" in text
    assert "time in all      8.0 min, since this process began" in text
    assert "70,000 bytes; Adam 8,000,000; Keras' Adafactor 4,100,000" in text
    assert text.count("1,000  91.2  95.0       70.0 %") == 2
    assert "BLEU nrefs:1" in text
