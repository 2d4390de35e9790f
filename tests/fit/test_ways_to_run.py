"""Eager, graph, compiled, several steps at once: the same steps."""

import sys

import keras
import numpy as np
import pytest

from keras_adafactor import Adafactor
from keras_adafactor import optimizer
from keras_adafactor.backends import backend
from tests.fit.common import MATRIX
from tests.fit.common import SHAPES
from tests.fit.common import STARTS
from tests.fit.common import assert_close
from tests.fit.common import oracle_of
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model
from tests.probe import weights

BACKEND = keras.backend.backend()

if BACKEND == "jax":
    import jax


def runs_of_fit():
    eager = {"run_eagerly": True, "jit_compile": False}
    if BACKEND == "torch":
        return [eager, {"jit_compile": False}]
    compiled = {"jit_compile": True}
    if BACKEND == "jax":
        return [eager, compiled]
    return [eager, compiled, {"jit_compile": False}]


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"beta_1": 0.9, "weight_decay": 0.1, "use_ema": True},
        {"gradient_accumulation_steps": 2, "skip_nonfinite": "step"},
    ],
    ids=str,
)
def test_eager_graph_and_compiled_fit_agree(setting):
    given = gradients(4, SHAPES)
    found = []
    for how in runs_of_fit():
        model = probe_model(STARTS, Adafactor(0.1, **setting), **how)
        fit(model, given)
        found.append(weights(model))
    for other in found[1:]:
        assert_close(other, found[0])


def test_eager_and_compiled_stochastic_rounding_agree():
    keras.config.set_dtype_policy("bfloat16")
    given = gradients(4, SHAPES)
    found = []
    for how in runs_of_fit():
        model = probe_model(STARTS, Adafactor(0.01), **how)
        fit(model, given)
        found.append(weights(model))
    for other in found[1:]:
        # The same noise: a rare weight may lie on the edge of a rounding.
        for name, weight in other.items():
            differing = (weight != found[0][name]).mean()
            assert differing < 0.2, name


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch does not trace.")
@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"gradient_accumulation_steps": 2, "use_ema": True},
        {"skip_nonfinite": "step", "beta_1": 0.9},
    ],
    ids=str,
)
def test_fit_traces_once(setting):
    traces = []

    class Traced(Adafactor):
        def update_rule(self, *arguments):
            traces.append(1)
            return super().update_rule(*arguments)

    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    model = probe_model({"encoder": MATRIX}, Traced(schedule, **setting))
    given = gradients(4, {"encoder": (3, 4)})
    fit(model, given)
    first = len(traces)
    assert first
    fit(model, given, epochs=3)
    # A second `fit` makes its function once more, no step does.
    assert len(traces) <= 2 * first
    again = len(traces)
    fit(model, given, epochs=3)
    assert len(traces) - again <= first


@pytest.mark.skipif(
    BACKEND == "torch", reason="PyTorch runs one step per execution."
)
@pytest.mark.parametrize("setting", [{}, {"gradient_accumulation_steps": 2}])
def test_several_steps_per_execution_are_the_same_steps(setting):
    given = gradients(8, SHAPES)
    found = []
    for steps in (1, 4):
        model = probe_model(
            STARTS, Adafactor(0.1, **setting), steps_per_execution=steps
        )
        fit(model, given)
        found.append(weights(model))
    assert_close(*found)


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="tf.Variable and tf.function."
)
def test_custom_loop_of_tensorflow_needs_no_keras_model():
    import tensorflow as tf  # noqa: PLC0415

    optimizer = Adafactor(0.1, weight_decay=0.5, use_ema=True)
    optimizer.exclude_from_weight_decay(var_names=["^bias$"])
    variables = [tf.Variable(s, name=n) for n, s in STARTS.items()]

    @tf.function
    def step(*row):  # builds the optimizer in its first trace
        optimizer.apply_gradients(zip(row, variables, strict=True))

    given = gradients(3, SHAPES)
    for row in zip(*given.values(), strict=True):
        step(*(tf.constant(g) for g in row))
    assert [path for path, _ in optimizer.slots()] == list(STARTS)
    found = dict(zip(STARTS, (v.numpy() for v in variables), strict=True))
    desired = {}
    for name, start in STARTS.items():
        oracle = oracle_of(start, learning_rate=0.1)
        for g in given[name]:
            if name != "bias":
                oracle.x = oracle.x * (1 - 0.5 * 0.1)
            oracle.step(g)
        desired[name] = oracle.x
    assert_close(found, desired)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="AutoGraph is its own.")
def test_autograph_leaves_the_step_as_it_is_written():
    """Converting it took most of the time of tracing."""
    import tensorflow as tf  # noqa: PLC0415

    files = []

    class Tracked(Adafactor):
        def update_rule(self, *args):
            files.append(sys._getframe().f_code.co_filename)
            return super().update_rule(*args)

    variable = keras.Variable([1.0])
    optimizer = Tracked()
    optimizer.build([variable])
    tf.function(lambda g: optimizer.apply([g]))(tf.constant([1.0]))
    assert set(files) == {__file__}


@pytest.mark.skipif(
    BACKEND != "torch",
    reason="PyTorch records what may be differentiated: "
    "KERAS_BACKEND=torch runs this.",
)
def test_a_step_outside_of_no_grad_records_nothing():
    import torch  # noqa: PLC0415

    optimizer = Adafactor(weight_decay=0.1, beta_1=0.9, use_ema=True)
    variable = keras.Variable(MATRIX)
    optimizer.build([variable])
    recorded = []
    with torch.autograd.graph.saved_tensors_hooks(
        recorded.append, lambda tensor: tensor
    ):
        optimizer.apply([torch.ones(variable.shape)])
    assert not recorded


@pytest.mark.skipif(
    BACKEND != "jax",
    reason="Only on JAX updates wait: KERAS_BACKEND=jax runs this.",
)
@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"beta_1": 0.9, "momentum_dtype": "int8", "use_ema": True},
        {"record_update_rms": True, "weight_decay": 0.1},
    ],
    ids=str,
)
def test_updates_in_turn_are_those_at_once(setting, monkeypatch):
    """As on a TPU, whose branch is taken here, of small variables too."""
    shapes = {"a": (6, 4), "b": (5,), "c": (3, 4), "d": (4, 4)}
    given = gradients(4, shapes)
    starts = {name: rows[0] for name, rows in gradients(1, shapes, 1).items()}
    barriers = []

    def on_tpu(*values, default, tpu=None, **others):
        barriers.append(tpu is jax.lax.optimization_barrier)
        return (tpu or default)(*values)

    def run():
        model = probe_model(starts, Adafactor(0.1, **setting))
        fit(model, given)
        return [
            keras.ops.convert_to_numpy(variable)
            for variable in [*model.variables, *model.optimizer.variables]
        ]

    at_once = run()
    monkeypatch.setattr(optimizer, "_LARGE", 1)
    monkeypatch.setattr(backend, "_are_whole", lambda: True)
    monkeypatch.setattr(jax.lax, "platform_dependent", on_tpu)
    in_turn = run()
    assert any(barriers)
    for one, other in zip(at_once, in_turn, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
