import dataclasses
import io
import json
import subprocess
import sys

import keras
import pytest

from examples.translation import commands
from examples.translation.__main__ import main
from examples.translation.__main__ import parse
from examples.translation.config import PRESETS
from examples.translation.config import TranslationConfig

BACKEND = keras.backend.backend()
PROGRAM = "examples.translation"


def run(*words):
    return main([PROGRAM, *map(str, words)])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_field_is_a_flag(preset):
    config = TranslationConfig.from_preset(preset)
    fields = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if value is not None
    }
    words = [
        f"--{name}={str(value).strip('()')}" for name, value in fields.items()
    ]
    assert parse([PROGRAM, *words]) == ("train", fields, [])


def test_flags_may_stand_anywhere_before_two_dashes():
    words = ["translate", "A house.", "--bucket_lengths", "8,16", "--", "-5 C."]
    verb, given, sentences = parse([PROGRAM, *words])
    assert verb == "translate"
    assert given == {"bucket_lengths": (8, 16)}
    assert sentences == ["A house.", "-5 C."]


def test_train_is_the_default_and_the_preset_fills_in():
    verb, given, _ = parse([PROGRAM, "--preset=base", "--steps=10"])
    config = TranslationConfig.from_preset(**given)
    assert verb == "train"
    assert (config.steps, config.model_dim) == (10, 512)


def test_help_lists_verbs_flags_and_defaults(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(TranslationConfig):
        assert f"--{field.name}\n" in text
    assert "Default: 2000 (tiny); 100000 (base); 300000 (big)." in text
    assert "translate  translate sentences" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stepps=3"], "Unknown command line flag 'stepps'. Did you mean"),
        (["--steps=three"], "flag --steps=three: must be a whole number"),
        (["--dropout=no"], "flag --dropout=no: must be a number"),
        (["--bucket_lengths=8;16"], "whole numbers with commas between"),
        (["--steps=0"], "--steps must be at least 1. Received: 0"),
        (["--optimizer=lion"], "--optimizer must be one of adafactor, "),
        (["fly"], "The verb must be one of train, translate, "),
        (["train", "now"], "train takes flags only. Received: now"),
        (["--data=text"], "--data text needs --train_source"),
        (["--virtual_devices=99"], "--virtual_devices 99 came too late"),
    ],
)
def test_a_mistake_is_one_message_and_exit_status_2(words, message, capsys):
    keras.ops.ones(())
    assert run(*words) == 2
    streams = capsys.readouterr()
    assert message in streams.err
    assert "Traceback" not in streams.err
    assert streams.out == ""


def test_a_real_process_exits_with_2_and_no_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "examples.translation", "--steps=three"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", ["translate", "evaluate", "export"])
def test_a_missing_run_is_named(verb, tmp_path, capsys):
    assert run(verb, "--run_dir", tmp_path / "none") == 2
    error = capsys.readouterr().err
    assert f"There is no run in {tmp_path / 'none'}." in error


def test_sentences_of_the_command_line_are_translated(finished_run, capsys):
    assert run("translate", "--run_dir", finished_run, "A dog.", "") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1] == ""


def test_lines_of_stdin_are_translated(finished_run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("A dog.\nA cat.\n\n"))
    assert run("translate", "--run_dir", finished_run) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_no_line_on_stdin_is_no_translation(finished_run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run("translate", "--run_dir", finished_run) == 0
    assert capsys.readouterr().out == ""


def test_a_run_that_goes_on_translates_with_its_checkpoint(
    finished_run, tmp_path, capsys
):
    for name in ("config.json", "tokenizer.model", "checkpoints"):
        (tmp_path / name).symlink_to(finished_run / name)
    assert run("translate", "--run_dir", tmp_path, "A dog.") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_translate_refuses_another_model(finished_run, capsys):
    words = ("--run_dir", finished_run, "--model_dim", 64, "A dog.")
    assert run("translate", *words) == 2
    assert "--model_dim 32 (received 64)" in capsys.readouterr().err


def test_evaluate_repeats_the_scores_of_the_run(finished_run, capsys):
    assert run("evaluate", "--run_dir", finished_run) == 0
    metrics = json.loads((finished_run / "metrics.json").read_text())
    expected = metrics["scores"][metrics["saved_weights"]]
    found = json.loads((finished_run / "evaluation.json").read_text())
    assert found["scores"]["saved"] == expected
    output = capsys.readouterr().out
    assert "synthetic" in output
    assert expected["test"]["bleu_signature"] in output


def test_export_writes_a_saved_model(finished_run, capsys):
    status = run("export", "--run_dir", finished_run)
    streams = capsys.readouterr()
    if BACKEND == "tensorflow":
        assert status == 0
        assert streams.out.strip() == str(finished_run / "export")
        assert (finished_run / "export" / "saved_model.pb").exists()
    else:
        assert status == 2
        assert "TensorFlow backend" in streams.err


def test_prepare_gets_name_and_directory(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        commands, "prepare_corpus", lambda *arguments: calls.append(arguments)
    )
    assert run("prepare", "--data_dir", tmp_path) == 0
    assert calls == [("wmt14_translate/de-en", str(tmp_path))]
