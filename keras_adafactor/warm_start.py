"""Change the optimizer in the middle of a run, and keep what it has learned.

Optimizers talk in `Moments` of the gradient: what entries mean is said by the
rule that keeps them, and by `keras_rules` for those of Keras.
"""

import collections
import os
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field

import keras
from keras import ops

from keras_adafactor import saved_state
from keras_adafactor.checks import check
from keras_adafactor.functional.moments import Moments
from keras_adafactor.kept_state import KeptState
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.rule import letter_of
from keras_adafactor.rule import noise_key
from keras_adafactor.sources import check_usable
from keras_adafactor.sources import check_variables
from keras_adafactor.sources import compiled
from keras_adafactor.sources import load_checkpoint
from keras_adafactor.sources import opened
from keras_adafactor.sources import path_in
from keras_adafactor.sources import state_in_weights_file
from keras_adafactor.sources import trained
from keras_adafactor.step import ACCUMULATOR
from keras_adafactor.step import AVERAGE
from keras_adafactor.step import COUNT
from keras_adafactor.tables import dimensions
from keras_adafactor.tables import lines_of_table

# The letters that a moment has, in every rule.
MOMENT_OF = {"m": 1, "v": 2, "fim": 2, "r": 2, "c": 2}
# How an entry came to be.
KEPT, CONVERTED, STOOD_STILL = "kept", "converted", "of the variable"


@dataclass(frozen=True)
class CarriedState:
    """What became of the state of one variable.

    Attributes:
        path: String, the variable's path.
        shape: Tuple of ints, its shape.
        source: String, its path in the source; `None` if it has none there.
        carried: Dict from entry to how it came: `"kept"` bit for bit or in
            another dtype, `"converted"` from moments, or `"of the variable"`,
            an average that starts at the weight.
        missing: Dict from entry that is as it was before to the reason.
        unused: List of entries of the source that nothing was made of.
    """

    path: str
    shape: tuple[int, ...]
    source: str | None
    carried: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class WarmStartReport:
    """What went where: a table when printed, rows as data.

    Attributes:
        optimizer: String, the class of the optimizer that was started.
        source: String, the class of the optimizer it has its state from.
        iterations: Int, the steps that both have taken.
        rows: List of `CarriedState`, one a variable.
        unused_variables: List of paths: variables of the source that the
            optimizer does not have.
        source_bytes: Int, the bytes of all slots of the source.
        state_bytes: Int, the bytes of all slots of the optimizer.
    """

    optimizer: str
    source: str
    iterations: int
    rows: list[CarriedState]
    unused_variables: list[str]
    source_bytes: int
    state_bytes: int

    @property
    def complete(self) -> bool:
        """Whether no entry of the optimizer is without its statistics."""
        return not any(row.missing for row in self.rows)

    def __str__(self) -> str:
        header = ("variable", "shape", "carried", "not carried", "not used")
        table = [header] + [
            (
                row.path + (f" <- {row.source}" if _renamed(row) else ""),
                dimensions(row.shape),
                _grouped(row.carried),
                _grouped(row.missing),
                ", ".join(row.unused),
            )
            for row in self.rows
        ]
        lines = lines_of_table(table)
        lines.append(lines[1])
        lines.append(
            f"{self.source} -> {self.optimizer} at step {self.iterations:,}: "
            f"{self.source_bytes:,} bytes of state -> {self.state_bytes:,}. "
            f"The learning rate is that given to {self.optimizer}."
        )
        if self.unused_variables:
            lines.append(
                "not in the optimizer: " + ", ".join(self.unused_variables)
            )
        return "\n".join(line.rstrip() for line in lines)


def _renamed(row):
    return row.source not in (None, row.path)


def _grouped(entries):
    """Entries of one reason beside each other: `v_row, v_col (kept)`."""
    reasons = dict.fromkeys(entries.values())
    return "; ".join(
        ", ".join(name for name, why in entries.items() if why == reason)
        + f" ({reason})"
        for reason in reasons
    )


def warm_start(
    optimizer: keras.optimizers.Optimizer | keras.Model,
    source: keras.optimizers.Optimizer | keras.Model | str | os.PathLike[str],
    variables: Sequence[keras.Variable] | None = None,
    *,
    saved_by: keras.optimizers.Optimizer | None = None,
) -> WarmStartReport:
    """Gives an optimizer the state that it would have had by now.

    To change the optimizer, or its settings, in the middle of a run: second
    moments, momentum, averages and the count of steps go from `source` to
    `optimizer`, in the form it keeps them in. Adafactor then has the row and
    column means of Adam's second moment, at Adam's step, where its decay of
    `1 - t ** -0.8` forgets as slowly as it would have. All is looked at before
    anything is assigned.

    - Between rules of one class, an entry of the same name, shape and axes is
      kept, in the dtype of the optimizer. A variable with a basis is carried
      whole or not at all. So what fits of a checkpoint is kept where settings
      have changed, or layers were unfrozen.
    - All else goes by bias-corrected estimates of `E[g]` and `E[g ** 2]`, as
      each rule says in `moments` and `adopt`. Momentum of updates is taken for
      the update of the momentum; sums of steps, whose learning rates are gone,
      and bases do not follow from moments and start anew.
    - An average of weights that the source does not have starts at the weight.
    - Gradients accumulated so far are carried if both accumulate as many.
    - The learning rate, and the count of skipped updates, are the optimizer's
      own. A schedule goes on at the step of the source: write it for the whole
      run.

    Variables are matched by path and shape. If a path of the optimizer is
    not in the source, and the variables of both agree one by one in shape and
    last name (`kernel`), they are matched in order: layers are named anew in
    every process. If they do not, paths may still differ in the name of the
    model, their first part. A variable that is not matched keeps the state it
    has.

    Args:
        optimizer: The optimizer to be started: of this package, or of Keras
            for the way back (`Adam`, `AdamW`, `RMSprop`, `Adafactor`); in a
            `LossScaleOptimizer` or not; or a model compiled with it. Built if
            it is not.
        source: The optimizer that was trained with, or a model compiled with
            it, of the same kinds; or the path of a `.keras` file or an Orbax
            checkpoint, which Keras loads, or of a `.weights.h5` file.
        variables: List of variables, for an optimizer that is not built.
            Defaults to those of the model, or of a source that is no path.
        saved_by: For a `.weights.h5` file, which does not say what is in it:
            an optimizer as the one it was saved with, but for the learning
            rate; built, if that had other variables than `optimizer`. Defaults
            to `None`: of the class of `optimizer`, of which keys that do not
            fit are left.

    Returns:
        `WarmStartReport`; `print` it, or read `rows` and `complete`.

    Raises:
        ValueError: If an argument is of another kind, if the source has taken
            no step, or if no variable is matched. Nothing is carried then.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_adafactor
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model.compile("adam", "mse")
    >>> data = np.ones((2, 8)), np.ones((2, 4))
    >>> history = model.fit(*data, verbose=0)
    >>> adam = model.optimizer
    >>> model.compile(keras_adafactor.Adafactor(), "mse")
    >>> report = keras_adafactor.warm_start(model, adam)
    >>> report.rows[0].carried
    {'v_row': 'converted', 'v_col': 'converted'}
    """
    target = opened("optimizer", optimizer)
    path = path_in(source)
    if path is None:
        check(
            opened("source", source) is not target,
            "source",
            "another optimizer than the one to be started: keep that of the "
            "model, `adam = model.optimizer`, before `compile` replaces it",
            source,
        )
        origin = trained(source)
    if target.built:
        variables = target._trainable_variables
    elif not variables and isinstance(optimizer, keras.Model):
        variables = optimizer.trainable_variables
    elif not variables and path is None:
        variables = origin._trainable_variables
    check_variables(variables, optimizer)
    if path is not None and path.name.endswith(".weights.h5"):
        state = state_in_weights_file(path, target, variables, saved_by)
    else:
        check(
            saved_by is None,
            "saved_by",
            "None unless `source` is the path of a `.weights.h5` file",
            saved_by,
        )
        if path is not None:
            origin = trained(load_checkpoint(path), str(source))
        state = KeptState.of(origin)
    check_usable(state, source)
    if not target.built:
        if isinstance(target, UpdateRuleOptimizer):
            saved_state.forget_waiting(target)
        target.build(variables)
    own = KeptState.of(target)
    assignments, rows = _carried(own, state)
    for variable, value in assignments:
        # A copy: JAX refuses to donate one buffer as two variables.
        variable.assign(ops.copy(ops.cast(value, variable.dtype)))
    if path is None:
        _carry_loss_scale(optimizer, source)
    used = {row.source for row in rows}
    return WarmStartReport(
        optimizer=type(target).__name__,
        source=state.name,
        iterations=state.updates,
        rows=rows,
        unused_variables=[r.path for r in state.rows if r.path not in used],
        source_bytes=state.nbytes,
        state_bytes=own.nbytes,
    )


# From one to the other.


def _matched(rows, others):
    """For each of `rows` the one of `others` for the same variable, or `None`.

    Raises:
        ValueError: If none of them has its shape.
    """
    ours, theirs = ([row.path for row in each] for each in (rows, others))
    # A file may have lost the name of the model, which paths begin with.
    found = max(
        (
            _by_path(our_paths, others, their_paths)
            for our_paths in (ours, _within_model(ours))
            for their_paths in (theirs, _within_model(theirs))
        ),
        key=lambda matches: sum(map(_fits, rows, matches)),
    )
    if not all(map(_fits, rows, found)) and _ends(rows) == _ends(others):
        return others
    check(
        any(map(_fits, rows, found)),
        "source",
        "an optimizer of the same variables, of which at least one has the "
        f"path and the shape of one of {ours[:8]}",
        theirs[:8],
    )
    return found


def _fits(row, other):
    return other is not None and other.shape == row.shape


def _ends(rows):
    return [(row.path.rpartition("/")[2], row.shape) for row in rows]


def _within_model(paths):
    """Paths without their first part, if all have the same: a model's name."""
    parts = [path.partition("/") for path in paths]
    if len({first for first, _, _ in parts}) > 1 or not all(
        rest for _, _, rest in parts
    ):
        return paths
    return [rest for _, _, rest in parts]


def _by_path(paths, others, their_paths):
    """For each of `paths` the one of `others` that has it, and alone."""
    times = collections.Counter(their_paths)
    unique = {
        path: other
        for path, other in zip(their_paths, others, strict=True)
        if times[path] == 1
    }
    return [unique.get(path) for path in paths]


def _carried(own, source):
    """Pairs of variable and new value, and the rows of the report."""
    assignments, report = [], []
    together = own.accumulated == source.accumulated
    iterations = source.iterations
    if not together:
        iterations = source.updates * own.accumulated
    assignments.append((own.iterations_variable, iterations))
    matched = _matched(own.rows, source.rows)
    for position, (row, other) in enumerate(
        zip(own.rows, matched, strict=True)
    ):
        carried, values, reason = {}, {}, "no such variable in the source"
        if other is not None and other.shape != row.shape:
            reason = f"of shape {other.shape} in the source"
            other = None
        if other is not None:
            carried, values, reason = _state_for(
                row, other, source.updates, position
            )
            if together and {ACCUMULATOR} <= row.slots.keys() & other.slots:
                values[ACCUMULATOR] = other.slots[ACCUMULATOR]
        if AVERAGE in row.slots:
            kept = other is not None and AVERAGE in other.slots
            carried[AVERAGE] = KEPT if kept else STOOD_STILL
            values[AVERAGE] = other.slots[AVERAGE] if kept else row.variable
        _check_shapes(row, values)
        assignments += [(row.slots[name], v) for name, v in values.items()]
        report.append(
            CarriedState(
                path=row.path,
                shape=row.shape,
                source=None if other is None else other.path,
                carried=carried,
                missing={n: reason for n in row.specs if n not in carried},
                unused=[]
                if other is None
                else _unused(other, carried) + _left(other, values, source),
            )
        )
    return assignments, report


def _state_for(row, other, updates, position):
    """What one variable gets from another: entry -> how, slot -> value, and
    the reason for what is left.
    """
    reason = "does not follow from the source"
    carried, values = _same_entries(row, other, position)
    if other.rule is not None and not row.specs.keys() <= carried.keys():
        moments = _moments(other, updates)
        given = [m for m in moments if m is not None]
        if not all(bool(ops.all(ops.isfinite(moment))) for moment in given):
            return carried, values, "not finite in the source"
        adopted = row.rule.adopt(moments, row.shape, row.path, updates)
        for name in row.specs.keys() & adopted.keys() - carried.keys():
            values |= _encoded(row, name, adopted[name], position)
            carried[name] = CONVERTED
    in_order = {name: carried[name] for name in row.specs if name in carried}
    return in_order, values, reason


def _same_entries(row, other, position):
    """The entries that both have."""
    names = [
        name
        for name in row.specs
        if name in other.specs and _are_the_same(row, other, name)
    ]
    values = {}
    if row.basis or other.basis:
        if not row.specs.keys() == other.specs.keys() == set(names):
            return {}, {}
        values[COUNT] = other.slots[COUNT]
    for name in names:
        if row.specs[name].storage == other.specs[name].storage:
            values |= other.stored(name)
        else:
            values |= _encoded(row, name, other.decoded(name), position)
    return dict.fromkeys(names, KEPT), values


def _are_the_same(row, other, name):
    """Whether an entry of both means the same."""
    spec, found = row.specs[name], other.specs[name]
    if (spec.shape, spec.axes) != (found.shape, found.axes):
        return False
    return other.rule is None or (
        type(row.rule) is type(other.rule)
        and row.rule.meaning_of(name) == other.rule.meaning_of(name)
    )


def _moments(row, updates):
    """What a variable's state tells, after so many updates of all."""
    t = updates
    if COUNT in row.slots:
        t = int(ops.convert_to_numpy(row.slots[COUNT]))
    if not t or not row.specs:
        return Moments()
    state = {name: row.decoded(name) for name in row.specs}
    return row.rule.moments(state, row.shape, row.path, t)


def _encoded(row, name, value, position):
    """Slot -> value, of an entry."""
    spec = row.specs[name]
    key = noise_key(position, list(row.specs).index(name))
    stored = spec.encode(value, ops.convert_to_tensor(1, dtype="int32"), key)
    return dict(zip(row.stored(name), stored, strict=True))


def _unused(other, carried):
    """Entries of which nothing was made."""
    made = {
        MOMENT_OF.get(letter_of(name))
        for name, how in carried.items()
        if how == CONVERTED
    }
    return [
        name
        for name in other.specs
        if name not in carried and MOMENT_OF.get(letter_of(name), 0) not in made
    ]


def _left(other, values, source):
    """An average, and accumulated gradients, that found no place."""
    names = [AVERAGE]
    if source.iterations % source.accumulated:
        names.append(ACCUMULATOR)
    return [n for n in names if n in other.slots and n not in values]


def _check_shapes(row, values):
    for name, value in values.items():
        shape, given = tuple(row.slots[name].shape), tuple(value.shape)
        if shape != given:
            raise ValueError(
                f"Entry '{name}' of variable '{row.path}', from `adopt` of "
                f"{type(row.rule).__name__}, must be of shape {shape}. "
                f"Received: shape={given}"
            )


def _carry_loss_scale(optimizer, source):
    """The scale, where both are a `LossScaleOptimizer` that is built."""
    ours, theirs = compiled(optimizer), compiled(source)
    wrapper = keras.optimizers.LossScaleOptimizer
    if (
        isinstance(ours, wrapper)
        and isinstance(theirs, wrapper)
        and theirs.built
    ):
        if not ours.built:
            ours.build(ours.inner_optimizer._trainable_variables)
        ours.dynamic_scale.assign(theirs.dynamic_scale)
        ours.step_counter.assign(theirs.step_counter)
