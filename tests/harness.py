"""Runs an optimizer over given gradients, the ways that a user would."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_adafactor import Step

BACKEND = keras.backend.backend()
# PyTorch has no compiled step in Keras.
MODES = {
    "tensorflow": ("eager", "graph", "xla"),
    "jax": ("eager", "jit"),
    "torch": ("eager",),
}[BACKEND]
# The one for tests that are not about this. Not XLA on TensorFlow: it keeps
# every program to the end of the process, which after a few hundred may map no
# more memory.
MODE = {"tensorflow": "graph", "jax": "jit", "torch": "eager"}[BACKEND]


def once_on(backend):
    """Marks what is alike on every backend: one of them runs it in CI."""
    if BACKEND in (backend, "torch"):
        return pytest.mark.once
    return pytest.mark.exhaustive


def problem(shape, steps=20, seed=0, scale=1.0, decades=3.0):
    """A starting point and gradients over six decades, as float32."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape).astype("float32")
    decades = 10.0 ** rng.uniform(-decades, decades, size=(steps, *shape))
    gradients = scale * rng.normal(size=(steps, *shape)) * decades
    return x, gradients.astype("float32")


def make_step(optimizer, variables, mode):
    """A function that takes a list of gradients and applies them."""
    if mode == "eager":
        return lambda gradients: optimizer.apply(gradients, variables)
    optimizer.build(variables)
    if mode in ("graph", "xla"):
        import tensorflow as tf  # noqa: PLC0415

        return tf.function(
            lambda gradients: optimizer.apply(gradients),
            jit_compile=mode == "xla",
        )
    import jax  # noqa: PLC0415

    stateless = jax.jit(optimizer.stateless_apply)

    def step(gradients):
        new, state = stateless(
            [v.value for v in optimizer.variables],
            gradients,
            [v.value for v in variables],
        )
        for variable, value in zip(
            [*variables, *optimizer.variables], [*new, *state], strict=True
        ):
            variable.assign(value)

    return step


def run(optimizer, starts, gradients, mode="eager", dtype="float32"):
    """Takes a step for every row of gradients.

    Args:
        optimizer: Optimizer.
        starts: List of arrays, the variables' initial values.
        gradients: List of lists of arrays, one a step.
        mode: One of `MODES`.
        dtype: Dtype of the variables.

    Returns:
        Variables after the last step.
    """
    made = variables(starts, dtype)
    step = make_step(optimizer, made, mode)
    for row in gradients:
        step([ops.convert_to_tensor(g, dtype=dtype) for g in row])
    return made


def trace(optimizer, start, gradients, mode="eager"):
    """One variable, after every step."""
    made = run(optimizer, [start], [], mode)
    step = make_step(optimizer, made, mode)
    trajectory = []
    for gradient in gradients:
        step([ops.convert_to_tensor(gradient, "float32")])
        trajectory.append(values(made)[0])
    return trajectory


def slot(optimizer, name):
    """A slot of the first variable, as it is stored."""
    return values([optimizer.slots()[0][1][name]])[0]


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype="float64"))))


def pytorch_trace(name, start, gradients, **arguments):
    """`trace` of an optimizer of `pytorch_optimizer`, in float64."""
    reason = "install pytorch_optimizer and torch to compare with it"
    torch = pytest.importorskip("torch", reason=reason)
    theirs = pytest.importorskip("pytorch_optimizer", reason=reason)
    made = torch.nn.Parameter(torch.tensor(np.asarray(start, "float64")))
    optimizer = getattr(theirs, name)([made], **arguments)
    trajectory = []
    for gradient in gradients:
        made.grad = torch.tensor(np.asarray(gradient, "float64"))
        optimizer.step()
        trajectory.append(made.detach().numpy().copy())
    return trajectory


def assert_refused(kind, name, value):
    """An argument that is wrong is named, with its value, by the error."""
    message = f"^Argument `{name}` must be .* Received: {name}="
    with pytest.raises(ValueError, match=message):
        kind(**{name: value})


def variables(starts, dtype="float32"):
    return [
        keras.Variable(start, dtype=dtype, name=f"w{i}")
        for i, start in enumerate(starts)
    ]


def values(variables):
    """numpy arrays, low precision as float32."""
    return [
        ops.convert_to_numpy(
            ops.cast(v, "float32") if "float" in str(v.dtype) else v
        )
        for v in variables
    ]


def step_at(t, learning_rate, path="w", choice=None):
    """The `Step` of a rule that is called by hand."""
    return Step(
        count=ops.convert_to_tensor(t - 1, dtype="int32"),
        t=ops.convert_to_tensor(float(t)),
        lr=ops.convert_to_tensor(float(learning_rate)),
        path=path,
        choice=choice,
        iteration=ops.convert_to_tensor(t - 1, dtype="int32"),
    )
