import dataclasses
import gzip
import io
import json
import os
import pathlib
import signal
import subprocess
import sys

import keras
import pytest

from examples.translation import commands
from examples.translation.__main__ import VERBS
from examples.translation.__main__ import main
from examples.translation.__main__ import parse
from examples.translation.checkpoint import Checkpoints
from examples.translation.config import PRESETS
from examples.translation.config import TranslationConfig

BACKEND = keras.backend.backend()
PROGRAM = "examples.translation"
ROOT = pathlib.Path(__file__).parents[3]


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
    assert "Default: 2000 (tiny); 100000 (base); 300000 (big)." in text
    assert "translate  translate sentences" in text
    _, *flags = text.split("\n  --")
    fields = dataclasses.fields(TranslationConfig)
    assert [flag.split()[0] for flag in flags] == [f.name for f in fields]
    assert all("Default: " in flag for flag in flags)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_lists_what_it_heeds(verb, capsys):
    assert run(verb, "--help") == 0
    text = capsys.readouterr().out
    _, *flags = text.split("\n  --")
    assert f"{verb}: " in text
    assert ("steps" in {flag.split()[0] for flag in flags}) == (verb == "train")
    assert all("Default: " in flag for flag in flags)


def test_help_for_a_reader_that_leaves_is_no_error():
    # More than a pipe holds, so that the writer meets the closed end.
    program = "import examples.translation.__main__ as m, sys;"
    program += "m.__doc__ *= 2000; sys.exit(m.main(['', '--help']))"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("torch", "KERAS_BACKEND must be one of tensorflow, jax. Received: t"),
        ("jax", "The package jax is not installed."),
    ],
)
def test_a_backend_that_is_not_there_is_named(backend, message):
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys; sys.modules['jax'] = None;"
            "from examples.translation.__main__ import main;"
            "sys.exit(main(['', 'train']))",
        ],
        env=os.environ | {"KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_dir_that_is_a_file_is_refused(tmp_path, data_dir, capsys):
    path = tmp_path / "file"
    path.write_text("")
    words = ("--data_dir", data_dir, "--synthetic_train_size", 600)
    for run_dir in (path, path / "run"):
        assert run("--run_dir", run_dir, *words) == 2
        error = capsys.readouterr().err
        assert "--run_dir must be a directory that can be written." in error
    assert run("translate", "--run_dir", path) == 2
    assert f"There is no run in {path}." in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="Nothing is forbidden to root.")
def test_a_run_dir_that_cannot_be_written_is_refused(
    tmp_path, data_dir, capsys
):
    tmp_path.chmod(0o555)
    words = ("--data_dir", data_dir, "--synthetic_train_size", 600)
    assert run("--run_dir", tmp_path, *words) == 2
    assert "(Permission denied)" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_a_write_that_fails_is_told(finished_run, tmp_path):
    """A limit on the size of files stands in for a disk that breaks."""
    config = json.loads((finished_run / "config.json").read_text())
    config |= {"run_dir": str(tmp_path / "run"), "steps": 5, "bleu_every": 0}
    words = [
        f"--{name}={str(value).strip('[]')}"
        for name, value in config.items()
        if value is not None
    ]
    done = subprocess.run(
        [
            *("bash", "-c", 'ulimit -f 70; exec "$@"', "bash"),
            *(sys.executable, "-m", "examples.translation", *words),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    # Orbax' threads print what they were doing, before and after.
    assert f"The run in {tmp_path / 'run'} was stopped: " in done.stderr
    checkpoints = Checkpoints.of(tmp_path / "run" / "checkpoints")
    for step in checkpoints.steps():
        assert checkpoints.arrays(step)


def test_one_translation_prints_nothing_else(finished_run, tmp_path):
    """Not what C++ libraries log, nor a notice about data it does not read."""
    run_dir = tmp_path / "runs" / "tiny-synthetic-adafactor"
    run_dir.parent.mkdir()
    run_dir.symlink_to(finished_run)
    done = subprocess.run(
        [sys.executable, "-m", "examples.translation", "translate", "A dog."]
        + ["--data_dir", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stepps=3"], "Unknown command line flag 'stepps'. Did you mean"),
        (["--steps=three"], "flag --steps=three: must be a whole number"),
        (["--dropout=no"], "flag --dropout=no: must be a number"),
        (["--bucket_lengths=8;16"], "whole numbers with commas between"),
        (["--steps=0"], "--steps must be at least 1. Received: 0"),
        (["--optimizer=lamb"], "--optimizer must be one of adafactor, "),
        (["fly"], "The verb must be one of train, translate, "),
        (["train", "now"], "train takes flags only. Received: now"),
        (["--n_best=2"], "--n_best goes with translate. Received: train"),
        (["translate", "--n_best=0"], "--n_best must be at least 1"),
        (["translate", "--input=a", "Hi."], "--input cannot go with sentences"),
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


def test_only_line_feeds_end_a_sentence(finished_run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("A dog.\u2028A cat.\n"))
    assert run("translate", "--run_dir", finished_run) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_a_file_is_translated_into_a_file(finished_run, tmp_path, capsys):
    sentences = ["A dog.", "", "A man sees the old house."]
    assert run("translate", "--run_dir", finished_run, *sentences) == 0
    expected = capsys.readouterr().out
    path = tmp_path / "in.gz"
    path.write_bytes(gzip.compress("\n".join(sentences).encode()))
    files = ("--input", path, "--output", tmp_path / "out")
    assert run("translate", "--run_dir", finished_run, *files) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "out").read_text() == expected


def test_files_that_cannot_be_used_are_named(finished_run, tmp_path, capsys):
    words = ("translate", "--run_dir", finished_run)
    (tmp_path / "empty").write_text("")
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    assert run(*words, "--input", tmp_path / "empty") == 0
    assert capsys.readouterr().out == ""
    for path, problem in (("latin", "line 1 is not"), ("none", "No such file")):
        assert run(*words, "--input", tmp_path / path) == 2
        assert f"{tmp_path / path}: {problem}" in capsys.readouterr().err
    assert run(*words, "--output", tmp_path / "no" / "out", "A dog.") == 2
    assert f"{tmp_path / 'no' / 'out'}" in capsys.readouterr().err


def test_n_best_are_numbered_and_scored(finished_run, capsys):
    words = ("translate", "--run_dir", finished_run, "A dog.", "A man sees.")
    assert run(*words) == 0
    best = capsys.readouterr().out.splitlines()
    assert run(*words, "--n_best", 2) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [number for number, _, _ in rows] == ["1", "1", "2", "2"]
    assert [text for _, _, text in rows[::2]] == best
    scores = [float(score) for _, score, _ in rows]
    assert scores[0] >= scores[1] and scores[2] >= scores[3]
    assert run(*words, "--n_best", 3) == 2
    assert "--n_best must be at most --beam_size (2)" in capsys.readouterr().err


def test_a_damaged_configuration_is_named(tmp_path, capsys):
    for text in ("{", "{}", '{"bucket_lengths": [64], "speed": 3}'):
        (tmp_path / "config.json").write_text(text)
        assert run("translate", "--run_dir", tmp_path) == 2
        path = tmp_path / "config.json"
        assert f"{path} is damaged, or of" in capsys.readouterr().err


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
