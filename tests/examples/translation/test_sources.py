import gzip
import time

import pytest
import tensorflow_datasets as tfds

from examples.translation import sources
from examples.translation.errors import UserError
from examples.translation.sources import load_corpus
from examples.translation.synthetic import grammar
from tests.examples.translation.wmt14_files import prepare_wmt14

TRAIN = [(f"train sentence {i}", f"Trainingssatz {i}") for i in range(30)]
TRAIN.append(("a literal &amp; in a text file", "ein &amp; in einer Textdatei"))
VALIDATION = [(f"validation {i}", f"Validierung {i}") for i in range(4)]
TEST = [('Smith & Sons say "hello"', 'Müller & Söhne sagen "hallo" <leise>')]


@pytest.fixture
def no_download(monkeypatch):
    def refuse(self, *args, **kwargs):
        raise AssertionError("tried to download")

    monkeypatch.setattr(
        tfds.core.DatasetBuilder, "download_and_prepare", refuse
    )


@pytest.fixture
def wmt14(tmp_path, monkeypatch):
    data_dir = str(tmp_path / "tfds")
    prepare_wmt14(
        monkeypatch,
        tmp_path / "archives",
        data_dir,
        train=TRAIN,
        validation=VALIDATION,
        test=TEST,
    )
    return data_dir


@pytest.fixture
def small_grammar(monkeypatch):
    """Ten sentences a split: the long ones take the grammar seconds."""
    sizes = dict.fromkeys(grammar.SPLITS, 10)
    monkeypatch.setattr(grammar, "SIZES", sizes)


@pytest.fixture
def files(tmp_path):
    """Arguments of a text corpus: gzip for training, plain for the rest."""
    arguments = {}
    for split, pairs in (
        ("train", TRAIN),
        ("validation", VALIDATION),
        ("test", TEST),
    ):
        for column, side in enumerate(("source", "target")):
            content = "".join(f"{pair[column]}\n" for pair in pairs).encode()
            path = tmp_path / f"{split}.{side}"
            path.write_bytes(
                gzip.compress(content) if split == "train" else content
            )
            arguments[f"{split}_{side}"] = str(path)
    return arguments


# --- tfds ---


def test_wmt14_has_its_true_sizes_and_is_read_in_both_directions(
    wmt14, no_download
):
    english_german = load_corpus("tfds", data_dir=wmt14, direction="en-de")
    assert english_german.kind == "tfds"
    assert "wmt14_translate/de-en/1.0.0" in english_german.name
    assert dict(english_german.sizes) == {
        "train": len(TRAIN),
        "validation": len(VALIDATION),
        "test": len(TEST),
    }
    assert sorted(english_german.read("train")) == sorted(TRAIN)
    assert sorted(english_german.read("validation")) == VALIDATION

    german_english = load_corpus("tfds", data_dir=wmt14, direction="de-en")
    for split in english_german.splits:
        assert [pair[::-1] for pair in german_english.read(split)] == list(
            english_german.read(split)
        )
    assert german_english.fingerprint != english_german.fingerprint


def test_entities_are_unescaped_in_the_wmt_test_split_only(wmt14):
    corpus = load_corpus("tfds", data_dir=wmt14)
    assert list(corpus.read("test")) == TEST
    assert TRAIN[-1] in corpus.read("train")


def test_tfds_that_is_not_prepared_is_told_within_a_second(
    tmp_path, no_download
):
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        load_corpus("tfds", data_dir=str(tmp_path))
    assert time.monotonic() - started < 1.0
    message = str(error.value)
    folder = tmp_path / "wmt14_translate" / "de-en" / "1.0.0"
    assert f"not prepared in {tmp_path}" in message
    assert f"Looked for: {folder / 'dataset_info.json'}" in message
    assert "python -m examples.translation prepare" in message
    assert f"--data_dir {tmp_path}" in message
    assert "--data text" in message
    assert "--data synthetic" in message
    assert not list(tmp_path.iterdir())


def test_half_a_copy_of_a_dataset_is_not_prepared(wmt14, tmp_path):
    folder = tmp_path / "tfds" / "wmt14_translate" / "de-en" / "1.0.0"
    (folder / "dataset_info.json").unlink()
    with pytest.raises(UserError, match="not prepared"):
        load_corpus("tfds", data_dir=wmt14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"direction": "en-fr"}, "--direction must be one of de-en, en-de"),
        ({"direction": "german"}, "Received: german"),
        ({"tfds_name": "wmt14_translate/en-de"}, "wmt14_translate/de-en,"),
        ({"tfds_name": "wmt41_translate"}, "wmt14_translate/de-en,"),
        ({"tfds_name": "wmt14_translate"}, "--direction must be one of cs-en"),
        ({"tfds_name": "mnist"}, "must name a translation dataset"),
    ],
)
@pytest.mark.parametrize("data", ["tfds", "auto"])
def test_unknown_names_are_answered_with_the_known_ones(
    tmp_path, no_download, data, arguments, message
):
    with pytest.raises(UserError, match=message):
        load_corpus(data, data_dir=str(tmp_path), **arguments)


def test_data_dir_that_cannot_be_read_is_an_error_for_auto_too(monkeypatch):
    def unreachable(*args, **kwargs):
        raise RuntimeError("Could not resolve host: www.googleapis.com")

    monkeypatch.setattr(sources.tfds, "builder", unreachable)
    with pytest.raises(UserError, match="Cannot read --data_dir gs://bucket"):
        load_corpus("auto", data_dir="gs://bucket")


def test_max_train_examples_keeps_the_first_pairs_of_training(wmt14):
    everything = load_corpus("tfds", data_dir=wmt14)
    few = load_corpus("tfds", data_dir=wmt14, max_train_examples=5)
    assert few.size("train") == 5
    assert list(few.read("train")) == list(everything.read("train"))[:5]
    assert list(few.read("test")) == TEST
    assert few.fingerprint != everything.fingerprint
    more = load_corpus("tfds", data_dir=wmt14, max_train_examples=10**6)
    assert more.size("train") == len(list(more.read("train"))) == len(TRAIN)
    with pytest.raises(UserError, match="--max_train_examples"):
        load_corpus("tfds", data_dir=wmt14, max_train_examples=0)


# --- synthetic and auto ---


def test_synthetic_corpus_is_prepared_once_and_named_synthetic(
    tmp_path, monkeypatch, small_grammar
):
    arguments = {"data_dir": str(tmp_path), "synthetic_train_size": 200}
    corpus = load_corpus("synthetic", **arguments)
    assert corpus.kind == "synthetic"
    assert "synthetic" in corpus.name and "not WMT14" in corpus.name
    assert corpus.splits == (
        "train",
        "validation",
        "test",
        "test_compositional",
        "test_long",
    )
    pairs = list(corpus.read("train"))
    assert sorted(pairs) == sorted(grammar.generate("train", 200))
    assert corpus.size("train") == 200
    assert corpus.size("test_long") == len(list(corpus.read("test_long"))) == 10
    assert len(list((tmp_path / "cache").rglob("dataset_info.json"))) == 1

    def refuse(self, *args, **kwargs):
        raise AssertionError("prepared a second time")

    monkeypatch.setattr(
        tfds.core.DatasetBuilder, "download_and_prepare", refuse
    )
    again = load_corpus("synthetic", **arguments)
    assert again.fingerprint == corpus.fingerprint
    assert list(again.read("train")) == pairs
    back = load_corpus("synthetic", direction="de-en", **arguments)
    assert [pair[::-1] for pair in back.read("train")] == pairs


def test_synthetic_sizes_do_not_read_each_others_files(tmp_path, small_grammar):
    sizes = [
        load_corpus(
            "synthetic", data_dir=str(tmp_path), synthetic_train_size=size
        )
        for size in (20, 30)
    ]
    assert [corpus.size("train") for corpus in sizes] == [20, 30]
    assert sizes[0].fingerprint != sizes[1].fingerprint


def test_another_grammar_is_another_corpus(
    tmp_path, monkeypatch, small_grammar
):
    first = load_corpus("synthetic", data_dir=str(tmp_path))
    monkeypatch.setattr(grammar, "fingerprint", lambda: "another")
    second = load_corpus("synthetic", data_dir=str(tmp_path))
    assert first.fingerprint != second.fingerprint
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_synthetic_corpus_that_cannot_be_written_names_the_flag(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--data_dir"):
        load_corpus(
            "synthetic",
            data_dir=str(tmp_path / "file"),
            synthetic_train_size=10,
        )
    with pytest.raises(UserError, match="--synthetic_train_size"):
        load_corpus("synthetic", synthetic_train_size=0)


def test_auto_takes_tfds_where_it_is_prepared(wmt14, capsys):
    assert load_corpus("auto", data_dir=wmt14).kind == "tfds"
    assert "synthetic" not in capsys.readouterr().err


def test_auto_says_in_a_line_that_it_took_the_synthetic_corpus(
    tmp_path, capsys, small_grammar
):
    corpus = load_corpus(
        "auto", data_dir=str(tmp_path), synthetic_train_size=20
    )
    assert corpus.kind == "synthetic"
    captured = capsys.readouterr()
    assert not captured.out
    notice = captured.err.splitlines()[0]
    assert corpus.name in notice
    assert f"wmt14_translate/de-en is not prepared in {tmp_path}" in notice
    assert "synthetic" in notice and "not WMT14" in notice


# --- text ---


def test_text_files_are_read_plain_and_gzip(files):
    corpus = load_corpus("text", **files)
    assert corpus.kind == "text"
    assert list(corpus.read("train")) == TRAIN
    assert list(corpus.read("validation")) == VALIDATION
    assert list(corpus.read("test")) == TEST
    assert [corpus.size(split) for split in corpus.splits] == [31, 4, 1]


def test_only_line_feeds_end_a_line(files, tmp_path):
    content = "one\u2028line\x0bhere\r\n\r\nlast line without an end"
    (tmp_path / "train.source").write_bytes(content.encode())
    (tmp_path / "train.target").write_bytes(b"1\r\n2\r\n3")
    corpus = load_corpus("text", **files)
    assert list(corpus.read("train")) == [
        ("one\u2028line\x0bhere", "1"),
        ("", "2"),
        ("last line without an end", "3"),
    ]


def test_text_fingerprint_is_that_of_the_sentences(files, tmp_path):
    corpus = load_corpus("text", **files)
    path = tmp_path / "train.source"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    assert load_corpus("text", **files).fingerprint == corpus.fingerprint
    path.write_bytes(path.read_bytes().replace(b"0", b"O"))
    assert load_corpus("text", **files).fingerprint != corpus.fingerprint


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file or directory"),
        (b"", "empty"),
        (b"one line\n", "1 lines"),
        (b"good\nb\xffd\n", "line 2 is not UTF-8 (byte 0xff)"),
        (gzip.compress(b"x\n" * 31, mtime=0)[:-6], "damaged gzip"),
        (gzip.compress(b"x\n" * 31, mtime=0)[:8] + b"junk" * 9, "damaged gzip"),
    ],
)
@pytest.mark.parametrize("side", ["source", "target"])
def test_text_that_is_not_parallel_is_an_error_about_both_sides(
    files, tmp_path, side, content, problem
):
    path = tmp_path / f"train.{side}"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_corpus("text", **files)
    message = str(error.value)
    assert f"--train_{side} {path}: {problem}" in message
    other = {"source": "target", "target": "source"}[side]
    assert f"--train_{other} {tmp_path / f'train.{other}'}: 31 lines" in message


def test_plain_text_that_is_called_gzip_is_refused(files, tmp_path):
    path = tmp_path / "train.en.gz"
    path.write_text("x\n" * 31)
    with pytest.raises(UserError, match=f"{path}: damaged gzip .Not a gzip"):
        load_corpus("text", **files | {"train_source": str(path)})


def test_the_same_text_on_both_sides_is_told(files, capsys):
    load_corpus("text", **files)
    assert capsys.readouterr().err == ""
    same = {"test_source": files["test_target"]}
    load_corpus("text", **files | same)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("The test text is the same on both sides: ")


def test_text_needs_all_six_files_and_only_text_reads_them(files, tmp_path):
    del files["test_target"], files["validation_source"]
    with pytest.raises(UserError, match="--validation_source, --test_target"):
        load_corpus("text", **files)
    with pytest.raises(UserError, match="--train_source.*only with --data tex"):
        load_corpus("auto", data_dir=str(tmp_path), **files)


def test_unknown_data_and_unknown_split_name_the_known_ones(files):
    with pytest.raises(UserError, match="auto, tfds, text, synthetic"):
        load_corpus("wmt")
    corpus = load_corpus("text", **files)
    for ask in (corpus.read, corpus.size):
        with pytest.raises(UserError, match="train, validation, test"):
            ask("dev")
