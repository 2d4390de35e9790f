"""Where what an optimizer keeps is found: in it, in a model, or in a file."""

import json
import pathlib
import zipfile

import keras
from keras import ops

from keras_adafactor import saved_state
from keras_adafactor.checks import check
from keras_adafactor.kept_state import KeptState
from keras_adafactor.kept_state import KeptVariable
from keras_adafactor.keras_rules import rule_of
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.step import ACCUMULATOR
from keras_adafactor.step import AVERAGE

RATE = "learning_rate"
SUPPORTED = (
    "an optimizer of keras_adafactor, `keras.optimizers.Adam`, `AdamW`, "
    "`RMSprop` or `Adafactor`, one of these in a `LossScaleOptimizer`, or a "
    "model compiled with one"
)

_SKIPPED = (
    "If it has, the file it was loaded from holds no state of it, or Keras "
    "skipped that with a warning: what was saved under the policy "
    "mixed_float16 is to be loaded under it "
    "(`keras.config.set_dtype_policy`), or by `warm_start(model, path)`"
)
_NOT_RESTORED = (
    "Of an Orbax checkpoint Keras restores what has the path that it had, and "
    "is silent of the rest. Compile the model as it was saved, the optimizer "
    "with the name it had (`Adam(name='adam')`), then "
    "`model.optimizer.build(model.trainable_variables)`, "
    "`model.load_weights(directory)`, `adam = model.optimizer`; compile it "
    "with the new optimizer, and `warm_start(model, adam)`"
)


def check_variables(variables, given):
    """Raises if there are no variables that an optimizer is, or would be, for.

    Args:
        variables: What was given, or found.
        given: The optimizer or the model.
    """
    requirement = "given for an optimizer that is not built"
    if isinstance(given, keras.Model):
        requirement = (
            "those of a model that is built, or be given: build the model "
            "first, `model.build(input_shape)` or a call of it"
        )
    check(bool(variables), "variables", requirement, variables)


def path_in(source):
    """`source` as an absolute path, or `None` if it is none."""
    if not isinstance(source, str | pathlib.Path):
        return None
    path = pathlib.Path(source)
    known = path.suffix == ".keras" or path.name.endswith(".weights.h5")
    check(
        path.is_dir() or (path.is_file() and known),
        "source",
        "an optimizer, or the path of a `.keras` or `.weights.h5` file or of "
        "an Orbax checkpoint that exists",
        str(source),
    )
    # Orbax raises of another.
    return path.absolute()


def load_checkpoint(path):
    """Loads a model, with the state of its optimizer.

    Args:
        path: `pathlib.Path` of a `.keras` file or, absolute, of an Orbax
            checkpoint.

    Returns:
        `keras.Model`. If it was saved with a loss scale it has one, whatever
        the dtype policy is now.

    Raises:
        ValueError: If Keras cannot load it.
    """
    policy = keras.config.dtype_policy()
    try:
        if path.is_file() and _had_loss_scale_of_policy(path):
            keras.config.set_dtype_policy("mixed_float16")
        return keras.models.load_model(path)
    except Exception as error:  # of Keras, h5py, zipfile, Orbax
        # Before it stands the configuration of the model.
        said = str(error).rpartition("Exception encountered: ")[2]
        said = " ".join(said.strip("\"'").split()).rstrip(".")
        raise ValueError(
            "Argument `source` must be a checkpoint that Keras can load, which "
            f"raised {type(error).__name__}: {said[:300]}. Name layers and "
            "functions of your own in `with "
            "keras.saving.custom_object_scope({...}):`, or `--import` the "
            "module that registers them. Of Orbax, give the directory that "
            f"holds the steps. Received: source={str(path)!r}"
        ) from error
    finally:
        keras.config.set_dtype_policy(policy)


def _had_loss_scale_of_policy(path):
    """Whether a `.keras` file has a loss scale that was not asked for.

    Under the policy `mixed_float16` Keras puts one around the optimizer; loaded
    under another the optimizer has none, and Keras skips its state.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if "model.weights.h5" not in names:
            return False
        config = json.loads(archive.read("config.json"))
        with archive.open("model.weights.h5") as file:
            if not saved_state.has_loss_scale(file):
                return False
    given = (config.get("compile_config") or {}).get("optimizer")
    asked_for = isinstance(given, dict) and given["class_name"]
    return asked_for != "LossScaleOptimizer"


def compiled(given):
    """The optimizer of a model, or what else was given."""
    if isinstance(given, keras.Model):
        return getattr(given, "optimizer", None)
    return given


def opened(name, given, received=None):
    """The optimizer in what was given, without a loss scale.

    Args:
        name: String, the name of the argument.
        given: What was given, or was loaded from what was.
        received: What to show of it; defaults to `given`.
    """
    optimizer = compiled(given)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    supported = isinstance(optimizer, UpdateRuleOptimizer) or (
        isinstance(optimizer, keras.optimizers.Optimizer)
        and rule_of(optimizer) is not None
    )
    why = ""
    if isinstance(given, keras.Model):
        why = (
            "; this model is not compiled"
            if optimizer is None
            else f"; this model has {type(optimizer).__name__}"
        )
    if hasattr(optimizer, "optimizers"):
        why += "; of a `MultiOptimizer` give its `optimizers`, one by one"
    check(supported, name, SUPPORTED + why, received or given)
    return optimizer


def trained(source, received=None):
    """The optimizer in a source, which must have variables to read."""
    optimizer = opened("source", source, received)
    check(
        optimizer.built,
        "source",
        "an optimizer that is built",
        received or source,
    )
    return optimizer


def check_usable(kept, source):
    """Raises if there is nothing that a source has learned.

    Args:
        kept: `KeptState` of the source.
        source: What was given.
    """
    given = str(source)
    path = path_in(source)
    of_orbax = path is not None and path.is_dir()
    check(
        kept.updates > 0,
        "source",
        "an optimizer that has taken a step. "
        + (_NOT_RESTORED if of_orbax else _SKIPPED),
        given,
    )
    check(
        any(row.has_statistics for row in kept.rows),
        "source",
        f"an optimizer whose statistics are not all 0. {_NOT_RESTORED}",
        given,
    )


def state_in_weights_file(path, target, variables, saved_by):
    name, store = saved_state.read_weights_file(path)
    check(
        bool(store),
        "source",
        "a file with the state of an optimizer",
        str(path),
    )
    ours = saved_state.are_ours(store)
    alike = f"an optimizer as the one that '{path.name}' was saved with, "
    if saved_by is None:
        check(
            ours
            and isinstance(target, UpdateRuleOptimizer)
            and saved_state.may_be_of(name, type(target)),
            "saved_by",
            f"{alike}which is no {type(target).__name__} of keras_adafactor",
            saved_by,
        )
        return _state_by_keys(store, target, variables)
    given = opened("saved_by", saved_by)
    check(
        ours == isinstance(given, UpdateRuleOptimizer),
        "saved_by",
        f"{alike}of {'keras_adafactor' if ours else 'Keras'}",
        saved_by,
    )
    copied = type(given).from_config(given.get_config())
    copied.build(given._trainable_variables or variables)
    # A schedule has no variable, and of the learning rate nothing is carried:
    # the file may have one more or less.
    rate = copied._learning_rate
    if ours:
        store.pop(RATE, None)
        if isinstance(rate, keras.Variable):
            store[RATE] = ops.convert_to_numpy(rate)
        saved_state.load(copied, store)
        return KeptState.of(copied)
    own = [variable for variable in copied.variables if variable is not rate]
    found = [store[key] for key in sorted(store, key=int)]
    if len(found) == len(own) + 1 and found[1].shape == ():
        del found[1]  # after the count of steps
    _check_same_slots(own, found, alike, saved_by)
    for variable, array in zip(own, found, strict=True):
        variable.assign(array)
    return KeptState.of(copied)


def _check_same_slots(own, found, alike, saved_by):
    """Checks an optimizer of Keras against what is in a file of one.

    Args:
        own: List of variables, those of the optimizer.
        found: List of arrays, in the same order.
        alike: String, how the message begins.
        saved_by: What was received.

    Raises:
        ValueError: If their numbers or shapes differ.
    """
    check(
        len(own) == len(found),
        "saved_by",
        f"{alike}in settings and variables: that has {len(found)} variables "
        f"of its own, not {len(own)} and a learning rate perhaps. If other "
        "layers were trained then, build it with their variables: "
        "`saved_by.build(variables)`",
        saved_by,
    )
    for variable, array in zip(own, found, strict=True):
        shape = tuple(variable.shape)
        check(
            shape == array.shape,
            "saved_by",
            f"{alike}in settings and variables: there '{variable.path}' is of "
            f"shape {array.shape}, not {shape}",
            saved_by,
        )


def _state_by_keys(store, target, variables):
    """Of a file that does not say of what: what looks like `target`'s."""
    found = saved_state.variables_in(store)
    check(
        found == len(variables),
        "saved_by",
        "an optimizer as the one that the file was saved with, and built with "
        f"its {found} variables, as `optimizer` has {len(variables)}",
        None,
    )
    rows = []
    for position, variable in enumerate(variables):
        plan = target.plan_for(variable, position)
        arrays = plan.arrays()
        fitting = {
            name: store[key]
            for name, array in arrays.items()
            if (key := saved_state.key_of(position, name)) in store
            and store[key].shape == array.shape
            and ("float" in array.dtype) == (store[key].dtype.kind == "f")
        }
        shape = tuple(variable.shape)
        for name in (AVERAGE, ACCUMULATOR):
            key = saved_state.key_of(position, name)
            if key in store and store[key].shape == shape:
                fitting[name] = store[key]
        specs = {
            name: spec
            for name, spec in plan.specs.items()
            if all(name + suffix in fitting for suffix in spec.arrays())
        }
        if plan.refreshes and not arrays.keys() == _names_at(position, store):
            specs = {}
        rows.append(KeptVariable(plan.path, shape, None, specs, fitting))
    return KeptState(
        name=type(target).__name__,
        rows=rows,
        iterations=int(store["iteration"]),
        accumulated=target.gradient_accumulation_steps or 1,
    )


def _names_at(position, store):
    """Names of the slots of a rule, of the variable at a position."""
    start = saved_state.key_of(position, "")
    names = {key.removeprefix(start) for key in store if key.startswith(start)}
    return names - {AVERAGE, ACCUMULATOR}
