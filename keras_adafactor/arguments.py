"""Checks of constructor arguments, with Keras' form of message."""

import re


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
