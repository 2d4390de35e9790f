"""`python -m keras_adafactor convert`: a file of another optimizer."""

import os
import pathlib

import keras
import numpy as np
import pytest

from keras_adafactor import Adafactor
from keras_adafactor import warm_start
from keras_adafactor.convert import main
from tests.probe import as_numpy


def model_of(optimizer):
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(16, name="a"),
         keras.layers.Dense(4, name="b")]
    )  # fmt: skip
    model.compile(optimizer, "mae", metrics=["mse"])
    return model


def fit(model, steps=2):
    x, y = np.ones((2 * steps, 8), "float32"), np.ones((2 * steps, 4))
    return model.fit(x, y, batch_size=2, shuffle=False, verbose=0).history


@pytest.fixture
def adam_file(tmp_path):
    model = model_of("adam")
    fit(model)
    path = tmp_path / "adam.keras"
    model.save(path)
    return path


def files_in(folder):
    return sorted(os.listdir(folder))


def test_converted_file_goes_on_where_the_model_would(adam_file, capsys):
    converted = adam_file.parent / "out.keras"
    settings = ["learning_rate=0.02", "axis_groups=last_two"]
    status = main(
        ["convert", str(adam_file), str(converted), "--optimizer", "adafactor",
         "--set", *settings, "--set", "relative_step=False"]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert status == 0
    # Adam: two float32 a parameter. Adafactor: row and column means, or `v`.
    assert (
        "Adam -> Adafactor at step 2: 1,696 bytes of state -> 256." in printed
    )
    assert "v_row, v_col (converted)" in printed
    sizes = [file.stat().st_size for file in (adam_file, converted)]
    assert f"adam.keras: {sizes[0]:,} bytes; " in printed
    assert f"out.keras: {sizes[1]:,} bytes" in printed

    loaded = keras.models.load_model(converted)
    assert type(loaded.optimizer) is Adafactor
    assert loaded.optimizer.axis_groups == "last_two"
    expected = keras.models.load_model(adam_file)
    adam = expected.optimizer
    expected.compile(
        Adafactor(0.02, axis_groups="last_two", relative_step=False),
        "mae",
        metrics=["mse"],
    )
    warm_start(expected, adam)
    assert fit(loaded) == fit(expected)
    for found, value in zip(
        loaded.optimizer.variables, expected.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(as_numpy(found), as_numpy(value))


def test_way_back_and_loss_scale(adam_file):
    model = model_of(keras.optimizers.LossScaleOptimizer(Adafactor()))
    fit(model)
    source, back = adam_file.parent / "ours.keras", adam_file.parent / "b.keras"
    model.save(source)
    assert main(
        ["convert", str(source), str(back), "--optimizer", "adamw"]
    ) == 0  # fmt: skip
    wrapper = keras.models.load_model(back).optimizer
    assert type(wrapper) is keras.optimizers.LossScaleOptimizer
    assert isinstance(wrapper.inner_optimizer, keras.optimizers.AdamW)
    assert int(as_numpy(wrapper.iterations)) == 2
    # In place.
    assert main(
        ["convert", str(back), str(back), "--optimizer", "came"]
    ) == 0  # fmt: skip
    assert files_in(adam_file.parent) == ["adam.keras", "b.keras", "ours.keras"]


WRONG = {
    "optimizer": (
        ["--optimizer", "sgd"],
        "Argument `optimizer` must be one of",
    ),
    "setting": (
        ["--optimizer", "adafactor", "--set", "beta_1"],
        "Argument `set` must be of the form key=value. Received: set='beta_1'",
    ),
    "value": (
        ["--optimizer", "adafactor", "--set", "beta_1=2"],
        "Argument `beta_1` must be a number > 0.0 and < 1.0",
    ),
    "name": (
        ["--optimizer", "adafactor", "--set", "epsilon=2"],
        "Argument(s) not recognized by Adafactor",
    ),
    "import": (
        ["--optimizer", "adafactor", "--import", "no_such_module"],
        "No module named 'no_such_module'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_end_with_one_message(adam_file, capsys, name):
    arguments, message = WRONG[name]
    out = str(adam_file.parent / "out.keras")
    assert main(["convert", str(adam_file), out, *arguments]) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert files_in(adam_file.parent) == ["adam.keras"]


def test_wrong_paths_end_with_one_message(adam_file, tmp_path, capsys):
    for source, out, message in (
        (tmp_path / "none.keras", tmp_path / "o.keras", "`source` must be"),
        (adam_file, tmp_path / "o.h5", "`destination` must be"),
        (adam_file, tmp_path / "no" / "o.keras", "`destination` must be"),
        (tmp_path, tmp_path / "o.keras", ""),
    ):
        status = main(
            ["convert", str(source), str(out), "--optimizer", "adafactor"]
        )
        assert status == 2 and message in capsys.readouterr().err
    text = tmp_path / "text.keras"
    text.write_text("not a model")
    bare = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    bare.save(tmp_path / "bare.keras")
    for path in (text, tmp_path / "bare.keras"):
        arguments = ["convert", str(path), str(tmp_path / "o.keras")]
        assert main([*arguments, "--optimizer", "adafactor"]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert files_in(tmp_path) == ["adam.keras", "bare.keras", "text.keras"]


def test_failed_write_leaves_what_was_there(adam_file, monkeypatch, capsys):
    out = adam_file.parent / "out.keras"
    out.write_text("of before")

    def full_disk(model, path):
        pathlib.Path(path).write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(keras.Model, "save", full_disk)
    arguments = ["convert", str(adam_file), str(out)]
    assert main([*arguments, "--optimizer", "adafactor"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert out.read_text() == "of before"
    assert files_in(adam_file.parent) == ["adam.keras", "out.keras"]


def test_command_has_a_help(run_python, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["convert", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "--set key=value" in printed and "adafactor, adalayer" in printed
    program = """
import runpy, sys
sys.argv = ["keras_adafactor", "--help"]
runpy.run_module("keras_adafactor", run_name="__main__")
"""
    assert "convert" in run_python(program)
