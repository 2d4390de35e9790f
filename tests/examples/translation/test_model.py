import keras
import numpy as np
import pytest
from keras import ops

from examples.translation.layers import Attention
from examples.translation.layers import Residual
from examples.translation.layers import causal_mask
from examples.translation.layers import segment_mask
from examples.translation.layers import sinusoidal_positions
from examples.translation.losses import SmoothedCrossEntropy
from examples.translation.losses import masked_accuracy
from examples.translation.model import Transformer
from examples.translation.model import build_model

PIECES = 29


def small_model(seed=0, **options):
    keras.utils.set_random_seed(seed)
    sizes = {
        "vocab_size": 32,
        "piece_count": PIECES,
        "num_layers": 1,
        "model_dim": 16,
        "ff_dim": 24,
        "num_heads": 4,
        "dropout": 0.0,
    }
    model = Transformer(**(sizes | options))
    model.build()
    return model


def random_sentences(count, seed=0, longest=7):
    """Pairs of source and target, each int32 and ending in eos."""
    rng = np.random.default_rng(seed)

    def sentence():
        pieces = rng.integers(3, PIECES, rng.integers(1, longest))
        return np.append(pieces, 2).astype("int32")

    return [(sentence(), sentence()) for _ in range(count)]


def make_batch(rows, length):
    """Rows of pairs, packed one after the other, as one training element."""
    features = {
        f"{side}_{what}": np.zeros((len(rows), length), "int32")
        for side in ("source", "target")
        for what in ("ids", "segments", "positions")
    }
    labels = np.zeros((len(rows), length), "int32")
    weights = np.zeros((len(rows), length), "float32")
    for row, pairs in enumerate(rows):
        ends = {"source": 0, "target": 0}
        for segment, (source, target) in enumerate(pairs, start=1):
            shifted = np.insert(target[:-1], 0, 1)
            for side, ids in (("source", source), ("target", shifted)):
                span = slice(ends[side], ends[side] + len(ids))
                features[f"{side}_ids"][row, span] = ids
                features[f"{side}_segments"][row, span] = segment
                features[f"{side}_positions"][row, span] = np.arange(len(ids))
                ends[side] = span.stop
            labels[row, span] = target
            weights[row, span] = 1
    return features, labels, weights


def logits_of(model, features):
    return model.predict_on_batch(features)


def test_positions_are_the_papers():
    encoding = ops.convert_to_numpy(sinusoidal_positions([[0, 1, 513]], 6))
    for t, position in enumerate((0, 1, 513)):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            np.testing.assert_allclose(
                encoding[0, t, [i, 3 + i]],
                [np.sin(angle), np.cos(angle)],
                atol=1e-4,
            )


def test_attention_equals_keras_multi_head_attention():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(2, 5, 12)).astype("float32")
    memory = rng.normal(size=(2, 7, 12)).astype("float32")
    visible = rng.random((2, 1, 5, 7)) < 0.7
    visible[..., 0] = True
    ours = Attention(12, num_heads=3, dropout=0.0)
    ours.build((None, None, 12))
    theirs = keras.layers.MultiHeadAttention(3, 4, use_bias=False)
    theirs.build(queries.shape, memory.shape, memory.shape)
    weights = {w.path.split("/")[-2]: w.numpy() for w in ours.weights}
    theirs.set_weights(
        [
            weights[{"attention_output": "output"}.get(name, name)]
            for name in (w.path.split("/")[-2] for w in theirs.weights)
        ]
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(ours(queries, ours.project(memory), visible)),
        ops.convert_to_numpy(
            theirs(queries, memory, attention_mask=visible[:, 0])
        ),
        atol=1e-5,
    )


def test_attention_kernels_are_glorot_uniform_as_matrices():
    model = small_model(model_dim=64, num_heads=8)
    kernels = [w for w in model.weights if "attention/" in w.path]
    kernels = [w for w in kernels if w.path.endswith("kernel")]
    assert len(kernels) == 4 + 8
    for kernel in kernels:
        assert np.prod(kernel.shape) == 64 * 64
        expected = np.sqrt(2 / (64 + 64))
        assert np.std(kernel.numpy()) == pytest.approx(expected, rel=0.05)
        assert not np.array_equal(kernel.numpy(), kernels[0].numpy()) or (
            kernel is kernels[0]
        )


def test_residual_normalizes_before_or_after():
    x = np.random.default_rng(0).normal(2.0, 3.0, (2, 3, 8)).astype("float32")
    y = np.ones_like(x)
    y[..., 0] = 5.0

    def normalized(x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    halves = {}
    for norm in ("pre", "post"):
        residual = Residual(norm, dropout=0.0)
        residual.build(x.shape)
        halves[norm] = [
            ops.convert_to_numpy(residual.before(ops.convert_to_tensor(x))),
            ops.convert_to_numpy(residual.after(ops.convert_to_tensor(x), y)),
        ]
    np.testing.assert_allclose(halves["pre"][0], normalized(x), atol=1e-5)
    np.testing.assert_allclose(halves["pre"][1], x + y, atol=1e-5)
    np.testing.assert_allclose(halves["post"][0], x, atol=1e-5)
    np.testing.assert_allclose(halves["post"][1], normalized(x + y), atol=1e-5)


def test_masks_follow_segments_and_time():
    segments = np.array([[1, 1, 2, 0]], "int32")
    mask = ops.convert_to_numpy(segment_mask(segments, segments))
    assert mask[0, 0].tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, False],
    ]
    assert ops.convert_to_numpy(causal_mask(3))[0, 0].tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


@pytest.mark.parametrize(
    "preset, expected",
    [
        # Table 3 of the paper says 65 and 213 million.
        ({"model_dim": 512, "ff_dim": 2048, "num_heads": 8}, 63.1e6),
        ({"model_dim": 1024, "ff_dim": 4096, "num_heads": 16}, 214.3e6),
    ],
    ids=["base", "big"],
)
def test_paper_sizes(preset, expected):
    counts = [
        small_model(
            vocab_size=128, piece_count=128, num_layers=layers, **preset
        ).count_params()
        for layers in (1, 2)
    ]
    embeddings = (37_120 - 128) * preset["model_dim"]
    total = counts[0] + 5 * (counts[1] - counts[0]) + embeddings
    assert total == pytest.approx(expected, rel=1e-3)


def test_variables_are_named_by_place():
    paths = [v.path for v in small_model(num_layers=2).trainable_variables]
    assert len(set(paths)) == len(paths)
    for path in (
        "transformer/embedding/embeddings",
        "transformer/encoder/layer_0/self_attention/query/kernel",
        "transformer/encoder/layer_1/self_attention/output/kernel",
        "transformer/encoder/layer_0/feed_forward_residual/layer_norm/gamma",
        "transformer/decoder/layer_1/cross_attention/value/kernel",
        "transformer/decoder/layer_0/feed_forward/inner/bias",
        "transformer/decoder/layer_norm/beta",
    ):
        assert path in paths
    again = small_model(num_layers=2).trainable_variables
    assert [v.path for v in again] == paths


def test_embeddings_are_tied_three_ways_unless_asked():
    def matrices(model):
        return [w.path for w in model.weights if "embedding" in w.path]

    assert len(matrices(small_model())) == 1
    assert len(matrices(small_model(tie_embeddings=False))) == 3


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_predictions_never_see_the_future(norm):
    model = small_model(norm=norm)
    features, *_ = make_batch([random_sentences(1, longest=8)], 8)
    features["target_segments"][:] = 1
    before = logits_of(model, features)
    features["target_ids"][0, 5] = 4
    after = logits_of(model, features)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.abs(before[:, 5:] - after[:, 5:]).max(-1).min() > 1e-3


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_changes_nothing(norm):
    model = small_model(norm=norm)
    rows = [[pair] for pair in random_sentences(4)]
    tight, labels, weights = make_batch(rows, 8)
    loose, *_ = make_batch(rows, 13)
    loose["source_ids"][loose["source_segments"] == 0] = 5
    real = weights > 0
    np.testing.assert_allclose(
        logits_of(model, tight)[real],
        logits_of(model, loose)[:, :8][real],
        atol=1e-4,
    )


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_packed_loss_equals_unpacked_loss(norm):
    pairs = random_sentences(12)
    loss = SmoothedCrossEntropy(0.1, PIECES)
    results = []
    for rows, length in (
        ([[pair] for pair in pairs], 9),
        ([pairs[:5], pairs[5:8], pairs[8:]], 40),
    ):
        model = small_model(norm=norm)
        model.compile(keras.optimizers.SGD(1.0), loss)
        features, labels, weights = make_batch(rows, length)
        value = model.train_on_batch(features, labels, weights)
        results.append((value, [w.numpy() for w in model.weights]))
    (unpacked, unpacked_weights), (packed, packed_weights) = results
    assert packed == pytest.approx(unpacked, abs=1e-5)
    # One step of plain SGD: the gradients are the same too.
    for one, other in zip(unpacked_weights, packed_weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_rows_that_pad_the_vocabulary_are_masked_and_never_trained():
    model = small_model()
    features, labels, weights = make_batch([random_sentences(3)], 24)
    assert (logits_of(model, features)[..., PIECES:] <= -1e9).all()
    before = model.target_embedding.embeddings.numpy()
    model.compile(keras.optimizers.SGD(1.0), SmoothedCrossEntropy(0.1, PIECES))
    model.train_on_batch(features, labels, weights)
    after = model.target_embedding.embeddings.numpy()
    np.testing.assert_array_equal(before[PIECES:], after[PIECES:])
    assert (before[:PIECES] != after[:PIECES]).any(axis=1).all()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_logits_in_float32(policy):
    features, *_ = make_batch([[pair] for pair in random_sentences(4)], 9)
    exact = logits_of(small_model(), features)
    model = small_model(dtype=policy)
    assert {w.dtype for w in model.weights} == {"float32"}
    mixed = model(features)
    assert keras.backend.standardize_dtype(mixed.dtype) == "float32"
    # Rows and queries that are all padding must stay finite in float16.
    mixed = ops.convert_to_numpy(mixed)
    assert np.isfinite(mixed).all()
    np.testing.assert_allclose(mixed, exact, atol=0.15)
    assert not np.array_equal(mixed, exact)


def test_dropout_is_for_training_and_follows_the_seed():
    features, *_ = make_batch([[pair] for pair in random_sentences(4)], 9)

    def train_logits():
        model = small_model(dropout=0.5)
        return [
            ops.convert_to_numpy(model(features, training=True))
            for _ in range(2)
        ]

    model, same = small_model(dropout=0.5), small_model(seed=1)
    same.set_weights(model.get_weights())
    np.testing.assert_array_equal(
        logits_of(model, features), logits_of(same, features)
    )
    first, second = train_logits()
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, train_logits()[0])


def test_recomputed_layers_train_the_same():
    """Weights and seeds of dropout, after two steps."""
    batch = make_batch([[pair] for pair in random_sentences(8)], 9)

    def trained(remat):
        model = small_model(num_layers=2, dropout=0.1, remat=remat)
        model.compile(
            keras.optimizers.SGD(0.1),
            SmoothedCrossEntropy(0.1, PIECES),
            jit_compile=True,
        )
        losses = [model.train_on_batch(*batch) for _ in range(2)]
        return losses, model

    expected_losses, expected = trained(remat=False)
    losses, model = trained(remat=True)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    for variable, other in zip(
        model.variables, expected.variables, strict=True
    ):
        np.testing.assert_allclose(
            ops.convert_to_numpy(variable),
            ops.convert_to_numpy(other),
            rtol=1e-4,
            atol=1e-6,
            err_msg=variable.path,
        )


@pytest.mark.parametrize(
    "norm", ["pre", pytest.param("post", marks=pytest.mark.exhaustive)]
)
def test_learns_to_reverse(norm):
    rng = np.random.default_rng(0)
    pieces = rng.integers(3, PIECES, (64, 5)).astype("int32")
    rows = [[(np.append(p, 2), np.append(p[::-1], 2))] for p in pieces]
    batch = make_batch(rows, 6)
    model = small_model(model_dim=32, ff_dim=64, norm=norm, dropout=0.02)
    model.compile(
        keras.optimizers.Adam(3e-3),
        SmoothedCrossEntropy(0.1, PIECES),
        weighted_metrics=[masked_accuracy],
        jit_compile=True,
    )
    for _ in range(150):
        _, accuracy = model.train_on_batch(*batch)
        model.reset_metrics()
    assert accuracy > 0.9


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_saves_and_loads(tmp_path, tie_embeddings):
    model = small_model(norm="post", dropout=0.1, tie_embeddings=tie_embeddings)
    features, *_ = make_batch([[pair] for pair in random_sentences(2)], 9)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    assert [w.path for w in loaded.weights] == [w.path for w in model.weights]
    np.testing.assert_array_equal(
        logits_of(loaded, features), logits_of(model, features)
    )


def test_saving_keeps_the_dtype_policy(tmp_path):
    model = small_model(dtype="mixed_bfloat16")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    policies = {
        layer.dtype_policy.name
        for stack in (loaded.encoder.stack, loaded.decoder.stack)
        for layer in (stack[0], stack[0].self_attention, stack[0].feed_forward)
    }
    assert policies == {loaded.dtype_policy.name} == {"mixed_bfloat16"}


def test_builds_from_a_configuration():
    class Config:
        num_layers, model_dim, ff_dim, num_heads = 1, 8, 12, 2
        dropout, norm, remat = 0.2, "post", "on"

    model = build_model(
        Config, vocab_size=32, piece_count=29, dtype="mixed_bfloat16"
    )
    assert model.built and len(model.trainable_variables) > 0
    config = model.get_config()
    assert config["dropout"] == 0.2 and config["norm"] == "post"
    assert config["remat"]
    assert model.compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    "wrong",
    [
        {"piece_count": 33},
        {"piece_count": 0},
        {"model_dim": 18},
        {"model_dim": 15, "num_heads": 5},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"norm": "none"},
    ],
)
def test_wrong_arguments_are_named(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=rf"`{name}`.*Received: .*{value}"):
        small_model(**wrong)
