"""Axis groups: how a tensor of any rank is seen as a matrix.

A factored statistic needs rows and columns; a tensor has axes. `AxisGroups`
says which axes together are the rows, which the columns, and which are batch
axes, along which a stacked variable (scanned layers, experts) is really many
variables of their own.
"""

import math
import re
from typing import NamedTuple


class AxisGroups(NamedTuple):
    """Which axes of a tensor are its rows, its columns and its batch.

    `rows` and `cols` are each seen as one long axis. An axis in none of the
    three groups is kept by both statistics, as the leading axes are in the
    paper, yet takes part in the scale and the clip of the whole variable. A
    batch axis does not: each of its slices has statistics, scale and clip of
    its own. With no rows and no columns the statistic is not factored.

    Attributes:
        rows: Tuple of axes reduced in the column statistic.
        cols: Tuple of axes reduced in the row statistic.
        batch: Tuple of axes whose slices are variables of their own.
    """

    rows: tuple[int, ...] = ()
    cols: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()

    @property
    def factored(self) -> bool:
        return bool(self.rows)

    def row_axes(self, ndim: int) -> tuple[int, ...]:
        """Axes of the variable that the row statistic keeps, in order."""
        return tuple(a for a in range(ndim) if a not in self.cols)

    def col_axes(self, ndim: int) -> tuple[int, ...]:
        """Axes of the variable that the column statistic keeps, in order."""
        return tuple(a for a in range(ndim) if a not in self.rows)

    def within_slice(self, ndim: int) -> tuple[int, ...]:
        """Axes over which one slice extends: all but the batch axes."""
        return tuple(a for a in range(ndim) if a not in self.batch)

    def unless_thin(
        self, shape: tuple[int, ...], min_dim_size: int = 2
    ) -> "AxisGroups":
        """These groups; not factored where rows or columns are too few.

        Args:
            shape: Tuple of ints, the shape of the variable.
            min_dim_size: Int, the fewest rows, and columns, to factor.

        Returns:
            `AxisGroups` with the same batch axes.
        """
        sides = (self.rows, self.cols)
        smaller = min(math.prod(shape[a] for a in side) for side in sides)
        return self if smaller >= min_dim_size else AxisGroups(batch=self.batch)


def auto(shape):
    """The contiguous split of the axes that keeps the fewest numbers.

    `(1024, 16, 64)` becomes 1024 x 1024 and keeps 2,048 numbers;
    `(3, 3, 512, 512)` becomes 4,608 x 512 and keeps 5,120. Only contiguous
    splits are tried: they are free reshapes, a transpose is not. Of equally
    good splits the last is taken. A tensor of fewer than two axes is not
    factored.
    """
    splits = range(len(shape) - 1, 0, -1)
    if not splits:
        return AxisGroups()
    split = min(
        splits, key=lambda k: math.prod(shape[:k]) + math.prod(shape[k:])
    )
    axes = tuple(range(len(shape)))
    return AxisGroups(rows=axes[:split], cols=axes[split:])


def last_two(shape):
    """The paper's choice: the last two axes, once per leading index."""
    ndim = len(shape)
    if ndim < 2:
        return AxisGroups()
    return AxisGroups(rows=(ndim - 2,), cols=(ndim - 1,))


NAMED = {"auto": auto, "last_two": last_two}


REQUIREMENT = (
    "'auto', 'last_two', an `AxisGroups`, a callable of (shape, path) that "
    "returns one of these, or a dict from regular expression to one of these"
)


def is_choice(choice):
    """Whether `choice` is of a form that `resolve` understands."""
    if isinstance(choice, dict):
        return all(
            _is_pattern(regex) and is_choice(groups)
            for regex, groups in choice.items()
        )
    return (
        isinstance(choice, AxisGroups)
        or callable(choice)
        or (isinstance(choice, str) and choice in NAMED)
    )


def _is_pattern(regex):
    try:
        re.compile(regex)
    except (re.error, TypeError):
        return False
    return True


def resolve(choice, shape, path):
    """The axis groups of one variable.

    Args:
        choice: `"auto"`, `"last_two"`, an `AxisGroups`, a callable
            `(shape, path) -> choice`, or a dict from regular expression to
            choice. The first expression found anywhere in the path
            (`re.search`) decides; a path that none is found in is `"auto"`.
        shape: Tuple of ints, the shape of the variable.
        path: String, the path of the variable.

    Returns:
        `AxisGroups` with non-negative axes.

    Raises:
        ValueError: If the choice is unknown, or its axes do not fit the shape.
    """
    if isinstance(choice, dict):
        found = (
            groups for regex, groups in choice.items() if re.search(regex, path)
        )
        return resolve(next(found, "auto"), shape, path)
    if isinstance(choice, str) and choice in NAMED:
        return NAMED[choice](shape)
    if isinstance(choice, AxisGroups):
        return _fitted(choice, shape, path)
    if callable(choice):
        return resolve(choice(shape, path), shape, path)
    raise ValueError(
        f"Axis groups must be {REQUIREMENT}. Received for variable '{path}' "
        f"of shape {tuple(shape)}: {choice!r}"
    )


def _fitted(groups, shape, path):
    ndim = len(shape)
    named = [axis for group in groups for axis in group]
    in_range = all(isinstance(a, int) and -ndim <= a < ndim for a in named)
    if (
        not in_range
        or len({axis % ndim for axis in named}) < len(named)
        or bool(groups.rows) != bool(groups.cols)
    ):
        raise ValueError(
            "Axis groups must name axes of the variable, each at most once, "
            "and have both rows and columns or neither. Received for variable "
            f"'{path}' of shape {tuple(shape)}: {groups}"
        )
    # Sorted: a slot's axes are in the variable's order.
    return AxisGroups(
        *(tuple(sorted(axis % ndim for axis in group)) for group in groups)
    )
