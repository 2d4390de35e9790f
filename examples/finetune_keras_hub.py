"""Fine-tunes a language model of KerasHub, with what the optimizer keeps.

    pip install -e ".[tensorflow,hub]"
    python examples/finetune_keras_hub.py
    python examples/finetune_keras_hub.py --preset gpt2_base_en --text a.txt

The first, without a network: a GPT-2 of two layers with random weights, which
reads bytes. The second fetches a model that has been trained. The text is the
documentation of this repository, unless it is another.
"""

import argparse
import pathlib

import keras
import keras_hub
import numpy as np

from keras_adafactor import Adafactor
from keras_adafactor import state_report

ROOT = pathlib.Path(__file__).parents[1]


def read(paths, length):
    """Pieces of text, of `length` bytes."""
    text = b"\n".join(path.read_bytes() for path in paths)
    return [text[i : i + length] for i in range(0, len(text) - length, length)]


def small_model(length):
    """A model of bytes: its vocabulary is what a byte can be."""
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=256,
        num_layers=2,
        num_heads=4,
        hidden_dim=128,
        intermediate_dim=512,
        max_sequence_length=length,
    )
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)


def bytes_to_learn(pieces):
    """What `preprocessor` would make of text: tokens and the next ones."""
    tokens = np.array([list(piece) for piece in pieces], "int32")
    seen = tokens[:, :-1]
    return {
        "x": {"token_ids": seen, "padding_mask": np.ones_like(seen)},
        "y": tokens[:, 1:],
        "sample_weight": np.ones(seen.shape, "float32"),
    }


def main(arguments=None):
    """Fine-tunes.

    Returns:
        Tuple of the losses of the epochs, and the bytes of state: said before
        the first step, and kept after the last.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", help="of `keras_hub.models.CausalLM`")
    parser.add_argument("--text", type=pathlib.Path, help="a file")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--length", type=int, default=128, help="bytes a piece")
    parser.add_argument("--learning_rate", type=float)
    given = parser.parse_args(arguments)

    keras.utils.set_random_seed(0)
    paths = [given.text] if given.text else sorted(ROOT.glob("docs/**/*.md"))
    pieces = read(paths, given.length)
    if given.preset:
        model = keras_hub.models.CausalLM.from_preset(given.preset)
        data = {"x": [piece.decode(errors="ignore") for piece in pieces]}
    else:
        model = small_model(given.length)
        data = bytes_to_learn(pieces)

    # Small and constant for weights that are trained already.
    rate = given.learning_rate or (1e-3 if given.preset else 0.05)
    model.compile(
        optimizer=Adafactor(rate, relative_step=not given.preset),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
    )
    before = state_report(model)  # nothing is built yet
    print(before)
    fitted = model.fit(
        **data, batch_size=given.batch_size, epochs=given.epochs, verbose=2
    )
    kept = sum(
        keras.ops.convert_to_numpy(slot).nbytes
        for _, slots in model.optimizer.slots()
        for slot in slots.values()
    )
    print(
        f"bytes of state, said before: {before.total_bytes:,}; kept after: "
        f"{kept:,}; Adam's: {before.adam_bytes:,}"
    )
    return fitted.history["loss"], before.total_bytes, kept


if __name__ == "__main__":
    main()
