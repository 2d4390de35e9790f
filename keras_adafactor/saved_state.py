"""The state of an optimizer on disk: it fits exactly, or is an error.

A key is what an array is and the position of its variable, but not whose it
is: layers are named anew in every process. State that is loaded before there
are slots waits for `build`.
"""

import re
import warnings

import h5py
import numpy as np

from keras_adafactor.backends import backend
from keras_adafactor.step import COUNT

MAX_DIFFERENCES_SHOWN = 8
# A counter that files of version 0.1.0 do not have. It starts at 0.
FAILED_REFRESHES = "failed_refreshes"
_OF_A_POLICY = (
    "That in the file is of Keras, or was saved with a loss scale: if under "
    "the policy mixed_float16, load it under that, after "
    "`keras.config.set_dtype_policy`."
)


def key_of(position, name):
    """Key of a slot of the variable at a position."""
    return f"{position}_{name}"


def stored(optimizer):
    """Key -> variable, of everything that is saved."""
    slots = {
        key_of(kept.plan.key, name): slot
        for kept in optimizer._tracked
        for name, slot in kept.slots.items()
    }
    owned = {id(slot) for slot in slots.values()}
    others = {v.name: v for v in optimizer.variables if id(v) not in owned}
    return others | slots


def save(optimizer, store):
    """Writes the state to `store`, a mapping from key to array."""
    # Before it is built it has no state but what was loaded.
    if not optimizer.built and not optimizer._waiting:
        return
    now = {key: v.numpy() for key, v in stored(optimizer).items()}
    for key, value in (optimizer._waiting | now).items():
        store[key] = value


def load(optimizer, store):
    """Reads the state from `store`; all of it, or nothing.

    Raises:
        ValueError: If it does not fit the optimizer.
    """
    saved = {key: np.asarray(store[key]) for key in store.keys()}
    if not saved and not optimizer.built:
        return
    if not saved:
        warnings.warn(
            f"Optimizer '{optimizer.name}' keeps the state it has: the file "
            "holds no optimizer state.",
            stacklevel=3,
        )
        return
    expected = stored(optimizer)
    shapes = {key: tuple(v.shape) for key, v in expected.items()}
    if FAILED_REFRESHES in expected:
        saved.setdefault(FAILED_REFRESHES, np.zeros((), "int32"))
    if not optimizer.built:
        # Of the slots only `build` knows what they are.
        shapes |= {
            key: array.shape
            for key, array in saved.items()
            if re.match(rf"\d+_|skipped_updates|{FAILED_REFRESHES}", key)
        }
    paths = {key: v.path for key, v in expected.items()}
    _check_fits(optimizer, saved, shapes, paths)
    if not optimizer.built:
        optimizer._waiting = saved
    for key, variable in expected.items():
        variable.assign(saved[key])


# Where an optimizer is in a file: in a `LossScaleOptimizer`, or not.
INNER, OUTER = "optimizer/inner_optimizer/vars", "optimizer/vars"


def has_loss_scale(file):
    """Whether a `LossScaleOptimizer` is in an open `.weights.h5` file."""
    with h5py.File(file, "r") as opened:
        return INNER in opened


def read_weights_file(path):
    """The state of the optimizer in a `.weights.h5` file.

    Args:
        path: `pathlib.Path`.

    Returns:
        Tuple of the name of the optimizer, and a dict from key to array: keys
        as of `stored`, or the positions of the variables of an optimizer of
        Keras; empty if there is none.
    """
    with h5py.File(path, "r") as file:
        for place in (INNER, OUTER):
            if place in file:
                group = file[place]
                arrays = {key: _as_array(group[key]) for key in group}
                return group.attrs.get("name", ""), arrays
    return "", {}


def _as_array(dataset):
    array = np.asarray(dataset)
    if array.dtype.kind != "V":
        return array
    # bfloat16, which h5py does not know: the upper half of float32.
    upper = array.view(np.uint16).astype(np.uint32)
    return (upper << 16).view(np.float32)


def are_ours(keys):
    """Whether keys are those of an optimizer of this package."""
    return not all(key.isdigit() for key in keys)


def name_of(cls):
    """What an optimizer is called that was not given a name.

    Legacy `.h5` files are read by it: with that of a built-in, where this
    package is not imported, as the built-in.
    """
    return f"keras_adafactor_{cls.__name__.lower()}"


def may_be_of(name, cls):
    """Whether a name in a file is not that of another class of ours."""
    return not name.startswith("keras_adafactor_") or bool(
        re.fullmatch(name_of(cls) + r"(_\d+)?", name)
    )


def variables_in(keys):
    """How many variables of a model keys name, at least."""
    found = [re.match(r"(\d+)_", key) for key in keys]
    return max((int(match[1]) + 1 for match in found if match), default=0)


def forget_waiting(optimizer):
    """Drops what was loaded before there were slots."""
    optimizer._waiting = {}


def check_waiting(optimizer, arrays):
    """Checks that what was loaded fits the slots that are to be made.

    Args:
        optimizer: The optimizer, not yet built.
        arrays: List of dicts from slot name to `Array`, one a variable.

    Raises:
        ValueError: If it does not. What was loaded goes on waiting.
    """
    if not optimizer._waiting:
        return
    shapes = {key: tuple(v.shape) for key, v in stored(optimizer).items()}
    if optimizer.skip_nonfinite:
        shapes["skipped_updates"] = ()
    if any(COUNT in slots for slots in arrays):
        shapes[FAILED_REFRESHES] = ()
        optimizer._waiting.setdefault(FAILED_REFRESHES, np.zeros((), "int32"))
    shapes |= {
        key_of(position, name): array.shape
        for position, slots in enumerate(arrays)
        for name, array in slots.items()
    }
    _check_fits(optimizer, optimizer._waiting, shapes, {})


def load_waiting(optimizer, made_before):
    """Gives what was loaded to the slots that were made since.

    Args:
        optimizer: The optimizer, just built.
        made_before: Container of keys that have their value already.
    """
    waiting, optimizer._waiting = optimizer._waiting, {}
    if waiting:
        with backend.outside_graph():
            for key, variable in stored(optimizer).items():
                if key not in made_before:
                    variable.assign(waiting[key])


def _check_fits(optimizer, saved, shapes, paths):
    """Checks, before anything is loaded, that a file fits an optimizer.

    Args:
        optimizer: The optimizer.
        saved: Dict from key to array, what is in the file.
        shapes: Dict from key to shape, what the optimizer has.
        paths: Dict from key to the path of a variable, where there is one.

    Raises:
        ValueError: If a key or a shape differs. Names both sides.
    """
    found = {key: tuple(array.shape) for key, array in saved.items()}
    differing = [
        key
        for key in dict.fromkeys([*shapes, *found])
        if found.get(key) != shapes.get(key)
    ]
    if not differing:
        return
    lines = [
        f"  {key}: in the file {found.get(key, 'absent')}, in the optimizer "
        f"{shapes.get(key, 'absent')}"
        + (f" ({paths[key]})" if key in paths else "")
        for key in differing[:MAX_DIFFERENCES_SHOWN]
    ]
    if len(differing) > len(lines):
        lines.append(f"  and {len(differing) - len(lines)} more")
    raise ValueError(
        f"The state in the file does not fit optimizer '{optimizer.name}' "
        f"({type(optimizer).__name__}): {len(found)} variables in the file, "
        f"{len(shapes)} in the optimizer. To load the weights of the model "
        "alone, compile it again, call `model.optimizer.build("
        "model.trainable_variables)` and pass `skip_mismatch=True`; "
        "`keras_adafactor.warm_start(model, path)` then keeps what fits of "
        "the optimizer, or of another one."
        + (" " + _OF_A_POLICY if not are_ours(saved) else "")
        + "\n"
        + "\n".join(lines)
    )
