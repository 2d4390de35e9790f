"""Optimizers by name, each with the learning-rate schedule that fits it.

Adam's schedule ruins Adafactor and the other way round: Adafactor takes steps
relative to the size of each weight and brings its own schedule,
`min(learning_rate, 1 / sqrt(t))`; Adam takes absolute steps and needs a
warm-up from outside. So the two are chosen together, from one table.
"""

import dataclasses
from collections.abc import Callable

import keras

import keras_adafactor
from examples.translation.errors import UserError


@keras.saving.register_keras_serializable(package="translation")
class WarmupRsqrt(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to a peak, then decay with the root of the step.

    ```
    lr(t) = peak * min(t / warmup_steps, sqrt(warmup_steps / t)),  t = 1, 2, ..
    ```

    Args:
        peak: Learning rate at `t = warmup_steps`, positive.
        warmup_steps: At least 1; with 1 there is no warm-up.
    """

    def __init__(self, peak, warmup_steps):
        self.peak = peak
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        t = keras.ops.cast(step, "float32") + 1.0
        return self.peak * keras.ops.minimum(
            t / self.warmup_steps, keras.ops.sqrt(self.warmup_steps / t)
        )

    def get_config(self):
        return {"peak": self.peak, "warmup_steps": self.warmup_steps}


@dataclasses.dataclass(frozen=True)
class OptimizerRow:
    """One optimizer and what fits it.

    Attributes:
        constructor: Class of the optimizer.
        learning_rate: `config -> float`, the default.
        relative_step: Whether the learning rate is the cap of a step relative
            to the size of each weight; else it is the peak of `WarmupRsqrt`.
        weight_decay: Default weight decay.
        settings: `config -> dict` of further arguments of the constructor.
    """

    constructor: type
    learning_rate: Callable
    relative_step: bool = False
    weight_decay: float | None = None
    settings: Callable = lambda config: {}


def _relative_step_cap(config):
    """The cap of the Adafactor paper, which 1 / sqrt(t) meets at 10,000 steps.

    A run of `tiny` is over before that. With 0.04, met at 625 steps, its
    validation loss after 500 was 1.79, with 0.02 1.98, with 0.01 2.26.
    """
    return 0.04 if config.preset == "tiny" else 0.01


def _of_transformer_peak(ratio):
    """A multiple of the peak of "Attention Is All You Need", for 4,000 steps.

    That is Adam's. The multiples are the best rates on `tiny` over the best of
    Adam's, by `benchmarks.family`.
    """
    return lambda config: ratio * (config.model_dim * 4_000) ** -0.5


def _adafactor_settings(config):
    return {
        "relative_step": True,
        "warmup_steps": warmup_steps(config) or None,
        "record_update_rms": True,
    }


def _keras_adafactor_settings(config):
    if warmup := warmup_steps(config):
        raise UserError(
            "--warmup_steps must be 0 with --optimizer keras_adafactor, whose "
            f"relative step has no warm-up. Received: {warmup}"
        )
    return {"relative_step": True}


def _adam_settings(config):
    return {"beta_1": 0.9, "beta_2": 0.98, "epsilon": 1e-9}


def _subspace_settings(config):
    # The paper's 128 of 512, for narrower models too; embeddings are no
    # matrices of a linear layer, and theirs take Adam's step there.
    rank = min(128, config.model_dim // 4)
    return {"rank": rank, "fallback": "embedding"}


OPTIMIZERS = {
    "adafactor": OptimizerRow(
        keras_adafactor.Adafactor,
        _relative_step_cap,
        relative_step=True,
        settings=_adafactor_settings,
    ),
    "came": OptimizerRow(
        keras_adafactor.CAME,
        _of_transformer_peak(1),
        settings=lambda config: {"debias_beta_3": True},
    ),
    "smmf": OptimizerRow(
        keras_adafactor.SMMF,
        _of_transformer_peak(1),
        # The authors' for Transformers.
        settings=lambda config: {"beta_2_decay": -0.8},
    ),
    "subset_norm": OptimizerRow(
        keras_adafactor.SubsetNorm, _of_transformer_peak(8)
    ),
    "subspace_momentum": OptimizerRow(
        keras_adafactor.SubspaceMomentum,
        _of_transformer_peak(2),
        settings=_subspace_settings,
    ),
    "coap": OptimizerRow(
        keras_adafactor.COAP,
        _of_transformer_peak(2),
        settings=lambda config: {"fallback": "embedding"},
    ),
    "soap": OptimizerRow(
        keras_adafactor.SOAP,
        _of_transformer_peak(1),
        # A basis of the vocabulary's size would cost more than the model.
        settings=lambda config: {"max_precondition_dim": 4 * config.model_dim},
    ),
    "hfac": OptimizerRow(keras_adafactor.HFac, _of_transformer_peak(1)),
    "fadam": OptimizerRow(
        keras_adafactor.FAdam, _of_transformer_peak(0.5), weight_decay=0.1
    ),
    "signum": OptimizerRow(keras_adafactor.Signum, _of_transformer_peak(0.25)),
    "adalayer": OptimizerRow(keras_adafactor.Adalayer, _of_transformer_peak(1)),
    "lion": OptimizerRow(keras_adafactor.Lion, _of_transformer_peak(0.125)),
    "keras_adafactor": OptimizerRow(
        keras.optimizers.Adafactor,
        _relative_step_cap,
        relative_step=True,
        settings=_keras_adafactor_settings,
    ),
    "adam": OptimizerRow(
        keras.optimizers.Adam,
        _of_transformer_peak(1),
        settings=_adam_settings,
    ),
    "adamw": OptimizerRow(
        keras.optimizers.AdamW,
        _of_transformer_peak(1),
        weight_decay=0.01,
        settings=_adam_settings,
    ),
    "muon": OptimizerRow(
        keras.optimizers.Muon, _of_transformer_peak(1), weight_decay=0.01
    ),
    "sgd": OptimizerRow(
        keras.optimizers.SGD,
        lambda config: 0.1,
        settings=lambda config: {"momentum": 0.9, "nesterov": True},
    ),
}


def learning_rate(config):
    """Returns the cap or peak: the one asked for, or the optimizer's own."""
    if config.learning_rate is not None:
        return config.learning_rate
    return OPTIMIZERS[config.optimizer].learning_rate(config)


def rate_or_schedule(config):
    """Returns what the optimizer gets: a cap as a float, or a schedule."""
    rate = learning_rate(config)
    if OPTIMIZERS[config.optimizer].relative_step:
        return rate
    return WarmupRsqrt(rate, max(1, warmup_steps(config)))


def warmup_steps(config):
    """Returns the steps of warm-up: those asked for, or the optimizer's own.

    That is none for a relative step, else 4,000 as in "Attention Is All You
    Need", 400 for the `tiny` preset.
    """
    if config.warmup_steps is not None:
        return config.warmup_steps
    if OPTIMIZERS[config.optimizer].relative_step:
        return 0
    return 400 if config.preset == "tiny" else 4_000


def build_optimizer(config):
    """Returns the optimizer of a `TranslationConfig`, not built yet.

    With `mixed_precision="float16"` it comes inside a `LossScaleOptimizer`.

    Raises:
        UserError: A setting that the optimizer does not have.
    """
    row = OPTIMIZERS[config.optimizer]
    weight_decay = config.weight_decay
    if weight_decay is None:
        weight_decay = row.weight_decay
    accumulation = config.gradient_accumulation_steps
    optimizer = row.constructor(
        learning_rate=rate_or_schedule(config),
        weight_decay=weight_decay or None,
        gradient_accumulation_steps=accumulation if accumulation > 1 else None,
        name=config.optimizer,
        **row.settings(config),
    )
    if config.mixed_precision == "float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def accumulates_on_replicas(config):
    """Whether the optimizer accumulates gradients under MirroredStrategy.

    Those of Keras raise in `fit`.
    """
    return issubclass(
        OPTIMIZERS[config.optimizer].constructor,
        keras_adafactor.UpdateRuleOptimizer,
    )


def describe_optimizer(config):
    """Returns the optimizer and its schedule in one line, for logs."""
    rate, warmup = learning_rate(config), warmup_steps(config)
    if OPTIMIZERS[config.optimizer].relative_step:
        schedule = f"relative step min({rate:g}, 1 / sqrt(t))"
    else:
        schedule = f"peak learning rate {rate:.2g}, falling as 1 / sqrt(t)"
    warming = f"{warmup:,} steps of warm-up" if warmup else "no warm-up"
    return f"{config.optimizer}, {schedule}, {warming}"
