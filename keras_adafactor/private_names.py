"""The private names of Keras and TensorFlow that the library uses.

All of them, with what for. They may change in any release, so each is looked
for at import: a training step must not become another one silently.
"""

import dis
import importlib
import inspect
from typing import Any
from typing import NamedTuple

import keras

# Keras with which the whole suite has passed.
TESTED_KERAS = "3.15"


class PrivateName(NamedTuple):
    """A name that is not public.

    Attributes:
        owner: String, the dotted name of the class or module that has it.
        name: String. Of a class: a method, or an attribute of its objects.
        use: String, what for.
        backend: String, the backend on which it is needed; `None`: on each.
    """

    owner: str
    name: str
    use: str
    backend: str | None = None


_OPTIMIZER = "keras.optimizers.Optimizer"
_DISTRIBUTE = "tensorflow.__internal__.distribute.interim"

TABLE = (
    # The training step.
    PrivateName(_OPTIMIZER, "_iterations", "counts calls"),
    PrivateName(_OPTIMIZER, "_learning_rate", "variable or schedule"),
    PrivateName(_OPTIMIZER, "_trainable_variables", "those built with"),
    PrivateName(_OPTIMIZER, "_get_variable_index", "position of a variable"),
    PrivateName(_OPTIMIZER, "_check_variables_are_known", "the error"),
    PrivateName(_OPTIMIZER, "_filter_empty_gradients", "the warning"),
    PrivateName(
        _OPTIMIZER,
        "_overwrite_variables_directly_with_gradients",
        "scales of float8 layers",
    ),
    PrivateName(_OPTIMIZER, "_accumulated_gradients", "read by the last one"),
    PrivateName(_OPTIMIZER, "_clip_gradients", "the three ways to clip"),
    PrivateName(
        _OPTIMIZER, "_model_variables_moving_average", "for SwapEMAWeights"
    ),
    PrivateName(_OPTIMIZER, "_distribution_strategy", "replicas", "tensorflow"),
    PrivateName(_DISTRIBUTE, "maybe_merge_call", "replicas", "tensorflow"),
    PrivateName(
        "tensorflow.__internal__",
        "get_enclosing_xla_context",
        "sums that suit XLA",
        "tensorflow",
    ),
    PrivateName("keras.Variable", "_layout", "layouts of slots", "jax"),
    PrivateName("keras.Variable", "_value", "values within `fit`", "jax"),
    # Other optimizers, for `warm_start` and `state_report`.
    PrivateName("keras.optimizers.Adam", "_momentums", "`m`"),
    PrivateName("keras.optimizers.Adam", "_velocities", "`v`"),
    PrivateName("keras.optimizers.Adam", "_velocity_hats", "`amsgrad`"),
    PrivateName("keras.optimizers.RMSprop", "_velocities", "`v`"),
    PrivateName("keras.optimizers.RMSprop", "_average_gradients", "`m`"),
    PrivateName("keras.optimizers.RMSprop", "_momentums", "sums of steps"),
    PrivateName("keras.optimizers.Adafactor", "_r", "row means"),
    PrivateName("keras.optimizers.Adafactor", "_c", "column means"),
    PrivateName("keras.optimizers.Adafactor", "_v", "`v`"),
)


def check():
    """Raises `ImportError` where one of the names is missing."""
    for row in TABLE:
        if row.backend in (None, keras.backend.backend()) and not _exists(row):
            raise ImportError(
                "keras_adafactor does not work with this version of "
                f"{row.owner.partition('.')[0]}: `{row.owner}` has no "
                f"`{row.name}` ({row.use}). Installed is Keras "
                f"{keras.__version__}; tested was Keras {TESTED_KERAS}: "
                "install that, or a newer keras_adafactor."
            )


def _exists(row):
    package, *path = row.owner.split(".")
    owner: Any = importlib.import_module(package)
    for part in path:
        owner = getattr(owner, part, None)
    return hasattr(owner, row.name) or (
        inspect.isclass(owner) and _is_assigned(owner, row.name)
    )


def _is_assigned(cls, name):
    """Whether a method of a class assigns an attribute of that name."""
    return any(
        instruction.opname == "STORE_ATTR" and instruction.argval == name
        for code in codes_of(cls)
        if name in code.co_names
        for instruction in dis.get_instructions(code)
    )


def codes_of(cls):
    """The code of every method of a class and of its parents."""
    return [
        inspect.unwrap(method).__code__
        for parent in cls.__mro__
        for method in vars(parent).values()
        if inspect.isfunction(method)
        and inspect.isfunction(inspect.unwrap(method))
    ]
