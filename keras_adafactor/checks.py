"""Checks of arguments, with messages in the form of Keras'.

A check returns the value as it is kept: numbers as Python's own, so that a
configuration is JSON.
"""

import difflib
import inspect
import numbers
import re

import keras
import numpy as np
from keras import ops

from keras_adafactor.functional import axis_groups as grouping


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


def check_learning_rate(name, value):
    """Checks a learning rate, and returns it: a float or a callable."""
    # A class is callable too: a schedule that was not made.
    if callable(value) and not isinstance(value, type):
        return value
    if ops.is_tensor(value) or isinstance(value, (keras.Variable, np.ndarray)):
        value = ops.convert_to_numpy(value)
        if value.size == 1:
            value = value.item()
    return float(check_number(name, value, at_least=0.0))


def check_axis_groups(name, value):
    """Checks a choice of axis groups, and returns it."""
    check(grouping.is_choice(value), name, grouping.REQUIREMENT, value)
    return value


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
    "jit_compile": "Give `jit_compile` to `model.compile`.",
    "nesterov": "There is no Nesterov momentum here.",
}


def check_recognized(keywords, owner, cls):
    """Checks that every keyword is one that a constructor takes.

    Args:
        keywords: Dict from name to value.
        owner: Class whose constructor it is.
        cls: Class of the object, `owner` or a subclass.

    Raises:
        ValueError: If one is not; names the argument that may be meant.
    """
    unknown = {k: v for k, v in keywords.items() if k not in owner.declared}
    if not unknown:
        return
    arguments = dict.fromkeys(
        [*inspect.signature(cls).parameters, *owner.declared]
    )
    hints = [_hint(name, list(arguments)) for name in unknown]
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
