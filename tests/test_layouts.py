"""JAX: layouts of `keras.distribution`, on eight virtual devices.

What a slot is sharded by follows from its weight; what comes out is what one
device computes.
"""

import contextlib

import keras
import numpy as np
import pytest

from keras_adafactor import Adafactor
from keras_adafactor import AxisGroups
from keras_adafactor import monitor
from keras_adafactor import warm_start
from tests import probe
from tests.optimizers import MAIN
from tests.probe import as_numpy
from tests.probe import gradients
from tests.probe import probe_model

if keras.backend.backend() != "jax":
    pytest.skip(
        "Layouts are applied by JAX alone: KERAS_BACKEND=jax runs these tests.",
        allow_module_level=True,
    )

import jax

pytestmark = pytest.mark.virtual_devices

MESH = (2, 4)


@contextlib.contextmanager
def distributed(distribution):
    keras.distribution.set_distribution(distribution)
    try:
        yield
    finally:
        keras.distribution.set_distribution(None)


def model_parallel(rules):
    mesh = keras.distribution.DeviceMesh(
        MESH, ["batch", "model"], keras.distribution.list_devices("cpu")
    )
    layout_map = keras.distribution.LayoutMap(mesh)
    for pattern, layout in rules.items():
        layout_map[pattern] = layout
    return keras.distribution.ModelParallel(
        layout_map=layout_map, batch_dim_name="batch"
    )


STARTS = {
    "table": np.linspace(-1, 1, 128, dtype="float32").reshape(8, 16),
    "kernel": np.linspace(1, 3, 512, dtype="float32").reshape(16, 32),
    "heads": np.linspace(-2, 1, 512, dtype="float32").reshape(16, 4, 8),
    "bias": np.linspace(-1, 0, 32, dtype="float32"),
    "scale": np.float32(0.5),
}

# A slot's path is "adafactor/kernel_w_v_row": every pattern matches slots of
# another rank than its weight.
RULES = {
    "columns": {".*kernel.w.*": (None, "model"), ".*bias.w.*": ("model",)},
    "rows": {
        ".*kernel.w.*": ("model", None),
        ".*table.w.*": ("model", "batch"),
    },
    "shorter_than_the_rank": {".*(kernel|heads).w.*": ("model",)},
    "three_axes": {".*heads.w.*": (None, "model", None)},
    "one_weight": {"kernel/w": (None, "model")},
    # The one layout that fits the scalars of Keras' optimizers too.
    "everything": {".*": ()},
}


def trained(settings, starts=STARTS, epochs=1):
    model = probe_model(starts, Adafactor(0.1, **settings))
    return fit(model, epochs)


def fit(model, epochs=1):
    starts = {v.path.split("/")[0]: v.shape for v in model.trainable_variables}
    given = gradients(32, starts)
    probe.fit(model, given, batch_size=8, epochs=epochs)
    return model


def variables(model):
    return [*model.trainable_variables, *model.optimizer.variables]


ONE_DEVICE = {}  # repr of settings -> state, computed once


def assert_equal_to_one_device(model, settings):
    assert keras.distribution.distribution() is None
    key = repr(settings)
    if key not in ONE_DEVICE:
        ONE_DEVICE[key] = [as_numpy(v) for v in variables(trained(settings))]
    pairs = zip(variables(model), ONE_DEVICE[key], strict=True)
    for variable, value in pairs:
        np.testing.assert_allclose(
            as_numpy(variable),
            value,
            rtol=2e-5,
            atol=2e-6,
            err_msg=variable.path,
        )


def spec(variable):
    """The mesh axis of every axis of a variable, as placed on devices."""
    sharding = variable.value.sharding
    assert isinstance(sharding, jax.sharding.NamedSharding), variable.path
    found = tuple(sharding.spec)
    return found + (None,) * (len(variable.shape) - len(found))


SETTINGS = [
    {},
    {"gradient_accumulation_steps": 2, "skip_nonfinite": "step"},
    {"global_clipnorm": 0.5, "weight_decay": 0.1},
]


@pytest.mark.parametrize("rules", RULES)
def test_any_rule_builds_and_equals_one_device(rules):
    settings = {"beta_1": 0.9, "use_ema": True}
    with distributed(model_parallel(RULES[rules])):
        model = trained(settings)
    assert_equal_to_one_device(model, settings)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_steps_across_shards_equal_one_device(settings):
    with distributed(model_parallel(RULES["columns"])):
        model = trained(settings)
    assert_equal_to_one_device(model, settings)


def test_warm_start_across_shards_equals_one_device():
    def change():
        model = fit(probe_model(STARTS, keras.optimizers.Adam(0.1)))
        adam = model.optimizer
        settings = {"beta_1": 0.9, "use_ema": True}
        model.compile(Adafactor(0.1, **settings), loss=probe.mean_output)
        model.optimizer.build(model.trainable_variables)
        before = [v.value.sharding for v in variables(model)]
        warm_start(model, adam)
        for variable, sharding in zip(variables(model), before, strict=True):
            ndim = len(variable.shape)
            assert variable.value.sharding.is_equivalent_to(sharding, ndim)
        return fit(model)

    with distributed(model_parallel(RULES["columns"])):
        model = change()
    alone = change()
    for found, expected in zip(variables(model), variables(alone), strict=True):
        np.testing.assert_allclose(
            as_numpy(found), as_numpy(expected), rtol=2e-5, atol=2e-6
        )


@pytest.mark.parametrize("row", MAIN, ids=lambda row: row.name)
def test_every_optimizer_across_shards_equals_one_device(row):
    # Square: the Gram matrices of its gradients have no null space.
    rng = np.random.default_rng(0)
    starts = {
        "kernel": rng.normal(size=(16, 16)).astype("float32"),
        "bias": rng.normal(size=(16,)).astype("float32"),
    }

    def build():
        optimizer = row.optimizer(weight_decay=0.1)
        model = probe_model(starts, optimizer)
        optimizer.build(model.trainable_variables)
        return model

    rules = {".*kernel.w.*": ("batch", "model"), ".*bias.w.*": ("model",)}
    with distributed(model_parallel(rules)):
        model = build()
        before = [spec(v) for v in variables(model)]
        for variable, (_, slots) in zip(
            model.trainable_variables, model.optimizer.slots(), strict=True
        ):
            for slot in slots.values():
                if slot.shape == variable.shape and slot.dtype == "float32":
                    # A basis of a square weight is split along one axis.
                    assert spec(slot)[0] in spec(variable)
        fit(model)
        assert [spec(v) for v in variables(model)] == before
        found = [as_numpy(v) for v in model.trainable_variables]
    alone = fit(build())
    for value, variable in zip(found, alone.trainable_variables, strict=True):
        np.testing.assert_allclose(
            value,
            as_numpy(variable),
            rtol=50 * row.tolerance,
            atol=50 * row.tolerance,
            err_msg=variable.path,
        )


@pytest.mark.parametrize("rules", RULES)
def test_layouts_of_slots_follow_their_weights_and_are_kept(rules):
    settings = {
        "beta_1": 0.9,
        "use_ema": True,
        "gradient_accumulation_steps": 2,
        "axis_groups": "last_two",
    }
    with distributed(model_parallel(RULES[rules])):
        model = probe_model(STARTS, Adafactor(0.1, **settings))
        optimizer = model.optimizer
        optimizer.build(model.trainable_variables)
        before = [spec(v) for v in variables(model)]
        by_name = {v.path.partition("/")[2]: v for v in optimizer.variables}
        for variable, (path, slots) in zip(
            model.trainable_variables, optimizer.slots(), strict=True
        ):
            axes = spec(variable)
            prefix = path.replace("/", "_")
            for whole in ("average", "gradient_accumulator", "m"):
                assert spec(by_name[f"{prefix}_{whole}"]) == axes
            if "v" in slots:
                assert spec(slots["v"]) == axes
            else:
                assert spec(slots["v_row"]) == axes[:-1]
                assert spec(slots["v_col"]) == (*axes[:-2], axes[-1])
        if rules != "everything":
            assert any("model" in axes for axes in before)
        fit(model)
        assert [spec(v) for v in variables(model)] == before


def test_factors_of_grouped_axes_keep_the_layout_of_each_axis():
    with distributed(model_parallel(RULES["three_axes"])):
        model = trained({})
        slots = dict(model.optimizer.slots())["heads/w"]
        # (16, 4, 8) as 16 x 32.
        assert spec(slots["v_row"]) == (None,)
        assert spec(slots["v_col"]) == ("model", None)
    assert_equal_to_one_device(model, {})


def test_slices_of_a_sharded_batch_axis_equal_one_device():
    groups = {"heads": AxisGroups(rows=(0,), cols=(2,), batch=(1,))}
    with distributed(model_parallel(RULES["three_axes"])):
        model = trained({"axis_groups": groups})
        slots = dict(model.optimizer.slots())["heads/w"]
        assert spec(slots["v_row"]) == (None, "model")
        assert spec(slots["v_col"]) == ("model", None)
    assert_equal_to_one_device(model, {"axis_groups": groups})


def test_weight_with_a_layout_of_jax_has_replicated_factors():
    # No name of a slot is held against the rules, whatever the weight has.
    distribution = model_parallel({".*kernel.*": ("model", "batch")})
    with distributed(distribution):
        sharding = jax.sharding.NamedSharding(
            distribution.device_mesh.backend_mesh,
            jax.sharding.PartitionSpec(None, "model"),
        )
        kernel = keras.Variable(
            STARTS["kernel"], layout=sharding, name="kernel"
        )
        optimizer = Adafactor()
        optimizer.apply([kernel.value], [kernel])
        slots = dict(optimizer.slots())[kernel.path]
        assert spec(slots["v_row"]) == (None,)
        assert spec(slots["v_col"]) == (None,)


# Large enough for int8 momentum to be int8. On small integers sums over shards
# are exact, so that what is rounded at random is the same.
LARGE = {"kernel": np.linspace(1, 3, 8192, dtype="float32").reshape(32, 256)}


def fit_integers(settings, dtype="float32"):
    keras.config.set_dtype_policy(dtype)
    model = probe_model(LARGE, Adafactor(0.1, **settings))
    rng = np.random.default_rng(0)
    given = rng.integers(-8, 9, size=(8, *LARGE["kernel"].shape))
    probe.fit(model, {"kernel": given.astype("float32")}, batch_size=2)
    return model


@pytest.mark.parametrize("layout", [("model", None), (None, "model")])
def test_int8_momentum_is_sharded_where_blocks_are_whole(layout):
    settings = {"beta_1": 0.9, "momentum_dtype": "int8"}
    with distributed(model_parallel({".*kernel.w.*": layout})):
        model = fit_integers(settings)
        slots = dict(model.optimizer.slots())["kernel/w"]
        assert slots["m"].dtype == "int8"
        assert spec(slots["m"]) == layout
        # Blocks of 256 along the longest axis.
        assert spec(slots["m_scale"]) == (layout[0], None)
    single = fit_integers(settings)
    np.testing.assert_allclose(
        *(as_numpy(m.trainable_variables[0]) for m in (model, single)),
        atol=1e-3,
    )


def test_stochastic_rounding_does_not_depend_on_the_shards():
    with distributed(model_parallel(RULES["columns"])):
        model = fit_integers({"use_ema": True}, "bfloat16")
        assert model.trainable_variables[0].dtype == "bfloat16"
    single = fit_integers({"use_ema": True}, "bfloat16")
    ours, theirs = (as_numpy(m.trainable_variables[0]) for m in (model, single))
    # Sums over shards are in another order: a last bit, rarely.
    assert (ours != theirs).mean() < 0.01


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_data_parallel_equals_one_device(settings):
    devices = keras.distribution.list_devices("cpu")
    with distributed(keras.distribution.DataParallel(devices=devices)):
        model = trained(settings)
        for variable in variables(model):
            assert set(spec(variable)) <= {None}, variable.path
            assert len(variable.value.sharding.device_set) == 8
    assert_equal_to_one_device(model, settings)


def test_sharded_model_is_saved_and_resumed(tmp_path):
    settings = {"beta_1": 0.9, "use_ema": True}
    with distributed(model_parallel(RULES["columns"])):
        model = trained(settings)
        model.save(tmp_path / "model.keras")
        fit(model)
        resumed = keras.models.load_model(tmp_path / "model.keras")
        fit(resumed)
        layouts = [spec(v) for v in variables(model)]
        assert [spec(v) for v in variables(resumed)] == layouts
    for ours, theirs in zip(variables(model), variables(resumed), strict=True):
        np.testing.assert_array_equal(
            as_numpy(ours), as_numpy(theirs), err_msg=ours.path
        )


@pytest.mark.parametrize(
    "rules",
    [
        {".*kernel": (None, "model")},
        {".*bias": ("model",)},
        {".*kernel": ("model", "batch"), ".*bias": ("model",)},
        {".*": ()},
    ],
    ids=str,
)
def test_rules_as_users_write_them(rules, tmp_path):
    """Equal to one device; kept by `fit`, by saving and by what resumes."""
    random = np.random.default_rng(0)
    x, y = (random.normal(size=(32, n)).astype("float32") for n in (16, 8))

    def fit(model):
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)

    def trained():
        keras.utils.set_random_seed(0)
        layers = [keras.Input((16,)), *map(keras.layers.Dense, (32, 8))]
        model = keras.Sequential(layers)
        settings = {"beta_1": 0.9, "use_ema": True}
        model.compile(Adafactor(0.1, **settings), loss="mse")
        fit(model)
        return model

    with distributed(model_parallel(rules)):
        model = trained()
        layouts = [spec(v) for v in variables(model)]
        given = [tuple(rule) for rule in rules.values() if rule]
        assert set(given) <= set(layouts)
        for weight, (_, slots) in zip(
            model.trainable_variables, model.optimizer.slots(), strict=True
        ):
            assert spec(slots["m"]) == spec(weight)
            if "v_row" in slots:
                found = spec(slots["v_row"]) + spec(slots["v_col"])
                assert found == spec(weight)
        after_one = [as_numpy(v) for v in variables(model)]
        model.save(tmp_path / "model.keras")
        fit(model)
        resumed = keras.models.load_model(tmp_path / "model.keras")
        fit(resumed)
        assert [spec(v) for v in variables(model)] == layouts
        assert [spec(v) for v in variables(resumed)] == layouts
    for ours, theirs in zip(variables(model), variables(resumed), strict=True):
        np.testing.assert_array_equal(as_numpy(ours), as_numpy(theirs))
    for value, single in zip(after_one, variables(trained()), strict=True):
        np.testing.assert_allclose(
            value, as_numpy(single), rtol=2e-5, atol=2e-6, err_msg=single.path
        )


def test_factored_step_gathers_no_weight():
    """Sharded by columns, the step needs sums over the shards and no more."""
    with distributed(model_parallel({".*kernel": (None, "model")})):
        inputs = keras.Input((64,))
        outputs = keras.layers.Dense(512, use_bias=False, name="w")(inputs)
        model = keras.Model(inputs, outputs)
        optimizer = Adafactor()
        optimizer.build(model.trainable_variables)
        (weight,) = model.trainable_variables
        lowered = jax.jit(optimizer.stateless_apply).lower(
            [v.value for v in optimizer.variables],
            [weight.value],
            [weight.value],
        )
        text = lowered.compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text
    assert "all-to-all" not in text


def test_monitor_shows_what_it_shows_of_one_device(monkeypatch):
    # Samples of a sharded variable too.
    monkeypatch.setattr(monitor, "SAMPLE", 100)
    given = gradients(24, {name: x.shape for name, x in STARTS.items()})

    def reports():
        model = probe_model(STARTS, Adafactor(0.1, record_update_rms=True))
        return probe.reports_of(model, given, batch_size=8)

    alone = reports()
    with distributed(model_parallel(RULES["columns"])):
        together = reports()
    assert len(together) == 3
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.logs() == pytest.approx(theirs.logs(), rel=1e-4)
