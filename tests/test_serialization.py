"""What is saved is what comes back, or an error."""

import copy
import functools
import json
import pathlib
import pickle
import warnings

import keras
import numpy as np
import pytest

from keras_adafactor import SOAP
from keras_adafactor import Adafactor
from keras_adafactor import AdamWRule
from keras_adafactor import AxisGroups
from tests.probe import as_numpy
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model
from tests.probe import state
from tests.probe import weights

BACKEND = keras.backend.backend()

STARTS = {
    # Large enough for int8 momentum to be int8.
    "encoder": np.linspace(-1, 1, 4096, dtype="float32").reshape(64, 64),
    "bias": np.array([0.5, -1.0, 2.0, 0.1, 1.0], dtype="float32"),
}
SHAPES = {name: start.shape for name, start in STARTS.items()}


@keras.saving.register_keras_serializable(package="tests")
def first_axis_is_batch(shape, path):
    if len(shape) < 3:
        return "auto"
    return AxisGroups(rows=(1,), cols=(2,), batch=(0,))


@keras.saving.register_keras_serializable(package="tests")
def constant_rate():
    return 0.25


# The configuration.

# Between them every argument has a value that is not its default.
CONFIGURATIONS = {
    "relative": {
        "learning_rate": 0.25,
        "beta_2_decay": -0.75,
        "epsilon_1": 1e-20,
        "epsilon_2": 0.01,
        "clip_threshold": 2.0,
        "warmup_steps": 5,
        "max_parameter_scale": 2.0,
        "exclude_from_parameter_scale": ["bias"],
        "axis_groups": "last_two",
        "min_dim_size_to_factor": 3,
        "beta_2_cap": 0.99,
        "step_offset": 3,
        "beta_1": 0.8,
        "momentum_dtype": "bfloat16",
        "record_update_rms": True,
        "weight_decay": 0.1,
        "clipnorm": 1.0,
        "use_ema": True,
        "ema_momentum": 0.75,
        "ema_overwrite_frequency": 3,
        "loss_scale_factor": 8.0,
        "gradient_accumulation_steps": 2,
        "name": "mine",
        "stochastic_rounding": False,
        "skip_nonfinite": "step",
        "fallback": {"bias": AdamWRule(beta_1=0.5)},
    },
    "absolute": {
        "learning_rate": 0.25,
        "relative_step": False,
        "multiply_by_parameter_scale": False,
        "factored": False,
        "beta_2": 0.9,
        "clip_threshold": None,
        "clipvalue": 0.5,
        "skip_nonfinite": None,
    },
    "global": {"global_clipnorm": 1.0, "weight_decay": 0.0},
    "int8": {"beta_1": 0.9, "momentum_dtype": "int8"},
}


def optimizers():
    made = {
        name: Adafactor(**arguments)
        for name, arguments in CONFIGURATIONS.items()
    }
    schedule = keras.optimizers.schedules.CosineDecay(0.25, 10)
    made["schedule"] = Adafactor(schedule)
    made["callable"] = Adafactor(constant_rate)
    for name, groups in AXIS_GROUPS.items():
        made[name] = Adafactor(axis_groups=groups)
    return made


AXIS_GROUPS = {
    "groups": AxisGroups(rows=(-2,), cols=(-1,), batch=(0,)),
    "function": first_axis_is_batch,
    "table": {
        "stacked": AxisGroups(rows=(1,), cols=(2,), batch=(0,)),
        "attention/.*kernel": "last_two",
        "experts": first_axis_is_batch,
        ".*": "auto",
    },
}


def test_configurations_leave_no_argument_out():
    named = {key for given in CONFIGURATIONS.values() for key in given}
    assert named == set(Adafactor.declared)
    for name, argument in Adafactor.declared.items():
        assert any(
            given.get(name, argument.default) != argument.default
            for given in CONFIGURATIONS.values()
        ), name


@pytest.mark.parametrize("name", optimizers())
@pytest.mark.parametrize(
    "round_trip",
    [
        lambda o: Adafactor.from_config(o.get_config()),
        lambda o: keras.saving.deserialize_keras_object(
            json.loads(json.dumps(keras.saving.serialize_keras_object(o)))
        ),
        lambda o: keras.optimizers.deserialize(
            json.loads(json.dumps(keras.optimizers.serialize(o)))
        ),
        lambda o: keras.optimizers.get(keras.optimizers.serialize(o)),
    ],
    ids=["from_config", "serialize_keras_object", "optimizers", "get"],
)
def test_configuration_comes_back(name, round_trip):
    optimizer = optimizers()[name]
    copied = round_trip(optimizer)
    assert type(copied) is Adafactor
    assert copied.get_config() == optimizer.get_config()
    for key, value in CONFIGURATIONS.get(name, {}).items():
        found = getattr(copied, key)
        if key == "learning_rate":
            found = float(as_numpy(found))
        assert found == value, key
    if name in AXIS_GROUPS:
        assert copied.axis_groups == AXIS_GROUPS[name]


def test_configuration_is_not_changed_by_reading_it():
    config = optimizers()["table"].get_config()
    kept = copy.deepcopy(config)
    Adafactor.from_config(config)
    assert config == kept


def test_excluded_variables_come_back():
    optimizer = Adafactor(weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias", "norm/.*"])
    config = json.loads(json.dumps(optimizer.get_config()))
    copied = Adafactor.from_config(config)
    assert copied.get_config() == optimizer.get_config()
    given = gradients(2, SHAPES)
    found = []
    for each in (optimizer, copied, Adafactor(weight_decay=0.5)):
        model = probe_model(STARTS, each)
        fit(model, given)
        found.append(weights(model)["bias"])
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def test_lambda_is_refused_with_a_reason():
    optimizer = Adafactor(axis_groups=lambda shape, path: "auto")
    with pytest.warns(UserWarning, match="lambda"):
        config = optimizer.get_config()
    with pytest.raises(ValueError, match="deserialization of a.*lambda"):
        Adafactor.from_config(config)


def test_unregistered_function_is_found_by_custom_objects():
    def chosen(shape, path):
        return "last_two"

    optimizer = Adafactor(axis_groups=chosen)
    config = keras.saving.serialize_keras_object(optimizer)
    copied = keras.saving.deserialize_keras_object(
        config, custom_objects={"chosen": chosen}
    )
    assert copied.axis_groups is chosen


def test_the_name_alone_is_keras_own():
    # By name there is no telling them apart; by configuration there is.
    assert type(keras.optimizers.get("adafactor")) is (
        keras.optimizers.Adafactor
    )
    ours = keras.optimizers.get(
        {"class_name": "keras_adafactor>Adafactor", "config": {}}
    )
    assert type(ours) is Adafactor


def test_copy_of_an_unbuilt_optimizer_is_independent():
    optimizer = Adafactor(0.25, beta_1=0.9, axis_groups=AXIS_GROUPS["table"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        copied = copy.deepcopy(optimizer)
        pickle.loads(pickle.dumps(optimizer))
    assert copied.get_config() == optimizer.get_config()
    copied.learning_rate = 0.5
    assert float(as_numpy(optimizer.learning_rate)) == 0.25


# Models in files.


def assert_same_state(model, other):
    ours, theirs = state(model), state(other)
    for (name, x), (_, y) in zip(ours.items(), theirs.items(), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


RESUMED = {
    "default": ({}, "float32"),
    "momentum": ({"beta_1": 0.9}, "float32"),
    "bfloat16_momentum": (
        {"beta_1": 0.9, "momentum_dtype": "bfloat16"},
        "float32",
    ),
    "int8_momentum": ({"beta_1": 0.9, "momentum_dtype": "int8"}, "float32"),
    "accumulation": (
        {"gradient_accumulation_steps": 2, "weight_decay": 0.1},
        "float32",
    ),
    "averages": (
        {"use_ema": True, "ema_overwrite_frequency": 2, "beta_2": 0.9},
        "float32",
    ),
    "bfloat16_weights": (
        {"use_ema": True, "gradient_accumulation_steps": 2},
        "bfloat16",
    ),
    "float16_weights": ({"skip_nonfinite": "step"}, "float16"),
    "everything_recorded": ({"record_update_rms": True}, "float32"),
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("ending", ["keras", "weights.h5"])
def test_resumed_training_is_bit_for_bit_the_same(tmp_path, name, ending):
    settings, dtype = RESUMED[name]
    keras.config.set_dtype_policy(dtype)
    given = gradients(7, SHAPES)
    # Three steps: in the middle of two to be accumulated.
    first = {key: g[:3] for key, g in given.items()}
    second = {key: g[3:] for key, g in given.items()}
    model = probe_model(STARTS, Adafactor(0.1, **settings))
    fit(model, first)
    path = tmp_path / f"model.{ending}"
    if ending == "keras":
        model.save(path)
        resumed = keras.models.load_model(path)
    else:
        model.save_weights(path)
        resumed = probe_model(
            {key: start * 0 for key, start in STARTS.items()},
            Adafactor(0.1, **settings),
        )
        resumed.optimizer.build(resumed.trainable_variables)
        resumed.load_weights(path)
    assert type(resumed.optimizer) is Adafactor
    assert_same_state(model, resumed)
    fit(model, second)
    fit(resumed, second)
    assert_same_state(model, resumed)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_copied_model_is_the_same_and_independent(copied):
    model = probe_model(STARTS, Adafactor(0.1, beta_1=0.9))
    given = gradients(2, SHAPES)
    fit(model, given)
    before = state(model)
    other = copied(model)
    assert type(other.optimizer) is Adafactor
    assert_same_state(model, other)
    fit(other, given)
    for name, value in state(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@pytest.mark.parametrize("ending", ["keras", "weights.h5"])
def test_model_that_was_never_trained_is_saved_and_loaded(tmp_path, ending):
    model = probe_model(STARTS, Adafactor(0.1, beta_1=0.9))
    path = tmp_path / f"model.{ending}"
    given = gradients(2, SHAPES)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimizer .* keeps the state")
        if ending == "keras":
            model.save(path)
            loaded = keras.models.load_model(path)
        else:
            model.save_weights(path)
            loaded = probe_model(STARTS, Adafactor(0.1, beta_1=0.9))
            loaded.load_weights(path)
    fit(loaded, given)
    fit(model, given)
    assert_same_state(model, loaded)


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"),
    reason="this Keras has no MultiOptimizer yet",
)
def test_loss_scale_and_multi_optimizer_come_back(tmp_path):
    given = gradients(4, SHAPES)
    wrapped = {
        "scaled": keras.optimizers.LossScaleOptimizer(
            Adafactor(0.1, beta_1=0.9)
        ),
        "mapped": keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(
                Adafactor(0.1, beta_1=0.9),
                {"bias/.*": keras.optimizers.Adam(0.1)},
            )
        ),
    }
    for name, optimizer in wrapped.items():
        model = probe_model(STARTS, optimizer)
        fit(model, given)
        path = tmp_path / f"{name}.keras"
        model.save(path)
        loaded = keras.models.load_model(path)
        assert_same_state(model, loaded)
        fit(model, given)
        fit(loaded, given)
        assert_same_state(model, loaded)


# A fresh process.

LOAD = """
import sys
import keras
import numpy as np
{imports}
model = keras.models.load_model(sys.argv[1])
kind = type(model.optimizer)
model.fit(np.ones((4, 3)), np.ones((4, 5)), batch_size=2, verbose=0)
print(kind.__module__, kind.__name__)
arrays = [keras.ops.convert_to_numpy(v)
          for v in (*model.trainable_variables, *model.optimizer.variables)]
np.savez(sys.argv[2], *arrays)
"""


@pytest.fixture(scope="module")
def dense_model(tmp_path_factory):
    """A model of Keras layers, its file, and its state two steps later."""
    path = tmp_path_factory.mktemp("dense") / "model.keras"
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5)])
    model.compile(Adafactor(0.1, beta_1=0.9, use_ema=True), loss="mse")
    data = np.ones((4, 3)), np.ones((4, 5))
    model.fit(*data, batch_size=2, verbose=0)
    model.save(path)
    model.fit(*data, batch_size=2, verbose=0)
    return path, [
        as_numpy(v)
        for v in (*model.trainable_variables, *model.optimizer.variables)
    ]


def test_fresh_process_restores_our_class_and_resumes(
    run_python, dense_model, tmp_path
):
    path, expected = dense_model
    imports = "import keras_adafactor"
    output = tmp_path / "state.npz"
    printed = run_python(LOAD.format(imports=imports), path, output)
    assert printed.split()[-2:] == [
        "keras_adafactor.optimizers.adafactor",
        "Adafactor",
    ]
    found = np.load(output)
    assert len(found) == len(expected)
    for i, array in enumerate(expected):
        np.testing.assert_array_equal(found[f"arr_{i}"], array)


def test_fresh_process_without_import_never_gets_keras_own(
    run_python, dense_model, tmp_path
):
    path, _ = dense_model
    program = """
import sys
import keras
try:
    model = keras.models.load_model(sys.argv[1])
except Exception as error:
    print("ERROR", error)
else:
    print("LOADED", type(model.optimizer).__module__)
"""
    kind, _, message = run_python(program, path).strip().partition(" ")
    if kind == "LOADED":
        assert message == "keras_adafactor.optimizers.adafactor"
    else:
        assert "Adafactor" in message and "keras_adafactor" in message


# Files that do not fit.


def saved(tmp_path, optimizer, starts=STARTS):
    model = probe_model(starts, optimizer)
    fit(model, gradients(1, {k: np.shape(v) for k, v in starts.items()}))
    path = tmp_path / "saved.weights.h5"
    model.save_weights(path)
    return path


MISFITS = {
    "momentum": (
        lambda: Adafactor(beta_1=0.9),
        lambda: Adafactor(),
        "m: in the file .*64, 64.*, in the optimizer absent",
    ),
    "no_momentum": (
        lambda: Adafactor(),
        lambda: Adafactor(beta_1=0.9),
        "m: in the file absent, in the optimizer .*64, 64.*encoder_w_m",
    ),
    "int8_momentum": (
        lambda: Adafactor(beta_1=0.9),
        lambda: Adafactor(beta_1=0.9, momentum_dtype="int8"),
        "m_scale: in the file absent",
    ),
    "factored": (
        lambda: Adafactor(factored=False),
        lambda: Adafactor(),
        "v_row: in the file absent",
    ),
    "schedule": (
        lambda: Adafactor(
            keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
        ),
        lambda: Adafactor(0.1),
        "learning_rate: in the file absent",
    ),
    "guard": (
        lambda: Adafactor(skip_nonfinite=None),
        lambda: Adafactor(),
        "skipped_updates: in the file absent",
    ),
    "accumulation": (
        lambda: Adafactor(gradient_accumulation_steps=2),
        lambda: Adafactor(),
        "gradient_accumulator: in the file .*, in the optimizer absent",
    ),
    "averages": (
        lambda: Adafactor(),
        lambda: Adafactor(use_ema=True),
        "average: in the file absent",
    ),
    "adam": (
        lambda: keras.optimizers.Adam(),
        lambda: Adafactor(),
        "in the file absent, in the optimizer",
    ),
    "keras_adafactor": (
        lambda: keras.optimizers.Adafactor(),
        lambda: Adafactor(),
        "in the file absent, in the optimizer",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_state_that_does_not_fit_is_an_error_and_loads_nothing(tmp_path, name):
    theirs, ours, message = MISFITS[name]
    path = saved(tmp_path, theirs())
    model = probe_model(STARTS, ours())
    fit(model, gradients(2, SHAPES, seed=1))
    optimizer = model.optimizer
    before = [as_numpy(v) for v in optimizer.variables]
    with pytest.raises(ValueError, match="(?s)does not fit.*" + message):
        model.load_weights(path)
    for variable, value in zip(optimizer.variables, before, strict=True):
        np.testing.assert_array_equal(
            as_numpy(variable), value, err_msg=variable.path
        )


def test_error_counts_the_variables_of_both_sides(tmp_path):
    # iteration, learning rate, skipped updates; two factors, v; two momenta.
    path = saved(tmp_path, Adafactor(beta_1=0.9))
    model = probe_model(STARTS, Adafactor())
    model.optimizer.build(model.trainable_variables)
    with pytest.raises(
        ValueError, match="8 variables in the file, 6 in the optimizer"
    ):
        model.load_weights(path)


def test_other_shapes_are_an_error(tmp_path):
    # Row and column of the transposed matrix have each other's shape.
    path = saved(tmp_path, Adafactor(), {"encoder": np.ones((3, 8))})
    model = probe_model({"encoder": np.ones((8, 3))}, Adafactor())
    model.optimizer.build(model.trainable_variables)
    store = {}
    model.optimizer.save_own_variables(store)
    transposed = {
        key: np.zeros(value.shape[::-1] if value.ndim > 1 else value.shape)
        for key, value in store.items()
    }
    row, col = (k for k in store if "v_" in k)
    transposed[row], transposed[col] = transposed[col], transposed[row]
    with pytest.raises(ValueError, match=r"v_row: in the file \(3,\)"):
        model.optimizer.load_own_variables(transposed)
    with pytest.raises(ValueError):
        model.load_weights(path)


# Slots are made when the model is first trained; until then their state waits.

WAITING = {
    "float32": {"beta_1": 0.9},
    "int8": {"beta_1": 0.9, "momentum_dtype": "int8"},
    "bfloat16": {"beta_1": 0.9, "momentum_dtype": "bfloat16"},
    "all": {
        "gradient_accumulation_steps": 2,
        "use_ema": True,
        "skip_nonfinite": "step",
    },
}


@pytest.mark.parametrize("name", WAITING)
def test_state_loaded_before_the_first_step_waits_for_it(tmp_path, name):
    settings = WAITING[name]
    given = gradients(3, SHAPES)
    model = probe_model(STARTS, Adafactor(0.1, **settings))
    fit(model, given)
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    resumed = probe_model(STARTS, Adafactor(0.1, **settings))
    resumed.load_weights(path)
    assert not resumed.optimizer.built
    iterations = model.optimizer.iterations
    assert int(as_numpy(resumed.optimizer.iterations)) == int(
        as_numpy(iterations)
    )
    fit(model, given)
    fit(resumed, given)
    assert_same_state(model, resumed)


def test_waiting_state_is_saved_again(tmp_path):
    path = saved(tmp_path, Adafactor(0.1, beta_1=0.9))
    model = probe_model(STARTS, Adafactor(0.1, beta_1=0.9))
    model.load_weights(path)
    again = tmp_path / "again.weights.h5"
    model.save_weights(again)
    assert not model.optimizer.built
    first, second = (
        probe_model(STARTS, Adafactor(0.1, beta_1=0.9)) for _ in range(2)
    )
    for other, file in ((first, path), (second, again)):
        other.optimizer.build(other.trainable_variables)
        other.load_weights(file)
    assert_same_state(first, second)


def test_learning_rate_set_after_loading_is_kept(tmp_path):
    path = saved(tmp_path, Adafactor(0.1))
    model = probe_model(STARTS, Adafactor(0.1))
    model.load_weights(path)
    model.optimizer.learning_rate = 0.25
    model.optimizer.build(model.trainable_variables)
    assert float(as_numpy(model.optimizer.learning_rate)) == 0.25


def test_waiting_state_that_does_not_fit_is_an_error(tmp_path):
    path = saved(tmp_path, Adafactor(beta_1=0.9))
    model = probe_model(STARTS, Adafactor())
    model.load_weights(path)
    with pytest.raises(
        ValueError, match="8 variables in the file, 6 in the optimizer"
    ):
        fit(model, gradients(1, SHAPES))


def test_waiting_state_without_the_learning_rate_is_an_error_at_once(tmp_path):
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    path = saved(tmp_path, Adafactor(schedule))
    model = probe_model(STARTS, Adafactor(0.1))
    with pytest.raises(ValueError, match="learning_rate: in the file absent"):
        model.load_weights(path)


def apply_all(model, gradients):
    model.optimizer.apply(gradients, model.trainable_variables)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.function is its own.")
def test_waiting_state_is_assigned_by_a_build_within_a_graph(tmp_path):
    import tensorflow as tf  # noqa: PLC0415

    path = saved(tmp_path, Adafactor(0.1, beta_1=0.9))
    built, waiting = (
        probe_model(STARTS, Adafactor(0.1, beta_1=0.9)) for _ in range(2)
    )
    built.optimizer.build(built.trainable_variables)
    for model in (built, waiting):
        model.load_weights(path)
        ones = [tf.ones(v.shape) for v in model.trainable_variables]
        step = tf.function(functools.partial(apply_all, model))
        step(ones)
    assert_same_state(built, waiting)


def test_skip_mismatch_loads_the_weights_alone(tmp_path):
    path = saved(tmp_path, keras.optimizers.Adam())
    trained = weights_of(path)
    model = probe_model(STARTS, Adafactor())
    fit(model, gradients(2, SHAPES, seed=1))
    before = [as_numpy(v) for v in model.optimizer.variables]
    with pytest.warns(UserWarning, match="could not be loaded"):
        model.load_weights(path, skip_mismatch=True)
    for variable, value in zip(model.optimizer.variables, before, strict=True):
        np.testing.assert_array_equal(as_numpy(variable), value)
    for name, weight in trained.items():
        np.testing.assert_array_equal(weights(model)[name], weight)


@pytest.mark.parametrize("theirs", [keras.optimizers.Adam,
                                    lambda: Adafactor(beta_1=0.9)])  # fmt: skip
def test_skip_mismatch_leaves_an_optimizer_that_trains(tmp_path, theirs):
    path = saved(tmp_path, theirs())
    model = probe_model(STARTS, Adafactor())
    # As the error of the misfit advises.
    model.optimizer.build(model.trainable_variables)
    with pytest.warns(UserWarning, match="could not be loaded"):
        model.load_weights(path, skip_mismatch=True)
    fit(model, gradients(2, SHAPES))
    assert int(as_numpy(model.optimizer.iterations)) == 2


def test_file_of_adam_does_not_wait_in_an_optimizer_without_slots(tmp_path):
    path = saved(tmp_path, keras.optimizers.Adam())
    model = probe_model(STARTS, Adafactor())
    with pytest.warns(UserWarning, match="could not be loaded"):
        model.load_weights(path, skip_mismatch=True)
    for _ in range(2):
        fit(model, gradients(2, SHAPES))
    assert int(as_numpy(model.optimizer.iterations)) == 4


def test_error_of_an_optimizer_without_slots_counts_what_is_in_the_file(
    tmp_path,
):
    path = saved(tmp_path, keras.optimizers.Adam())
    model = probe_model(STARTS, Adafactor())
    # iteration, learning rate, and two moments of two variables.
    with pytest.raises(ValueError, match="6 variables in the file"):
        model.load_weights(path)
    fit(model, gradients(1, SHAPES))


def test_waiting_state_that_does_not_fit_goes_on_waiting(tmp_path):
    path = saved(tmp_path, Adafactor(beta_1=0.9))
    model = probe_model(STARTS, Adafactor())
    model.load_weights(path)
    for _ in range(2):
        with pytest.raises(ValueError, match="does not fit"):
            fit(model, gradients(1, SHAPES))
        assert not model.optimizer.built


def test_learning_rate_that_could_not_be_loaded_is_refused(tmp_path):
    optimizer = Adafactor(0.05, warmup_steps=10)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    for wrong, message in (
        (schedule, "Argument `warmup_steps` must be None unless"),
        (-1.0, "Argument `learning_rate` must be a number >= 0"),
        (float("nan"), "Argument `learning_rate` must be"),
        (keras.optimizers.schedules.ExponentialDecay, "`learning_rate` must"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.learning_rate = wrong
    assert float(as_numpy(optimizer.learning_rate)) == np.float32(0.05)


@pytest.mark.filterwarnings("ignore:A schedule is used as it is given")
def test_schedule_that_was_set_later_comes_back(tmp_path):
    optimizer = Adafactor(0.05)
    model = probe_model(STARTS, optimizer)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    optimizer.learning_rate = schedule
    fit(model, gradients(2, SHAPES))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same_state(model, loaded)
    for each in (model, loaded):
        fit(each, gradients(2, SHAPES))
    assert_same_state(model, loaded)


def test_optimizers_are_numbered_as_keras_numbers_them():
    keras.backend.clear_session()
    names = [Adafactor().name for _ in range(3)]
    assert names == [
        "keras_adafactor_adafactor",
        "keras_adafactor_adafactor_1",
        "keras_adafactor_adafactor_2",
    ]


def weights_of(path):
    model = probe_model(STARTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.load_weights(path)
    return weights(model)


def test_layers_of_another_name_do_not_matter(tmp_path):
    path = saved(tmp_path, Adafactor(beta_1=0.9))
    renamed = {f"other_{name}": start for name, start in STARTS.items()}
    model = probe_model(renamed, Adafactor(beta_1=0.9))
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    assert int(as_numpy(model.optimizer.iterations)) == 1


# Interrupted runs.


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "settings",
    [
        {"beta_1": 0.9, "momentum_dtype": "int8"},
        {"gradient_accumulation_steps": 3, "use_ema": True},
    ],
    ids=str,
)
def test_backup_and_restore_resumes_bit_for_bit(tmp_path, settings):
    given = gradients(2, SHAPES)

    def model():
        return probe_model(STARTS, Adafactor(0.1, **settings))

    uninterrupted = model()
    fit(uninterrupted, given, epochs=4)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        fit(model(), given, epochs=4, callbacks=[backup, Interrupt()])
    resumed = model()
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    fit(resumed, given, epochs=4, callbacks=[backup])
    assert_same_state(uninterrupted, resumed)


LEGACY = """
import keras
{imports}
model = keras.models.load_model("{path}")
print(type(model.optimizer).__module__)
"""


def test_legacy_file_is_never_read_as_the_built_in_of_that_name(
    run_python, tmp_path
):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    model.compile(Adafactor(), loss=keras.losses.MeanSquaredError())
    path = tmp_path / "model.h5"
    model.save(path)
    ours = LEGACY.format(imports="import keras_adafactor", path=path)
    assert "keras_adafactor" in run_python(ours)
    with pytest.raises(AssertionError, match="keras_adafactor_adafactor"):
        run_python(LEGACY.format(imports="", path=path))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.train is TensorFlow's.")
def test_tensorflow_checkpoint_resumes_bit_for_bit(tmp_path):
    import tensorflow as tf  # noqa: PLC0415

    settings = {
        "beta_1": 0.9,
        "momentum_dtype": "int8",
        "use_ema": True,
        "gradient_accumulation_steps": 2,
    }
    given = gradients(3, SHAPES)
    model = probe_model(STARTS, Adafactor(0.1, **settings))
    fit(model, given)
    saver = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    path = saver.save(tmp_path / "checkpoint")
    resumed = probe_model(STARTS, Adafactor(0.1, **settings))
    resumed.optimizer.build(resumed.trainable_variables)
    tf.train.Checkpoint(model=resumed, optimizer=resumed.optimizer).restore(
        path
    ).assert_existing_objects_matched()
    assert_same_state(model, resumed)
    fit(model, given)
    fit(resumed, given)
    assert_same_state(model, resumed)


# Made by version 0.1.0: a dense layer (4, 3) after four steps of
# `SOAP(0.01, refresh_every=2)`.
OLD_FILE = pathlib.Path(__file__).parent / "data" / "soap_0.1.0.keras"


def test_file_of_0_1_0_without_a_counter_of_failures_loads():
    model = keras.models.load_model(OLD_FILE)
    optimizer = model.optimizer
    assert type(optimizer) is SOAP and optimizer.refresh_every == 2
    assert int(as_numpy(optimizer.iterations)) == 4
    assert int(as_numpy(optimizer.failed_refreshes)) == 0
    (_, slots), _ = optimizer.slots()
    basis = as_numpy(slots["basis_0"])
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-5)
    assert int(as_numpy(slots["count"])) == 4
    model.fit(np.ones((8, 4)), np.ones((8, 3)), batch_size=2, verbose=0)
    assert int(as_numpy(optimizer.iterations)) == 8
