"""Label-smoothed cross-entropy and token accuracy, in float32.

Both return one value for each target position `(B, T)`; the batch's sample
weights, 1 on pieces and 0 on padding, do the averaging.
"""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="examples.translation")
class SmoothedCrossEntropy(keras.losses.Loss):
    """Cross-entropy with the target spread over the real pieces.

        (1 - s) * nll(label) + s * mean over pieces of nll(piece)

    Written with two sums over the vocabulary, so no one-hot target exists.

    The reduced loss is sum(weight * loss) / sum(weight), the mean over the real
    pieces of the batch that a step sees: packing, bucketing and padding do not
    change what a piece counts. Where one update is made of several batches,
    that is replicas under `tf.distribute` and gradient accumulation, Keras
    takes the mean of their means: a piece counts for more in a batch that has
    fewer of them. JAX data parallelism sees the global batch, so there the
    mean is over all of it.

    Args:
        label_smoothing: s in [0, 1).
        piece_count: Number of real pieces, the first of the vocabulary.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        label_smoothing,
        piece_count,
        reduction="mean_with_sample_weight",
        name="smoothed_cross_entropy",
        dtype="float32",
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                "Argument `label_smoothing` must be in [0, 1). Received: "
                f"label_smoothing={label_smoothing}"
            )
        if piece_count < 1:
            raise ValueError(
                "Argument `piece_count` must be at least 1. Received: "
                f"piece_count={piece_count}"
            )
        self.label_smoothing = label_smoothing
        self.piece_count = piece_count

    def call(self, labels, logits):
        """Labels `(B, T)`, logits `(B, T, vocab_size)` -> `(B, T)`."""
        pieces = np.arange(logits.shape[-1])
        # Not a gather: its gradient would be a scatter into a second array
        # of the size of the logits. This one's fuses with the softmax's.
        is_label = _is_label(labels, logits)
        label_logit = ops.sum(ops.where(is_label, logits, 0.0), -1)
        mean_logit = (
            ops.sum(ops.where(pieces < self.piece_count, logits, 0.0), -1)
            / self.piece_count
        )
        s = self.label_smoothing
        return (
            ops.logsumexp(logits, -1) - (1 - s) * label_logit - s * mean_logit
        )

    def get_config(self):
        return {
            **super().get_config(),
            "label_smoothing": self.label_smoothing,
            "piece_count": self.piece_count,
        }


def masked_accuracy(labels, logits):
    """Whether the label is the likeliest piece: 0 or 1, float32 `(B, T)`.

    A tie counts as wrong. To be passed to `compile(weighted_metrics=[...])`,
    where the sample weights leave out the padding.
    """
    is_label = _is_label(labels, logits)
    # Two maxima fuse with the loss; argmax is a pass of its own, and slow.
    label_logit = ops.max(ops.where(is_label, logits, -np.inf), axis=-1)
    best_other = ops.max(ops.where(is_label, -np.inf, logits), axis=-1)
    return ops.cast(label_logit > best_other, "float32")


def means_over_pieces(loss):
    """Weighted metrics of `compile`: `token_accuracy` and `token_loss`.

    Keras' own mean of a loss is that of its batches, by their rows: of what a
    replica saw, it makes padding count, and other batches make another mean.
    These are the means of all pieces, however they came.

    Args:
        loss: `SmoothedCrossEntropy`.
    """
    return [
        keras.metrics.MeanMetricWrapper(masked_accuracy, name="token_accuracy"),
        keras.metrics.MeanMetricWrapper(loss.call, name="token_loss"),
    ]


def _is_label(labels, logits):
    """bool `(B, T, vocab_size)`; a comparison, which fuses, not one_hot."""
    pieces = np.arange(logits.shape[-1])
    return ops.cast(labels, "int32")[:, :, None] == pieces
