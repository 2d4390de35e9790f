"""The verbs that use a trained run."""

import json
import sys

from examples.translation import report
from examples.translation.checkpoint import write_atomically
from examples.translation.evaluate import evaluate_splits
from examples.translation.evaluate import score_splits
from examples.translation.export import export_saved_model
from examples.translation.prepare import prepare as prepare_corpus
from examples.translation.runs import build_translator
from examples.translation.runs import existing_run_directory
from examples.translation.runs import load_run
from examples.translation.runs import open_corpus


def translate(config, overrides, sentences):
    """Prints the translation of each sentence, or line of stdin if none.

    Args:
        config: Says which run.
        overrides: Fields to change in the configuration of that run.
        sentences: List of strings.
    """
    run = load_run(existing_run_directory(config), overrides)
    sentences = sentences or sys.stdin.read().splitlines()
    if not sentences:
        return
    translator = build_translator(*run, most_sentences=len(sentences))
    for translation in translator.translate(sentences):
        print(translation)


def evaluate(config, overrides):
    """Prints the scores of a run on its test splits; see `translate`."""
    run_dir = existing_run_directory(config)
    config, tokenizer, model = load_run(run_dir, overrides)
    corpus = open_corpus(config)
    scores = {
        "saved": score_splits(
            evaluate_splits(
                build_translator(config, tokenizer, model),
                corpus,
                sentences=config.test_sentences,
            )
        )
    }
    print(f"data: {corpus.name}")
    print(report.format_scores(scores))
    write_atomically(
        run_dir / "evaluation.json",
        json.dumps({"data": corpus.name, "scores": scores}, indent=2) + "\n",
    )


def export(config, overrides):
    """Writes a SavedModel into the directory of a run; see `translate`."""
    run_dir = existing_run_directory(config)
    config, tokenizer, model = load_run(run_dir, overrides)
    path = run_dir / "export"
    export_saved_model(
        model,
        tokenizer,
        path,
        beam_size=config.beam_size,
        length_penalty=config.length_penalty,
        max_decode_length=config.max_decode_length or config.max_length + 50,
    )
    print(path)


def prepare(config):
    """Fetches the tensorflow-datasets corpus of a configuration."""
    prepare_corpus(config.tfds_name, config.data_dir)
