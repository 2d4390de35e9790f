"""The tables of `docs/coming_from_adam.md`: the same steps as the others."""

import keras
import numpy as np
import pytest

from keras_adafactor import Adafactor
from keras_adafactor import AxisGroups
from tests import harness

SHAPES = [(7,), (40, 30), (3, 20, 10)]


def ours(optimizer, x, gradients):
    return harness.trace(optimizer, x, gradients)[-1]


def largest_two(shape, path):
    """optax's choice: the two largest axes."""
    if len(shape) < 2:
        return AxisGroups()
    row, col = sorted(np.argsort(shape)[-2:].tolist())
    return AxisGroups(rows=(row,), cols=(col,))


@pytest.mark.parametrize("shape", SHAPES)
def test_takes_keras_steps(shape):
    x, gradients = harness.problem(shape, steps=10)
    mapped = Adafactor(0.001, axis_groups="last_two")
    np.testing.assert_allclose(
        ours(mapped, x, gradients),
        ours(keras.optimizers.Adafactor(), x, gradients),
        atol=1e-6,
    )


OPTAX = {
    "default": ({}, {}),
    "min_dim_size_to_factor": (
        {"min_dim_size_to_factor": 15},
        {"min_dim_size_to_factor": 15},
    ),
    "decay_rate": ({"decay_rate": 0.6}, {"beta_2_decay": -0.6}),
    "clipping_threshold": (
        {"clipping_threshold": None},
        {"clip_threshold": None},
    ),
    "momentum": (
        {"momentum": 0.9, "multiply_by_parameter_scale": False},
        {"beta_1": 0.9, "multiply_by_parameter_scale": False},
    ),
    "weight_decay_rate": (
        {"weight_decay_rate": 1e-4, "multiply_by_parameter_scale": False},
        {"weight_decay": 1e-4 / 0.01, "multiply_by_parameter_scale": False},
    ),
    "eps": ({"eps": 1e-3}, {"epsilon_1": 1e-3}),
    "factored": ({"factored": False}, {"factored": False}),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("setting", OPTAX)
def test_takes_optax_steps(setting, shape):
    optax = pytest.importorskip("optax", reason="install optax to compare")
    theirs, mapped = OPTAX[setting]
    x, gradients = harness.problem(shape, steps=10)
    rule = optax.adafactor(0.01, **{"min_dim_size_to_factor": 1} | theirs)
    state, w = rule.init(x), x
    for g in gradients:
        update, state = rule.update(g, state, w)
        w = np.asarray(optax.apply_updates(w, update))
    optimizer = Adafactor(
        0.01, relative_step=False, axis_groups=largest_two, **mapped
    )
    np.testing.assert_allclose(ours(optimizer, x, gradients), w, atol=3e-6)


TRANSFORMERS = {
    "relative": ({}, {}),
    "warmup_init": ({"warmup_init": True}, {"warmup_steps": 10_000}),
    "lr": (
        {"lr": 1e-2, "relative_step": False},
        {"learning_rate": 1e-2, "relative_step": False},
    ),
    "scale_parameter": (
        {"lr": 1e-2, "relative_step": False, "scale_parameter": False},
        {
            "learning_rate": 1e-2,
            "relative_step": False,
            "multiply_by_parameter_scale": False,
        },
    ),
    "eps": ({"eps": (1e-3, 1.0)}, {"epsilon_1": 1e-3, "epsilon_2": 1.0}),
    "decay_rate": ({"decay_rate": -0.6}, {"beta_2_decay": -0.6}),
    "clip_threshold": ({"clip_threshold": 0.5}, {"clip_threshold": 0.5}),
    "beta1": (
        {
            "lr": 1e-2,
            "relative_step": False,
            "scale_parameter": False,
            "beta1": 0.9,
        },
        {
            "learning_rate": 1e-2,
            "relative_step": False,
            "multiply_by_parameter_scale": False,
            "beta_1": 0.9,
        },
    ),
    "weight_decay": (
        {
            "lr": 1e-2,
            "relative_step": False,
            "scale_parameter": False,
            "weight_decay": 0.1,
        },
        {
            "learning_rate": 1e-2,
            "relative_step": False,
            "multiply_by_parameter_scale": False,
            "weight_decay": 0.1,
        },
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("setting", TRANSFORMERS)
def test_takes_the_steps_of_transformers(setting, shape):
    optimization = pytest.importorskip(
        "transformers.optimization", reason="install transformers to compare"
    )
    torch = pytest.importorskip("torch")
    theirs, mapped = TRANSFORMERS[setting]
    x, gradients = harness.problem(shape, steps=10)
    w = torch.nn.Parameter(torch.tensor(np.array(x)))
    rule = optimization.Adafactor([w], **theirs)
    for g in gradients:
        w.grad = torch.tensor(np.array(g))
        rule.step()
    optimizer = Adafactor(
        axis_groups="last_two", min_dim_size_to_factor=1, **mapped
    )
    got = ours(optimizer, x, gradients)
    np.testing.assert_allclose(got, w.detach().numpy(), atol=3e-6)
