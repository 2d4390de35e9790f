"""Command line of the translation example.

python -m examples.translation [VERB] [--flag value ...] [SENTENCE ...]

Verbs:
  train      (default) train, evaluate and report; continues a run it finds
  translate  translate sentences from the command line, or lines from stdin
  evaluate   score a trained run on its test splits
  export     write a SavedModel of a trained run
  prepare    fetch --tfds_name, on a machine with a network

translate, evaluate and export take the run of --run_dir, or the one that the
same flags have trained. A sentence that begins with a dash goes after --.
"""

import dataclasses
import importlib
import os
import sys

from absl import flags

from examples.translation.config import PRESETS
from examples.translation.config import TranslationConfig
from examples.translation.config import value_type
from examples.translation.errors import UserError
from examples.translation.termination import Terminated
from examples.translation.termination import Termination

VERBS = ("train", "translate", "evaluate", "export", "prepare")


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
    for field in dataclasses.fields(TranslationConfig):
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


def help_text():
    """Returns the usage and every flag with its presets' values."""
    lines = [__doc__, "Flags:"]
    for field in dataclasses.fields(TranslationConfig):
        described = field.metadata["description"]
        if choices := field.metadata["choices"]:
            described += f" One of {', '.join(choices)}."
        lines += [f"  --{field.name}", f"      {described}"]
        if default := _describe_default(field):
            lines.append(f"      Default: {default}.")
    return "\n".join(lines)


def _describe_default(field):
    values = {
        preset: str(overrides.get(field.name, field.default)).strip("()")
        for preset, overrides in PRESETS.items()
    }
    if field.name == "preset" or len(set(values.values())) == 1:
        return "" if field.default is None else field.default
    return "; ".join(f"{value} ({preset})" for preset, value in values.items())


def parse(argv):
    """Returns the verb, the flags that were given, and the sentences.

    Raises:
        UserError: An unknown flag or verb, or a flag that cannot be read.
    """
    values = define_flags()
    try:
        _, *words = values(argv)
    except flags.Error as error:
        raise UserError(f"{error}. --help lists the flags.") from error
    if values.help:
        return "help", {}, []
    verb, *sentences = words or ["train"]
    if verb not in VERBS:
        raise UserError(
            f"The verb must be one of {', '.join(VERBS)}. Received: {verb}"
        )
    if sentences and verb != "translate":
        raise UserError(f"{verb} takes flags only. Received: {sentences[0]}")
    given = {
        field.name: values[field.name].value
        for field in dataclasses.fields(TranslationConfig)
        if values[field.name].present
    }
    return verb, given, sentences


def run(verb, overrides, sentences):
    """Does what the verb says. See `parse`."""
    if verb == "help":
        print(help_text())
        return
    config = TranslationConfig.from_preset(**overrides)
    if verb == "train":
        with Termination() as termination:
            _import("train").train(config, termination)
        return
    commands = _import("commands")
    match verb:
        case "translate":
            commands.translate(config, overrides, sentences)
        case "evaluate":
            commands.evaluate(config, overrides)
        case "export":
            commands.export(config, overrides)
        case "prepare":
            commands.prepare(config)


def _import(name):
    """Imports what takes seconds, when the flags are known to be right."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return importlib.import_module(f"examples.translation.{name}")


def main(argv):
    """Runs a command line and returns its exit status."""
    try:
        run(*parse(argv))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except Terminated:
        print(
            "Stopped by SIGTERM. The same command continues the run.",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
