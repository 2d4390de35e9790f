import keras
import numpy as np
import pytest
from keras import ops

from examples.translation.losses import SmoothedCrossEntropy
from examples.translation.losses import masked_accuracy
from examples.translation.losses import means_over_pieces

PIECES, VOCABULARY = 6, 8


def random_batch(seed=0, scale=3.0):
    """Labels, logits as the model masks them, and weights with padding."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, scale, (3, 5, VOCABULARY)).astype("float32")
    logits[..., PIECES:] = -1e9
    labels = rng.integers(0, PIECES, (3, 5)).astype("int32")
    weights = (np.arange(5) < [[5], [3], [1]]).astype("float32")
    labels[weights == 0] = 0
    return labels, logits, weights


def smoothed_target(labels, smoothing):
    target = np.zeros((*labels.shape, VOCABULARY))
    target[..., :PIECES] = smoothing / PIECES
    rows = np.indices(labels.shape)
    target[*rows, labels] += 1 - smoothing
    return target


def log_softmax(logits):
    logits = logits.astype("float64")
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def oracle(labels, logits, smoothing):
    """Float64 cross-entropy with the whole target written out."""
    target = smoothed_target(labels, smoothing)
    return -(target * np.where(target > 0, log_softmax(logits), 0)).sum(-1)


class Logits(keras.Model):
    """A model whose weights are the logits it returns."""

    def __init__(self, logits):
        super().__init__()
        self.logits = self.add_weight(
            shape=logits.shape, initializer=lambda *_, **__: logits
        )

    def call(self, inputs):
        return ops.cast(inputs[:, :, None], "float32") * 0 + self.logits


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_equals_cross_entropy_with_the_target_written_out(smoothing):
    labels, logits, weights = random_batch()
    per_piece = SmoothedCrossEntropy(smoothing, PIECES, reduction="none")
    expected = oracle(labels, logits, smoothing)
    np.testing.assert_allclose(
        ops.convert_to_numpy(per_piece(labels, logits)), expected, rtol=1e-5
    )
    mean = SmoothedCrossEntropy(smoothing, PIECES)
    np.testing.assert_allclose(
        float(mean(labels, logits, sample_weight=weights)),
        (weights * expected).sum() / weights.sum(),
        rtol=1e-5,
    )


def test_gradient_is_softmax_minus_target_over_real_pieces():
    labels, logits, weights = random_batch()
    model = Logits(logits)
    model.compile(keras.optimizers.SGD(1.0), SmoothedCrossEntropy(0.1, PIECES))
    model.train_on_batch(labels, labels, weights)
    gradient = np.exp(log_softmax(logits)) - smoothed_target(labels, 0.1)
    gradient *= weights[:, :, None] / weights.sum()
    np.testing.assert_allclose(
        logits - ops.convert_to_numpy(model.logits), gradient, atol=1e-6
    )


def test_more_padding_does_not_change_the_loss():
    labels, logits, weights = random_batch()
    loss = SmoothedCrossEntropy(0.1, PIECES)
    value = float(loss(labels, logits, sample_weight=weights))
    padded = [
        np.pad(x, [(0, 2), (0, 3), (0, 0)][: x.ndim])
        for x in (labels, logits, weights)
    ]
    assert float(
        loss(padded[0], padded[1], sample_weight=padded[2])
    ) == pytest.approx(value, rel=1e-6)


def test_a_batch_of_padding_has_loss_zero():
    labels, logits, weights = random_batch()
    loss = SmoothedCrossEntropy(0.1, PIECES)
    assert float(loss(labels, logits, sample_weight=0 * weights)) == 0.0


def test_is_float32_whatever_the_logits_are():
    labels, logits, _ = random_batch()
    loss = SmoothedCrossEntropy(0.1, PIECES, reduction="none")
    rounded = ops.cast(logits, "bfloat16")
    values = loss(labels, rounded)
    assert keras.backend.standardize_dtype(values.dtype) == "float32"
    np.testing.assert_allclose(
        ops.convert_to_numpy(values),
        oracle(labels, ops.convert_to_numpy(ops.cast(rounded, "float32")), 0.1),
        rtol=1e-5,
    )


def test_large_logits_do_not_overflow():
    labels, logits, _ = random_batch(scale=1e4)
    loss = SmoothedCrossEntropy(0.1, PIECES, reduction="none")
    np.testing.assert_allclose(
        ops.convert_to_numpy(loss(labels, logits)),
        oracle(labels, logits, 0.1),
        rtol=1e-5,
    )


def test_accuracy_is_that_of_the_likeliest_piece():
    labels, logits, _ = random_batch()
    labels[:, ::2] = logits[:, ::2].argmax(-1)
    accuracy = ops.convert_to_numpy(masked_accuracy(labels, logits))
    np.testing.assert_array_equal(accuracy, labels == logits.argmax(-1))
    assert 0 < accuracy.mean() < 1


def test_accuracy_of_a_constant_model_is_zero():
    labels, logits, _ = random_batch()
    assert not ops.convert_to_numpy(masked_accuracy(labels, 0 * logits)).any()


def test_accuracy_leaves_out_padding_in_compile():
    labels, logits, weights = random_batch()
    weights[0] = 0
    labels[1:] = logits[1:].argmax(-1)
    labels[0] = logits[0].argmin(-1)
    model = Logits(logits)
    model.compile(
        loss=SmoothedCrossEntropy(0.1, PIECES),
        weighted_metrics=[masked_accuracy],
    )
    _, accuracy = model.test_on_batch(labels, labels, weights)
    assert accuracy == 1.0


def test_means_over_pieces_are_those_of_any_batches():
    """Keras' own loss is another one, with padding in one batch."""
    labels, logits, weights = random_batch()
    weights[:2] = 0
    loss = SmoothedCrossEntropy(0.1, PIECES)
    expected = oracle(labels, logits, 0.1)[weights > 0].mean()

    def evaluated(batches):
        model = keras.Sequential([keras.layers.Identity()])
        model.compile(loss=loss, weighted_metrics=means_over_pieces(loss))
        data = ((logits[b], labels[b], weights[b]) for b in batches)
        return model.evaluate(data, return_dict=True, verbose=0)

    everything = evaluated([slice(None)])
    in_parts = evaluated([slice(0, 2), slice(2, None)])
    for found in (everything, in_parts):
        assert found["token_loss"] == pytest.approx(expected, rel=1e-6)
    assert in_parts["token_accuracy"] == everything["token_accuracy"]
    assert everything["loss"] == pytest.approx(expected, rel=1e-6)
    assert in_parts["loss"] < 0.9 * expected


def test_serializes():
    loss = SmoothedCrossEntropy(0.2, PIECES)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert isinstance(again, SmoothedCrossEntropy)
    assert again.get_config() == loss.get_config()


@pytest.mark.parametrize(
    "name, value",
    [("label_smoothing", -0.1), ("label_smoothing", 1.0), ("piece_count", 0)],
)
def test_wrong_arguments_are_named(name, value):
    arguments = {"label_smoothing": 0.1, "piece_count": 3} | {name: value}
    with pytest.raises(ValueError, match=rf"`{name}`.*Received: .*{value}"):
        SmoothedCrossEntropy(**arguments)
