"""What a translation run is: one frozen dataclass, three presets, JSON."""

import dataclasses
import json
import math
import types
import typing

from examples.translation.errors import UserError

OPTIMIZERS = (
    "adafactor",
    "came",
    "smmf",
    "subset_norm",
    "subspace_momentum",
    "coap",
    "soap",
    "hfac",
    "fadam",
    "signum",
    "adalayer",
    "lion",
    "keras_adafactor",
    "adam",
    "adamw",
    "muon",
    "sgd",
)


def _field(
    default,
    description,
    *,
    choices=None,
    minimum=None,
    below=None,
    changes_run=True,
):
    """Declares a field with what its flag, its check and a resume need.

    Args:
        default: Value in the `tiny` preset.
        description: One line for `--help`.
        choices: Allowed strings; any if `None`.
        minimum: Smallest allowed number (for a tuple: of its items).
        below: Number the value must stay under.
        changes_run: Whether another value would train other weights. Such a
            field cannot be changed when a run is resumed.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "description": description,
            "choices": choices,
            "minimum": minimum,
            "below": below,
            "changes_run": changes_run,
        },
    )


@dataclasses.dataclass(frozen=True)
class TranslationConfig:
    """Everything that decides a run. Each field is a command-line flag.

    The defaults written here are the `tiny` preset: a model for the embedded
    synthetic corpus and two CPU cores. Values are checked on construction.

    Raises:
        UserError: A value is out of range, or two values contradict each
            other. The message names the flag.
    """

    preset: str = _field(
        "tiny",
        "The set of values that the other flags override.",
        choices=("tiny", "base", "big"),
    )
    run_dir: str | None = _field(
        None,
        "Directory of the run. Default: runs/<preset>-<source>-<optimizer>.",
        changes_run=False,
    )

    # Data.
    data: str = _field(
        "auto",
        "Where sentences come from; auto takes tfds if it is prepared, else "
        "the embedded synthetic corpus.",
        choices=("auto", "tfds", "text", "synthetic"),
        changes_run=False,
    )
    data_dir: str | None = _field(
        None,
        "Directory of tensorflow-datasets. Default: $TFDS_DATA_DIR, else "
        "~/tensorflow_datasets.",
        changes_run=False,
    )
    tfds_name: str = _field(
        "wmt14_translate/de-en",
        "tensorflow-datasets name and config.",
        changes_run=False,
    )
    direction: str = _field("en-de", "Source and target language.")
    train_source: str | None = _field(
        None, "--data text: source side, a sentence a line.", changes_run=False
    )
    train_target: str | None = _field(
        None, "--data text: target side of --train_source.", changes_run=False
    )
    validation_source: str | None = _field(
        None, "--data text: source side.", changes_run=False
    )
    validation_target: str | None = _field(
        None, "--data text: target side.", changes_run=False
    )
    test_source: str | None = _field(
        None, "--data text: source side.", changes_run=False
    )
    test_target: str | None = _field(
        None, "--data text: target side.", changes_run=False
    )
    synthetic_train_size: int | None = _field(
        None,
        "Sentences of the synthetic training split. Default: 50000.",
        minimum=1,
    )
    max_train_examples: int | None = _field(
        None,
        "Use only the first of the training pairs. Default: all.",
        minimum=1,
    )
    vocab_size: int = _field(
        2_048, "Pieces of the joint sentencepiece model.", minimum=1
    )
    tokenizer_from: str | None = _field(
        None, "Directory of a run whose vocabulary to take."
    )
    max_length: int = _field(
        64, "Longest training sentence, in pieces with eos.", minimum=4
    )
    batching: str = _field(
        "bucket",
        "bucket: sentences of like length; pack: several in a row.",
        choices=("bucket", "pack"),
    )
    bucket_lengths: tuple[int, ...] = _field(
        (32, 64), "Row lengths; the last one is --max_length.", minimum=4
    )
    batch_size: int | None = _field(
        64, "Rows of a batch, over all replicas.", minimum=1
    )
    tokens_per_batch: int | None = _field(
        None, "Target tokens of a batch, instead of --batch_size.", minimum=1
    )

    # Model.
    num_layers: int = _field(2, "Encoder and decoder layers each.", minimum=1)
    model_dim: int = _field(128, "Width of the model.", minimum=2)
    ff_dim: int = _field(512, "Width of the feed-forward layers.", minimum=1)
    num_heads: int = _field(4, "Attention heads.", minimum=1)
    dropout: float = _field(0.0, "Dropout rate.", minimum=0.0, below=1.0)
    norm: str = _field(
        "pre", "Layer normalization before or after.", choices=("pre", "post")
    )
    init_from: str | None = _field(
        None,
        "Directory of a finished run whose weights and vocabulary to start "
        "from.",
    )
    label_smoothing: float = _field(
        0.1, "Probability given to the other pieces.", minimum=0.0, below=1.0
    )

    # Training.
    steps: int = _field(
        2_000, "Batches to train on.", minimum=1, changes_run=False
    )
    patience: int | None = _field(
        None,
        "Checkpoints without a lower validation loss after which to stop. "
        "Default: never.",
        minimum=1,
        changes_run=False,
    )
    optimizer: str = _field(
        "adafactor", "Optimizer, with its own schedule.", choices=OPTIMIZERS
    )
    learning_rate: float | None = _field(
        None,
        "Cap of the relative step, or peak. Default: 0.04 (tiny) or 0.01 for "
        "adafactor and keras_adafactor, 0.1 for sgd, a multiple of "
        "(4000 model_dim)^-0.5 for the others; see the README.",
        minimum=0.0,
    )
    warmup_steps: int | None = _field(
        None,
        "Steps of linear warm-up. Default: 0 for adafactor and "
        "keras_adafactor, else 400 (tiny) or 4000.",
        minimum=0,
    )
    weight_decay: float | None = _field(
        None,
        "Decoupled weight decay. Default: 0.01 for adamw and muon, 0.1 for "
        "fadam, else none.",
        minimum=0.0,
    )
    gradient_accumulation_steps: int = _field(
        1, "Batches whose gradients make one update.", minimum=1
    )
    remat: str = _field(
        "off",
        "on computes what is inside layers again in the backward pass, to keep "
        "less.",
        choices=("on", "off"),
        changes_run=False,
    )
    mixed_precision: str = _field(
        "none",
        "Type of activations; float16 comes with loss scaling.",
        choices=("none", "bfloat16", "float16"),
    )
    seed: int = _field(
        0, "Seed of weights, dropout and batches.", minimum=0, below=2**32
    )
    strategy: str = _field(
        "auto",
        "auto takes a TPU, else several GPUs, else one device.",
        choices=("auto", "default", "mirrored", "tpu"),
        changes_run=False,
    )
    virtual_devices: int = _field(
        1,
        "Split the CPU into this many devices.",
        minimum=1,
        changes_run=False,
    )
    model_parallel: int = _field(
        1,
        "Devices that share one copy of the model (JAX).",
        minimum=1,
        changes_run=False,
    )
    sharding: str | None = _field(
        None,
        "What of weights, gradients and optimizer state is split (JAX): "
        "fully_sharded splits all of it over the devices that share a batch. "
        "Default: model_parallel where that flag is given, else replicated.",
        choices=("replicated", "model_parallel", "fully_sharded"),
        changes_run=False,
    )
    jit_compile: str = _field(
        "auto", "XLA for the training step.", choices=("auto", "on", "off")
    )
    steps_per_execution: int = _field(
        1, "Training steps per call into the backend.", minimum=1
    )

    # Checkpoints.
    checkpoint_dir: str | None = _field(
        None,
        "Directory of the checkpoints, which every host must see; gs:// too. "
        "Default: checkpoints/ in the run's.",
        changes_run=False,
    )
    checkpoint_every: int = _field(
        200, "Steps between validations and checkpoints.", minimum=1
    )
    keep_checkpoints: int = _field(
        5, "Newest checkpoints to keep.", minimum=1, changes_run=False
    )
    average_checkpoints: int = _field(
        5, "Last checkpoints to average at the end.", changes_run=False
    )

    # Evaluation.
    bleu_every: int = _field(
        2,
        "Checkpoints between validation BLEU scores; 0: never.",
        minimum=0,
        changes_run=False,
    )
    bleu_sentences: int = _field(
        200, "Validation sentences for BLEU.", minimum=1, changes_run=False
    )
    test_sentences: int | None = _field(
        None,
        "Sentences of each test split. Default: all.",
        minimum=1,
        changes_run=False,
    )
    sample_sentences: int = _field(
        8, "Sample translations to show.", minimum=0, changes_run=False
    )
    evaluation_batch_size: int = _field(
        64, "Rows of an evaluation batch.", minimum=1, changes_run=False
    )
    beam_size: int = _field(4, "Beams.", minimum=1, changes_run=False)
    length_penalty: float = _field(
        0.6,
        "Exponent of the length penalty ((5 + length) / 6)^alpha.",
        minimum=0.0,
        changes_run=False,
    )
    max_decode_length: int | None = _field(
        None,
        "Longest translation, in pieces. Default: --max_length + 50.",
        minimum=1,
        changes_run=False,
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_field(field, getattr(self, field.name))
        _check_pairs(self)

    @classmethod
    def from_preset(cls, preset="tiny", **overrides):
        """Returns the preset with the named fields changed.

        Giving one of `batch_size` and `tokens_per_batch` takes the place of
        the other. `vocab_size` cannot go with a run to take a vocabulary from.
        A new `max_length` cuts or extends the preset's buckets.

        Raises:
            UserError: Unknown preset or field, or values that do not fit.
        """
        if preset not in PRESETS:
            raise _invalid("preset", f"one of {', '.join(PRESETS)}", preset)
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(overrides) - names)
        if unknown:
            raise UserError(f"No such setting: {', '.join(unknown)}.")
        values = {"preset": preset} | PRESETS[preset]
        for given, other in (
            ("batch_size", "tokens_per_batch"),
            ("tokens_per_batch", "batch_size"),
        ):
            if given in overrides and other not in overrides:
                values[other] = None
        for other in ("tokenizer_from", "init_from"):
            if overrides.get(other) and "vocab_size" in overrides:
                raise UserError(
                    f"--{other} brings a vocabulary; it cannot go with "
                    f"--vocab_size. Received: {overrides['vocab_size']}"
                )
        if "max_length" in overrides and "bucket_lengths" not in overrides:
            longest = overrides["max_length"]
            preset_lengths = values.get("bucket_lengths", cls.bucket_lengths)
            shorter = tuple(n for n in preset_lengths if n < longest)
            values["bucket_lengths"] = (*shorter, longest)
        return cls(**(values | overrides))

    @classmethod
    def from_json(cls, text):
        """Returns the configuration that `to_json` wrote."""
        values = json.loads(text)
        values["bucket_lengths"] = tuple(values["bucket_lengths"])
        return cls(**values)

    def to_json(self):
        """Returns every field as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def but_for_paths(self):
        """Returns a dict of the fields that all hosts of a run share."""
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if not name.endswith(("_dir", "_source", "_target", "_from"))
        }

    def conflicts(self, other):
        """Returns the fields that forbid resuming `other` with this.

        Returns:
            List of `(name, value in self, value in other)`.
        """
        return [
            (field.name, getattr(self, field.name), getattr(other, field.name))
            for field in dataclasses.fields(self)
            if field.metadata["changes_run"]
            and getattr(self, field.name) != getattr(other, field.name)
        ]


@dataclasses.dataclass(frozen=True)
class TranslateOptions:
    """What `translate` reads and writes; flags too, but not of the run."""

    n_best: int | None = _field(
        None,
        "Print so many translations of each sentence, a line each: number of "
        "the sentence, score and translation, with tabs between. Default: "
        "one, alone.",
        minimum=1,
    )
    input: str | None = _field(
        None,
        "File of sentences, a line each, plain or gzip. Default: those of the "
        "command line, else stdin.",
    )
    output: str | None = _field(None, "File to write to. Default: stdout.")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_field(field, getattr(self, field.name))


# The sizes, dropout and steps of "Attention Is All You Need", Table 3.
_WMT14 = {
    "vocab_size": 37_000,
    "max_length": 256,
    "bucket_lengths": (32, 64, 128, 256),
    "batch_size": None,
    "tokens_per_batch": 25_000,
    "num_layers": 6,
    "checkpoint_every": 1_000,
    "evaluation_batch_size": 32,
}
PRESETS = {
    "tiny": {},
    "base": _WMT14
    | {
        "model_dim": 512,
        "ff_dim": 2_048,
        "num_heads": 8,
        "dropout": 0.1,
        "steps": 100_000,
    },
    "big": _WMT14
    | {
        "model_dim": 1_024,
        "ff_dim": 4_096,
        "num_heads": 16,
        "dropout": 0.3,
        "steps": 300_000,
        "keep_checkpoints": 20,
        "average_checkpoints": 20,
    },
}


def value_type(field):
    """Returns `(type, optional)` of a field: int, float, str or tuple."""
    annotation, optional = field.type, False
    if isinstance(annotation, types.UnionType):
        annotation = next(
            member
            for member in typing.get_args(annotation)
            if member is not types.NoneType
        )
        optional = True
    return typing.get_origin(annotation) or annotation, optional


def _invalid(name, allowed, received):
    return UserError(f"--{name} must be {allowed}. Received: {received}")


def _check_field(field, value):
    metadata = field.metadata
    kind, optional = value_type(field)
    if value is None and optional:
        return
    numbers = value if kind is tuple else (value,)
    accepted = (int, float) if kind is float else int
    if kind is not str and not all(
        isinstance(number, accepted) and not isinstance(number, bool)
        for number in numbers
    ):
        allowed = {
            float: "a number",
            int: "a whole number",
            tuple: "whole numbers",
        }[kind]
        raise _invalid(field.name, allowed, value)
    if kind is float and not math.isfinite(value):
        raise _invalid(field.name, "a finite number", value)
    if kind is str and not isinstance(value, str):
        raise _invalid(field.name, "a string", value)
    choices = metadata["choices"]
    if choices and value not in choices:
        raise _invalid(field.name, f"one of {', '.join(choices)}", value)
    minimum, below = metadata["minimum"], metadata["below"]
    if minimum is not None and not all(n >= minimum for n in numbers):
        raise _invalid(field.name, f"at least {minimum}", value)
    if below is not None and not all(n < below for n in numbers):
        raise _invalid(field.name, f"less than {below}", value)


def _check_pairs(config):
    """Raises `UserError` for values that contradict each other."""
    if config.model_dim % config.num_heads:
        raise _invalid(
            "model_dim",
            f"a multiple of --num_heads ({config.num_heads})",
            config.model_dim,
        )
    if (config.batch_size is None) == (config.tokens_per_batch is None):
        raise UserError(
            "Give one of --batch_size and --tokens_per_batch. Received: "
            f"--batch_size {config.batch_size}, "
            f"--tokens_per_batch {config.tokens_per_batch}"
        )
    lengths = config.bucket_lengths
    if (
        not lengths
        or list(lengths) != sorted(set(lengths))
        or lengths[-1] != config.max_length
    ):
        raise _invalid(
            "bucket_lengths",
            f"increasing, ending in --max_length ({config.max_length})",
            ",".join(map(str, lengths)),
        )
    if config.average_checkpoints > config.keep_checkpoints:
        raise _invalid(
            "average_checkpoints",
            f"at most --keep_checkpoints ({config.keep_checkpoints})",
            config.average_checkpoints,
        )
    if config.strategy == "tpu" and config.virtual_devices > 1:
        raise UserError(
            "--virtual_devices splits a CPU; it cannot go with "
            f"--strategy tpu. Received: {config.virtual_devices}"
        )
    if config.patience and config.patience >= config.keep_checkpoints:
        raise _invalid(
            "patience",
            f"less than --keep_checkpoints ({config.keep_checkpoints}), so "
            "that the best is still there at the end",
            config.patience,
        )
    if config.init_from and config.tokenizer_from:
        raise UserError(
            "--init_from brings a vocabulary; it cannot go with "
            f"--tokenizer_from. Received: {config.tokenizer_from}"
        )
    _check_model_parallel(config)
    for name in ("checkpoint_every", "steps"):
        if getattr(config, name) % config.steps_per_execution:
            raise _invalid(
                name,
                "a multiple of --steps_per_execution "
                f"({config.steps_per_execution})",
                getattr(config, name),
            )
    if config.run_dir and "://" in config.run_dir:
        raise _invalid("run_dir", "a local directory", config.run_dir)


def _check_model_parallel(config):
    size = config.model_parallel
    split = {"model_parallel": True, "replicated": False}
    if split.get(config.sharding, size > 1) != (size > 1):
        raise _invalid(
            "model_parallel",
            "more than 1 with --sharding model_parallel, 1 with --sharding "
            "replicated",
            size,
        )
    flag = "sharding" if config.sharding else "model_parallel"
    lays_out = config.sharding or size > 1
    if lays_out and config.strategy in ("default", "mirrored"):
        raise UserError(
            f"--{flag} lays out the devices itself; it cannot go with "
            f"--strategy {config.strategy}. Received: {getattr(config, flag)}"
        )
    for name in ("num_heads", "ff_dim"):
        if getattr(config, name) % size:
            raise _invalid(
                "model_parallel",
                f"a divisor of --{name} ({getattr(config, name)})",
                size,
            )
