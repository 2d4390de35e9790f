"""A decoder-only Transformer to ask sizes about, of the example's layers."""

import keras
import numpy as np
from keras import ops

from examples.translation.layers import causal_mask
from examples.translation.layers import layer_norm
from examples.translation.layers import recomputed
from examples.translation.layers import sinusoidal_positions
from examples.translation.model import EncoderLayer


class Decoder(keras.Model):
    """Pre-LN blocks of causal self-attention and a ReLU feed-forward network.

    One matrix embeds the pieces and predicts them. No dropout. A block has
    `4 * width**2 + 2 * width * ff_dim` weights and a few vectors. Logits are
    float32.

    Args:
        vocab_size: Pieces.
        num_layers: Blocks.
        width: Even, and a multiple of `num_heads`.
        ff_dim: Width inside the feed-forward networks.
        num_heads: Attention heads.
        remat: Whether activations inside a block are computed again in the
            backward pass and not kept.
        **kwargs: `dtype` and `name` of a Keras layer.
    """

    def __init__(
        self, vocab_size, num_layers, width, ff_dim, num_heads, remat, **kwargs
    ):
        super().__init__(**kwargs)
        self.width = width
        self.embedding = keras.layers.ReversibleEmbedding(
            vocab_size,
            width,
            reverse_dtype="float32",
            dtype=self.dtype_policy,
            name="embedding",
        )
        self.remat = remat
        self.blocks = [
            EncoderLayer(
                width,
                ff_dim,
                num_heads,
                dropout=0.0,
                norm="pre",
                dtype=self.dtype_policy,
                name=f"layer_{i}",
            )
            for i in range(num_layers)
        ]
        self.layer_norm = layer_norm(self.dtype_policy)

    def build(self, input_shape):
        self.embedding.build(input_shape)
        for block in self.blocks:
            block.build((*input_shape, self.width))
        self.layer_norm.build((*input_shape, self.width))

    def call(self, ids):
        """Ids `(B, T)` -> logits, float32 `(B, T, vocab_size)`."""
        length = ids.shape[1]
        encoding = sinusoidal_positions(np.arange(length)[None], self.width)
        x = self.embedding(ids) * self.width**0.5
        x = x + ops.cast(encoding, x.dtype)
        visible = causal_mask(length)
        for block in self.blocks:
            x = recomputed(block, when=self.remat)(x, visible=visible)
        return self.embedding(self.layer_norm(x), reverse=True)
