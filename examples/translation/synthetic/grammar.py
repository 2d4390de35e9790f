"""The synthetic English-German corpus: its splits and how they are made.

Five splits, no English sentence in two of them:

*   `train`, `validation`, `test`: by a hash of the English sentence.
*   `test_compositional`: every sentence has a noun with an adjective, or a
    noun with an adjective in a case, that occur together in no other split.
*   `test_long`: longer sentences, with clauses nested deeper, than in any
    other split.

The corpus is a function of the lexicon and the grammar alone; `VERSION` and
`fingerprint` say which.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterator

from examples.translation.synthetic import composer
from examples.translation.synthetic import english
from examples.translation.synthetic import german
from examples.translation.synthetic import syntax

VERSION = "1.0.0"
"""Changes whenever any sentence of any split does."""

SIZES = {
    "train": 50_000,
    "validation": 1_000,
    "test": 1_000,
    "test_compositional": 1_000,
    "test_long": 1_000,
}
"""The default number of sentence pairs in each split."""

SPLITS = tuple(SIZES)

MAX_WORDS = 28
"""The longest English sentence outside `test_long`."""
MAX_WORDS_LONG = 60
"""The longest English sentence in `test_long`."""
MAX_DEPTH = 2
"""How deep clauses nest outside `test_long`, where they nest deeper."""

_MAX_DEPTH_LONG = 5
_EMBEDDING = 0.06
_EMBEDDING_LONG = 0.6


def _fraction(*parts: str) -> float:
    """Hashes strings to [0, 1), the same on every machine."""
    digest = hashlib.blake2b("|".join(parts).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


@functools.cache
def is_held_out(noun: str, adjective: str, case: str) -> bool:
    """Whether only `test_compositional` may say this.

    Some nouns never meet some adjectives in the other splits; of the pairs
    that do meet, some never do in a certain case.

    Args:
        noun: English headword.
        adjective: English positive.
        case: German case of the noun phrase; `nom` for a predicate adjective.
    """
    return (
        _fraction(noun, adjective) < 0.04
        or _fraction(noun, adjective, case) < 0.04
    )


def combinations(tree: syntax.Sentence) -> Iterator[tuple[str, str, str]]:
    """Yields each (noun, adjective, case) in a sentence."""
    for clause, _ in syntax.clauses(tree):
        for dependent, case in syntax.dependents(clause):
            for phrase, phrase_case in syntax.noun_phrases(dependent, case):
                for adjective in phrase.adjectives:
                    yield (
                        phrase.noun.singular,
                        adjective.english[0],
                        phrase_case,
                    )
        subject = clause.subject
        if clause.quality and isinstance(
            subject, syntax.NounPhrase | syntax.Trace
        ):
            adjective = clause.quality.adjective.english[0]
            yield subject.noun.singular, adjective, "nom"


def _split(tree: syntax.Sentence, sentence: str) -> str | None:
    """The one split that a sentence can be in, if any."""
    words = sentence.count(" ") + 1
    depth = max(depth for _, depth in syntax.clauses(tree))
    held_out = any(is_held_out(*c) for c in combinations(tree))
    if words > MAX_WORDS and depth > MAX_DEPTH:
        fits = words <= MAX_WORDS_LONG and not held_out
        return "test_long" if fits else None
    if words > MAX_WORDS or depth > MAX_DEPTH:
        return None
    if held_out:
        return "test_compositional"
    draw = _fraction(sentence)
    if draw < 0.1:
        return "validation"
    return "test" if draw < 0.2 else "train"


def generate(split: str, size: int | None = None) -> Iterator[tuple[str, str]]:
    """Yields the sentence pairs of a split, always the same ones in order.

    A smaller size is a prefix of a larger one.

    Args:
        split: one of `SPLITS`.
        size: how many pairs, `SIZES[split]` if None.

    Yields:
        (English, German), no English sentence twice.

    Raises:
        ValueError: if the split is unknown or the size is negative.
    """
    if split not in SPLITS:
        raise ValueError(
            f"Argument `split` must be one of {SPLITS}. Received: {split!r}"
        )
    if size is None:
        size = SIZES[split]
    if size < 0:
        raise ValueError(f"Argument `size` must be 0 or more. Received: {size}")
    return itertools.islice(_stream(split), size)


def composer_of(split: str) -> composer.Composer:
    """What composes the candidates for a split."""
    digest = hashlib.sha256(split.encode()).digest()
    seed = int.from_bytes(digest[:8], "big")
    if split == "test_long":
        return composer.Composer(seed, _MAX_DEPTH_LONG, _EMBEDDING_LONG)
    return composer.Composer(seed, MAX_DEPTH, _EMBEDDING)


def _stream(split: str) -> Iterator[tuple[str, str]]:
    """Yields pairs of a split without end."""
    sentences = composer_of(split)
    seen = set()
    while True:
        tree = sentences.sentence()
        source = english.sentence(tree)
        if source not in seen and _split(tree, source) == split:
            seen.add(source)
            yield source, german.sentence(tree)


@functools.cache
def fingerprint() -> str:
    """12 hex digits that change with the text of the corpus."""
    digest = hashlib.sha256(VERSION.encode())
    for split in SPLITS:
        for pair in generate(split, 100):
            digest.update("\t".join(pair).encode())
    return digest.hexdigest()[:12]
