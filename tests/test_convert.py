"""`python -m keras_adafactor convert`: a file of another optimizer."""

import os
import pathlib

import keras
import numpy as np
import pytest

from keras_adafactor import Adafactor
from keras_adafactor import FAdam
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


# What the new optimizer has of the settings of the old one.


def schedule():
    return keras.optimizers.schedules.CosineDecay(0.01, 100)


def converted(tmp_path, capsys, optimizer, *arguments):
    """The optimizer of a file that was converted, and what was printed."""
    model = model_of(optimizer)
    fit(model)
    source, out = tmp_path / "source.keras", tmp_path / "out.keras"
    model.save(source)
    assert main(["convert", str(source), str(out), *arguments]) == 0
    printed = capsys.readouterr().out
    return keras.models.load_model(out).optimizer, printed


def test_keywords_that_mean_the_same_are_kept(tmp_path, capsys):
    keywords = {
        "global_clipnorm": 1.0,
        "use_ema": True,
        "ema_momentum": 0.9,
        "ema_overwrite_frequency": 2,
        "loss_scale_factor": 8.0,
        "gradient_accumulation_steps": 2,
    }
    adam = keras.optimizers.Adam(0.01, weight_decay=0.1, **keywords)
    found, printed = converted(
        tmp_path, capsys, adam, "--optimizer", "Adafactor",
        "--set", "clip_threshold=None",
    )  # fmt: skip
    config = found.get_config()
    assert {name: config[name] for name in keywords} == keywords
    assert config["weight_decay"] is None
    assert config["learning_rate"] == pytest.approx(0.01)
    assert config["multiply_by_parameter_scale"]
    assert "kept of Adam: use_ema=True, ema_momentum=0.9" in printed
    assert "not kept: learning_rate=0.01" in printed
    assert "weight_decay=0.1; see --keep_learning_rate" in printed


def test_what_is_set_is_not_kept(tmp_path, capsys):
    adam = keras.optimizers.Adam(schedule(), clipnorm=1.0, use_ema=True)
    rate = (
        'learning_rate={"class_name": "CosineDecay", "config": '
        '{"initial_learning_rate": 0.25, "decay_steps": 9, "name": null}}'
    )
    found, printed = converted(
        tmp_path, capsys, adam, "--optimizer", "adafactor",
        "--set", "clipvalue=2.0", "use_ema=False", rate,
    )  # fmt: skip
    assert (found.clipvalue, found.clipnorm, found.use_ema) == (2, None, False)
    assert found._learning_rate.initial_learning_rate == 0.25
    assert "kept of" not in printed and "not kept" not in printed


@pytest.mark.parametrize("rate", [schedule(), 0.01], ids=["schedule", "float"])
def test_learning_rate_is_kept_in_its_units(tmp_path, capsys, rate):
    source = keras.optimizers.AdamW(rate, weight_decay=0.1)
    found, printed = converted(
        tmp_path, capsys, source, "--optimizer", "adafactor",
        "--keep_learning_rate", "--set", "beta_1=0.9",
    )  # fmt: skip
    for name in ("learning_rate", "iterations"):
        np.testing.assert_allclose(
            as_numpy(getattr(found, name)), as_numpy(getattr(source, name))
        )
    assert as_numpy(found.effective_learning_rate) == pytest.approx(
        float(as_numpy(source.learning_rate))
    )
    assert found.weight_decay == 0.1
    assert not found.multiply_by_parameter_scale
    shown = "0.01" if rate == 0.01 else "CosineDecay"
    assert f"learning_rate={shown}, weight_decay=0.1" in printed
    assert "not kept" not in printed


def test_relative_learning_rate_is_kept_by_who_has_one(tmp_path, capsys):
    ours = Adafactor(0.05, weight_decay=0.1)
    ours.exclude_from_weight_decay(var_names=["bias"])
    found, _ = converted(
        tmp_path, capsys, ours, "--optimizer", "adafactor",
        "--keep_learning_rate", "--set", "factored=False",
    )  # fmt: skip
    assert found.get_config()["learning_rate"] == pytest.approx(0.05)
    assert found.multiply_by_parameter_scale and found.relative_step
    assert found.get_config()["excluded_from_weight_decay"] == ["bias"]
    assert main(
        ["convert", str(tmp_path / "out.keras"), str(tmp_path / "b.keras"),
         "--optimizer", "adam", "--keep_learning_rate"]
    ) == 2  # fmt: skip
    assert "Adafactor is relative, which Adam has no" in capsys.readouterr().err


def test_weight_decay_of_another_meaning_is_not_kept(tmp_path, capsys):
    found, printed = converted(
        tmp_path, capsys, FAdam(weight_decay=0.1), "--optimizer", "adafactor",
        "--keep_learning_rate",
    )  # fmt: skip
    assert found.weight_decay is None
    assert "not kept: weight_decay=0.1\n" in printed


def test_file_of_a_float16_policy_has_its_loss_scale(tmp_path, capsys):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = model_of(keras.optimizers.Adam())
        fit(model)
        model.save(tmp_path / "source.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    out = str(tmp_path / "out.keras")
    assert main(
        ["convert", str(tmp_path / "source.keras"), out,
         "--optimizer", "adafactor"]
    ) == 0  # fmt: skip
    for policy in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        try:
            found = keras.models.load_model(out).optimizer
        finally:
            keras.config.set_dtype_policy("float32")
        assert isinstance(found, keras.optimizers.LossScaleOptimizer)
        assert type(found.inner_optimizer) is Adafactor
        for name in ("dynamic_scale", "step_counter", "iterations"):
            expected = as_numpy(getattr(model.optimizer, name))
            assert as_numpy(getattr(found, name)) == expected


def test_weights_file_and_folder_are_named(adam_file, tmp_path, capsys):
    model = keras.models.load_model(adam_file)
    model.save_weights(tmp_path / "a.weights.h5")
    out = str(tmp_path / "o.keras")
    arguments = ["convert", str(tmp_path / "a.weights.h5"), out]
    assert main([*arguments, "--optimizer", "adafactor"]) == 2
    assert "`warm_start(model, path, saved_by=" in capsys.readouterr().err


def test_folder_that_may_not_be_written_to_is_named(
    adam_file, monkeypatch, capsys
):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    arguments = ["convert", str(adam_file), str(adam_file.parent / "o.keras")]
    assert main([*arguments, "--optimizer", "adafactor"]) == 2
    error = capsys.readouterr().err
    assert "may be written to" in error and "o.keras" in error
