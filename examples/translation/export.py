"""A trained model as a TensorFlow SavedModel that takes and gives text.

It needs TensorFlow alone. Its one signature, `serve` (and `serving_default`,
for TensorFlow Serving), takes `sentences`, strings `(B,)`, and returns
`translations`, strings `(B, K)`, and `scores`, float32 `(B, K)`, the best
hypothesis first. A blank sentence has an empty translation.
"""

import keras
import numpy as np

from examples.translation.decode import beam_search
from examples.translation.errors import UserError

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

_SPACE = "▁"  # what sentencepiece writes for it


def export_saved_model(
    model,
    tokenizer,
    path,
    *,
    beam_size=4,
    length_penalty=0.6,
    max_decode_length=128,
):
    """Writes a SavedModel that translates text by beam search.

    It is an ordinary graph without XLA, which any TensorFlow can serve.

    Args:
        model: A built `Transformer`.
        tokenizer: Its tokenizer, of `train_tokenizer`.
        path: Directory to write. What a SavedModel already there holds is
            replaced.
        beam_size: K, the beams and the hypotheses returned.
        length_penalty: alpha of `decode.beam_search`.
        max_decode_length: Pieces of the longest translation with its eos.

    Raises:
        UserError: The backend is not TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            "Exporting a SavedModel needs Keras' TensorFlow backend: set "
            "KERAS_BACKEND=tensorflow. A model trained with another backend "
            "loads there from its .keras file. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}"
        )
    graph_tokenizer = build_graph_tokenizer(tokenizer)

    def serve(sentences):
        ids, scores = beam_search(
            model,
            graph_tokenizer.encode(sentences),
            beam_size=beam_size,
            length_penalty=length_penalty,
            max_decode_length=max_decode_length,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
        )
        return {"translations": graph_tokenizer.decode(ids), "scores": scores}

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.track(graph_tokenizer)
    archive.add_endpoint(
        "serve", serve, [tf.TensorSpec((None,), "string", name="sentences")]
    )
    archive.write_out(str(path), verbose=False)


def build_graph_tokenizer(tokenizer):
    """Returns a `tf.Module` that does what a `Tokenizer` does, in a graph.

    `encode` takes strings `(B,)` and returns ids int32 `(B, S)`, each row with
    its eos and padded with 0; a blank sentence is 0 throughout. `decode` takes
    ids `(..., L)` and returns strings `(...)`.
    """
    pieces = tokenizer.pieces()
    byte_ids = tokenizer.byte_ids()
    texts = [piece.encode() for piece in pieces]
    for byte, i in enumerate(byte_ids):
        texts[i] = bytes([byte])
    whole = sorted(
        {i for i, piece in enumerate(pieces) if piece} - set(byte_ids)
    )
    module = tf.Module()
    # BPE merges first what it learned first: the ids are in that order.
    module.table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            [texts[i] for i in whole], np.array(whole, "int32")
        ),
        default_value=np.int32(len(texts)),
    )
    unknown = len(texts)

    def merge(words):
        """Merges the pair of each word that was learned first, if any."""
        next_ones = tf.pad(words[:, 1:], [[0, 0], [0, 1]])
        pairs = words + next_ones
        ranks = tf.where(next_ones == "", unknown, module.table.lookup(pairs))
        place = tf.argmin(ranks, axis=1, output_type="int32")[:, None]
        column = tf.range(tf.shape(words)[1])[None]
        place = tf.where(
            tf.reduce_min(ranks, axis=1, keepdims=True) < unknown,
            place,
            tf.shape(words)[1],
        )
        return tf.where(
            column < place, words, tf.where(column == place, pairs, next_ones)
        )

    def merge_all(words):
        def grows(words, before):
            return tf.reduce_any(words != before)

        words, _ = tf.while_loop(
            grows,
            lambda words, _: (merge(words), words),
            (merge(words), words),
            shape_invariants=(tf.TensorShape([None, None]),) * 2,
        )
        return words

    def encode(sentences):
        rows = tf.shape(sentences)[0]
        blank = tf.strings.strip(sentences) == ""
        text = _SPACE + tf.strings.regex_replace(sentences, " ", _SPACE)
        characters = tf.strings.unicode_split(text, "UTF-8")
        # No piece has a space but at its beginning: words are independent.
        begins = characters.flat_values == _SPACE
        words = tf.RaggedTensor.from_value_rowids(
            characters.flat_values, tf.cumsum(tf.cast(begins, "int64")) - 1
        )
        sentence_of = tf.boolean_mask(characters.value_rowids(), begins)
        # One column more: no sentence at all is a batch too.
        words = merge_all(tf.pad(words.to_tensor(""), [[0, 0], [0, 1]]))
        there = words != ""
        sentence_of = tf.boolean_mask(
            tf.broadcast_to(sentence_of[:, None], tf.shape(there)), there
        )
        symbols = tf.boolean_mask(words, there)
        ids = module.table.lookup(symbols)
        # What the alphabet lacks goes by its bytes, the others by themselves.
        known = ids < unknown
        in_bytes = tf.strings.bytes_split(tf.where(known, "", symbols))
        values = tf.reshape(
            tf.io.decode_raw(in_bytes.flat_values, "uint8"), [-1]
        )
        in_bytes = in_bytes.with_values(
            tf.gather(np.array(byte_ids, "int32"), tf.cast(values, "int32"))
        )
        ids = tf.concat(
            [
                tf.RaggedTensor.from_row_lengths(
                    tf.boolean_mask(ids, known), tf.cast(known, "int64")
                ),
                in_bytes,
            ],
            axis=1,
        )
        ids = tf.RaggedTensor.from_value_rowids(
            ids.flat_values,
            tf.repeat(sentence_of, ids.row_lengths()),
            nrows=tf.cast(rows, "int64"),
        )
        ids = tf.concat([ids, tf.fill([rows, 1], tokenizer.eos_id)], axis=1)
        return tf.where(blank[:, None], tokenizer.pad_id, ids.to_tensor(0))

    def decode(ids):
        # Ids that are special or padding of the vocabulary have no text.
        unused = tokenizer.vocab_size - len(texts)
        found = tf.gather(tf.constant([*texts, *[b""] * unused]), ids)
        text = tf.strings.reduce_join(found, axis=-1)
        text = tf.strings.regex_replace(text, _SPACE, " ")
        text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8")
        return tf.strings.regex_replace(text, "^ ", "")

    module.encode, module.decode = encode, decode
    return module
