"""Optimizers by name, each with the learning-rate schedule that fits it.

Adam's schedule ruins Adafactor and the other way round: Adafactor takes steps
relative to the size of each weight and brings its own schedule,
`min(learning_rate, 1 / sqrt(t))`; Adam takes absolute steps and needs a
warm-up from outside. So the two are chosen together, from one table.
"""

import dataclasses
from collections.abc import Callable

import keras

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
        build: `(learning_rate, warmup_steps, **keywords) -> optimizer`, where
            the keywords are those every Keras optimizer takes.
        schedule: What its learning rate does, in words, for logs.
        learning_rate: `config -> peak`, the default peak learning rate.
        warmup_steps: `config -> steps`, the default warm-up.
        weight_decay: Default weight decay.
    """

    build: Callable
    schedule: str
    learning_rate: Callable
    warmup_steps: Callable
    weight_decay: float | None = None


def _relative_step_cap(config):
    return 0.01


def _transformer_peak(config):
    """The peak that "Attention Is All You Need" has at its 4,000 steps."""
    return (config.model_dim * 4_000) ** -0.5


def _no_warmup(config):
    return 0


def _warmup(config):
    return 400 if config.preset == "tiny" else 4_000


def _adafactor(learning_rate, warmup_steps, **keywords):
    # Here, because the other rows work without the package.
    import keras_adafactor  # noqa: PLC0415

    return keras_adafactor.Adafactor(
        learning_rate=learning_rate,
        relative_step=True,
        warmup_steps=warmup_steps or None,
        **keywords,
    )


def _keras_adafactor(learning_rate, warmup_steps, **keywords):
    if warmup_steps:
        raise UserError(
            "--warmup_steps must be 0 with --optimizer keras_adafactor, whose "
            f"relative step has no warm-up. Received: {warmup_steps}"
        )
    return keras.optimizers.Adafactor(
        learning_rate=learning_rate, relative_step=True, **keywords
    )


def _with_warmup(constructor, **settings):
    def build(learning_rate, warmup_steps, **keywords):
        schedule = WarmupRsqrt(learning_rate, max(1, warmup_steps))
        return constructor(schedule, **settings, **keywords)

    return build


_PAPER_BETAS = {"beta_1": 0.9, "beta_2": 0.98, "epsilon": 1e-9}
_RELATIVE_STEP = "min(learning rate, 1 / sqrt(t)), relative to each weight"
_WARMUP_RSQRT = "linear warm-up, then 1 / sqrt(t)"

OPTIMIZERS = {
    "adafactor": OptimizerRow(
        _adafactor, _RELATIVE_STEP, _relative_step_cap, _no_warmup
    ),
    "keras_adafactor": OptimizerRow(
        _keras_adafactor, _RELATIVE_STEP, _relative_step_cap, _no_warmup
    ),
    "adam": OptimizerRow(
        _with_warmup(keras.optimizers.Adam, **_PAPER_BETAS),
        _WARMUP_RSQRT,
        _transformer_peak,
        _warmup,
    ),
    "adamw": OptimizerRow(
        _with_warmup(keras.optimizers.AdamW, **_PAPER_BETAS),
        _WARMUP_RSQRT,
        _transformer_peak,
        _warmup,
        weight_decay=0.01,
    ),
    "sgd": OptimizerRow(
        _with_warmup(keras.optimizers.SGD, momentum=0.9, nesterov=True),
        _WARMUP_RSQRT,
        lambda config: 0.1,
        _warmup,
    ),
}


def build_optimizer(config):
    """Returns the optimizer of a `TranslationConfig`, not built yet.

    With `mixed_precision="float16"` it comes inside a `LossScaleOptimizer`.

    Raises:
        UserError: A setting that the optimizer does not have.
    """
    row = OPTIMIZERS[config.optimizer]
    learning_rate = config.learning_rate
    if learning_rate is None:
        learning_rate = row.learning_rate(config)
    warmup_steps = config.warmup_steps
    if warmup_steps is None:
        warmup_steps = row.warmup_steps(config)
    weight_decay = config.weight_decay
    if weight_decay is None:
        weight_decay = row.weight_decay
    keywords = {"name": config.optimizer}
    if weight_decay:
        keywords["weight_decay"] = weight_decay
    if config.gradient_accumulation_steps > 1:
        keywords["gradient_accumulation_steps"] = (
            config.gradient_accumulation_steps
        )
    optimizer = row.build(learning_rate, warmup_steps, **keywords)
    if config.mixed_precision == "float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def describe_schedule(config):
    """Returns the optimizer and its schedule in one line, for logs."""
    return f"{config.optimizer}: {OPTIMIZERS[config.optimizer].schedule}"
