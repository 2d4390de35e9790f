import json
import pathlib
import random
import re
import subprocess
import sys
import textwrap
import urllib.request

import keras
import numpy as np
import pytest

from examples.translation.decode import Translator
from examples.translation.errors import UserError
from examples.translation.export import export_saved_model
from examples.translation.model import Transformer
from examples.translation.sources import Corpus
from examples.translation.tokenizer import train_tokenizer

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    from examples.translation.export import build_graph_tokenizer

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="A SavedModel needs KERAS_BACKEND=tensorflow.",
)
SENTENCES = ["a cat sees a dog", "", "the dog", "the cat sees the small dog"]
SEARCH = {"beam_size": 3, "length_penalty": 0.6, "max_decode_length": 12}
README = pathlib.Path(__file__).parents[3] / "examples/translation/README.md"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    words = "the a cat dog sees small house Straße läuft schön".split()
    sentences = [
        " ".join(random.Random(i).choices(words, k=9)) for i in range(99)
    ]
    corpus = Corpus(
        name="test",
        kind="text",
        fingerprint="test",
        sizes={"train": len(sentences)},
        reader=lambda split: iter(zip(sentences, sentences, strict=True)),
    )
    return train_tokenizer(corpus, tmp_path_factory.mktemp("vocabulary"), 310)


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
def test_a_graph_cuts_sentences_as_sentencepiece_does(tokenizer):
    letters = "acdeghlmorstuß äö  ,.\t\n\x00é日🙂<0x41>\u2028"
    sentences = SENTENCES + [
        " leading and trailing ",
        "two  spaces",
        "no-break\u00a0space, ellipsis …",
        "</s> <s> <pad> <unk> <0x41>",
        "thethethe catcat",
        *(
            "".join(random.Random(i).choices(letters, k=1 + i % 40))
            for i in range(500)
        ),
    ]
    sentences = [sentence for sentence in sentences if sentence.strip()]
    module = build_graph_tokenizer(tokenizer)
    encode = tf.function(
        module.encode, input_signature=[tf.TensorSpec((None,), "string")]
    )
    found = encode(tf.constant(sentences)).numpy()
    for row, expected in zip(found, tokenizer.encode(sentences), strict=True):
        np.testing.assert_array_equal(row[: len(expected)], expected)
        assert not row[len(expected) :].any()
    texts = [text.decode() for text in module.decode(found).numpy()]
    assert texts == sentences
    assert not encode(tf.constant(["", "  "])).numpy().any()
    assert encode(tf.constant([], "string")).shape[0] == 0


@needs_tensorflow
def test_a_graph_drops_what_is_no_text(tokenizer):
    decode = build_graph_tokenizer(tokenizer).decode
    ids = [tokenizer.bos_id, *tokenizer.encode(["dog"])[0], 0, 0]
    ids += [tokenizer.unk_id, tokenizer.vocab_size - 1]
    assert tokenizer.vocab_size > tokenizer.piece_count
    assert decode(tf.constant([ids])).numpy().tolist() == [b"dog"]
    # Half a letter, which a model may write: still UTF-8.
    half = tokenizer.byte_ids()["é".encode()[0]]
    assert decode(tf.constant([half])).numpy().decode() == "\ufffd"


@needs_tensorflow
def test_a_fresh_process_needs_tensorflow_alone(model, tokenizer, exported):
    program = f"""
        import json
        import sys
        import tensorflow as tf

        module = tf.saved_model.load({str(exported)!r})
        sentences = tf.constant({SENTENCES!r})
        outputs = module.signatures["serving_default"](sentences=sentences)
        # No shape is built in.
        module.serve(sentences[:1])
        for name in ("examples", "sentencepiece"):
            assert not [m for m in sys.modules if m.split(".")[0] == name]
        translations = [
            [text.decode() for text in row]
            for row in outputs["translations"].numpy()
        ]
        print(json.dumps([translations, outputs["scores"].numpy().tolist()]))
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    translations, scores = json.loads(process.stdout.splitlines()[-1])
    translator = Translator(model, tokenizer, bucket_lengths=(16,), **SEARCH)
    expected = translator.hypotheses(SENTENCES, n_best=3)
    assert translations[1] == ["", "", ""]
    for row in (0, 2, 3):
        assert translations[row] == [text for text, _ in expected[row]]
        np.testing.assert_allclose(
            scores[row], [score for _, score in expected[row]], atol=1e-5
        )
    assert len({row[0] for row in translations}) > 2


@needs_tensorflow
def test_exports_again_to_the_same_path(model, tokenizer, exported):
    def translate():
        module = tf.saved_model.load(str(exported))
        return module.serve(tf.constant(SENTENCES))["translations"].numpy()

    before = translate()
    export_saved_model(model, tokenizer, exported, **SEARCH)
    np.testing.assert_array_equal(translate(), before)


@needs_tensorflow
def test_the_server_of_the_readme_serves(exported, tmp_path):
    (program,) = re.findall(
        r"```python\n(import http.server.*?)```", README.read_text(), re.DOTALL
    )
    program, count = re.subn(
        r'"runs/[^"]*"', repr(str(exported)), program, count=1
    )
    assert count == 1
    # A port that is free, and known once the server listens.
    program, count = re.subn(
        r"(http.server.HTTPServer\(.*\)).serve_forever\(\)",
        r"server = \1; print(server.server_port, flush=True);"
        "server.serve_forever()",
        program.replace("8000", "0"),
    )
    assert count == 1
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        port = int(process.stdout.readline())
        with urllib.request.urlopen(
            f"http://localhost:{port}", data=b"the dog\n\na cat"
        ) as response:
            lines = response.read().decode().split("\n")
    finally:
        process.kill()
        process.wait()
    module = tf.saved_model.load(str(exported))
    best = module.serve(tf.constant(["the dog", "", "a cat"]))["translations"]
    assert lines == [*(text.decode() for text in best[:, 0].numpy()), ""]


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="Says that the backend must be TensorFlow; this is TensorFlow.",
)
def test_other_backends_are_told_what_to_do(tmp_path):
    with pytest.raises(UserError, match="KERAS_BACKEND=tensorflow"):
        export_saved_model(None, None, tmp_path)
