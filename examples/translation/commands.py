"""The verbs that use a trained run."""

import contextlib
import json
import sys

from examples.translation import report
from examples.translation.errors import UserError
from examples.translation.evaluate import evaluate_splits
from examples.translation.evaluate import score_splits
from examples.translation.export import export_saved_model
from examples.translation.files import write_atomically
from examples.translation.prepare import prepare as prepare_corpus
from examples.translation.runs import build_translator
from examples.translation.runs import existing_run_directory
from examples.translation.runs import load_run
from examples.translation.runs import open_corpus
from examples.translation.sources import read_lines


def translate(config, overrides, sentences, options):
    """Writes the translation of each sentence, or line if there is none.

    Args:
        config: Says which run.
        overrides: Fields to change in the configuration of that run.
        sentences: List of strings.
        options: `TranslateOptions`.
    """
    config, *run = load_run(existing_run_directory(config), overrides)
    n_best = options.n_best or 1
    if n_best > config.beam_size:
        raise UserError(
            f"--n_best must be at most --beam_size ({config.beam_size}). "
            f"Received: {n_best}"
        )
    sentences = sentences or _read_lines(options.input)
    with _open_output(options.output) as file:
        if not sentences:
            return
        translator = build_translator(
            config, *run, most_sentences=len(sentences)
        )
        found = translator.hypotheses(sentences, n_best)
        for number, hypotheses in enumerate(found, start=1):
            for translation, score in hypotheses:
                start = f"{number}\t{score:.4f}\t" if options.n_best else ""
                print(f"{start}{translation}", file=file)


def _read_lines(path):
    if path:
        return read_lines(path)
    try:
        return [line.removesuffix("\n") for line in sys.stdin]
    except UnicodeDecodeError as error:
        raise UserError(f"stdin must be UTF-8. Received: {error}") from error


def _open_output(path):
    if path:
        return open(path, "w", encoding="utf-8")
    return contextlib.nullcontext(sys.stdout)


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
