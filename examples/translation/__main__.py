"""Command line of the translation example.

python -m examples.translation [VERB] [--flag value ...] [SENTENCE ...]
"""

import contextlib
import dataclasses
import importlib
import os
import signal
import sys
import traceback

from absl import flags

from examples.translation.config import PRESETS
from examples.translation.config import TranslateOptions
from examples.translation.config import TranslationConfig
from examples.translation.config import value_type
from examples.translation.errors import UserError
from examples.translation.errors import notice
from examples.translation.termination import Terminated
from examples.translation.termination import Termination

_CONFIG = {f.name: f for f in dataclasses.fields(TranslationConfig)}
_OPTIONS = {f.name: f for f in dataclasses.fields(TranslateOptions)}
FIELDS = _CONFIG | _OPTIONS
_RUN = ("run_dir", "preset", "data", "data_dir", "tfds_name", "optimizer")
_TEXT = tuple(name for name in FIELDS if name.endswith(("_source", "_target")))
_SEARCH = ("beam_size", "length_penalty", "max_decode_length")
# What each verb does, and the flags that it heeds.
VERBS = {
    "train": (
        "(default) train, evaluate and report; continues a run it finds",
        tuple(_CONFIG),
    ),
    "translate": (
        "translate sentences from the command line, a file or stdin",
        (*_RUN, *_OPTIONS, *_SEARCH, "evaluation_batch_size"),
    ),
    "evaluate": (
        "score a trained run on its test splits",
        (*_RUN, *_TEXT, *_SEARCH, "evaluation_batch_size", "test_sentences"),
    ),
    "export": ("write a SavedModel of a trained run", (*_RUN, *_SEARCH)),
    "prepare": (
        "fetch --tfds_name, on a machine with a network",
        ("tfds_name", "data_dir"),
    ),
}
_NOTES = """
translate, evaluate and export take the run of --run_dir, or the one that the
same flags have trained. A sentence that begins with a dash goes after --.
VERB --help lists what that verb heeds."""


class _FieldParser(flags.ArgumentParser):
    """Parses a flag into the type of a field of `TranslationConfig`."""

    def __init__(self, field):
        super().__init__()
        self.kind, _ = value_type(field)

    def parse(self, argument):
        words = {
            int: "a whole number",
            float: "a number",
            tuple: "whole numbers with commas between",
        }
        try:
            if self.kind is tuple:
                return tuple(int(part) for part in argument.split(","))
            return self.kind(argument)
        except ValueError as error:
            raise ValueError(f"must be {words[self.kind]}") from error


def define_flags():
    """Returns absl flags, one for each field, unset unless given."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    for field in FIELDS.values():
        flags.DEFINE(
            _FieldParser(field),
            field.name,
            None,
            field.metadata["description"],
            flag_values=values,
        )
    flags.DEFINE_bool(
        "help", False, "Show this.", short_name="h", flag_values=values
    )
    return values


def help_text(verb=None):
    """Returns the usage of a verb, or of all, and its flags with defaults."""
    lines = [__doc__]
    if verb is None:
        lines += ["Verbs:"]
        lines += [f"  {name:9}  {does}" for name, (does, _) in VERBS.items()]
        lines += [_NOTES]
    else:
        lines += [f"{verb}: {VERBS[verb][0]}"]
    lines += ["\nFlags:"]
    for name in VERBS[verb or "train"][1]:
        described = FIELDS[name].metadata["description"]
        if choices := FIELDS[name].metadata["choices"]:
            described += f" One of {', '.join(choices)}."
        of_a_run = verb in ("translate", "evaluate", "export")
        if of_a_run and name not in (*_RUN, *_OPTIONS):
            described = described.partition(" Default:")[0]
            described += " Default: that of the run."
        lines += [f"  --{name}", f"      {described}"]
        if "Default:" not in described:
            lines += [f"      Default: {_describe_default(FIELDS[name])}."]
    return "\n".join(lines)


def _describe_default(field):
    values = {
        preset: _words(overrides.get(field.name, field.default))
        for preset, overrides in PRESETS.items()
    }
    if field.name == "preset" or len(set(values.values())) == 1:
        return _words(field.default)
    return "; ".join(f"{value} ({preset})" for preset, value in values.items())


def _words(value):
    return "none" if value is None else str(value).strip("()")


def parse(argv):
    """Returns the verb, the flags that were given, and the sentences.

    For `--help` the verb is "help" and the sentences are what was before it.

    Raises:
        UserError: An unknown flag or verb, or a flag that cannot be read.
    """
    values = define_flags()
    try:
        _, *words = values(argv)
    except flags.Error as error:
        raise UserError(f"{error}. --help lists the flags.") from error
    verb, *sentences = words or ["train"]
    if values.help and not words:
        return "help", {}, []
    if verb not in VERBS:
        raise UserError(
            f"The verb must be one of {', '.join(VERBS)}. Received: {verb}"
        )
    if values.help:
        return "help", {}, [verb]
    if sentences and verb != "translate":
        raise UserError(f"{verb} takes flags only. Received: {sentences[0]}")
    given = {
        name: values[name].value for name in FIELDS if values[name].present
    }
    for name in _OPTIONS:
        if name in given and verb != "translate":
            raise UserError(f"--{name} goes with translate. Received: {verb}")
    if sentences and "input" in given:
        raise UserError(
            "--input cannot go with sentences of the command line. Received: "
            f"{sentences[0]}"
        )
    return verb, given, sentences


def run(verb, overrides, sentences):
    """Does what the verb says. See `parse`."""
    if verb == "help":
        print(help_text(*sentences))
        return
    options = TranslateOptions(
        **{name: overrides.pop(name) for name in _OPTIONS if name in overrides}
    )
    config = TranslationConfig.from_preset(**overrides)
    if verb == "train":
        with Termination() as termination:
            _import("train").train(config, termination)
        return
    if verb == "translate":
        with _quiet_libraries():
            _import("commands").translate(config, overrides, sentences, options)
        return
    commands = _import("commands")
    match verb:
        case "evaluate":
            commands.evaluate(config, overrides)
        case "export":
            commands.export(config, overrides)
        case "prepare":
            commands.prepare(config)


def _import(name):
    """Imports what takes seconds, when the flags are known to be right."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    extras = {
        "tensorflow": "tensorflow,examples",
        "jax": "tensorflow,jax,examples",
    }
    if backend not in extras:
        raise UserError(
            f"KERAS_BACKEND must be one of tensorflow, jax. Received: {backend}"
        )
    try:
        return importlib.import_module(f"examples.translation.{name}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"The package {error.name} is not installed. What the example "
            f"needs: pip install -e '.[{extras[backend]}]'"
        ) from error


@contextlib.contextmanager
def _quiet_libraries():
    """Leaves stderr to Python: C++ logs there whatever its log level is.

    TF_CPP_MIN_LOG_LEVEL=0 lets it speak.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        yield
        return
    sys.stderr.flush()
    with open(os.dup(2), "w", buffering=1) as stderr:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            with contextlib.redirect_stderr(stderr):
                yield
        finally:
            os.dup2(stderr.fileno(), 2)


def main(argv):
    """Runs a command line and returns its exit status."""
    status = 1
    try:
        status = _status_of(argv)
    except Exception:
        traceback.print_exc()
    if status and _is_joined():
        # In order, the processes would wait for one another before they end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _is_joined():
    """Whether this process trains together with others."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _status_of(argv):
    try:
        run(*parse(argv))
        sys.stdout.flush()
    except UserError as error:
        notice(str(error))
        return 2
    except BrokenPipeError:
        # Whoever read has gone, as `head` does; Python flushes once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        notice(f"Cannot go on: {error}")
        return 2
    except Terminated as stopped:
        (number,) = stopped.args
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        notice(f"Stopped by {name}. The same command continues the run.")
        return 130 if number == signal.SIGINT else 0
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
