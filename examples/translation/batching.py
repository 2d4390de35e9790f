"""From sentence pairs to batches of static shape.

Sentences are encoded once, into files that are mapped into memory. A plan then
says which pairs make up which batch: batch k of a run is a pure function of the
sentence lengths, the seed and k, so a run is resumed at any step by asking for
that step. Padded and packed batches are the same thing, rows of one or of
several segments, and look the same to the model.

A batch is `(features, labels, weights)`. All arrays of the `features`
dictionary are int32:

    source_ids, source_segments, source_positions    (rows, source length)
    target_ids, target_segments, target_positions    (rows, target length)

`target_ids` is what the decoder reads: each segment shifted right by one,
starting with bos. `labels` `(rows, target length)` int32 is what it must write,
eos included, and `weights` (float32) is 1 on these and 0 on padding. In
padding ids, segments and positions are 0; segments count from 1.
"""

import abc
import array
import dataclasses
import functools
import itertools
import json
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from examples.translation.errors import UserError
from examples.translation.errors import notice
from examples.translation.packing import first_fit
from examples.translation.sources import Corpus
from examples.translation.sources import fingerprint
from examples.translation.tokenizer import Tokenizer

_CACHE_FORMAT = 1
_ENCODE_CHUNK = 8192
_TELL_EVERY = 10  # seconds


# --- The encoded corpus ---


@dataclasses.dataclass(frozen=True)
class TokenSequences:
    """Sequences of ids, end to end.

    Attributes:
        ids: `(tokens,)`, unsigned 16-bit if the vocabulary allows it.
        offsets: `(n + 1,)` int64; sequence `i` is
            `ids[offsets[i] : offsets[i + 1]]`.
    """

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self):
        return len(self.offsets) - 1

    def __getitem__(self, index):
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """`(n,)` int64, eos included."""
        return np.diff(self.offsets)


@dataclasses.dataclass(frozen=True)
class EncodedSplit:
    """One split as ids; pair `i` is `source[i]`, `target[i]`.

    Attributes:
        source: Source sentences, each ending in eos.
        target: Target sentences, each ending in eos unless it was cut.
        max_length: No sequence is longer.
        dropped: Pairs left out because a side is empty or too long.
        cut: Pairs kept of which a side was cut to `max_length`.
    """

    source: TokenSequences
    target: TokenSequences
    max_length: int
    dropped: int
    cut: int

    def __len__(self):
        return len(self.source)

    @property
    def lengths(self) -> np.ndarray:
        """`(n,)` int64, of the longer side of each pair."""
        return np.maximum(self.source.lengths, self.target.lengths)


def encode_split(
    corpus: Corpus,
    split: str,
    tokenizer: Tokenizer,
    cache_dir,
    max_length: int,
    drop_long: bool,
) -> EncodedSplit:
    """Encodes a split, or maps the files of an earlier call into memory.

    A notice says how many pairs there are and how many were dropped or cut.

    Args:
        corpus: Where the sentences are.
        split: Name of the split.
        tokenizer: Encodes both sides.
        cache_dir: Local directory of the encoded files. They are named by
            corpus, vocabulary and the two arguments below, and appear there
            whole or not at all.
        max_length: Longest sequence in tokens, eos included.
        drop_long: For training: leave out pairs of which a side is empty or
            longer than `max_length`. Otherwise every pair is kept: a long
            source loses its end but not its eos, a long target its end with
            the eos, because the sentence does not end there.

    Raises:
        UserError: The split holds no pair that can be used.
    """
    key = fingerprint(
        _CACHE_FORMAT,
        corpus.fingerprint,
        split,
        tokenizer.fingerprint,
        max_length,
        drop_long,
    )
    directory = Path(cache_dir) / f"{split}-{key}"
    if not directory.exists():
        encode = functools.partial(
            _encode, corpus, split, tokenizer, max_length, drop_long
        )
        _write_whole(directory, encode)
    encoded = _map_into_memory(directory, max_length)
    notice(
        f"{split}: {len(encoded):,} pairs, "
        f"{encoded.source.offsets[-1]:,} source and "
        f"{encoded.target.offsets[-1]:,} target tokens"
        + (
            f"; {encoded.dropped:,} dropped, a side being empty or longer than "
            f"{max_length} tokens"
            if drop_long
            else f"; {encoded.cut:,} cut to {max_length} tokens"
        )
    )
    if not len(encoded):
        raise UserError(
            f"No pair of the {split} split of {corpus.name} can be used: "
            f"{encoded.dropped:,} of {corpus.size(split):,} have a side that "
            f"is empty or longer than --max_length {max_length}."
        )
    return encoded


def _write_whole(directory, write):
    """Runs `write(path)` on a new directory, then moves that to `directory`."""
    partial = directory.with_name(f"{directory.name}.{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        write(partial)
        try:
            partial.rename(directory)
        except OSError:
            # Another process was first, and it wrote the same.
            if not directory.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _encode(corpus, split, tokenizer, max_length, drop_long, directory):
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    dropped = cut = 0
    lengths = array.array("q")
    pairs = corpus.read(split)
    done, told = 0, time.monotonic()
    with (
        open(directory / "source.bin", "wb") as source_file,
        open(directory / "target.bin", "wb") as target_file,
    ):
        while chunk := list(itertools.islice(pairs, _ENCODE_CHUNK)):
            sides = map(tokenizer.encode, zip(*chunk, strict=True))
            for source, target in zip(*sides, strict=True):
                too_long = max(len(source), len(target)) > max_length
                # An empty sentence is its eos alone.
                empty = min(len(source), len(target)) < 2
                if drop_long and (too_long or empty):
                    dropped += 1
                    continue
                if too_long:
                    cut += 1
                    if len(source) > max_length:
                        source = np.append(source[: max_length - 1], source[-1])
                    target = target[:max_length]
                lengths.extend((len(source), len(target)))
                source_file.write(source.astype(dtype).tobytes())
                target_file.write(target.astype(dtype).tobytes())
            done += len(chunk)
            if time.monotonic() - told > _TELL_EVERY:
                told = time.monotonic()
                notice(f"{split}: {done:,} of {corpus.size(split):,} pairs cut")
    lengths = np.array(lengths, np.int64).reshape(-1, 2)
    offsets = np.zeros((2, len(lengths) + 1), np.int64)
    np.cumsum(lengths.T, axis=1, out=offsets[:, 1:])
    np.save(directory / "offsets.npy", offsets)
    facts = {"dtype": dtype.name, "dropped": dropped, "cut": cut}
    (directory / "facts.json").write_text(json.dumps(facts))


def _map_into_memory(directory, max_length):
    facts = json.loads((directory / "facts.json").read_text())
    sides = []
    offsets_of_sides = np.load(directory / "offsets.npy")
    for side, offsets in zip(
        ("source", "target"), offsets_of_sides, strict=True
    ):
        path = directory / f"{side}.bin"
        # An empty file cannot be mapped.
        ids = (
            np.memmap(path, facts["dtype"], mode="r")
            if offsets[-1]
            else np.empty(0, facts["dtype"])
        )
        sides.append(TokenSequences(ids, offsets))
    return EncodedSplit(
        *sides,
        max_length=max_length,
        dropped=facts["dropped"],
        cut=facts["cut"],
    )


# --- Which pairs make up which batch ---


@dataclasses.dataclass(frozen=True)
class Batch:
    """Which pairs go where.

    Attributes:
        pairs: `(k,)` indices of pairs.
        rows: `(k,)` the row of each pair, never decreasing. Pairs of one row
            are its segments, in this order.
        shape: Number of rows, and length of either side.
    """

    pairs: np.ndarray
    rows: np.ndarray
    shape: tuple[int, int]


def part_of(batch: Batch, index: int, count: int) -> Batch:
    """The rows that process `index` of `count` feeds, end to end a batch."""
    rows, length = batch.shape
    size = rows // count
    first, last = np.searchsorted(
        batch.rows, (index * size, (index + 1) * size)
    )
    return Batch(
        batch.pairs[first:last],
        batch.rows[first:last] - index * size,
        (size, length),
    )


class Plan(abc.ABC):
    """The endless sequence of training batches.

    Every data epoch is the same pairs in another order and has as many batches
    as any other, so the step of a run says where in the data it is.

    Attributes:
        shapes: The (rows, length) that occur; XLA compiles one program for
            each.
        steps_per_epoch: Batches of a data epoch, at least 1.
    """

    shapes: tuple[tuple[int, int], ...]
    steps_per_epoch: int

    @abc.abstractmethod
    def batches(self, epoch: int) -> list[Batch]:
        """The batches of data epoch `epoch`."""

    def steps(self, epoch: int) -> int:
        """Number of batches of data epoch `epoch`: the same for all."""
        return self.steps_per_epoch

    def locate(self, step: int) -> tuple[int, int]:
        """Data epoch of batch `step` of the run, and its index in there."""
        return divmod(step, self.steps_per_epoch)

    def batches_from(self, step: int) -> Iterator[Batch]:
        """Yields batch `step` of the run, the one after it, and so on."""
        epoch, index = self.locate(step)
        while True:
            yield from self.batches(epoch)[index:]
            epoch, index = epoch + 1, 0


class BucketPlan(Plan):
    """One pair a row, pairs of like length together.

    A pair belongs to the shortest bucket that holds both of its sides. What
    does not fill a batch of its bucket moves on to the next longer one. So an
    epoch leaves out fewer pairs than a batch of the longest bucket has rows,
    other ones each time.

    Args:
        lengths: `(n,)`, of the longer side of each pair.
        buckets: (rows of a batch, row length), by increasing length; no pair is
            longer than the last.
        seed: At least 0.

    Raises:
        UserError: There are too few pairs for a single batch.
    """

    def __init__(self, lengths, buckets, seed):
        self._buckets = tuple(buckets)
        self._bucket_of = _bucket_of(lengths, [b[1] for b in buckets])
        self._seed = seed
        self._counts = []
        left = 0
        sizes = np.bincount(self._bucket_of, minlength=len(self._buckets))
        for size, (rows, _) in zip(sizes.tolist(), self._buckets, strict=True):
            count, left = divmod(left + size, rows)
            self._counts.append(count)
        self.steps_per_epoch = sum(self._counts)
        self.shapes = tuple(itertools.compress(self._buckets, self._counts))
        _check_fills_a_batch(self.shapes, len(lengths), self._buckets[-1])

    def batches(self, epoch):
        order = _shuffle(len(self._bucket_of), self._seed, epoch, stream=0)
        bucket_of = self._bucket_of[order]
        batches = []
        left = order[:0]
        for bucket, (shape, count) in enumerate(
            zip(self._buckets, self._counts, strict=True)
        ):
            waiting = np.concatenate([left, order[bucket_of == bucket]])
            rows = np.arange(shape[0])
            full = count * shape[0]
            batches += [
                Batch(pairs, rows, shape)
                for pairs in waiting[:full].reshape(count, shape[0])
            ]
            left = waiting[full:]
        schedule = _shuffle(len(batches), self._seed, epoch, stream=1)
        return [batches[index] for index in schedule]


class PackedPlan(Plan):
    """Several pairs a row, all rows of one length; see `packing`.

    Pairs are packed once, in an order the seed decides. An epoch shuffles the
    rows, and leaves out those that do not fill its last batch, other ones each
    time. Which pairs share a row does not matter to the loss, for they do not
    see each other.

    Args:
        source_lengths: `(n,)`, at most the row length.
        target_lengths: `(n,)`, at most the row length.
        shape: Rows of a batch, row length.
        seed: At least 0.

    Raises:
        UserError: There are too few pairs for a single batch.
    """

    def __init__(self, source_lengths, target_lengths, shape, seed):
        order = _shuffle(len(source_lengths), seed, epoch=0, stream=2)
        rows = first_fit(source_lengths[order], target_lengths[order], shape[1])
        self._pairs = order[np.argsort(rows, kind="stable")]
        self._pairs_in_row = np.bincount(rows)
        self._seed = seed
        self._shape = shape
        self.shapes = (shape,)
        self.steps_per_epoch = len(self._pairs_in_row) // shape[0]
        _check_fills_a_batch(self.steps_per_epoch, len(order), shape)

    def batches(self, epoch):
        rows_of_batch = self._shape[0]
        first_pair = np.cumsum(self._pairs_in_row) - self._pairs_in_row
        order = _shuffle(len(first_pair), self._seed, epoch, stream=0)
        order = order[: self.steps_per_epoch * rows_of_batch]
        counts = self._pairs_in_row[order]
        pairs = self._pairs[_ranges(first_pair[order], counts)]
        rows = np.repeat(np.arange(len(order)) % rows_of_batch, counts)
        ends = np.cumsum(counts)[rows_of_batch - 1 : -1 : rows_of_batch]
        return [
            Batch(*batch, self._shape)
            for batch in zip(
                np.split(pairs, ends), np.split(rows, ends), strict=True
            )
        ]


def make_plan(
    encoded: EncodedSplit,
    *,
    batching: str,
    tokens_per_batch: int | None,
    batch_size: int | None,
    bucket_lengths: tuple[int, ...],
    max_length: int,
    seed: int,
    multiple_of: int = 1,
) -> Plan:
    """Plans the training batches of `encoded`.

    Args:
        encoded: The training split, without pairs longer than `max_length`.
        batching: `"bucket"` or `"pack"`.
        tokens_per_batch: Target tokens of a batch, padding included; a bucket
            has as many rows as that makes. Exactly one of this and `batch_size`
            is given.
        batch_size: Rows of a batch, whatever its length.
        bucket_lengths: Row lengths of `"bucket"`, increasing up to
            `max_length`. `"pack"` has rows of `max_length` only.
        max_length: Longest row.
        seed: Decides the order of the pairs; at least 0.
        multiple_of: The number of rows is one: replicas times accumulation
            steps.

    Raises:
        UserError: A batch would have no row, its rows cannot be divided by
            `multiple_of`, or there are too few pairs for one.
    """
    if (tokens_per_batch is None) == (batch_size is None):
        raise UserError(
            "Give one of --batch_size and --tokens_per_batch. Received: "
            f"{batch_size} and {tokens_per_batch}"
        )
    if batch_size is not None and batch_size % multiple_of:
        raise UserError(
            f"--batch_size must be a multiple of {multiple_of} (replicas times "
            f"accumulation steps). Received: {batch_size}"
        )

    def shape(length):
        rows = rows_of(length, tokens_per_batch, batch_size, multiple_of)
        if not rows:
            raise UserError(
                f"--tokens_per_batch must be at least {length * multiple_of:,}:"
                f" {multiple_of} rows (replicas times accumulation steps) of "
                f"{length} tokens. Received: {tokens_per_batch:,}"
            )
        return rows, length

    if batching == "pack":
        return PackedPlan(
            encoded.source.lengths,
            encoded.target.lengths,
            shape(max_length),
            seed,
        )
    if batching != "bucket":
        raise UserError(
            f"--batching must be bucket or pack. Received: {batching}"
        )
    if bucket_lengths[-1] != max_length:
        raise UserError(
            f"--bucket_lengths must end in --max_length ({max_length}). "
            f"Received: {bucket_lengths}"
        )
    return BucketPlan(
        encoded.lengths, [shape(length) for length in bucket_lengths], seed
    )


def rows_of(length, tokens_per_batch, batch_size, multiple_of):
    """Rows of a batch of rows of so many tokens; see `make_plan`."""
    if batch_size is not None:
        return batch_size
    return tokens_per_batch // length // multiple_of * multiple_of


def _bucket_of(lengths, bucket_lengths):
    """Index of the shortest bucket that holds each length."""
    if lengths.max() > bucket_lengths[-1]:
        raise ValueError(
            "`bucket_lengths` must end in the longest sequence "
            f"({lengths.max()}) or more. Received: {tuple(bucket_lengths)}"
        )
    return np.searchsorted(bucket_lengths, lengths)


def _check_fills_a_batch(fills, pairs, shape):
    if not fills:
        raise UserError(
            f"{pairs:,} training pairs do not fill a batch of {shape[0]:,} "
            f"rows of {shape[1]} tokens. Lower --batch_size or "
            "--tokens_per_batch."
        )


def _shuffle(count, seed, epoch, stream):
    """A permutation of `range(count)` that no numpy release will change.

    numpy promises that for the raw numbers of a bit generator and for
    `SeedSequence`, not for `Generator.permutation`; a run that is resumed after
    an upgrade must meet the same data.
    """
    source = np.random.Philox(np.random.SeedSequence((seed, epoch, stream)))
    return np.argsort(source.random_raw(count), kind="stable")


def _ranges(starts, counts):
    """Joins `arange(start, start + count)` of each start and count."""
    ends = np.cumsum(counts)
    return np.repeat(starts - (ends - counts), counts) + np.arange(counts.sum())


# --- Batches ---


def assemble(encoded: EncodedSplit, batch: Batch):
    """The arrays of a batch: `(features, labels, weights)` as said above."""
    features = dict(
        zip(
            ("source_ids", "source_segments", "source_positions"),
            _lay_out(encoded.source, batch),
            strict=True,
        )
    )
    labels, segments, positions = _lay_out(encoded.target, batch)
    shifted = np.roll(labels, 1, axis=1)
    shifted[positions == 0] = Tokenizer.bos_id
    features["target_ids"] = np.where(segments > 0, shifted, Tokenizer.pad_id)
    features["target_segments"] = segments
    features["target_positions"] = positions
    return features, labels, (segments > 0).astype(np.float32)


def _lay_out(sequences, batch):
    """Ids, segments and positions, each of the shape of `batch`."""
    lengths = sequences.lengths[batch.pairs]
    starts = np.cumsum(lengths) - lengths
    first_of_row = np.searchsorted(batch.rows, batch.rows)
    columns = starts - starts[first_of_row]
    segments = np.arange(len(lengths)) - first_of_row + 1
    cells = _ranges(batch.rows * batch.shape[1] + columns, lengths)

    def fill(values):
        grid = np.zeros(batch.shape, np.int32)
        grid.reshape(-1)[cells] = values
        return grid

    return (
        fill(sequences.ids[_ranges(sequences.offsets[batch.pairs], lengths)]),
        fill(np.repeat(segments, lengths)),
        fill(_ranges(np.zeros_like(lengths), lengths)),
    )


def train_dataset(
    encoded: EncodedSplit,
    plan: Plan,
    *,
    start_step: int = 0,
    steps: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """The batches of a run from `start_step` on.

    Element k is that of a dataset started at 0, k + `start_step`. Shapes are
    static if the plan has only one; with several, a dimension that differs
    between them is `None` in `element_spec`. `fit` hands each replica of a
    process its part.

    Args:
        encoded: What `plan` was made of.
        plan: Says which pairs make up which batch.
        start_step: Batches of the run that are already trained on.
        steps: Number of batches; `None` for no end. Every iterator starts over,
            so for `fit` with more than one epoch leave this and give
            `steps_per_epoch`.
        part: Index of this process and number of processes; of each batch it
            gets the rows of `part_of`.
    """

    def generate():
        batches = itertools.islice(plan.batches_from(start_step), steps)
        return (assemble(encoded, part_of(batch, *part)) for batch in batches)

    return _dataset(generate, plan.shapes, steps, part)


def eval_batches(
    encoded: EncodedSplit, batch_size: int, bucket_lengths: tuple[int, ...]
) -> Iterator[tuple]:
    """Yields every pair once, in batches of `batch_size` rows by bucket.

    A batch that pairs do not fill is filled with rows of padding only: segments
    and weights 0.

    Args:
        encoded: An evaluation split.
        batch_size: Rows of every batch.
        bucket_lengths: Row lengths, increasing; no pair is longer than the
            last.

    Yields:
        `(features, labels, weights, row_indices)`: row `i` of the arrays is
        pair `row_indices[i]`; rows from `len(row_indices)` on are padding.
    """
    for batch in _eval_plan(encoded, batch_size, bucket_lengths):
        yield *assemble(encoded, batch), batch.pairs


def eval_dataset(
    encoded: EncodedSplit,
    batch_size: int,
    bucket_lengths: tuple[int, ...],
    part: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """`eval_batches` without the row indices, for validation in `fit`.

    `part` is that of `train_dataset`.
    """
    plan = _eval_plan(encoded, batch_size, bucket_lengths)

    def generate():
        return (assemble(encoded, part_of(batch, *part)) for batch in plan)

    shapes = {batch.shape for batch in plan}
    return _dataset(generate, shapes, len(plan), part)


def _eval_plan(encoded, batch_size, bucket_lengths):
    bucket_of = _bucket_of(encoded.lengths, bucket_lengths)
    return [
        Batch(pairs, np.arange(len(pairs)), (batch_size, length))
        for bucket, length in enumerate(bucket_lengths)
        for pairs in _chunks(np.flatnonzero(bucket_of == bucket), batch_size)
    ]


def _chunks(indices, size):
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def _dataset(generate, shapes, count, part):
    _, parts = part
    rows, lengths = (set(sizes) for sizes in zip(*shapes, strict=True))
    rows = {size // parts for size in rows}
    shape = [
        sizes.pop() if len(sizes) == 1 else None for sizes in (rows, lengths)
    ]
    ids = tf.TensorSpec(shape, tf.int32)
    features = {
        f"{side}_{what}": ids
        for side in ("source", "target")
        for what in ("ids", "segments", "positions")
    }
    dataset = tf.data.Dataset.from_generator(
        generate,
        output_signature=(features, ids, tf.TensorSpec(shape, tf.float32)),
    )
    cardinality = tf.data.INFINITE_CARDINALITY if count is None else count
    return dataset.apply(
        tf.data.experimental.assert_cardinality(cardinality)
    ).prefetch(tf.data.AUTOTUNE)
