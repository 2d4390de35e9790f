import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from examples.translation import batching
from examples.translation.batching import Batch
from examples.translation.batching import EncodedSplit
from examples.translation.batching import TokenSequences
from examples.translation.batching import assemble
from examples.translation.batching import encode_split
from examples.translation.batching import eval_batches
from examples.translation.batching import eval_dataset
from examples.translation.batching import make_plan
from examples.translation.batching import train_dataset
from examples.translation.errors import UserError
from examples.translation.packing import first_fit
from examples.translation.sources import Corpus
from examples.translation.tokenizer import Tokenizer
from examples.translation.tokenizer import train_tokenizer

FEATURES = [
    f"{side}_{what}"
    for side in ("source", "target")
    for what in ("ids", "segments", "positions")
]


def token_sequences(sequences):
    offsets = np.cumsum([0, *map(len, sequences)])
    return TokenSequences(np.concatenate(sequences).astype(np.uint16), offsets)


def random_split(count, max_length, seed=0):
    """`count` pairs of random ids; no token occurs in two sequences."""
    rng = np.random.default_rng(seed)
    numbers = itertools.count(10)
    sides = [
        token_sequences(
            [
                [*itertools.islice(numbers, int(length) - 1), Tokenizer.eos_id]
                for length in rng.integers(2, max_length + 1, count)
            ]
        )
        for _ in range(2)
    ]
    return EncodedSplit(*sides, max_length=max_length, dropped=0, cut=0)


def plan_of(encoded, **overrides):
    arguments = {
        "batching": "bucket",
        "tokens_per_batch": 64,
        "batch_size": None,
        "bucket_lengths": (8, 16),
        "max_length": 16,
        "seed": 0,
        **overrides,
    }
    return make_plan(encoded, **arguments)


def pairs_of(batches):
    return np.concatenate([batch.pairs for batch in batches])


def assert_equal_elements(element, expected):
    tf.nest.assert_same_structure(element, expected)
    for left, right in zip(
        tf.nest.flatten(element), tf.nest.flatten(expected), strict=True
    ):
        np.testing.assert_array_equal(left, right)


@pytest.fixture(scope="module")
def encoded():
    return random_split(203, 16)


# --- Encoding ---


@pytest.fixture
def corpus():
    train = [(f"word {i} " * (i % 9 + 1), f"Wort {i}") for i in range(60)]
    train += [("", "empty source"), ("empty target", "")]
    test = [("word " * 40, "Wort " * 40), ("word", ""), ("short", "kurz")]
    splits = {"train": train, "validation": test[2:], "test": test}
    return Corpus(
        name="test corpus",
        kind="text",
        fingerprint="fingerprint",
        sizes={split: len(pairs) for split, pairs in splits.items()},
        reader=lambda split: iter(splits[split]),
    )


@pytest.fixture
def tokenizer(corpus, tmp_path):
    return train_tokenizer(corpus, tmp_path / "vocabulary", 300)


def test_training_drops_long_and_empty_pairs_and_says_how_many(
    corpus, tokenizer, tmp_path, capsys
):
    encoded = encode_split(corpus, "train", tokenizer, tmp_path, 20, True)
    kept = [
        pair
        for pair in corpus.read("train")
        if all(pair) and max(map(len, tokenizer.encode(pair))) <= 20
    ]
    assert 0 < len(kept) < 60
    assert len(encoded) == len(kept)
    assert encoded.dropped == 62 - len(kept)
    for side, sequences in enumerate((encoded.source, encoded.target)):
        assert tokenizer.decode(sequences) == [pair[side] for pair in kept]
    assert f"{62 - len(kept)} dropped" in capsys.readouterr().err


def test_evaluation_keeps_every_pair_and_says_how_many_it_cut(
    corpus, tokenizer, tmp_path, capsys
):
    encoded = encode_split(corpus, "test", tokenizer, tmp_path, 20, False)
    whole = [tokenizer.encode(pair) for pair in corpus.read("test")]
    assert len(encoded) == 3
    assert (encoded.dropped, encoded.cut) == (0, 1)
    assert encoded.source[0].tolist() == [*whole[0][0][:19], tokenizer.eos_id]
    assert encoded.target[0].tolist() == whole[0][1][:20].tolist()
    for index in (1, 2):
        assert encoded.source[index].tolist() == whole[index][0].tolist()
        assert encoded.target[index].tolist() == whole[index][1].tolist()
    assert "1 cut to 20 tokens" in capsys.readouterr().err


def test_encoding_is_read_back_without_the_corpus(
    corpus, tokenizer, tmp_path, monkeypatch
):
    first = encode_split(corpus, "train", tokenizer, tmp_path, 20, True)
    monkeypatch.setattr(Tokenizer, "encode", None)
    again = encode_split(corpus, "train", tokenizer, tmp_path, 20, True)
    assert isinstance(again.source.ids, np.memmap)
    assert (again.dropped, again.cut) == (first.dropped, first.cut)
    for left, right in (
        (first.source, again.source),
        (first.target, again.target),
    ):
        np.testing.assert_array_equal(left.ids, right.ids)
        np.testing.assert_array_equal(left.offsets, right.offsets)


def test_every_setting_has_its_own_encoding(corpus, tokenizer, tmp_path):
    cache = tmp_path / "cache"
    for split, length, drop in (
        ("train", 20, True),
        ("train", 21, True),
        ("train", 20, False),
        ("test", 20, False),
    ):
        encode_split(corpus, split, tokenizer, cache, length, drop)
    assert len(list(cache.iterdir())) == 4


def test_an_encoding_that_fails_leaves_nothing_behind(
    corpus, tokenizer, tmp_path, monkeypatch
):
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", None)
        with pytest.raises(TypeError):
            encode_split(corpus, "train", tokenizer, cache, 20, True)
    assert not list(cache.iterdir())
    assert len(encode_split(corpus, "train", tokenizer, cache, 20, True))


def test_the_process_that_encodes_second_uses_what_the_first_wrote(
    corpus, tokenizer, tmp_path
):
    cache = tmp_path / "cache"

    def encode():
        return encode_split(corpus, "train", tokenizer, cache, 20, True)

    class Racing(Tokenizer):
        """Lets another process finish while this one is encoding."""

        def encode(self, sentences):
            self.encode = super().encode
            encode()
            return super().encode(sentences)

    tokenizer.save(tmp_path / "model")
    racing = Racing.load(tmp_path / "model")
    encoded = encode_split(corpus, "train", racing, cache, 20, True)
    assert len(list(cache.iterdir())) == 1
    np.testing.assert_array_equal(encoded.source.ids, encode().source.ids)


def test_a_split_without_a_usable_pair_is_an_error(corpus, tokenizer, tmp_path):
    with pytest.raises(UserError, match="62 of 62 .* --max_length 2"):
        encode_split(corpus, "train", tokenizer, tmp_path, 2, True)


# --- Plans ---


def test_bucket_epoch_has_every_pair_once_but_a_rest_of_the_longest(encoded):
    plan = plan_of(encoded)
    dropped = []
    for epoch in range(3):
        batches = plan.batches(epoch)
        assert len(batches) == plan.steps(epoch) == plan.steps_per_epoch
        pairs = pairs_of(batches)
        assert len(set(pairs)) == len(pairs)
        dropped.append(set(range(len(encoded))) - set(pairs))
        assert 0 < len(dropped[-1]) < 64 // 16
    assert dropped[0] != dropped[1]


def test_pairs_are_in_buckets_that_hold_them_and_shapes_are_few(encoded):
    plan = plan_of(encoded)
    assert plan.shapes == ((8, 8), (4, 16))
    short = 0
    for batch in plan.batches(0):
        assert batch.shape in plan.shapes
        assert len(batch.pairs) == batch.shape[0]
        assert encoded.lengths[batch.pairs].max() <= batch.shape[1]
        short += batch.shape == (8, 8)
    assert short == (encoded.lengths <= 8).sum() // 8


def test_packed_epoch_has_every_pair_once_but_rows_of_half_a_batch(encoded):
    plan = plan_of(encoded, batching="pack")
    assert plan.shapes == ((4, 16),)
    rows = first_fit(encoded.source.lengths, encoded.target.lengths, 16)
    dropped = []
    for epoch in range(3):
        batches = plan.batches(epoch)
        assert len(batches) == plan.steps(epoch) == plan.steps_per_epoch
        pairs = pairs_of(batches)
        assert len(set(pairs)) == len(pairs)
        dropped.append(set(range(len(encoded))) - set(pairs))
        for batch in batches:
            assert set(batch.rows) == set(range(4))
    assert len(batches) >= (rows.max() + 1) // 4 - 2
    assert all(len(pairs) < 3 * 8 for pairs in dropped)
    assert dropped[0] != dropped[1]


@pytest.mark.parametrize("kind", ["bucket", "pack"])
def test_epochs_differ_and_the_seed_decides(encoded, kind):
    def pairs(seed, epoch):
        plan = plan_of(encoded, batching=kind, seed=seed)
        return pairs_of(plan.batches(epoch)).tolist()

    assert pairs(0, 0) == pairs(0, 0)
    assert pairs(0, 0) != pairs(0, 1)
    assert pairs(0, 0) != pairs(1, 0)
    assert pairs(0, 1) != pairs(1, 0)


def test_the_order_of_the_data_is_that_of_every_earlier_release():
    plan = batching.BucketPlan(np.full(10, 16), [(5, 16)], seed=0)
    order = [2, 8, 4, 9, 0, 7, 6, 1, 3, 5]
    assert pairs_of(plan.batches(3)).tolist() == order


@pytest.mark.parametrize("kind", ["bucket", "pack"])
def test_locate_is_the_inverse_of_walking_through_the_data(encoded, kind):
    plan = plan_of(encoded, batching=kind)
    steps = plan.steps_per_epoch
    walk = list(itertools.product(range(3), range(steps)))
    assert [plan.locate(step) for step in range(3 * steps)] == walk
    assert plan.locate(10**9 * steps + 1) == (10**9, 1)


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 16), min_size=16, max_size=200),
    rows=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**32),
)
def test_bucket_plan_of_any_lengths_repeats_nothing(lengths, rows, seed):
    plan = batching.BucketPlan(
        np.array(lengths), [(rows[0], 8), (rows[1], 16)], seed
    )
    pairs = pairs_of(plan.batches(0))
    assert len(set(pairs)) == len(pairs) > len(lengths) - rows[1]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 16), st.integers(1, 16)), min_size=1
    ),
    open_rows=st.integers(1, 5),
)
def test_packed_rows_hold_both_sides_of_their_pairs(lengths, open_rows):
    source, target = np.array(lengths).T
    rows = first_fit(source, target, 16, open_rows)
    assert set(rows) == set(range(rows.max() + 1))
    assert np.bincount(rows, source).max() <= 16
    assert np.bincount(rows, target).max() <= 16


def test_first_fit_goes_to_the_oldest_open_row_with_room():
    lengths = np.array([5, 6, 3, 8, 1, 1, 2])
    rows = first_fit(lengths, lengths, 8, open_rows=2)
    # 5 | 6 | 3 beside the 5 | 8 closes that | 1 and 1 beside the 6 | 2 has no
    # room and opens a row.
    assert rows.tolist() == [0, 1, 0, 2, 1, 1, 3]
    with pytest.raises(ValueError, match="longest sequence .8."):
        first_fit(lengths, lengths, 7)


def test_rows_are_a_multiple_of_replicas(encoded):
    plan = plan_of(encoded, tokens_per_batch=100, multiple_of=3)
    assert plan.shapes == ((12, 8), (6, 16))
    plan = plan_of(
        encoded, batching="pack", tokens_per_batch=100, multiple_of=3
    )
    assert plan.shapes == ((6, 16),)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"tokens_per_batch": None}, "one of --batch_size and --tokens_per"),
        ({"batch_size": 4}, "one of --batch_size and --tokens_per_batch"),
        ({"tokens_per_batch": 15}, "--tokens_per_batch must be at least 16"),
        (
            {"tokens_per_batch": 60, "multiple_of": 4},
            "--tokens_per_batch must be at least 64",
        ),
        (
            {"tokens_per_batch": None, "batch_size": 6, "multiple_of": 4},
            "--batch_size must be a multiple of 4",
        ),
        (
            {"tokens_per_batch": None, "batch_size": 204},
            "203 training pairs do not fill a batch of 204 rows",
        ),
        (
            {"tokens_per_batch": 16 * 200, "batching": "pack"},
            "do not fill a batch of 200 rows",
        ),
        ({"batching": "sort"}, "--batching must be bucket or pack"),
        ({"bucket_lengths": (8, 12)}, "must end in --max_length .16."),
    ],
)
def test_a_plan_that_cannot_be_is_told(encoded, overrides, message):
    with pytest.raises(UserError, match=message):
        plan_of(encoded, **overrides)


# --- Batches ---


def test_a_padded_batch_is_one_segment_a_row():
    encoded = EncodedSplit(
        token_sequences([[11, 12, 2], [13, 2]]),
        token_sequences([[21, 2], [22, 23, 24, 2]]),
        max_length=4,
        dropped=0,
        cut=0,
    )
    batch = Batch(np.array([1, 0]), np.array([0, 1]), (3, 4))
    features, labels, weights = assemble(encoded, batch)
    assert list(features) == FEATURES
    expected = {
        "source_ids": [[13, 2, 0, 0], [11, 12, 2, 0], [0] * 4],
        "source_segments": [[1, 1, 0, 0], [1, 1, 1, 0], [0] * 4],
        "source_positions": [[0, 1, 0, 0], [0, 1, 2, 0], [0] * 4],
        "target_ids": [[1, 22, 23, 24], [1, 21, 0, 0], [0] * 4],
        "target_segments": [[1, 1, 1, 1], [1, 1, 0, 0], [0] * 4],
        "target_positions": [[0, 1, 2, 3], [0, 1, 0, 0], [0] * 4],
    }
    for name, value in expected.items():
        assert features[name].dtype == np.int32
        assert features[name].tolist() == value, name
    assert labels.dtype == np.int32
    assert labels.tolist() == [[22, 23, 24, 2], [21, 2, 0, 0], [0] * 4]
    assert weights.dtype == np.float32
    assert weights.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [0] * 4]


def test_a_packed_batch_is_the_example_of_the_documentation():
    guten, morgen, ja, good, morning, yes = range(10, 16)
    encoded = EncodedSplit(
        token_sequences([[guten, morgen, 2], [ja, 2]]),
        token_sequences([[good, morning, 2], [yes, 2]]),
        max_length=8,
        dropped=0,
        cut=0,
    )
    batch = Batch(np.array([0, 1]), np.array([0, 0]), (1, 8))
    features, labels, weights = assemble(encoded, batch)
    rest = [0, 0, 0]

    def row(array):
        assert array.shape == (1, 8)
        return array[0].tolist()

    assert row(features["source_ids"]) == [guten, morgen, 2, ja, 2, *rest]
    assert row(features["target_ids"]) == [1, good, morning, 1, yes, *rest]
    assert row(labels) == [good, morning, 2, yes, 2, *rest]
    assert row(weights) == [1, 1, 1, 1, 1, *rest]
    for side in ("source", "target"):
        assert row(features[f"{side}_segments"]) == [1, 1, 1, 2, 2, *rest]
        assert row(features[f"{side}_positions"]) == [0, 1, 2, 0, 1, *rest]


@pytest.mark.parametrize("kind", ["bucket", "pack"])
def test_no_token_is_lost_and_no_segment_mixed(encoded, kind):
    def pairs_in(features, labels):
        for row in range(len(labels)):
            for segment in range(1, features["source_segments"][row].max() + 1):
                source = features["source_segments"][row] == segment
                target = features["target_segments"][row] == segment
                for side, places in (("source", source), ("target", target)):
                    positions = features[f"{side}_positions"][row][places]
                    assert positions.tolist() == list(range(places.sum()))
                assert features["target_ids"][row][target].tolist() == [
                    Tokenizer.bos_id,
                    *labels[row][target][:-1],
                ]
                yield (
                    tuple(features["source_ids"][row][source]),
                    tuple(labels[row][target]),
                )

    batches = plan_of(encoded, batching=kind).batches(1)
    found = []
    for batch in batches:
        features, labels, weights = assemble(encoded, batch)
        np.testing.assert_array_equal(weights, features["target_segments"] > 0)
        for side in ("source", "target"):
            padding = features[f"{side}_segments"] == 0
            assert not features[f"{side}_ids"][padding].any()
            assert not features[f"{side}_positions"][padding].any()
        assert not labels[weights == 0].any()
        found += pairs_in(features, labels)
    assert sorted(found) == sorted(
        (tuple(encoded.source[pair]), tuple(encoded.target[pair]))
        for pair in pairs_of(batches)
    )


# --- Datasets ---


@pytest.mark.parametrize("kind", ["bucket", "pack"])
@pytest.mark.parametrize("start", ["epoch 0", "last of epoch 0", "epoch 2"])
def test_a_resumed_dataset_continues_where_it_was(encoded, kind, start):
    plan = plan_of(encoded, batching=kind)
    start_step = {
        "epoch 0": 3,
        "last of epoch 0": plan.steps_per_epoch - 1,
        "epoch 2": 2 * plan.steps_per_epoch + 1,
    }[start]
    whole = train_dataset(encoded, plan, steps=start_step + 4)
    resumed = train_dataset(
        encoded, plan_of(encoded, batching=kind), start_step=start_step, steps=4
    )
    expected = list(whole)[start_step:]
    assert len(expected) == 4
    for element, other in zip(resumed, expected, strict=True):
        assert_equal_elements(element, other)


def test_shapes_are_static_where_there_is_only_one(encoded):
    features, labels, weights = train_dataset(
        encoded, plan_of(encoded, batching="pack")
    ).element_spec
    assert list(features) == FEATURES
    for spec in (*features.values(), labels):
        assert spec == tf.TensorSpec((4, 16), tf.int32)
    assert weights == tf.TensorSpec((4, 16), tf.float32)

    by_tokens = train_dataset(encoded, plan_of(encoded))
    assert by_tokens.element_spec[1].shape.as_list() == [None, None]
    by_rows = plan_of(encoded, tokens_per_batch=None, batch_size=4)
    by_rows = train_dataset(encoded, by_rows)
    assert by_rows.element_spec[1].shape.as_list() == [4, None]


def test_datasets_know_their_length(encoded):
    plan = plan_of(encoded)
    endless = train_dataset(encoded, plan)
    assert endless.cardinality() == tf.data.INFINITE_CARDINALITY
    assert train_dataset(encoded, plan, steps=5).cardinality() == 5
    assert len(list(train_dataset(encoded, plan, steps=5))) == 5
    dataset = eval_dataset(encoded, 10, (8, 16))
    assert dataset.cardinality() == len(list(dataset))


def test_evaluation_has_every_pair_once_and_pads_the_last_batch(encoded):
    seen = []
    shapes = set()
    for features, labels, weights, rows in eval_batches(encoded, 10, (8, 16)):
        shapes.add(labels.shape)
        seen += rows.tolist()
        for row, pair in enumerate(rows):
            target = encoded.target[pair]
            assert labels[row][: len(target)].tolist() == target.tolist()
            assert weights[row].sum() == len(target)
        for name in FEATURES:
            assert not features[name][len(rows) :].any()
        assert not weights[len(rows) :].any()
    assert sorted(seen) == list(range(len(encoded)))
    assert shapes == {(10, 8), (10, 16)}


def test_evaluation_dataset_is_the_batches_without_row_numbers(encoded):
    batches = [batch[:3] for batch in eval_batches(encoded, 10, (8, 16))]
    dataset = eval_dataset(encoded, 10, (8, 16))
    for element, batch in zip(dataset, batches, strict=True):
        assert_equal_elements(element, batch)


def assert_joined_equal(parts, whole):
    for batch, *of_processes in zip(whole, *parts, strict=True):
        joined = tf.nest.map_structure(
            lambda *rows: np.concatenate(rows), *of_processes
        )
        assert_equal_elements(joined, batch)


@pytest.mark.parametrize("kind", ["bucket", "pack"])
@pytest.mark.parametrize("count", [2, 4])
def test_the_parts_of_processes_are_the_batch(encoded, kind, count):
    plan = plan_of(encoded, batching=kind, multiple_of=4)
    whole = train_dataset(encoded, plan, steps=5)
    parts = [
        train_dataset(encoded, plan, steps=5, part=(index, count))
        for index in range(count)
    ]
    assert_joined_equal(parts, whole)


def test_a_process_may_have_no_pair_of_the_last_batch(encoded):
    arguments = encoded, 128, (16,)
    whole = eval_dataset(*arguments)
    parts = [eval_dataset(*arguments, part=(i, 4)) for i in range(4)]
    assert_joined_equal(parts, whole)
    *_, (_, _, weights) = parts[-1]
    assert not weights.numpy().any()


def test_evaluation_refuses_buckets_that_hold_not_every_pair(encoded):
    with pytest.raises(ValueError, match="`bucket_lengths` must end in"):
        next(eval_batches(encoded, 10, (8, 12)))
