"""Variables and gradients out of the ordinary."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_adafactor import SOAP
from keras_adafactor import Adafactor
from keras_adafactor import OptimizerMonitor
from keras_adafactor.optimizers import soap
from tests import harness
from tests import oracles
from tests.probe import as_numpy
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model

MODE = harness.MODE


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_variable_that_is_no_float_is_an_error(dtype):
    # PyTorch has none that could be trained.
    variable = keras.Variable(
        np.ones((2, 3)), dtype=dtype, name="counts", trainable=False
    )
    optimizer = Adafactor()
    with pytest.raises(ValueError, match=f"'counts' must be.*dtype={dtype}"):
        optimizer.build([variable])
    assert not optimizer.built
    assert not optimizer.slots()


def test_complex_variable_is_an_error():
    class Complex:
        shape, dtype, path = (2,), "complex64", "phase"

    with pytest.raises(ValueError, match="'phase' must be.*dtype=complex64"):
        Adafactor().build([Complex()])


@pytest.mark.parametrize("mode", harness.MODES)
def test_gradient_of_the_wrong_shape_names_the_variable(mode):
    optimizer = Adafactor()
    with keras.name_scope("dense"):
        variable = keras.Variable(np.ones((2, 3)), name="kernel")
    step = harness.make_step(optimizer, [variable], mode)
    with pytest.raises(
        ValueError, match=r"'dense/kernel' must be of its shape \(2, 3\).*\(3,"
    ):
        step([ops.ones((3, 2))])


@pytest.mark.skipif(harness.BACKEND != "jax", reason="BCOO is JAX'.")
@pytest.mark.parametrize("compiled", [False, True])
def test_sparse_gradient_of_jax_is_the_dense_one(compiled):
    import jax  # noqa: PLC0415
    from jax.experimental import sparse  # noqa: PLC0415

    x = np.linspace(-1, 1, 12, dtype="float32").reshape(4, 3)
    # Row 1 twice: to be summed before it is squared.
    indices = np.array([[1], [3], [1]], "int32")
    rows = np.array([[1.0, 2, 3], [4, 5, 6], [0.5, -1, 2]], "float32")
    sums = np.zeros_like(x)
    np.add.at(sums, indices[:, 0], rows)
    found = []
    for gradient in (
        sparse.BCOO((rows, indices), shape=x.shape),
        ops.convert_to_tensor(sums),
    ):
        optimizer = Adafactor()
        (variable,) = variables = harness.variables([x])
        optimizer.build(variables)
        apply = optimizer.stateless_apply
        if compiled:
            apply = jax.jit(apply)
        (new,), _ = apply(
            [v.value for v in optimizer.variables], [gradient], [variable.value]
        )
        found.append(np.array(new))
    np.testing.assert_allclose(*found, rtol=1e-6)
    assert (found[0] != x).any()


@pytest.mark.parametrize("mode", harness.MODES)
def test_update_too_large_to_be_squared_is_a_full_clipped_step(mode):
    # All but silent after a large gradient: 1e22 before it is clipped.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 1, 3, 1, 5)).astype("float32")
    sizes = (1.3e6, 1.5e-16, 2.3e-16)
    given = [
        (size * rng.normal(size=x.shape)).astype("float32") for size in sizes
    ]
    given[0][..., 1:, :, :] = 0
    given[0][..., 1:] = 0
    arguments = {"beta_2": 0.626, "clip_threshold": 2.0}
    optimizer = Adafactor(**arguments)
    (variable,) = variables = harness.variables([x])
    step = harness.make_step(optimizer, variables, mode)
    oracle = oracles.Adafactor(x, rows=(0, 1, 2), cols=(3, 4), **arguments)
    for g in given:
        before = harness.values([variable])[0]
        step([ops.convert_to_tensor(g)])
        (after,) = harness.values([variable])
        np.testing.assert_allclose(after, oracle.step(g), rtol=1e-5)
        assert np.abs(after - before).max() > 1e-3
    assert int(optimizer.skipped_updates) == 0


def skipping(setting, epochs):
    """Warnings of a `fit` whose every gradient is NaN."""
    starts = {"bias": np.ones(3, "float32"), "kernel": np.ones((2, 2))}
    model = probe_model(starts, Adafactor(**setting))
    given = gradients(4, {"bias": (3,), "kernel": (2, 2)})
    given = {name: g * np.nan for name, g in given.items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, given, epochs=epochs)
    return [str(w.message) for w in caught if "skipped" in str(w.message)]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({}, "skipped 16 updates of single variables"),
        ({"skip_nonfinite": "step"}, "skipped 8 steps"),
    ],
)
def test_run_of_nothing_but_nan_ends_with_one_warning(setting, expected):
    (message,) = skipping(setting, epochs=2)
    assert expected in message


def test_run_without_skips_or_without_a_guard_says_nothing():
    assert skipping({"skip_nonfinite": None}, epochs=1) == []
    model = probe_model({"bias": np.ones(3, "float32")}, Adafactor())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*skipped")
        fit(model, gradients(2, {"bias": (3,)}))


def test_failed_refreshes_are_counted_shown_and_warned_of(monkeypatch):
    def fails(matrix, basis):
        return ops.arange(basis.shape[0]), basis * float("nan")

    monkeypatch.setattr(soap, "power_step", fails)
    model = probe_model(
        {"kernel": np.ones((3, 2), "float32")}, SOAP(refresh_every=2)
    )
    monitor = OptimizerMonitor(log_freq=1)
    with pytest.warns(UserWarning, match="new basis in 3 refreshes"):
        fit(model, gradients(6, {"kernel": (3, 2)}), callbacks=[monitor])
    # Due in the fourth step, and then again in every step.
    assert int(as_numpy(model.optimizer.failed_refreshes)) == 3
    assert monitor.report.logs()["failed_refreshes"] == 3
    kernel = as_numpy(model.trainable_variables[0])
    assert np.isfinite(kernel).all() and (kernel != 1.0).all()
