import functools
import itertools
import math

import keras
import numpy as np
import pytest
from keras import ops

from examples.translation import decode
from examples.translation.decode import PAD_ID
from examples.translation.decode import Translator
from examples.translation.decode import beam_search
from examples.translation.decode import compile_search
from examples.translation.model import Transformer

BOS, EOS = 1, 2


def small_model(seed=3, piece_count=12, **options):
    """A random model, the same on each backend, that often says eos."""
    sizes = {
        "vocab_size": 16,
        "num_layers": 1,
        "model_dim": 16,
        "ff_dim": 24,
        "num_heads": 4,
        "dropout": 0.1,
        # Tied, a random model repeats its last piece for ever.
        "tie_embeddings": False,
    }
    model = Transformer(piece_count=piece_count, **(sizes | options))
    model.build()
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        if not variable.path.endswith(("gamma", "beta", "bias")):
            variable.assign(rng.normal(0.0, 0.5, variable.shape))
    if norm := model.decoder.layer_norm:
        # Its offset becomes a bias of the logits: 1 for eos, else 0.
        projection = model.target_embedding.reverse_embeddings
        bias = np.where(np.arange(model.vocab_size) == EOS, 1.0, 0.0)
        offset = np.linalg.lstsq(np.transpose(projection), bias)[0]
        norm.beta.assign(offset)
    return model


def random_sources(count, length, piece_count=12, seed=0):
    rng = np.random.default_rng(seed)
    source_ids = np.zeros((count, length), "int32")
    for row in source_ids:
        pieces = rng.integers(3, piece_count, rng.integers(1, length))
        row[: len(pieces) + 1] = [*pieces, EOS]
    return source_ids


@functools.cache
def searcher(model, **options):
    if keras.backend.backend() == "tensorflow":
        # Op by op: compiling takes longer than the few steps of these tests.
        return functools.partial(beam_search, model, **options)
    return compile_search(model, **options)


def search(model, source_ids, **options):
    ids, scores = searcher(model, **options)(source_ids)
    return ops.convert_to_numpy(ids), ops.convert_to_numpy(scores)


class SlowScorer:
    """Log-probabilities by full decoder calls, without any cache."""

    def __init__(self, model, length, rows=1):
        self.model = model
        self.length = length
        self.rows = rows  # A constant number, so as to be compiled once.

    def __call__(self, source_ids, hypotheses):
        """One source, many lists of pieces -> `(hypotheses, L, pieces)`.

        Entry `t` is the distribution of piece `t` given those before it;
        pieces that no hypothesis may hold are -inf.
        """
        target_ids = np.zeros((self.rows, self.length), "int32")
        target_ids[:, 0] = BOS
        for row, pieces in zip(target_ids, hypotheses, strict=False):
            before_last = pieces[: self.length - 1]
            row[1 : 1 + len(before_last)] = before_last
        source_ids = np.broadcast_to(source_ids, (self.rows, len(source_ids)))
        logits = self.model.predict_on_batch(
            {
                "source_ids": source_ids,
                "source_segments": (source_ids > 0).astype("int32"),
                "source_positions": np.broadcast_to(
                    np.arange(source_ids.shape[1], dtype="int32"),
                    source_ids.shape,
                ),
                "target_ids": target_ids,
                "target_segments": np.ones_like(target_ids),
                "target_positions": np.broadcast_to(
                    np.arange(self.length, dtype="int32"), target_ids.shape
                ),
            }
        ).astype("float64")
        logits -= logits.max(-1, keepdims=True)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        log_probs[..., [PAD_ID, BOS]] = -np.inf
        return log_probs[: len(hypotheses), :, : self.model.piece_count]

    def score(self, source_ids, hypotheses, alpha):
        """The score of each hypothesis, whole with its eos."""
        log_probs = self(source_ids, hypotheses)
        return np.array(
            [
                sum(log_probs[row, t, piece] for t, piece in enumerate(pieces))
                / ((5 + len(pieces)) / 6) ** alpha
                for row, pieces in enumerate(hypotheses)
            ]
        )


def pieces_of(ids):
    """A row of ids up to its eos, which it must have, and then only 0."""
    ids = list(map(int, ids))
    end = ids.index(EOS) + 1
    assert not any(ids[end:])
    assert PAD_ID not in ids[:end] and BOS not in ids[:end]
    return ids[:end]


def slow_greedy(scorer, source_ids):
    pieces = []
    while pieces[-1:] != [EOS]:
        log_probs = scorer(source_ids, [pieces])[0, len(pieces)]
        is_last = len(pieces) == scorer.length - 1
        pieces.append(EOS if is_last else int(log_probs.argmax()))
    return pieces


def slow_beam_search(scorer, source_ids, beam_size, alpha):
    """The best hypothesis; lists, no cache and no early stop."""
    live, finished = [(0.0, [])], []
    for t in range(scorer.length):
        log_probs = scorer(source_ids, [pieces for _, pieces in live])[:, t]
        if t == scorer.length - 1:
            log_probs[:, np.arange(log_probs.shape[1]) != EOS] = -np.inf
        candidates = sorted(
            (
                (log_prob + log_probs[row, piece], [*pieces, piece])
                for row, (log_prob, pieces) in enumerate(live)
                for piece in range(log_probs.shape[1])
                if log_probs[row, piece] > -np.inf
            ),
            reverse=True,
        )
        penalty = ((5 + t + 1) / 6) ** alpha
        finished += [
            (log_prob / penalty, pieces)
            for log_prob, pieces in candidates[:beam_size]
            if pieces[-1] == EOS
        ]
        live = [c for c in candidates if c[1][-1] != EOS][:beam_size]
        if len(finished) >= beam_size or not live:
            break
    return max(finished)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_cached_logits_equal_uncached_logits(norm):
    model = small_model(norm=norm, num_layers=2)
    source_ids = random_sources(2, 6)
    rng = np.random.default_rng(0)
    hypotheses = rng.integers(3, 12, (2, 3, 7))  # (B, K, L)
    scorer = SlowScorer(model, 7, rows=3)
    expected = np.stack(
        [scorer(*pair) for pair in zip(source_ids, hypotheses, strict=True)]
    )
    segments = (source_ids > 0).astype("int32")
    memories = model.decoder.project(
        model.encode(source_ids, segments, np.arange(6)[None])
    )
    caches = model.new_caches(6, 7)
    pieces = np.full(6, BOS)
    for t in range(7):
        logits, caches = model.decode_step(
            ops.convert_to_tensor(pieces),
            ops.convert_to_tensor(t),
            memories,
            segments,
            caches,
        )
        log_probs = ops.convert_to_numpy(ops.log_softmax(logits))
        np.testing.assert_allclose(
            log_probs.reshape(2, 3, -1)[..., 2:12],
            expected[:, :, t, 2:],
            atol=1e-4,
        )
        pieces = hypotheses[:, :, t].reshape(-1)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 4.0])
def test_one_beam_is_greedy_search(alpha):
    model = small_model(seed=0)
    source_ids = random_sources(12, 6)
    scorer = SlowScorer(model, 8)
    ids, scores = search(
        model,
        source_ids,
        beam_size=1,
        length_penalty=alpha,
        max_decode_length=8,
    )
    lengths = set()
    for row, source in enumerate(source_ids):
        greedy = slow_greedy(scorer, source)
        assert pieces_of(ids[row, 0]) == greedy
        (score,) = scorer.score(source, [greedy], alpha)
        assert scores[row, 0] == pytest.approx(score, abs=1e-4)
        lengths.add(len(greedy))
    assert min(lengths) < 8 and len(lengths) > 2


@pytest.mark.parametrize("beam_size", [2, 3, 5])
def test_equals_a_slow_search_without_cache_and_early_stop(beam_size):
    model = small_model()
    source_ids = random_sources(8, 6, seed=1)
    scorer = SlowScorer(model, 7, rows=beam_size)
    ids, scores = search(
        model,
        source_ids,
        beam_size=beam_size,
        length_penalty=0.6,
        max_decode_length=7,
    )
    for row, source in enumerate(source_ids):
        score, pieces = slow_beam_search(scorer, source, beam_size, 0.6)
        assert pieces_of(ids[row, 0]) == pieces
        assert scores[row, 0] == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_beam_of_the_whole_space_finds_the_optimum(alpha):
    # Six pieces of which three may go on, and at most four in a hypothesis.
    model = small_model(piece_count=6)
    source_ids = random_sources(6, 4, piece_count=6)
    space = [
        [*pieces, EOS]
        for length in range(4)
        for pieces in itertools.product((3, 4, 5), repeat=length)
    ]
    scorer = SlowScorer(model, 4, rows=len(space))
    found = {
        beam_size: search(
            model,
            source_ids,
            beam_size=beam_size,
            length_penalty=alpha,
            max_decode_length=4,
        )
        for beam_size in (1, 3, len(space))
    }
    improved = 0
    for row, source in enumerate(source_ids):
        all_scores = scorer.score(source, space, alpha)
        best = all_scores.argmax()
        ids, scores = found[len(space)]
        assert pieces_of(ids[row, 0]) == space[best]
        assert scores[row, 0] == pytest.approx(all_scores[best], abs=1e-4)
        for beam_size in (1, 3):
            assert found[beam_size][1][row, 0] <= scores[row, 0] + 1e-4
        improved += found[1][1][row, 0] < scores[row, 0] - 1e-3
    assert improved  # Greedy search misses some: the test says something.


def test_larger_beams_find_better_scores():
    # A single sentence may lose by a larger beam, as with every beam search
    # that prunes; over many it gains.
    model = small_model()
    source_ids = random_sources(64, 6)
    means = []
    for beam_size in (1, 2, 4, 8):
        _, scores = search(
            model,
            source_ids,
            beam_size=beam_size,
            length_penalty=0.6,
            max_decode_length=8,
        )
        means.append(scores[:, 0].mean())
    assert means == sorted(means) and means[0] < means[-1] - 0.01


def test_returns_sorted_distinct_hypotheses_with_their_own_scores():
    model = small_model()
    source_ids = random_sources(8, 6)
    ids, scores = search(
        model,
        source_ids,
        beam_size=4,
        length_penalty=0.6,
        max_decode_length=8,
    )
    assert ids.shape == (8, 4, 8) and ids.dtype == np.int32
    assert scores.shape == (8, 4) and scores.dtype == np.float32
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    scorer = SlowScorer(model, 8, rows=4)
    for row, source in enumerate(source_ids):
        finished = scores[row] > -np.inf
        assert finished[0]
        assert not ids[row, ~finished].any()
        hypotheses = [pieces_of(h) for h in ids[row, finished]]
        assert len(set(map(tuple, hypotheses))) == len(hypotheses)
        np.testing.assert_allclose(
            scores[row, finished],
            scorer.score(source, hypotheses, 0.6),
            atol=1e-4,
        )


def test_a_sentence_does_not_depend_on_its_company_or_padding():
    model = small_model()
    options = {
        "beam_size": 3,
        "length_penalty": 0.6,
        "max_decode_length": 9,
    }
    source_ids = np.pad(random_sources(10, 7), [(0, 0), (0, 1)])
    together_ids, together = search(model, source_ids, **options)
    for row, source in enumerate(source_ids):
        length = 4 if (source > 0).sum() <= 4 else 7
        alone_ids, alone = search(model, source[None, :length], **options)
        np.testing.assert_array_equal(together_ids[row], alone_ids[0])
        np.testing.assert_allclose(together[row], alone[0], atol=1e-4)


def test_empty_rows_are_skipped():
    model = small_model()
    source_ids = random_sources(3, 6)
    source_ids[1] = 0
    ids, scores = search(
        model,
        source_ids,
        beam_size=2,
        length_penalty=0.6,
        max_decode_length=6,
    )
    assert not ids[1].any() and (scores[1] == -np.inf).all()
    assert (scores[[0, 2], 0] > -np.inf).all()


def test_the_shortest_possible_translation_is_eos():
    ids, scores = search(
        small_model(),
        random_sources(2, 6),
        beam_size=3,
        length_penalty=0.6,
        max_decode_length=1,
    )
    np.testing.assert_array_equal(ids[:, 0], [[EOS], [EOS]])
    assert (scores[:, 0] < 0).all() and (scores[:, 1:] == -np.inf).all()


def test_compiled_search_is_the_search_with_the_present_weights():
    model, other = small_model(), small_model(seed=5)
    source_ids = random_sources(4, 6)
    options = {"beam_size": 2, "length_penalty": 0.6, "max_decode_length": 6}
    compiled = compile_search(model, **options)
    for weights in (model.get_weights(), other.get_weights()):
        model.set_weights(weights)
        ids, scores = compiled(source_ids)
        expected_ids, expected_scores = search(model, source_ids, **options)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_allclose(scores, expected_scores, atol=1e-4)
        assert ids.dtype == np.int32 and scores.dtype == np.float32


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_decodes_in_mixed_precision(policy):
    model = small_model(dtype=policy)
    ids, scores = search(
        model,
        random_sources(4, 6),
        beam_size=2,
        length_penalty=0.6,
        max_decode_length=6,
    )
    assert np.isfinite(scores[:, 0]).all()
    for hypothesis in ids[:, 0]:
        pieces_of(hypothesis)


@pytest.mark.parametrize(
    "wrong",
    [{"beam_size": 0}, {"length_penalty": -0.1}, {"max_decode_length": 0}],
)
def test_wrong_arguments_are_named(wrong):
    options = {"beam_size": 1, "length_penalty": 0, "max_decode_length": 2}
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"`{name}`.*Received: .*{value}"):
        beam_search(small_model(), random_sources(1, 3), **(options | wrong))


class LetterTokenizer:
    """Nine letters, a piece each."""

    bos_id, eos_id = BOS, EOS
    letters = "abcdefghi"

    def encode(self, sentences):
        return [
            np.array([*(3 + self.letters.index(c) for c in s), EOS], "int32")
            for s in map(str.strip, sentences)
        ]

    def decode(self, ids):
        return [
            "".join(self.letters[i - 3] for i in row if i > EOS) for row in ids
        ]


@pytest.fixture
def echo_shapes(monkeypatch):
    """Searches that return the source; the shapes that they were given."""
    shapes = []

    def compile_echo(model, *, max_decode_length, **options):
        def echo(source_ids):
            shapes.append((*source_ids.shape, max_decode_length))
            return source_ids[:, None], np.zeros((len(source_ids), 1))

        return echo

    monkeypatch.setattr(decode, "compile_search", compile_echo)
    return shapes


def test_translator_keeps_the_order_and_the_lines(echo_shapes):
    translator = Translator(
        None, LetterTokenizer(), bucket_lengths=(4, 8), batch_size=2
    )
    sentences = ["abcdef", "", "a", "  ", "bc", "cdefghi", "i", "abc", "ab"]
    assert translator.translate(sentences) == [s.strip() for s in sentences]
    assert translator.translate([]) == []


def test_translator_needs_one_program_for_each_bucket(echo_shapes):
    translator = Translator(
        None,
        LetterTokenizer(),
        bucket_lengths=(4, 8),
        batch_size=2,
        max_decode_length=55,
    )
    translator.translate(["abc"] * 3 + ["abcd"] * 2 + ["a"] * 4)
    assert echo_shapes == [(2, 4, 54)] * 4 + [(2, 8, 55)]


def test_translator_says_what_it_cuts(echo_shapes, capsys):
    translator = Translator(
        None, LetterTokenizer(), bucket_lengths=(4, 8), batch_size=2
    )
    assert translator.translate(["abcdefgh", "ab"]) == ["abcdefg", "ab"]
    assert "1 of 2 sentences" in capsys.readouterr().err


def test_hypotheses_are_the_best_with_their_scores():
    options = {"bucket_lengths": (8,), "max_decode_length": 8, "beam_size": 3}
    translator = Translator(small_model(), LetterTokenizer(), **options)
    sentences = ["abcd", " ", "hgfedcb"]
    found = translator.hypotheses(sentences, n_best=3)
    assert len(found[0]) == 3
    assert found[1] == [("", 0.0)]
    for hypotheses in found:
        scores = [score for _, score in hypotheses]
        assert scores == sorted(scores, reverse=True)
        assert all(math.isfinite(score) for score in scores)
    assert len({text for text, _ in found[0]}) == 3
    assert translator.translate(sentences) == [best[0][0] for best in found]
    for row, two in enumerate(translator.hypotheses(sentences, n_best=2)):
        assert two == found[row][:2]


def test_fewer_hypotheses_than_asked_for_are_fewer(monkeypatch):
    scores = np.array([[-1.0, -np.inf], [np.nan, np.nan]], "float32")
    ids = np.array([[[3, 2], [0, 0]]] * 2)
    monkeypatch.setattr(
        decode,
        "compile_search",
        lambda model, **options: lambda _: (ids, scores),
    )
    translator = Translator(
        None, LetterTokenizer(), bucket_lengths=(4,), batch_size=2
    )
    assert translator.hypotheses(["ab"], n_best=2) == [[("a", -1.0)]]
    assert translator.translate(["ab", "cd"]) == ["a", "a"]


def test_translation_does_not_depend_on_other_sentences():
    options = {"bucket_lengths": (4, 8), "max_decode_length": 8}
    model = small_model()
    together = Translator(model, LetterTokenizer(), batch_size=4, **options)
    alone = Translator(model, LetterTokenizer(), batch_size=1, **options)
    sentences = ["abcd", "a", "hgfedcb", "be", "ii", "fab"]
    translations = together.translate(sentences)
    assert translations == [alone.translate([s])[0] for s in sentences]
    assert len(set(translations)) > 2
