"""BLEU, chrF and exact match of translations, by sacrebleu."""

import dataclasses
import itertools

import sacrebleu.metrics


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of one test split. All but `sentences` are 0 to 100.

    Attributes:
        sentences: Number of sentences.
        bleu: Cased corpus BLEU on detokenized text.
        chrf: Corpus chrF2.
        exact_match: Percentage of translations equal to the reference.
        bleu_signature: How sacrebleu computed BLEU.
        chrf_signature: How sacrebleu computed chrF.
    """

    sentences: int
    bleu: float
    chrf: float
    exact_match: float
    bleu_signature: str
    chrf_signature: str


@dataclasses.dataclass(frozen=True)
class Translations:
    """Sentences with what they should become and what they became."""

    sources: list[str]
    references: list[str]
    hypotheses: list[str]

    def score(self):
        """Returns the `Scores` of the hypotheses."""
        return score(self.hypotheses, self.references)

    def samples(self, count):
        """Returns the first `count` (source, reference, hypothesis)."""
        return list(
            itertools.islice(
                zip(
                    self.sources,
                    self.references,
                    self.hypotheses,
                    strict=True,
                ),
                count,
            )
        )


def score(hypotheses, references):
    """Returns the `Scores` of translations against one reference each.

    Args:
        hypotheses: Non-empty list of strings.
        references: List of strings of the same length.
    """
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(
            "Arguments `hypotheses` and `references` must be of one length "
            f"and not empty. Received: {len(hypotheses)} and "
            f"{len(references)}"
        )
    bleu, chrf = sacrebleu.metrics.BLEU(), sacrebleu.metrics.CHRF()
    bleu_score = bleu.corpus_score(hypotheses, [references]).score
    chrf_score = chrf.corpus_score(hypotheses, [references]).score
    exact = sum(map(str.__eq__, hypotheses, references)) / len(references)
    return Scores(
        sentences=len(references),
        bleu=bleu_score,
        chrf=chrf_score,
        exact_match=100.0 * exact,
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
    )


def read_pairs(corpus, split, count=None):
    """Returns the first `count` (source, target) of a split; all if None."""
    return list(itertools.islice(corpus.read(split), count))


def translate_pairs(translator, pairs):
    """Returns the `Translations` of (source, reference) pairs.

    Args:
        translator: Has `translate(list[str]) -> list[str]`.
        pairs: Non-empty list of (source, reference).
    """
    sources, references = map(list, zip(*pairs, strict=True))
    return Translations(sources, references, translator.translate(sources))


def evaluate_splits(translator, corpus, *, sentences=None):
    """Translates every test split of a corpus.

    Args:
        translator: Has `translate(list[str]) -> list[str]`.
        corpus: `Corpus`; its test splits are those called `test*`.
        sentences: How many of each split; all if `None`.

    Returns:
        Dict from split to `Translations`.
    """
    return {
        split: translate_pairs(translator, read_pairs(corpus, split, sentences))
        for split in corpus.splits
        if split.startswith("test")
    }


def score_splits(translations):
    """Returns the scores of `evaluate_splits` as JSON-able dicts by split."""
    return {
        split: dataclasses.asdict(found.score())
        for split, found in translations.items()
    }
