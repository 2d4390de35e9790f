"""Every wrong argument is an error at construction, in Keras' form."""

import json
import re

import keras
import numpy as np
import pytest
from keras import ops

from keras_adafactor import Adafactor
from keras_adafactor import AdamWRule
from keras_adafactor import AxisGroups
from keras_adafactor import FullySharded

NAN, INFINITY = float("nan"), float("inf")
NOT_NUMBERS = ("0.1", True, [0.1], (), {}, 1j, object, NAN, INFINITY)
NOT_INTEGERS = ("2", True, 2.0, 2.5, [2], NAN, INFINITY)
NOT_BOOLEANS = (None, 0, 1, "yes", "", [], 1.0)
NOT_PATTERNS = (3, [3], ["ok", None], "(", ["ok", "["], {"a": 1}, b"ab")


def schedule():
    return keras.optimizers.schedules.CosineDecay(0.1, 10)


def text(value):
    """The same in every process: that of a function ends in its address."""
    return re.sub(" at 0x[0-9a-f]+", "", str(value))


# Argument -> values that are wrong whatever the other arguments are.
WRONG = {
    "learning_rate": (
        None, *NOT_NUMBERS, -0.1, -INFINITY,
        keras.optimizers.schedules.CosineDecay,
    ),
    "beta_2_decay": (None, *NOT_NUMBERS, 0.0, 0, 0.8, -INFINITY),
    "epsilon_1": (None, *NOT_NUMBERS, 0.0, 0, -1e-30),
    "epsilon_2": (None, *NOT_NUMBERS, 0.0, 0, -1e-3),
    "clip_threshold": (*NOT_NUMBERS, 0.0, 0, -1.0),
    "relative_step": NOT_BOOLEANS,
    "warmup_steps": (*NOT_INTEGERS, 0, -1),
    "multiply_by_parameter_scale": NOT_BOOLEANS,
    "max_parameter_scale": (*NOT_NUMBERS, 0.0, 1e-4, -1.0),
    "exclude_from_parameter_scale": NOT_PATTERNS,
    "factored": NOT_BOOLEANS,
    "axis_groups": (
        None, 3, True, "diagonal", "Auto", ["auto"], (0, 1),
        {"a": 3}, {"a": "diagonal"}, {3: "auto"}, {"(": "auto"},
    ),
    "min_dim_size_to_factor": (None, *NOT_INTEGERS, 0, -1),
    "beta_2": (*NOT_NUMBERS, 0.0, 0, 1, 1.0, 1.5, -0.1),
    "beta_2_cap": (*NOT_NUMBERS, 0.0, 0, 1, 1.0, 1.5, -0.1),
    "step_offset": (None, *NOT_INTEGERS, -1),
    "beta_1": (*NOT_NUMBERS, 0.0, 0, 1, 1.0, 1.5, -0.1),
    "momentum_dtype": (None, "float16", "int4", "fp32", np.int8, 8),
    "record_update_rms": NOT_BOOLEANS,
    "stochastic_rounding": NOT_BOOLEANS,
    "skip_nonfinite": ("none", "all", True, False, 1, "Step"),
    "weight_decay": (*NOT_NUMBERS, -0.1),
    "clipnorm": (*NOT_NUMBERS, 0.0, 0, -1.0),
    "clipvalue": (*NOT_NUMBERS, 0.0, 0, -1.0),
    "global_clipnorm": (*NOT_NUMBERS, 0.0, 0, -1.0),
    "use_ema": NOT_BOOLEANS,
    "ema_momentum": (None, *NOT_NUMBERS, -0.1, 1.1),
    "ema_overwrite_frequency": (*NOT_INTEGERS, 0, -1),
    "loss_scale_factor": (*NOT_NUMBERS, 0.0, 0, -1.0),
    "gradient_accumulation_steps": (*NOT_INTEGERS, 0, 1, -2),
    "name": (3, True, ["adafactor"]),
    "fallback": (*NOT_PATTERNS[:6], {"bias": "adamw"}, {"(": AdamWRule()}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in WRONG.items() for value in values],
    ids=repr,
)
def test_wrong_argument_is_named_with_its_value(name, value):
    context = {"beta_1": 0.9} if name == "momentum_dtype" else {}
    if name == "ema_overwrite_frequency":
        context = {"use_ema": True}
    message = f"Argument `{name}` must be .* Received: {name}="
    with pytest.raises(ValueError, match=f"^{message}") as raised:
        Adafactor(**context, **{name: value})
    received = str(raised.value).rpartition(f"Received: {name}=")[2]
    # Of a list of patterns the one that is wrong.
    assert received == repr(value) or received in repr(value)


# Pair -> the argument that the message is about.
CONTRADICTIONS = [
    ({"warmup_steps": 10, "relative_step": False}, "warmup_steps"),
    ({"warmup_steps": 10, "learning_rate": schedule()}, "warmup_steps"),
    ({"warmup_steps": 10, "learning_rate": lambda: 0.1}, "warmup_steps"),
    ({"beta_2": 0.9, "beta_2_decay": -0.5}, "beta_2_decay"),
    ({"beta_2": 0.9, "beta_2_cap": 0.99}, "beta_2_cap"),
    ({"momentum_dtype": "int8"}, "momentum_dtype"),
    ({"momentum_dtype": "bfloat16"}, "momentum_dtype"),
    (
        {"multiply_by_parameter_scale": False, "max_parameter_scale": 1.0},
        "max_parameter_scale",
    ),
    (
        {
            "multiply_by_parameter_scale": False,
            "exclude_from_parameter_scale": "bias",
        },
        "exclude_from_parameter_scale",
    ),
    ({"epsilon_2": 0.5, "max_parameter_scale": 0.4}, "max_parameter_scale"),
    ({"ema_overwrite_frequency": 2}, "ema_overwrite_frequency"),
]


@pytest.mark.parametrize(("arguments", "name"), CONTRADICTIONS, ids=text)
def test_contradictory_pair_is_an_error(arguments, name):
    for each in arguments:  # alone, or with what it needs, each is fine
        if each != name and each != "momentum_dtype":
            Adafactor(**{each: arguments[each]})
    with pytest.raises(ValueError, match=f"^Argument `{name}` must be "):
        Adafactor(**arguments)


@pytest.mark.parametrize(
    "pair",
    [
        ("clipnorm", "clipvalue"),
        ("clipnorm", "global_clipnorm"),
        ("clipvalue", "global_clipnorm"),
    ],
)
def test_two_clips_are_an_error_that_names_both(pair):
    with pytest.raises(ValueError, match=f"{pair[0]}=1.*{pair[1]}=1"):
        Adafactor(**dict.fromkeys(sorted(pair), 1.0))


@pytest.mark.parametrize(
    "arguments",
    [{"beta1": 0.9}, {"lr": 0.1}, {"eps": 1e-8}, {"clip_treshold": 1.0}],
    ids=text,
)
def test_unknown_argument_is_named(arguments):
    (name,) = arguments
    with pytest.raises((TypeError, ValueError), match=name):
        Adafactor(**arguments)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lr", "`learning_rate`"),
        ("decay", "a schedule as `learning_rate`"),
        ("learning_rat", "`learning_rate`"),
        ("clip_treshold", "`clip_threshold`"),
    ],
)
def test_argument_that_is_meant_is_named(name, meant):
    with pytest.raises(ValueError, match=f"did you mean {meant}\\?"):
        Adafactor(**{name: 0.1})


@pytest.mark.parametrize("value", NOT_PATTERNS, ids=repr)
def test_wrong_names_to_exclude_from_weight_decay_are_errors(value):
    with pytest.raises(ValueError, match="^Argument `var_names` must be "):
        Adafactor().exclude_from_weight_decay(var_names=value)


WRONG_GROUPS = [
    AxisGroups(rows=(0,), cols=(2,)),
    AxisGroups(rows=(0,), cols=(0,)),
    AxisGroups(rows=(0,), cols=(-2,)),
    AxisGroups(rows=(0,)),
    AxisGroups(cols=(1,)),
    AxisGroups(rows=(0.0,), cols=(1,)),
    AxisGroups(rows=(0,), cols=(1,), batch=(1,)),
    lambda shape, path: None,
    lambda shape, path: "diagonal",
    lambda shape, path: ((0,), (1,)),
]


@pytest.mark.parametrize("groups", WRONG_GROUPS, ids=text)
def test_axis_groups_that_do_not_fit_name_the_variable(groups):
    variable = keras.Variable(np.ones((3, 4)), name="kernel")
    optimizer = Adafactor(axis_groups={"kernel": groups})
    with pytest.raises(ValueError, match=r"'kernel' of shape \(3, 4\)"):
        optimizer.build([variable])


# Values at the edge of what is allowed, each with what it needs.
RIGHT = [
    {"learning_rate": 0.0},
    {"learning_rate": 1},
    {"learning_rate": np.float64(0.1)},
    {"learning_rate": schedule()},
    {"learning_rate": lambda: 0.1},
    {"learning_rate": 30.0, "relative_step": False},
    {"beta_2_decay": -1e-6},
    {"beta_2_decay": -1},
    {"epsilon_1": 1e-38},
    {"epsilon_1": 1},
    {"epsilon_2": 1e-30},
    {"clip_threshold": None},
    {"clip_threshold": 1},
    {"clip_threshold": 1e-3},
    {"warmup_steps": 1},
    {"max_parameter_scale": 1e-3},
    {"exclude_from_parameter_scale": "bias"},
    {"exclude_from_parameter_scale": ("bias", "norm")},
    {"exclude_from_parameter_scale": []},
    {"axis_groups": {}},
    {"axis_groups": {"kernel": {"kernel": AxisGroups((0,), (1,))}}},
    {"axis_groups": AxisGroups()},
    {"axis_groups": AxisGroups(batch=(0,))},
    {"axis_groups": AxisGroups(rows=(-1,), cols=(-2,))},
    {"axis_groups": lambda shape, path: "last_two"},
    {"min_dim_size_to_factor": 1},
    {"min_dim_size_to_factor": 10**9},
    {"beta_2": 1e-6},
    {"beta_2": 0.999999},
    {"beta_2": np.float64(0.9)},
    {"beta_2": 0.9, "beta_2_decay": -0.8},
    {"beta_2_cap": 0.999},
    {"step_offset": 10**6},
    {"beta_1": 0.999},
    {"beta_1": 0.9, "momentum_dtype": "bfloat16"},
    {"weight_decay": 0},
    {"clipnorm": 1},
    {"use_ema": True, "ema_momentum": 0},
    {"use_ema": True, "ema_momentum": 1.0},
    {"use_ema": True, "ema_overwrite_frequency": 1},
    {"loss_scale_factor": 1},
    {"gradient_accumulation_steps": 2},
    {"skip_nonfinite": None},
    {"name": "mine"},
]


@pytest.mark.parametrize("arguments", RIGHT, ids=text)
def test_value_at_the_edge_is_allowed_and_works(arguments):
    optimizer = Adafactor(**arguments)
    variable = keras.Variable(np.ones((3, 4)), name="kernel")
    gradient = np.linspace(-1, 1, 12, dtype="float32").reshape(3, 4)
    for _ in range(2):
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
    found = ops.convert_to_numpy(variable)
    assert np.isfinite(found).all()
    moved = (found != 1).any()
    assert moved == (arguments.get("learning_rate") != 0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", np.float32(0.1)),
        ("clipnorm", np.float32(1.0)),
        ("warmup_steps", np.int64(10)),
        ("relative_step", np.bool_(True)),
    ],
    ids=repr,
)
def test_numbers_of_numpy_are_taken_as_pythons(name, value):
    config = Adafactor(**{name: value}).get_config()
    assert type(config[name]) is type(value.item())
    assert config[name] == pytest.approx(value.item())
    json.dumps(config)


def test_every_argument_is_in_the_table():
    config = Adafactor(beta_1=0.9).get_config()
    assert set(config) == set(WRONG)


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("epsilon", "`epsilon_1` or `epsilon_2`"),
        ("beta1", "`beta_1`"),
        ("weight_deca", "`weight_decay`"),
    ],
)
def test_unknown_argument_is_answered_with_the_one_that_is_meant(
    argument, meant
):
    with pytest.raises(ValueError, match=f"For `{argument}`.*{meant}"):
        Adafactor(**{argument: 0.1})


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX applies layouts."
)
def test_layouts_are_refused_where_nothing_applies_them():
    name = keras.backend.backend()
    with pytest.raises(ValueError, match=f"Received: KERAS_BACKEND={name}"):
        FullySharded()
