"""The building blocks of Vaswani et al. (2017): positions, attention,
feed-forward network and the residual connection around each of them.

Shapes are written with B rows, T query positions, S key positions, N heads and
H = model_dim / N units a head.
"""

import keras
import numpy as np
from keras import ops

MASKED_SCORE = -1e9


def sinusoidal_positions(positions, model_dim):
    """Section 3.5 of the paper, sines in the first half, cosines in the second.

    The paper interleaves the two; that is the same encoding with its units
    permuted, and one concatenation instead of a transpose. The encoding is
    computed, not looked up, so no position is too far.

    Args:
        positions: int32 `(B, T)`, counted from 0.
        model_dim: Even integer.

    Returns:
        float32 `(B, T, model_dim)`.
    """
    exponents = np.arange(0, model_dim, 2) / model_dim
    frequencies = (10000.0**-exponents).astype("float32")
    angles = ops.cast(positions, "float32")[:, :, None] * frequencies
    return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)


def segment_mask(query_segments, key_segments):
    """Who sees whom: a query sees the keys of its own segment.

    Args:
        query_segments: int32 `(B, T)`; 0 is padding.
        key_segments: int32 `(B, S)`; 0 is padding.

    Returns:
        bool `(B, 1, T, S)`; the axis of length 1 is for the heads.
    """
    keys = key_segments[:, None, None, :]
    return (query_segments[:, None, :, None] == keys) & (keys > 0)


def causal_mask(length):
    """bool `(1, 1, length, length)`: a query sees itself and what is before."""
    index = ops.arange(length)
    return (index[:, None] >= index[None, :])[None, None]


def shared_dropout(rate, ndim, dtype):
    """Dropout with one mask for all query positions of a row, as T5 has it.

    That is the axis before the last one. A mask for each position needs T times
    as many random numbers, which took longer on a CPU than the rest of the
    training step.
    """
    noise_shape = [None] * ndim
    noise_shape[-2] = 1
    return keras.layers.Dropout(rate, noise_shape=noise_shape, dtype=dtype)


class Attention(keras.layers.Layer):
    """Multi-head attention to keys and values that were projected before.

    `project` and `call` are apart so that decoding can project the encoder's
    output once for all steps, and keep the keys and values of earlier steps.

    Kernels: `query`, `key`, `value` `(model_dim, N, H)`; `output` `(N, H,
    model_dim)`. No biases, as in the paper. Scores and softmax are float32
    whatever the compute dtype.
    """

    def __init__(self, model_dim, num_heads, dropout, **kwargs):
        super().__init__(**kwargs)
        self.model_dim = model_dim
        self.num_heads = num_heads
        self.head_dim = model_dim // num_heads
        self.query = self._head_projection("query")
        self.key = self._head_projection("key")
        self.value = self._head_projection("value")
        self.output_projection = keras.layers.EinsumDense(
            "btnh,nhd->btd",
            output_shape=(None, model_dim),
            kernel_initializer=self._glorot_uniform(),
            dtype=self.dtype_policy,
            name="output",
        )
        self.dropout = shared_dropout(dropout, 4, self.dtype_policy)

    def _head_projection(self, name):
        return keras.layers.EinsumDense(
            "btd,dnh->btnh",
            output_shape=(None, self.num_heads, self.head_dim),
            kernel_initializer=self._glorot_uniform(),
            dtype=self.dtype_policy,
            name=name,
        )

    def _glorot_uniform(self):
        # Keras takes the first axis of a rank-3 kernel for a convolution
        # window and would draw these kernels several times too small. Both
        # fans are model_dim.
        limit = (3.0 / self.model_dim) ** 0.5
        return keras.initializers.RandomUniform(-limit, limit)

    def build(self, input_shape):
        self.query.build(input_shape)
        self.key.build(input_shape)
        self.value.build(input_shape)
        self.output_projection.build(
            (*input_shape[:-1], self.num_heads, self.head_dim)
        )

    def project(self, inputs):
        """`(B, S, model_dim)` -> keys and values, each `(B, S, N, H)`."""
        return self.key(inputs), self.value(inputs)

    def call(self, inputs, keys_values, visible, training=False):
        """Attends.

        Args:
            inputs: `(B, T, model_dim)`, what the queries are made of.
            keys_values: What `project` returned, two `(B, S, N, H)`.
            visible: bool, broadcastable to `(B, N, T, S)`. Where a query sees
                no key at all its output is finite and means nothing.
            training: Whether attention weights are dropped out.

        Returns:
            `(B, T, model_dim)`.
        """
        keys, values = keys_values
        # Scaled before the product: float16 scores stay in range.
        queries = self.query(inputs) * self.head_dim**-0.5
        scores = ops.einsum("btnh,bsnh->bnts", queries, keys)
        scores = ops.cast(scores, "float32")
        scores = ops.where(visible, scores, MASKED_SCORE)
        weights = ops.cast(ops.softmax(scores), self.compute_dtype)
        weights = self.dropout(weights, training=training)
        heads = ops.einsum("bnts,bsnh->btnh", weights, values)
        return self.output_projection(heads)


class FeedForward(keras.layers.Layer):
    """`ReLU(x W_inner + b_inner) W_output + b_output`, position by position."""

    def __init__(self, model_dim, ff_dim, dropout, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.layers.Dense(
            ff_dim, activation="relu", dtype=self.dtype_policy, name="inner"
        )
        self.dropout = shared_dropout(dropout, 3, self.dtype_policy)
        self.output_projection = keras.layers.Dense(
            model_dim, dtype=self.dtype_policy, name="output"
        )

    def build(self, input_shape):
        self.inner.build(input_shape)
        self.output_projection.build((*input_shape[:-1], self.inner.units))

    def call(self, inputs, training=False):
        hidden = self.dropout(self.inner(inputs), training=training)
        return self.output_projection(hidden)


class Residual(keras.layers.Layer):
    """The residual connection around a sublayer, in two halves.

        y = sublayer(residual.before(x))
        x = residual.after(x, y)

    `norm="post"` is the paper's `LayerNorm(x + Dropout(sublayer(x)))`;
    `norm="pre"` is `x + Dropout(sublayer(LayerNorm(x)))`, which stays trainable
    at larger depths and step sizes.
    """

    def __init__(self, norm, dropout, **kwargs):
        super().__init__(**kwargs)
        self.norm = norm
        self.dropout = shared_dropout(dropout, 3, self.dtype_policy)
        self.layer_norm = layer_norm(self.dtype_policy)

    def build(self, input_shape):
        self.layer_norm.build(input_shape)

    def before(self, x):
        return self.layer_norm(x) if self.norm == "pre" else x

    def after(self, x, y, training=False):
        x = x + self.dropout(y, training=training)
        return self.layer_norm(x) if self.norm == "post" else x


def layer_norm(dtype):
    """Layer normalisation with the epsilon of tensor2tensor."""
    return keras.layers.LayerNormalization(
        epsilon=1e-6, dtype=dtype, name="layer_norm"
    )


def recomputed(layer, when=True):
    """The call of a layer, of which, when asked, its inputs alone are kept.

    What is in between is computed again in the backward pass. Gradients go
    through what the call is given by position. Not by `keras.RematScope`: what
    changes inside, as the seeds of dropout do, must come out as a value.
    """
    if not when:
        return layer

    def call(*inputs, **options):
        others = layer.non_trainable_variables
        # Copies: TensorFlow would read a variable anew going backward.
        states = [ops.copy(variable) for variable in others]
        outputs, values = keras.remat(
            lambda weights, *inputs: layer.stateless_call(
                weights, states, *inputs, **options
            )
        )(
            [ops.convert_to_tensor(w) for w in layer.trainable_variables],
            *inputs,
        )
        for variable, value in zip(others, values, strict=True):
            variable.assign(value)
        return outputs

    return call
