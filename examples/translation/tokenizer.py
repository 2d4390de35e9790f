"""One sentencepiece vocabulary for both languages."""

import hashlib
import io
import re
import uuid
from collections.abc import Iterable
from collections.abc import Sequence

import numpy as np
import sentencepiece
from etils import epath

from examples.translation.errors import UserError
from examples.translation.errors import notice
from examples.translation.sources import Corpus
from examples.translation.sources import fingerprint

# BPE rather than unigram: on the same text it needs as many tokens (1 % fewer
# at 4,000 pieces), trains ten times faster, is deterministic whatever the
# number of threads, and is what the Transformer paper used.
#
# `identity` rather than the default NFKC: BLEU and exact match compare with the
# text as it is written, and a model that never sees an ellipsis, a fraction or
# a no-break space cannot write one. Spaces are kept for the same reason. With
# 256 byte pieces for whatever the alphabet lacks, every sentence comes back as
# it was. (The one exception is U+2581, sentencepiece's own sign for a space.)
_SETTINGS = {
    "model_type": "bpe",
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
    "character_coverage": 0.9999,
    # A small corpus may not hold as many pieces as asked for: take what it has.
    "hard_vocab_limit": False,
}

# An embedding whose rows fill the lanes of a TPU's matrix unit.
_VOCAB_MULTIPLE = 128


def padded_vocabulary(pieces):
    """The number of pieces, rounded up to a multiple of 128."""
    return -(-pieces // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


class Tokenizer:
    """Text to piece ids and back, without loss.

    Attributes:
        piece_count: Pieces of the model, special ones included.
        vocab_size: `piece_count` rounded up to a multiple of 128. Ids from
            `piece_count` on exist only in the embedding and mean nothing.
        fingerprint: 16 hex digits of the model's content.

    Args:
        model: A serialized sentencepiece model with the ids below.

    Raises:
        UserError: `model` is damaged, or its special ids differ.
    """

    pad_id = 0
    bos_id = 1
    eos_id = 2
    unk_id = 3

    def __init__(self, model: bytes):
        self._model = bytes(model)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self._model)
        except RuntimeError as error:
            raise UserError(f"Not a sentencepiece model: {error}") from error
        received = (
            self._processor.pad_id(),
            self._processor.bos_id(),
            self._processor.eos_id(),
            self._processor.unk_id(),
        )
        expected = (self.pad_id, self.bos_id, self.eos_id, self.unk_id)
        if received != expected:
            raise UserError(
                "A vocabulary must have pad, bos, eos and unk at ids "
                f"{expected}. Received: {received}"
            )
        self.piece_count = self._processor.get_piece_size()
        self.vocab_size = padded_vocabulary(self.piece_count)
        self.fingerprint = hashlib.sha256(self._model).hexdigest()[:16]

    def encode(self, sentences: Sequence[str]) -> list[np.ndarray]:
        """Ids of each sentence, int32, with eos at the end and no bos."""
        return self._processor.encode(
            list(sentences), return_type="numpy", add_eos=True, num_threads=-1
        )

    def decode(self, ids: np.ndarray | Iterable[Sequence[int]]) -> list[str]:
        """Sentences of rows of ids, each read up to its first eos.

        Special ids, and ids that are padding of the vocabulary, are dropped.
        """
        return self._processor.decode([self._pieces(row) for row in ids])

    def _pieces(self, row):
        row = np.asarray(row)
        row = (
            row[: np.argmax(row == self.eos_id)] if self.eos_id in row else row
        )
        return row[(row > self.unk_id) & (row < self.piece_count)].tolist()

    def pieces(self) -> list[str]:
        """The text of each id; what is special or unused has none.

        A byte is written as `<0xE4>`, a space as `▁`.
        """
        return [
            ""
            if self._processor.is_control(i) or self._processor.is_unknown(i)
            else self._processor.id_to_piece(i)
            for i in range(self.piece_count)
        ]

    def byte_ids(self) -> list[int]:
        """The ids of the 256 bytes, in order."""
        return [
            self._processor.piece_to_id(f"<0x{byte:02X}>")
            for byte in range(256)
        ]

    def save(self, path) -> None:
        """Writes a plain sentencepiece model, whole or not at all."""
        path = epath.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        partial.write_bytes(self._model)
        partial.replace(path)

    @classmethod
    def load(cls, path, fingerprint: str | None = None) -> "Tokenizer":
        """Reads a saved model.

        Args:
            path: What `save` wrote.
            fingerprint: If given, the model must have this one.

        Raises:
            UserError: There is no such file, it is damaged, or it is another
                vocabulary than `fingerprint` says.
        """
        try:
            tokenizer = cls(epath.Path(path).read_bytes())
        except (OSError, UserError) as error:
            raise UserError(
                f"Cannot load vocabulary {path}: {error}"
            ) from error
        if fingerprint not in (None, tokenizer.fingerprint):
            raise UserError(
                f"Vocabulary {path} has fingerprint {tokenizer.fingerprint}; "
                f"{fingerprint} was expected. Weights only fit the vocabulary "
                "they were trained with."
            )
        return tokenizer


def train_tokenizer(
    corpus: Corpus,
    directory,
    vocab_size: int,
    max_characters: int = 10_000_000,
) -> Tokenizer:
    """A joint vocabulary learned from both sides of the training split.

    The model is kept in `directory` under a name made of a hash of the corpus
    and the settings and of the model's own fingerprint; a second call loads it.

    Args:
        corpus: Only its training split is read.
        directory: Where the model is kept.
        vocab_size: Pieces to learn, the 4 special and 256 byte pieces among
            them. If the text does not hold as many, there will be fewer and a
            notice says so.
        max_characters: About how much text to learn from, both sides together;
            of a larger split, pairs evenly spread over it are taken.

    Raises:
        UserError: `vocab_size` is below what the alphabet of the text takes, or
            a kept model is damaged.
    """
    directory = epath.Path(directory)
    key = fingerprint(corpus.fingerprint, _SETTINGS, vocab_size, max_characters)
    kept = list(directory.glob(f"tokenizer-{key}-*.model"))
    if kept:
        tokenizer = Tokenizer.load(
            kept[0], fingerprint=kept[0].stem.rpartition("-")[2]
        )
    else:
        tokenizer = _train(_sample(corpus, max_characters), vocab_size)
        tokenizer.save(
            directory / f"tokenizer-{key}-{tokenizer.fingerprint}.model"
        )
    if tokenizer.piece_count < vocab_size:
        notice(
            f"The training text holds {tokenizer.piece_count:,} different "
            f"pieces; the vocabulary has these, not {vocab_size:,}."
        )
    return tokenizer


def _train(sentences, vocab_size):
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=vocab_size,
            pad_id=Tokenizer.pad_id,
            bos_id=Tokenizer.bos_id,
            eos_id=Tokenizer.eos_id,
            unk_id=Tokenizer.unk_id,
            minloglevel=2,
            **_SETTINGS,
        )
    except RuntimeError as error:
        too_small = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
        if too_small is None:
            raise
        raise UserError(
            f"--vocab_size must be at least {too_small[1]} for this text: its "
            "alphabet, 256 byte pieces and 4 special ones. "
            f"Received: {vocab_size}"
        ) from error
    return Tokenizer(model.getvalue())


def _sample(corpus, max_characters):
    """Sentences of evenly spaced training pairs, `max_characters` at most.

    Not simply the first ones: files are often joined corpus after corpus.
    """
    sample = []
    characters = 0
    stride = 1
    for index, pair in enumerate(corpus.read("train")):
        if index % stride:
            continue
        sample.append(pair)
        characters += sum(map(len, pair))
        if characters > max_characters and len(sample) > 1:
            sample = sample[::2]
            characters = sum(len(text) for pair in sample for text in pair)
            stride *= 2
    return [sentence for pair in sample for sentence in pair]
