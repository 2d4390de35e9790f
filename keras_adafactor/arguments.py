"""Constructor arguments: checked, with Keras' form of message, and saved.

A check returns the value as it is kept: numbers as Python's own, so that a
configuration is JSON.
"""

import difflib
import inspect
import numbers
import re
import warnings
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import TypedDict

import keras
import numpy as np

from keras_adafactor.functional.axis_groups import AxisGroups

# Types of arguments. Keras has none of its own: its classes are `Any`.
LearningRate = (
    float
    | keras.optimizers.schedules.LearningRateSchedule
    | Callable[[], float]
)
# Regular expressions.
Patterns = str | Sequence[str] | None
StateDtype = Literal["float32", "bfloat16", "int8"]
AxisGroupsChoice = (
    str
    | AxisGroups
    | Callable[[tuple[int, ...], str], str | AxisGroups]
    | dict[str, Any]
)


def check(condition, name, requirement, value):
    """Raises unless `condition` holds.

    Args:
        condition: Bool.
        name: String, the argument's name.
        requirement: String that continues "Argument `name` must be".
        value: What was received.

    Raises:
        ValueError: "Argument `name` must be <requirement>. Received:
            name=<value>".
    """
    if not condition:
        raise ValueError(
            f"Argument `{name}` must be {requirement}. Received: "
            f"{name}={value!r}"
        )


def check_number(name, value, above=None, at_least=None, below=None,
                 at_most=None, optional=False):  # fmt: skip
    """Checks a float argument against its range.

    Args:
        name: String, the argument's name.
        value: What was received.
        above, at_least, below, at_most: Bounds, exclusive and inclusive.
        optional: Whether `None` is allowed.

    Returns:
        Float, or the int that was given; or `None`.

    Raises:
        ValueError: If `value` is not a real number in the range.
    """
    if optional and value is None:
        return None
    signs = {">": above, ">=": at_least, "<": below, "<=": at_most}
    bounds = [f"{sign} {b}" for sign, b in signs.items() if b is not None]
    requirement = f"a number {' and '.join(bounds)}" + " or None" * optional
    valid = (
        isinstance(value, numbers.Real)
        and not isinstance(value, bool)
        and (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
        and abs(value) != float("inf")
        and value == value
    )
    check(valid, name, requirement, value)
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def check_decay(name, value, optional=False):
    """Checks the decay of an average, a number between 0 and 1."""
    return check_number(name, value, above=0.0, below=1.0, optional=optional)


def check_integer(name, value, at_least, optional=False):
    """Checks an integer argument against its lower bound, and returns it."""
    if optional and value is None:
        return None
    valid = (
        isinstance(value, numbers.Integral)
        and not isinstance(value, bool)
        and value >= at_least
    )
    requirement = f"an integer >= {at_least}" + " or None" * optional
    check(valid, name, requirement, value)
    return int(value)


def check_boolean(name, value):
    """Checks that an argument is `True` or `False`, and returns it."""
    check(isinstance(value, bool | np.bool_), name, "a boolean", value)
    return bool(value)


def check_choice(name, value, choices):
    """Checks that an argument is one of a few values, and returns it."""
    valid = any(value is c or (value == c and type(value) is type(c))
                for c in choices)  # fmt: skip
    allowed = ", ".join(repr(choice) for choice in choices)
    check(valid, name, f"one of {allowed}", value)
    return value


def check_patterns(name, value):
    """Checks a list of regular expressions, and returns it as a list."""
    value = [value] if isinstance(value, str) else value
    requirement = "a regular expression, a list of them, or None"
    check(
        value is None
        or (
            isinstance(value, list | tuple)
            and all(isinstance(pattern, str) for pattern in value)
        ),
        name,
        requirement,
        value,
    )
    for pattern in value or ():
        try:
            re.compile(pattern)
        except re.error as error:
            requirement = f"a valid regular expression ({error})"
            check(False, name, requirement, pattern)
    return None if value is None else list(value)


class OptimizerKeywords(TypedDict, total=False):
    """Keywords that every optimizer of this package takes.

    The meaning of the first ten is that of `keras.optimizers.Optimizer`; what
    differs is said in `UpdateRuleOptimizer`, with the last three.

    Attributes:
        weight_decay: Float >= 0 or `None`: `weight_decay * learning_rate` of
            every weight is subtracted from it in a step, unless
            `exclude_from_weight_decay()` says otherwise. Defaults to `None`.
        clipnorm: Float > 0 or `None`, the largest norm of the gradient of a
            variable. Defaults to `None`.
        clipvalue: Float > 0 or `None`, the largest absolute value of an
            element of a gradient. Defaults to `None`.
        global_clipnorm: Float > 0 or `None`, the largest norm of all gradients
            together. Defaults to `None`.
        use_ema: Boolean, whether an average of every weight is kept, which
            takes the weight's place at the end of `fit`. Defaults to `False`.
        ema_momentum: Float in [0, 1], the decay of these averages. Defaults to
            0.99.
        ema_overwrite_frequency: Integer >= 1 or `None`, the steps after which
            weights are overwritten with their averages; with `use_ema` only.
            Defaults to `None`, at the end of `fit` alone.
        loss_scale_factor: Float > 0 or `None`, by which the loss is multiplied
            and the gradients are divided. Defaults to `None`.
        gradient_accumulation_steps: Integer >= 2 or `None`, the batches whose
            mean gradient makes an update. Defaults to `None`, one.
        name: String or `None`. Defaults to `None`: by the class, numbered.
        stochastic_rounding: Boolean, defaults to `True`.
        skip_nonfinite: `"variable"`, `"step"` or `None`; defaults to
            `"variable"`.
        fallback: Regular expression, list of them, dict from regular
            expression to `UpdateRule`, or `None`, the default.
    """

    weight_decay: float | None
    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None
    name: str | None
    stochastic_rounding: bool
    skip_nonfinite: Literal["variable", "step"] | None
    fallback: Patterns | dict[str, Any]


# What Keras, optax, PyTorch, Transformers and T5X call the arguments of these
# methods, and our names, of which a class has some.
_ELSEWHERE = {
    "alpha": ("learning_rate",),
    "b1": ("beta_1",),
    "b2": ("beta_2",),
    "b3": ("beta_3",),
    "beta1": ("beta_1",),
    "beta2": ("beta_2",),
    "beta3": ("beta_3",),
    "betas": ("beta_1", "beta_2", "beta_3"),
    "clipping_threshold": ("clip_threshold",),
    "decay_offset": ("step_offset",),
    "decay_rate": ("beta_2_decay", "beta_2"),
    "dtype_momentum": ("momentum_dtype", "state_dtype"),
    "eps": ("epsilon_1", "epsilon_2", "epsilon"),
    "grad_clip": ("clipnorm", "global_clipnorm"),
    "gradient_clipping": ("clipnorm", "global_clipnorm"),
    "lr": ("learning_rate",),
    "max_grad_norm": ("global_clipnorm",),
    "momentum": ("beta_1",),
    "mu_dtype": ("momentum_dtype", "state_dtype"),
    "precondition_frequency": ("refresh_every",),
    "rho": ("beta_2",),
    "scale_parameter": ("multiply_by_parameter_scale",),
    "update_proj_gap": ("refresh_every",),
    "warmup_init": ("warmup_steps",),
    "weight_decay_rate": ("weight_decay",),
}
_ABSENT = {
    "amsgrad": "There is no `amsgrad` here: no optimizer of this package keeps "
    "the largest second moment.",
    "decay": "For `decay`, did you mean a schedule as `learning_rate`?",
    "jit_compile": "For `jit_compile`, ask `model.compile`.",
    "nesterov": "There is no Nesterov momentum here.",
}


def check_recognized(keywords, cls):
    """Checks that every keyword is one of `OptimizerKeywords`.

    Args:
        keywords: Dict, what the constructor's own arguments have left over.
        cls: The class of the optimizer.

    Raises:
        ValueError: If one is not; names the argument that may be meant.
    """
    known = OptimizerKeywords.__annotations__
    unknown = {k: v for k, v in keywords.items() if k not in known}
    if not unknown:
        return
    arguments = [*inspect.signature(cls).parameters, *known]
    hints = [_hint(name, arguments) for name in unknown]
    raise ValueError(
        f"Argument(s) not recognized by {cls.__name__}: {unknown}."
        + "".join(f" {hint}" for hint in hints if hint)
    )


def _hint(name, arguments):
    """What may be meant by a name that is none of the arguments."""
    if name in _ABSENT:
        return _ABSENT[name]
    meant = [n for n in _ELSEWHERE.get(name, ()) if n in arguments]
    meant = meant or sorted(difflib.get_close_matches(name, arguments, n=2))
    if not meant:
        return ""
    return f"For `{name}`, did you mean {' or '.join(f'`{n}`' for n in meant)}?"


def check_keywords(keywords):
    """Checks those of `OptimizerKeywords` that are Keras'.

    Returns:
        Dict, the keywords as they are kept.
    """
    ranges = {
        "weight_decay": {"at_least": 0.0, "optional": True},
        "ema_momentum": {"at_least": 0.0, "at_most": 1.0},
        "clipnorm": {"above": 0.0, "optional": True},
        "clipvalue": {"above": 0.0, "optional": True},
        "global_clipnorm": {"above": 0.0, "optional": True},
        "loss_scale_factor": {"above": 0.0, "optional": True},
    }
    least = {"gradient_accumulation_steps": 2, "ema_overwrite_frequency": 1}
    checked = {}
    for name, value in keywords.items():
        if name in ranges:
            value = check_number(name, value, **ranges[name])
        elif name in least:
            value = check_integer(name, value, least[name], optional=True)
        elif name == "use_ema":
            value = check_boolean(name, value)
        elif name == "name":
            valid = value is None or isinstance(value, str)
            check(valid, name, "a string", value)
        checked[name] = value
    frequency = checked.get("ema_overwrite_frequency")
    check(
        frequency is None or checked.get("use_ema", False),
        "ema_overwrite_frequency",
        "None unless `use_ema` is True",
        frequency,
    )
    if checked.get("ema_momentum", 0.99) != 0.99 and not checked.get("use_ema"):
        warnings.warn(
            f"`ema_momentum={checked['ema_momentum']}` does nothing unless "
            "`use_ema` is True; for momentum see `beta_1`.",
            stacklevel=4,
        )
    return checked


def serialize(value):
    """The value of an argument as JSON data; see `deserialize`."""
    if isinstance(value, AxisGroups):
        return {name: list(axes) for name, axes in value._asdict().items()}
    if isinstance(value, dict):
        return {key: serialize(each) for key, each in value.items()}
    if value is None or isinstance(value, str | bool | int | float | list):
        return value
    return keras.saving.serialize_keras_object(value)


def deserialize(data, custom_objects=None):
    """The inverse of `serialize`.

    Callables and rules must be registered with
    `keras.saving.register_keras_serializable`.
    """
    if not isinstance(data, dict):
        return data
    if data.keys() == set(AxisGroups._fields):
        return AxisGroups(**{name: tuple(axes) for name, axes in data.items()})
    if "class_name" in data:
        return keras.saving.deserialize_keras_object(data, custom_objects)
    return {
        key: deserialize(each, custom_objects) for key, each in data.items()
    }
