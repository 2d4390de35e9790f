"""Checks of constructor arguments, with Keras' form of message."""

import re
from typing import TypedDict


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

    Raises:
        ValueError: If `value` is not a real number in the range.
    """
    if optional and value is None:
        return
    bounds = {">": above, ">=": at_least, "<": below, "<=": at_most}
    bounds = [f"{sign} {b}" for sign, b in bounds.items() if b is not None]
    requirement = f"a number {' and '.join(bounds)}" + " or None" * optional
    valid = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
        and abs(value) != float("inf")
        and value == value
    )
    check(valid, name, requirement, value)


def check_integer(name, value, at_least, optional=False):
    """Checks an integer argument against its lower bound."""
    if optional and value is None:
        return
    valid = (
        isinstance(value, int)
        and not isinstance(value, bool)
        and value >= at_least
    )
    requirement = f"an integer >= {at_least}" + " or None" * optional
    check(valid, name, requirement, value)


def check_boolean(name, value):
    """Checks that an argument is `True` or `False`."""
    check(isinstance(value, bool), name, "a boolean", value)


def check_choice(name, value, choices):
    """Checks that an argument is one of a few values."""
    valid = any(value is c or (value == c and type(value) is type(c))
                for c in choices)  # fmt: skip
    allowed = ", ".join(repr(choice) for choice in choices)
    check(valid, name, f"one of {allowed}", value)


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
            check(False, name, f"{requirement} ({error})", pattern)
    return None if value is None else list(value)


class OptimizerKeywords(TypedDict, total=False):
    """Keywords that every optimizer of this package takes.

    The meaning of the first ten is that of `keras.optimizers.Optimizer`; what
    differs is said in `UpdateRuleOptimizer`.
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
    skip_nonfinite: str | None


def check_keywords(keywords):
    """Checks those of `OptimizerKeywords` that are Keras'."""
    check_number(
        "weight_decay",
        keywords.get("weight_decay"),
        at_least=0.0,
        optional=True,
    )
    check_number(
        "ema_momentum",
        keywords.get("ema_momentum", 0.0),
        at_least=0.0,
        at_most=1.0,
    )
    for name in (
        "clipnorm",
        "clipvalue",
        "global_clipnorm",
        "loss_scale_factor",
    ):
        check_number(name, keywords.get(name), above=0.0, optional=True)
    for name, least in (
        ("gradient_accumulation_steps", 2),
        ("ema_overwrite_frequency", 1),
    ):
        check_integer(name, keywords.get(name), least, optional=True)
    check_boolean("use_ema", keywords.get("use_ema", False))
    if keywords.get("ema_overwrite_frequency") is not None:
        check(
            keywords.get("use_ema", False),
            "ema_overwrite_frequency",
            "None unless `use_ema` is True",
            keywords["ema_overwrite_frequency"],
        )
    name = keywords.get("name")
    check(name is None or isinstance(name, str), "name", "a string", name)
