import dataclasses
import io

import numpy as np
import pytest
import sentencepiece

from examples.translation.errors import UserError
from examples.translation.sources import Corpus
from examples.translation.tokenizer import Tokenizer
from examples.translation.tokenizer import train_tokenizer

WORDS = "der die das Haus Straße Mädchen sieht läuft house street girl sees"
AWKWARD = [
    "",
    " leading and trailing ",
    "two  spaces\tand a tab",
    "no-break\u00a0space, ellipsis …, half ½, ligature ﬁ",
    "e\u0301 is not é",
    "日本語 🙂 Ω",
    "a\u2028b\nc\x00d",
    "</s> <s> <pad> <unk> <0x41>",
]


def corpus_of(pairs, fingerprint="test"):
    return Corpus(
        name="test",
        kind="text",
        fingerprint=fingerprint,
        sizes={"train": len(pairs), "validation": 1, "test": 1},
        reader=lambda split: iter(pairs),
    )


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(0)
    words = WORDS.split()
    return corpus_of(
        [
            (" ".join(rng.choice(words, 6)), " ".join(rng.choice(words, 7)))
            for _ in range(200)
        ]
    )


@pytest.fixture(scope="module")
def tokenizer(corpus, tmp_path_factory):
    return train_tokenizer(corpus, tmp_path_factory.mktemp("vocabulary"), 320)


def test_every_sentence_comes_back_as_it_was(tokenizer, corpus):
    sentences = [text for pair in corpus.read("train") for text in pair]
    sentences += AWKWARD
    assert tokenizer.decode(tokenizer.encode(sentences)) == sentences


def test_encoding_ends_in_eos_and_holds_no_other_special_id(tokenizer):
    for ids in tokenizer.encode(["das Haus", *AWKWARD]):
        assert ids.dtype == np.int32
        assert ids[-1] == tokenizer.eos_id == 2
        assert (ids[:-1] > tokenizer.unk_id).all()
        assert (ids < tokenizer.piece_count).all()


def test_decoding_stops_at_eos_and_drops_special_and_unused_ids(tokenizer):
    (ids,) = tokenizer.encode(["das Haus"])
    row = [
        tokenizer.bos_id,
        tokenizer.pad_id,
        tokenizer.unk_id,
        tokenizer.vocab_size - 1,
        *ids,
        ids[0],
    ]
    assert tokenizer.vocab_size > tokenizer.piece_count
    assert tokenizer.decode(np.array([row, [0] * len(row)])) == ["das Haus", ""]
    assert tokenizer.decode([ids[:-1], []]) == ["das Haus", ""]


def test_vocabulary_is_padded_to_whole_lanes(tokenizer):
    assert tokenizer.piece_count == 320
    assert tokenizer.vocab_size == 384


def test_training_again_gives_the_same_vocabulary(tokenizer, corpus, tmp_path):
    again = train_tokenizer(corpus, tmp_path, 320)
    assert again.fingerprint == tokenizer.fingerprint


def test_a_second_call_loads_what_the_first_one_kept(
    corpus, tokenizer, tmp_path
):
    def refuse(split):
        raise AssertionError("read the corpus again")

    train_tokenizer(corpus, tmp_path, 320)
    again = train_tokenizer(
        dataclasses.replace(corpus, reader=refuse), tmp_path, 320
    )
    assert again.fingerprint == tokenizer.fingerprint


def test_other_text_or_settings_are_another_vocabulary(corpus, tmp_path):
    train_tokenizer(corpus, tmp_path, 320)
    train_tokenizer(corpus, tmp_path, 330)
    train_tokenizer(corpus, tmp_path, 320, max_characters=1000)
    other = dataclasses.replace(corpus, fingerprint="other")
    train_tokenizer(other, tmp_path, 320)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_kept_vocabulary_is_refused(corpus, tmp_path):
    train_tokenizer(corpus, tmp_path, 320)
    (path,) = tmp_path.iterdir()
    model = path.read_bytes()
    for damaged in (model[:-10], model[:-1] + b"x", b"", b"junk"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=path.name):
            train_tokenizer(corpus, tmp_path, 320)


def test_saved_vocabulary_is_loaded_only_under_its_fingerprint(
    tokenizer, tmp_path
):
    path = tmp_path / "run" / "vocabulary.model"
    tokenizer.save(path)
    loaded = Tokenizer.load(path, tokenizer.fingerprint)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(UserError, match="0123456789abcdef was expected"):
        Tokenizer.load(path, "0123456789abcdef")
    with pytest.raises(UserError, match="Cannot load vocabulary"):
        Tokenizer.load(tmp_path / "nowhere.model")


def test_a_model_with_other_special_ids_is_refused():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS.split()),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(UserError, match=r"\(0, 1, 2, 3\). Received: \(-1, 1"):
        Tokenizer(model.getvalue())


def test_too_small_a_vocabulary_is_told_how_large_it_must_be(corpus, tmp_path):
    with pytest.raises(UserError, match="must be at least") as error:
        train_tokenizer(corpus, tmp_path, 100)
    smallest = int(str(error.value).split("at least ")[1].split()[0])
    assert train_tokenizer(corpus, tmp_path, smallest).piece_count == smallest
    with pytest.raises(UserError, match=f"at least {smallest}"):
        train_tokenizer(corpus, tmp_path, smallest - 1)


def test_too_large_a_vocabulary_becomes_what_the_text_holds(
    corpus, tmp_path, capsys
):
    for _ in ("learned", "kept"):
        tokenizer = train_tokenizer(corpus, tmp_path, 5000)
        assert 320 < tokenizer.piece_count < 5000
        assert f"{tokenizer.piece_count:,} different" in capsys.readouterr().err


def test_the_vocabulary_is_learned_from_all_parts_of_the_corpus(tmp_path):
    domains = ["abcde", "fghij", "klmno"]
    pairs = [
        (" ".join([domain * 2] * 3), domain)
        for domain in domains
        for _ in range(100)
    ]
    tokenizer = train_tokenizer(
        corpus_of(pairs), tmp_path, 400, max_characters=500
    )
    for domain in domains:
        (ids,) = tokenizer.encode([domain])
        assert len(ids) <= 3, f"{domain} was not learned"
