"""The encoder-decoder Transformer of Vaswani et al. (2017), on any backend.

One code path serves padded and packed batches: a batch says with segments and
positions which pieces belong together, and attention never leaves a segment.
Training runs `Transformer.call`; decoding runs `encode` once, then
`decode_step` for each piece with the keys and values of the earlier ones.
"""

import keras
import numpy as np
from keras import ops

from examples.translation.layers import MASKED_SCORE
from examples.translation.layers import Attention
from examples.translation.layers import FeedForward
from examples.translation.layers import Residual
from examples.translation.layers import causal_mask
from examples.translation.layers import layer_norm
from examples.translation.layers import recomputed
from examples.translation.layers import segment_mask
from examples.translation.layers import shared_dropout
from examples.translation.layers import sinusoidal_positions


class EncoderLayer(keras.layers.Layer):
    """Self-attention and a feed-forward network."""

    def __init__(self, model_dim, ff_dim, num_heads, dropout, norm, **kwargs):
        super().__init__(**kwargs)
        dtype = self.dtype_policy
        self.self_attention_residual = Residual(
            norm, dropout, dtype=dtype, name="self_attention_residual"
        )
        self.self_attention = Attention(
            model_dim, num_heads, dropout, dtype=dtype, name="self_attention"
        )
        self.feed_forward_residual = Residual(
            norm, dropout, dtype=dtype, name="feed_forward_residual"
        )
        self.feed_forward = FeedForward(
            model_dim, ff_dim, dropout, dtype=dtype, name="feed_forward"
        )

    def build(self, input_shape):
        self.self_attention_residual.build(input_shape)
        self.self_attention.build(input_shape)
        self.feed_forward_residual.build(input_shape)
        self.feed_forward.build(input_shape)

    def call(self, x, visible, training=False):
        h = self.self_attention_residual.before(x)
        y = self.self_attention(
            h, self.self_attention.project(h), visible, training=training
        )
        x = self.self_attention_residual.after(x, y, training=training)
        h = self.feed_forward_residual.before(x)
        y = self.feed_forward(h, training=training)
        return self.feed_forward_residual.after(x, y, training=training)


class DecoderLayer(keras.layers.Layer):
    """Causal self-attention, attention to the encoder, feed-forward network."""

    def __init__(self, model_dim, ff_dim, num_heads, dropout, norm, **kwargs):
        super().__init__(**kwargs)
        dtype = self.dtype_policy
        self.self_attention_residual = Residual(
            norm, dropout, dtype=dtype, name="self_attention_residual"
        )
        self.self_attention = Attention(
            model_dim, num_heads, dropout, dtype=dtype, name="self_attention"
        )
        self.cross_attention_residual = Residual(
            norm, dropout, dtype=dtype, name="cross_attention_residual"
        )
        self.cross_attention = Attention(
            model_dim, num_heads, dropout, dtype=dtype, name="cross_attention"
        )
        self.feed_forward_residual = Residual(
            norm, dropout, dtype=dtype, name="feed_forward_residual"
        )
        self.feed_forward = FeedForward(
            model_dim, ff_dim, dropout, dtype=dtype, name="feed_forward"
        )

    def build(self, input_shape):
        self.self_attention_residual.build(input_shape)
        self.self_attention.build(input_shape)
        self.cross_attention_residual.build(input_shape)
        self.cross_attention.build(input_shape)
        self.feed_forward_residual.build(input_shape)
        self.feed_forward.build(input_shape)

    def call(
        self,
        x,
        memory,
        self_visible,
        cross_visible,
        cache=None,
        index=None,
        training=False,
    ):
        """Decodes whole rows, or with a `cache` one position of each row.

        Args:
            x: `(R, T, model_dim)`. Without a cache R is B. With one, T is 1
                and R is B times the number of beams.
            memory: Keys and values of the encoder's output, `(B, S, N, H)`
                each. All beams of a sentence share them.
            self_visible: bool, broadcastable to `(R, N, T, keys)`.
            cross_visible: bool, broadcastable to `(B, N, T, S)`.
            cache: Keys and values of this layer's self-attention so far,
                `(R, max_length, N, H)` each.
            index: Scalar int32, the position in the cache to write.
            training: Whether to drop out.

        Returns:
            `x` and the self-attention's keys and values: those of the row, or
            the cache with this position written.
        """
        h = self.self_attention_residual.before(x)
        keys_values = self.self_attention.project(h)
        if cache is not None:
            # Not `slice_update`: on TensorFlow it needs XLA, which the host of
            # a TPU has not. The search copies the cache anyway.
            here = ops.arange(cache[0].shape[1])[:, None, None] == index
            keys_values = [
                ops.where(here, present, past)
                for past, present in zip(cache, keys_values, strict=True)
            ]
        y = self.self_attention(h, keys_values, self_visible, training=training)
        x = self.self_attention_residual.after(x, y, training=training)

        h = self.cross_attention_residual.before(x)
        # With a cache: the beams of a sentence become its query positions, so
        # that the memory is read once a sentence and not once a beam.
        y = self.cross_attention(
            ops.reshape(h, (ops.shape(memory[0])[0], -1, h.shape[-1])),
            memory,
            cross_visible,
            training=training,
        )
        y = ops.reshape(y, ops.shape(h))
        x = self.cross_attention_residual.after(x, y, training=training)

        h = self.feed_forward_residual.before(x)
        y = self.feed_forward(h, training=training)
        x = self.feed_forward_residual.after(x, y, training=training)
        return x, keys_values


class Encoder(keras.layers.Layer):
    """A stack of encoder layers; pre-LN normalises once more at the end."""

    def __init__(self, num_layers, norm, remat, dtype, name, **options):
        super().__init__(dtype=dtype, name=name)
        self.remat = remat
        self.stack = [
            EncoderLayer(norm=norm, dtype=dtype, name=f"layer_{i}", **options)
            for i in range(num_layers)
        ]
        self.layer_norm = layer_norm(dtype) if norm == "pre" else None

    def build(self, input_shape):
        for layer in self.stack:
            layer.build(input_shape)
        if self.layer_norm:
            self.layer_norm.build(input_shape)

    def call(self, x, visible, training=False):
        for layer in self.stack:
            call = recomputed(layer, when=self.remat and training)
            x = call(x, visible=visible, training=training)
        return self.layer_norm(x) if self.layer_norm else x


class Decoder(keras.layers.Layer):
    """A stack of decoder layers; pre-LN normalises once more at the end."""

    def __init__(self, num_layers, norm, remat, dtype, name, **options):
        super().__init__(dtype=dtype, name=name)
        self.remat = remat
        self.stack = [
            DecoderLayer(norm=norm, dtype=dtype, name=f"layer_{i}", **options)
            for i in range(num_layers)
        ]
        self.layer_norm = layer_norm(dtype) if norm == "pre" else None

    def build(self, input_shape):
        for layer in self.stack:
            layer.build(input_shape)
        if self.layer_norm:
            self.layer_norm.build(input_shape)

    def project(self, memory):
        """Keys and values of the encoder's output, a pair for each layer."""
        return [layer.cross_attention.project(memory) for layer in self.stack]

    def call(
        self,
        x,
        memories,
        self_visible,
        cross_visible,
        caches=None,
        index=None,
        training=False,
    ):
        """See `DecoderLayer.call`; `memories` and `caches` are per layer."""
        if caches is None:
            caches = [None] * len(self.stack)
        new_caches = []
        for layer, memory, cache in zip(
            self.stack, memories, caches, strict=True
        ):
            call = recomputed(layer, when=self.remat and training)
            x, cache = call(
                x,
                memory,
                self_visible=self_visible,
                cross_visible=cross_visible,
                cache=cache,
                index=index,
                training=training,
            )
            new_caches.append(cache)
        return self.layer_norm(x) if self.layer_norm else x, new_caches


@keras.saving.register_keras_serializable(package="examples.translation")
class Transformer(keras.Model):
    """Encoder-decoder Transformer for translation.

    Variables are named by where they stand, as in
    `transformer/encoder/layer_0/self_attention/query/kernel`. Embeddings and
    output projection share one matrix (`tie_embeddings`), multiplied by
    sqrt(model_dim) on the way in. The dtype policy sets the type of the
    activations; scores, softmax and logits are float32 under every policy.

    Args:
        vocab_size: Rows of the embedding, padded for the hardware's sake.
        piece_count: Rows that are real pieces, at most `vocab_size`. The
            others are never predicted.
        num_layers: Encoder layers, and decoder layers.
        model_dim: Width, even and a multiple of `num_heads`.
        ff_dim: Width inside the feed-forward networks.
        num_heads: Attention heads.
        dropout: Rate in [0, 1), for embeddings, attention weights, the inside
            of the feed-forward networks and the output of each sublayer. The
            paper drops the first and the last, its code all four. Masks are
            shared by the positions of a row, see `layers.shared_dropout`.
        norm: `"pre"` or `"post"`, see `layers.Residual`. The paper's is post.
        tie_embeddings: `False` gives source, target and output projection a
            matrix each.
        remat: Whether training keeps the inputs of layers alone and computes
            what is inside again in the backward pass.
        name: Where the paths of its variables begin.
        **kwargs: `dtype` and `trainable` of a Keras layer.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        vocab_size,
        piece_count,
        num_layers,
        model_dim,
        ff_dim,
        num_heads,
        dropout=0.1,
        norm="pre",
        tie_embeddings=True,
        remat=False,
        name="transformer",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        if not 0 < piece_count <= vocab_size:
            raise ValueError(
                "Argument `piece_count` must be in [1, vocab_size]. Received: "
                f"piece_count={piece_count}, vocab_size={vocab_size}"
            )
        if model_dim % 2 or model_dim % num_heads:
            raise ValueError(
                "Argument `model_dim` must be even and a multiple of "
                f"`num_heads`. Received: model_dim={model_dim}, "
                f"num_heads={num_heads}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(
                "Argument `dropout` must be in [0, 1). Received: "
                f"dropout={dropout}"
            )
        if norm not in ("pre", "post"):
            raise ValueError(
                "Argument `norm` must be 'pre' or 'post'. Received: "
                f"norm={norm!r}"
            )
        self.vocab_size = vocab_size
        self.piece_count = piece_count
        self.num_layers = num_layers
        self.model_dim = model_dim
        self.ff_dim = ff_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.norm = norm
        self.tie_embeddings = tie_embeddings
        self.remat = remat

        self.target_embedding = keras.layers.ReversibleEmbedding(
            vocab_size,
            model_dim,
            tie_weights=tie_embeddings,
            embeddings_initializer=self._embedding_initializer(),
            reverse_dtype="float32",
            dtype=self.dtype_policy,
            name="embedding" if tie_embeddings else "target_embedding",
        )
        self.source_embedding = (
            self.target_embedding
            if tie_embeddings
            else keras.layers.Embedding(
                vocab_size,
                model_dim,
                embeddings_initializer=self._embedding_initializer(),
                dtype=self.dtype_policy,
                name="source_embedding",
            )
        )
        self.embedding_dropout = shared_dropout(dropout, 3, self.dtype_policy)
        options = {
            "num_layers": num_layers,
            "model_dim": model_dim,
            "ff_dim": ff_dim,
            "num_heads": num_heads,
            "dropout": dropout,
            "norm": norm,
            "remat": remat,
            "dtype": self.dtype_policy,
        }
        self.encoder = Encoder(name="encoder", **options)
        self.decoder = Decoder(name="decoder", **options)

    def _embedding_initializer(self):
        return keras.initializers.RandomNormal(stddev=self.model_dim**-0.5)

    def build(self, input_shape=None):
        """Creates every variable; no shape of a batch matters for that."""
        del input_shape
        shape = (None, None, self.model_dim)
        self.target_embedding.build((None, None))
        if not self.tie_embeddings:
            self.source_embedding.build((None, None))
        self.encoder.build(shape)
        self.decoder.build(shape)

    def call(self, features, training=False):
        """Predicts each target piece from those before it.

        Args:
            features: Dict of int32 tensors `source_ids`, `source_segments`,
                `source_positions` `(B, S)` and `target_ids`,
                `target_segments`, `target_positions` `(B, T)`. `target_ids`
                is the decoder's input: bos, then the target shifted right.
                Segments count from 1; segment 0 is padding.
            training: Whether to drop out.

        Returns:
            Logits, float32 `(B, T, vocab_size)`.
        """
        source_segments = features["source_segments"]
        target_segments = features["target_segments"]
        memory = self.encode(
            features["source_ids"],
            source_segments,
            features["source_positions"],
            training=training,
        )
        x = self._embed(
            self.target_embedding,
            features["target_ids"],
            features["target_positions"],
            training,
        )
        x, _ = self.decoder(
            x,
            self.decoder.project(memory),
            segment_mask(target_segments, target_segments)
            & causal_mask(ops.shape(target_segments)[1]),
            segment_mask(target_segments, source_segments),
            training=training,
        )
        return self._logits(x)

    def encode(self, ids, segments, positions, training=False):
        """Source `(B, S)` int32, as in `call` -> `(B, S, model_dim)`."""
        x = self._embed(self.source_embedding, ids, positions, training)
        return self.encoder(
            x, segment_mask(segments, segments), training=training
        )

    def decode_step(self, ids, index, memories, source_segments, caches):
        """Predicts the piece at `index + 1` of each of R partial translations.

        Args:
            ids: int32 `(R,)`, the piece at `index`; R is B times the number
                of beams, the beams of a sentence side by side.
            index: Scalar int32, counted from 0 (bos).
            memories: `self.decoder.project(self.encode(...))`.
            source_segments: int32 `(B, S)`, one segment a row.
            caches: What the previous step returned; at first, `new_caches`.

        Returns:
            Logits, float32 `(R, vocab_size)`, and the next step's caches.
        """
        positions = ops.reshape(index, (1, 1))
        x = self._embed(
            self.target_embedding, ids[:, None], positions, training=False
        )
        max_length = caches[0][0].shape[1]
        past = ops.arange(max_length)[None, None, None, :] <= index
        x, caches = self.decoder(
            x,
            memories,
            past,
            (source_segments > 0)[:, None, None, :],
            caches=caches,
            index=index,
        )
        return self._logits(x)[:, 0, :], caches

    def new_caches(self, rows, max_length):
        """Zeros for `decode_step`: `rows` translations of `max_length`."""
        shape = (
            rows,
            max_length,
            self.num_heads,
            self.model_dim // self.num_heads,
        )
        return [
            [ops.zeros(shape, self.compute_dtype) for _ in ("key", "value")]
            for _ in range(self.num_layers)
        ]

    def _embed(self, embedding, ids, positions, training):
        x = embedding(ids) * self.model_dim**0.5
        encoding = sinusoidal_positions(positions, self.model_dim)
        x = x + ops.cast(encoding, x.dtype)
        return self.embedding_dropout(x, training=training)

    def _logits(self, x):
        logits = self.target_embedding(x, reverse=True)
        if self.piece_count == self.vocab_size:
            return logits
        real = np.arange(self.vocab_size) < self.piece_count
        return ops.where(real, logits, MASKED_SCORE)

    def get_config(self):
        return {
            **super().get_config(),
            "vocab_size": self.vocab_size,
            "piece_count": self.piece_count,
            "num_layers": self.num_layers,
            "model_dim": self.model_dim,
            "ff_dim": self.ff_dim,
            "num_heads": self.num_heads,
            "dropout": self.dropout,
            "norm": self.norm,
            "tie_embeddings": self.tie_embeddings,
            "remat": self.remat,
        }


def build_model(config, *, vocab_size, piece_count, dtype=None):
    """Returns a `Transformer` whose variables exist.

    Args:
        config: `TranslationConfig`, or anything with its model fields.
        vocab_size: The tokenizer's.
        piece_count: The tokenizer's.
        dtype: Dtype policy; `None` is the global one.
    """
    model = Transformer(
        vocab_size=vocab_size,
        piece_count=piece_count,
        num_layers=config.num_layers,
        model_dim=config.model_dim,
        ff_dim=config.ff_dim,
        num_heads=config.num_heads,
        dropout=config.dropout,
        norm=config.norm,
        remat=config.remat == "on",
        dtype=dtype,
    )
    model.build()
    return model
