"""The examples of one file."""

import pathlib

import pytest

from examples import quickstart

ROOT = pathlib.Path(__file__).parents[2]


def test_quick_start_learns_and_shows_what_is_kept(capsys):
    accuracy = quickstart.main(train_size=2000, epochs=4)
    printed = capsys.readouterr().out
    # One in ten by chance.
    assert accuracy > 0.5
    assert f"not seen: {accuracy:.1%}" in printed
    # 5,108 bytes of the rule, four a parameter of averages of the weights.
    assert "421,660 bytes of state" in printed
    assert "416,552 of them are averages" in printed


def test_quick_start_is_short():
    assert len((ROOT / "examples/quickstart.py").read_text().split("\n")) <= 61


@pytest.fixture
def finetune():
    pytest.importorskip("keras_hub", reason="install keras-hub to fine-tune")
    from examples import finetune_keras_hub  # noqa: PLC0415

    return finetune_keras_hub.main


SHORT = ["--epochs", "2", "--length", "32"]


def test_finetunes_a_small_model_of_keras_hub(finetune, tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("to be or not to be, " * 200)
    losses, before, after = finetune(["--text", str(text), *SHORT])
    assert losses[-1] < losses[0]
    assert before == after
    assert f"kept after: {after:,}" in capsys.readouterr().out


def test_finetunes_a_preset_of_keras_hub(finetune, tmp_path):
    import keras_hub  # noqa: PLC0415

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|endoftext|>", "Ġ", "be", *letters]
    tokenizer = keras_hub.models.GPT2Tokenizer(
        vocabulary={token: i for i, token in enumerate(tokens)}, merges=["b e"]
    )
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=len(tokens),
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=32,
    )
    model = keras_hub.models.GPT2CausalLM(
        backbone,
        keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, 32),
    )
    preset = tmp_path / "preset"
    model.save_to_preset(str(preset))
    text = tmp_path / "a.txt"
    text.write_text("to be or not to be " * 200)
    arguments = ["--preset", str(preset), "--text", str(text), *SHORT]
    losses, before, after = finetune([*arguments, "--learning_rate", "0.02"])
    assert losses[-1] < losses[0]
    assert before == after
