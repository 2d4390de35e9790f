"""Run directories: where they are, what is in them, how they are read.

A run directory holds

    config.json       every setting
    tokenizer.model   the vocabulary
    cache/            vocabulary and corpus as ids, made anew when missing
    checkpoints/      what an interrupted run continues from
    tensorboard/      event files
    history.csv       losses and more, a row for each interval
    model.keras       the weights that translate best
    metrics.json      scores, sizes and times
    loss.png          the loss curves
"""

import contextlib
import dataclasses
import fcntl
import pathlib
import warnings

import keras

from examples.translation.checkpoint import Checkpoints
from examples.translation.config import TranslationConfig
from examples.translation.decode import Translator
from examples.translation.errors import UserError
from examples.translation.model import build_model
from examples.translation.sources import corpus_kind
from examples.translation.sources import load_corpus
from examples.translation.tokenizer import Tokenizer
from examples.translation.tokenizer import train_tokenizer


def open_corpus(config):
    """Returns the `Corpus` that a configuration asks for."""
    return load_corpus(
        config.data,
        data_dir=config.data_dir,
        tfds_name=config.tfds_name,
        direction=config.direction,
        train_source=config.train_source,
        train_target=config.train_target,
        validation_source=config.validation_source,
        validation_target=config.validation_target,
        test_source=config.test_source,
        test_target=config.test_target,
        synthetic_train_size=config.synthetic_train_size,
        max_train_examples=config.max_train_examples,
    )


def run_directory(config, kind):
    """Returns the run's directory; `kind` is the kind of its corpus."""
    return pathlib.Path(
        config.run_dir or f"runs/{config.preset}-{kind}-{config.optimizer}"
    )


def checkpoint_directory(config, run_dir):
    """Returns where the checkpoints of a run are; not always a local path."""
    return config.checkpoint_dir or str(run_dir / "checkpoints")


def existing_run_directory(config):
    """Returns the directory of the run that a configuration describes."""
    if config.run_dir:
        return pathlib.Path(config.run_dir)
    kind = corpus_kind(config.data, config.tfds_name, config.data_dir)
    return run_directory(config, kind)


def load_run(run_dir, overrides):
    """Returns the configuration, tokenizer and model of a run.

    The weights are those of `model.keras`, or of the newest checkpoint while
    the run goes on.

    Args:
        run_dir: Directory that `train` wrote.
        overrides: Dict of fields to change, none that decided the training.

    Raises:
        UserError: There is no such run, it has no weights yet, or a field
            cannot be changed any more.
    """
    run_dir = pathlib.Path(run_dir)
    saved = _read_config(run_dir)
    config = dataclasses.replace(saved, **overrides)
    _refuse(config.conflicts(saved), run_dir)
    tokenizer = Tokenizer.load(run_dir / "tokenizer.model")
    start_naming()
    if (run_dir / "model.keras").exists():
        model = keras.models.load_model(run_dir / "model.keras", compile=False)
    else:
        checkpoints = Checkpoints.of(checkpoint_directory(config, run_dir))
        if not checkpoints.steps():
            raise UserError(f"The run in {run_dir} has no checkpoint yet.")
        model = build_run_model(config, tokenizer)
        checkpoints.load_weights(model, checkpoints.steps()[-1:])
    return config, tokenizer, model


def _read_config(run_dir):
    path = run_dir / "config.json"
    try:
        return TranslationConfig.from_json(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"There is no run in {run_dir}. Train one first, or name its "
            "directory with --run_dir."
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged, or of another version: {error}"
        ) from error


def run_tokenizer(config, corpus, run_dir):
    """Returns the tokenizer of a new run: its own, or that of another."""
    other = config.init_from or config.tokenizer_from
    if other is None:
        return train_tokenizer(corpus, run_dir / "cache", config.vocab_size)
    return Tokenizer.load(pathlib.Path(other, "tokenizer.model"))


def load_initial_weights(config, model):
    """Puts the weights of the finished run `--init_from` into a model.

    Raises:
        UserError: There is no such run, or its model is of another shape.
    """
    run_dir = pathlib.Path(config.init_from)
    saved = _read_config(run_dir)
    names = ("num_layers", "model_dim", "ff_dim", "num_heads", "norm")
    different = ", ".join(
        f"--{name} {getattr(saved, name)} (received {getattr(config, name)})"
        for name in names
        if getattr(saved, name) != getattr(config, name)
    )
    if different:
        raise UserError(
            f"The weights of --init_from {run_dir} are those of {different}. "
            "Use these."
        )
    path = run_dir / "model.keras"
    if not path.exists():
        raise UserError(
            f"The run of --init_from {run_dir} is not finished: it has no "
            "model.keras."
        )
    with warnings.catch_warnings():
        # Keras warns that the file has no state for the optimizer.
        warnings.filterwarnings("ignore", "Skipping variable loading")
        model.load_weights(path)


def start_naming():
    """Makes the names of variables those of a new process.

    They say what is what in a checkpoint, and Keras numbers them by what the
    process has created before. To be called before anything else of Keras: it
    forgets the distribution as well.
    """
    keras.utils.clear_session()


def build_run_model(config, tokenizer):
    policy = {
        "none": "float32",
        "bfloat16": "mixed_bfloat16",
        "float16": "mixed_float16",
    }[config.mixed_precision]
    return build_model(
        config,
        vocab_size=tokenizer.vocab_size,
        piece_count=tokenizer.piece_count,
        dtype=policy,
    )


def build_translator(config, tokenizer, model, most_sentences=None):
    """Returns the `Translator` with a configuration's decoding settings.

    Args:
        config: `TranslationConfig`.
        tokenizer: Joint tokenizer.
        model: Built `Transformer`.
        most_sentences: No more will be translated at once; makes the batches
            smaller where that is enough.
    """
    return Translator(
        model,
        tokenizer,
        beam_size=config.beam_size,
        length_penalty=config.length_penalty,
        # One more for sentences longer than any trained on: cutting them
        # would be worse.
        bucket_lengths=(*config.bucket_lengths, 2 * config.max_length),
        batch_size=min(
            config.evaluation_batch_size,
            most_sentences or config.evaluation_batch_size,
        ),
        max_decode_length=config.max_decode_length,
    )


def check_same_run(config, run_dir, checkpoints):
    """Raises `UserError` if the directory holds a run of another kind.

    Another host may have no copy of what the first has written there.
    """
    if checkpoints.steps() and (run_dir / "config.json").exists():
        _refuse(config.conflicts(_read_config(run_dir)), run_dir)


def _refuse(conflicts, run_dir):
    if conflicts:
        settings = ", ".join(
            f"--{name} {saved} (received {given})"
            for name, given, saved in conflicts
        )
        raise UserError(
            f"The run in {run_dir} was started with {settings}. Use these, or "
            "another --run_dir."
        )


@contextlib.contextmanager
def locked(run_dir, process=0):
    """Makes and holds the directory, until the process ends however it does.

    Of processes that train together, the first holds it for all.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if process:
            yield
            return
        file = open(run_dir / ".lock", "w")
    except OSError as error:
        raise UserError(
            "--run_dir must be a directory that can be written. Received: "
            f"{run_dir} ({error.strerror})"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"Another process is training in {run_dir}."
            ) from error
        yield
