import io
import json
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import sentencepiece

from examples.translation.decode import Translator
from examples.translation.decode import beam_search
from examples.translation.errors import UserError
from examples.translation.export import SavedTranslator
from examples.translation.export import export_saved_model
from examples.translation.model import Transformer
from examples.translation.tokenizer import Tokenizer

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="A SavedModel needs KERAS_BACKEND=tensorflow.",
)
SENTENCES = ["a cat sees a dog", "", "the dog", "the cat sees the small dog"]
SEARCH = {"beam_size": 3, "length_penalty": 0.6, "max_decode_length": 12}


@pytest.fixture(scope="module")
def tokenizer():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(4 * SENTENCES),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=Tokenizer.pad_id,
        bos_id=Tokenizer.bos_id,
        eos_id=Tokenizer.eos_id,
        unk_id=Tokenizer.unk_id,
        minloglevel=2,
    )
    return Tokenizer(model.getvalue())


@pytest.fixture(scope="module")
def model(tokenizer):
    keras.utils.set_random_seed(0)
    model = Transformer(
        vocab_size=tokenizer.vocab_size,
        piece_count=tokenizer.piece_count,
        num_layers=1,
        model_dim=16,
        ff_dim=24,
        num_heads=2,
        dropout=0.1,
        # Tied, a random model repeats its last piece for ever.
        tie_embeddings=False,
    )
    model.build()
    return model


@pytest.fixture(scope="module")
def exported(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "translator"
    export_saved_model(model, tokenizer, path, **SEARCH)
    return path


@needs_tensorflow
def test_a_fresh_process_needs_tensorflow_alone(model, tokenizer, exported):
    source_ids = np.zeros((3, 11), "int32")
    for row, ids in zip(source_ids, tokenizer.encode(SENTENCES), strict=False):
        row[: len(ids)] = ids[:11]
    program = f"""
        import json
        import sys
        import sentencepiece
        import tensorflow as tf

        module = tf.saved_model.load({str(exported)!r})
        # Two shapes: none is built in.
        source_ids = tf.constant({source_ids.tolist()})
        outputs = module.signatures["serving_default"](source_ids=source_ids)
        module.serve(source_ids[:1])
        assert not [m for m in sys.modules if m.startswith("examples")]
        tokenizer = sentencepiece.SentencePieceProcessor(
            {str(exported / "assets.extra" / "tokenizer.model")!r}
        )
        print(
            json.dumps(
                [
                    outputs["ids"].numpy().tolist(),
                    outputs["scores"].numpy().tolist(),
                    tokenizer.encode({SENTENCES[0]!r}, add_eos=True),
                ]
            )
        )
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    ids, scores, encoded = json.loads(process.stdout.splitlines()[-1])
    expected_ids, expected_scores = beam_search(model, source_ids, **SEARCH)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
    assert encoded == tokenizer.encode(SENTENCES[:1])[0].tolist()


@needs_tensorflow
def test_translates_strings_as_the_model_does(model, tokenizer, exported):
    options = {"bucket_lengths": (16,), "batch_size": 2}
    translations = SavedTranslator(exported, **options).translate(SENTENCES)
    translator = Translator(model, tokenizer, **options, **SEARCH)
    assert translations == translator.translate(SENTENCES)
    assert translations[1] == "" and len(set(translations)) > 2


@needs_tensorflow
def test_exports_again_to_the_same_path(model, tokenizer, exported):
    before = SavedTranslator(exported).translate(SENTENCES)
    export_saved_model(model, tokenizer, exported, **SEARCH)
    assert SavedTranslator(exported).translate(SENTENCES) == before


@needs_tensorflow
def test_a_path_that_is_no_export_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        SavedTranslator(tmp_path)


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="Says that the backend must be TensorFlow; this is TensorFlow.",
)
def test_other_backends_are_told_what_to_do(tmp_path):
    with pytest.raises(UserError, match="KERAS_BACKEND=tensorflow"):
        export_saved_model(None, None, tmp_path)
    with pytest.raises(UserError, match="KERAS_BACKEND=tensorflow"):
        SavedTranslator(tmp_path)
