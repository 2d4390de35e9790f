"""A trained model as a TensorFlow SavedModel, and what reads it back.

    <path>/saved_model.pb, variables/        piece ids to piece ids
    <path>/assets.extra/tokenizer.model      the sentencepiece model

The SavedModel needs TensorFlow alone. Its one signature, `serve` (and
`serving_default`, for TensorFlow Serving), takes `source_ids`, int32 `(B, S)`
of any size: the pieces of each sentence with eos, padded with 0. It returns a
dict of `ids`, int32 `(B, K, L)`, and `scores`, float32 `(B, K)`, the best
hypothesis first.
"""

import pathlib

import keras

from examples.translation.decode import beam_search
from examples.translation.decode import translate_in_buckets
from examples.translation.errors import UserError
from examples.translation.tokenizer import Tokenizer

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

_TOKENIZER = pathlib.PurePath("assets.extra", "tokenizer.model")


def export_saved_model(
    model,
    tokenizer,
    path,
    *,
    beam_size=4,
    length_penalty=0.6,
    max_decode_length=128,
):
    """Writes a SavedModel that translates ids to ids by beam search.

    It is an ordinary graph without XLA, which any TensorFlow can serve.

    Args:
        model: A built `Transformer`.
        tokenizer: Its tokenizer.
        path: Directory to write. What a SavedModel already there holds is
            replaced.
        beam_size: K, the beams and the hypotheses returned.
        length_penalty: alpha of `decode.beam_search`.
        max_decode_length: L, pieces of the longest translation with its eos.

    Raises:
        UserError: The backend is not TensorFlow.
    """
    _require_tensorflow("Exporting a SavedModel")
    path = pathlib.Path(path)

    def serve(source_ids):
        ids, scores = beam_search(
            model,
            source_ids,
            beam_size=beam_size,
            length_penalty=length_penalty,
            max_decode_length=max_decode_length,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
        )
        return {"ids": ids, "scores": scores}

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serve",
        serve,
        [tf.TensorSpec((None, None), "int32", name="source_ids")],
    )
    archive.write_out(str(path), verbose=False)
    tokenizer.save(path / _TOKENIZER)


class SavedTranslator:
    """Strings to strings through an exported model; a `Translator`'s twin.

    Args:
        path: What `export_saved_model` wrote.
        batch_size: Sentences of a batch.
        bucket_lengths: Lengths that source rows are padded to.

    Raises:
        UserError: The backend is not TensorFlow, or `path` is not an export.
    """

    def __init__(
        self, path, *, batch_size=32, bucket_lengths=(16, 32, 64, 128, 256)
    ):
        _require_tensorflow("Loading a SavedModel")
        path = pathlib.Path(path)
        self.tokenizer = Tokenizer.load(path / _TOKENIZER)
        self.batch_size = batch_size
        self._module = tf.saved_model.load(str(path))
        self._searches = dict.fromkeys(bucket_lengths, self._search)

    def _search(self, source_ids):
        outputs = self._module.serve(tf.constant(source_ids))
        return outputs["ids"].numpy(), outputs["scores"].numpy()

    def translate(self, sentences):
        """See `decode.Translator.translate`."""
        return translate_in_buckets(
            sentences, self.tokenizer, self._searches, self.batch_size
        )


def _require_tensorflow(what):
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"{what} needs Keras' TensorFlow backend: set "
            "KERAS_BACKEND=tensorflow. A model trained with another backend "
            "loads there from its .keras file. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}"
        )
