import dataclasses

import pytest

from examples.translation.evaluate import evaluate_splits
from examples.translation.evaluate import read_pairs
from examples.translation.evaluate import score
from examples.translation.evaluate import score_splits
from examples.translation.evaluate import translate_pairs

PAIRS = [
    ("one house", "ein Haus am See steht dort"),
    ("two houses", "zwei Häuser am See stehen dort"),
    ("a dog", "ein Hund läuft über die Straße"),
]


@dataclasses.dataclass
class Corpus:
    splits = ("train", "validation", "test", "test_long")

    def read(self, split):
        yield from PAIRS if split == "test" else PAIRS[:2]


class Dictionary:
    """Translates as a look-up in the pairs, upper-case where asked."""

    def __init__(self, shout=()):
        self.shout = shout

    def translate(self, sentences):
        found = dict(PAIRS)
        return [
            found[s].upper() if s in self.shout else found[s] for s in sentences
        ]


def test_perfect_translations_score_100():
    references = [target for _, target in PAIRS]
    scores = score(references, references)
    assert scores.bleu == pytest.approx(100)
    assert scores.chrf == pytest.approx(100)
    assert scores.exact_match == 100
    assert scores.sentences == 3


def test_case_counts():
    translations = translate_pairs(Dictionary(shout=["a dog"]), PAIRS)
    scores = translations.score()
    assert scores.bleu < 90
    assert scores.exact_match == pytest.approx(200 / 3)


def test_signatures_say_how_sacrebleu_counted():
    scores = score(["ein Haus"], ["ein Haus"])
    assert "case:mixed" in scores.bleu_signature
    assert "tok:13a" in scores.bleu_signature
    assert "nc:6" in scores.chrf_signature


@pytest.mark.parametrize(("hypotheses", "count"), [(["a"], 2), ([], 0)])
def test_lengths_must_agree(hypotheses, count):
    with pytest.raises(ValueError, match=f"{len(hypotheses)} and {count}"):
        score(hypotheses, ["b"] * count)


def test_every_test_split_and_no_other_is_evaluated():
    found = evaluate_splits(Dictionary(), Corpus())
    assert list(found) == ["test", "test_long"]
    assert len(found["test"].hypotheses) == 3
    scores = score_splits(found)
    assert scores["test_long"]["exact_match"] == 100


def test_sentences_can_be_limited():
    found = evaluate_splits(Dictionary(), Corpus(), sentences=1)
    assert found["test"].sources == ["one house"]
    assert read_pairs(Corpus(), "test", 2) == PAIRS[:2]


def test_samples_are_source_reference_hypothesis():
    translations = translate_pairs(Dictionary(shout=["one house"]), PAIRS)
    assert translations.samples(1) == [
        ("one house", PAIRS[0][1], PAIRS[0][1].upper())
    ]
