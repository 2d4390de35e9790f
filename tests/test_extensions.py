"""What users do with an optimizer: assign, subclass, differentiate."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_adafactor import SOAP
from keras_adafactor import Adafactor
from keras_adafactor import Adalayer
from keras_adafactor import Lion
from tests import harness
from tests.optimizers import MAIN
from tests.probe import as_numpy

RATES = {
    "float": lambda: 0.25,
    "tensor": lambda: ops.convert_to_tensor(0.25),
    "variable": lambda: keras.Variable(0.25),
    "array": lambda: np.array([0.25]),
    "scalar": lambda: np.float32(0.25),
    "schedule": lambda: keras.optimizers.schedules.PiecewiseConstantDecay(
        [2], [0.5, 0.25]
    )(5),
}


@pytest.mark.parametrize("given", RATES.values(), ids=RATES)
def test_learning_rate_may_be_assigned_any_scalar(given):
    optimizer = Lion(0.5)
    optimizer.learning_rate = given()
    assert float(as_numpy(optimizer.learning_rate)) == 0.25


def test_learning_rate_may_be_halved():
    optimizer = Lion(0.5)
    optimizer.learning_rate *= 0.5
    assert float(as_numpy(optimizer.learning_rate)) == 0.25
    assert isinstance(optimizer._learning_rate, keras.Variable)


@pytest.mark.parametrize(
    "value", [np.array([0.1, 0.2]), np.array(-0.1), float("nan"), "fast"]
)
def test_learning_rate_that_is_no_scalar_is_refused(value):
    with pytest.raises(ValueError, match="^Argument `learning_rate` must be"):
        Lion(0.5).learning_rate = value


def test_learning_rate_may_be_assigned_in_a_graph():
    if harness.BACKEND != "tensorflow":
        pytest.skip("Only TensorFlow traces assignments of variables.")
    import tensorflow as tf  # noqa: PLC0415

    optimizer = Lion(0.5)

    @tf.function
    def halve():
        optimizer.learning_rate = optimizer.learning_rate * 0.5

    halve()
    halve()
    assert float(as_numpy(optimizer.learning_rate)) == 0.125


def test_update_step_that_would_be_ignored_is_an_error():
    class Own(Adafactor):
        def update_step(self, gradient, variable, learning_rate):
            self.assign(variable, gradient)

    with pytest.raises(TypeError, match="override `update_rule"):
        Own()


@pytest.mark.parametrize("row", MAIN, ids=lambda row: row.name)
def test_sparse_gradient_of_pytorch_is_the_dense_one(row):
    if harness.BACKEND != "torch":
        pytest.skip("PyTorch's: KERAS_BACKEND=torch runs it.")
    import torch  # noqa: PLC0415

    rows = torch.tensor(np.random.default_rng(0).normal(size=(3, 4)))
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[5, 2, 5]]), rows.float(), (8, 4)
    )
    found = []
    for gradient in (sparse, sparse.to_dense()):
        (variable,) = harness.variables([np.ones((8, 4), "float32")])
        row.optimizer().apply([gradient], [variable])
        found.append(as_numpy(variable))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    "row",
    [row for row in MAIN if row.name not in ("soap", "coap")],
    ids=lambda row: row.name,
)
def test_a_step_has_a_derivative(row):
    """By the gradient and the weights, also of a bias that is zero."""
    if harness.BACKEND != "jax":
        pytest.skip("`jax.grad` is JAX's: KERAS_BACKEND=jax runs it.")
    import jax  # noqa: PLC0415

    optimizer = row.optimizer()
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=(6, 4)), np.zeros(4), np.zeros(4)]
    variables = harness.variables([x.astype("float32") for x in starts])
    optimizer.build(variables)
    state = [v.value for v in optimizer.variables]
    weights = [v.value for v in variables]
    gradients = [
        ops.convert_to_tensor(rng.normal(size=x.shape), "float32")
        for x in starts
    ]

    @jax.jit
    def after(gradients, weights):
        new, _ = optimizer.stateless_apply(state, gradients, weights)
        return sum(ops.sum(w**3 + w) for w in new)

    for found in jax.grad(after, (0, 1))(gradients, weights):
        assert all(np.isfinite(as_numpy(d)).all() for d in found)


def test_iterations_beyond_32_bits_are_no_end():
    if harness.BACKEND != "tensorflow":
        pytest.skip("Only TensorFlow counts in 64 bits.")
    for optimizer in (Adafactor(), Lion(), SOAP()):
        (variable,) = harness.variables([np.ones((4, 3), "float32")])
        optimizer.build([variable])
        optimizer.iterations.assign(2**31 + 5)
        for _ in range(3):
            optimizer.apply([ops.ones((4, 3))], [variable])
        assert int(as_numpy(optimizer.skipped_updates)) == 0
        assert (as_numpy(variable) < 1.0).all()
        assert int(as_numpy(optimizer.iterations)) == 2**31 + 8


# Subclasses keep the settings of the whole line of their parents.


@keras.saving.register_keras_serializable("tests")
class Mine(Adafactor):
    def __init__(self, *args, mine=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.mine = mine


@keras.saving.register_keras_serializable("tests")
class Youngest(Mine):
    def __init__(self, *args, yours="a", **kwargs):
        super().__init__(*args, **kwargs)
        self.yours = yours


@keras.saving.register_keras_serializable("tests")
class Listed(Lion):
    """In the style of Keras' own optimizers."""

    def __init__(self, learning_rate=0.1, beta_1=0.8, clipnorm=None, name="x"):
        super().__init__(learning_rate, beta_1, clipnorm=clipnorm, name=name)


@keras.saving.register_keras_serializable("tests")
class Fixed(Lion):
    def __init__(self):
        super().__init__(0.3, 0.7, skip_nonfinite="step")


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        (
            Mine(0.3, beta_1=0.5, mine=2, clipnorm=1.0, skip_nonfinite="step"),
            ["beta_1", "mine", "clipnorm", "skip_nonfinite"],
        ),
        (
            Youngest(0.3, -0.7, yours="b", mine=3, weight_decay=0.1),
            ["beta_2_decay", "yours", "mine", "weight_decay"],
        ),
        (Listed(0.3, 0.5, clipnorm=2.0), ["beta_1", "clipnorm", "beta_2"]),
        (Fixed(), ["beta_1", "skip_nonfinite"]),
    ],
    ids=lambda given: type(given).__name__,
)
def test_a_subclass_is_saved_with_all_settings(optimizer, settings):
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is type(optimizer)
    assert float(as_numpy(again.learning_rate)) == pytest.approx(0.3)
    for name in settings:
        assert getattr(again, name) == getattr(optimizer, name), name
    assert again.get_config() == optimizer.get_config()


def test_an_argument_that_is_not_kept_is_named():
    class Forgetful(Lion):
        def __init__(self, rate=0.1, **kwargs):
            super().__init__(rate, **kwargs)

    with pytest.raises(AttributeError, match="`rate` as `self.rate`"):
        Forgetful().get_config()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("momentum", "`beta_1`"),
        ("scale_parameter", "`multiply_by_parameter_scale`"),
        ("decay_rate", "`beta_2_decay`"),
        ("dtype_momentum", "`momentum_dtype`"),
        ("eps", "`epsilon_1` or `epsilon_2`"),
        ("rho", "`beta_2`"),
        ("b1", "`beta_1`"),
        ("clipping_threshold", "`clip_threshold`"),
        ("weight_decay_rate", "`weight_decay`"),
        ("lr", "`learning_rate`"),
        ("amsgrad", "largest second moment"),
        ("wieght_decay", "`weight_decay`"),
    ],
)
def test_a_name_of_another_library_leads_to_ours(given, meant):
    with pytest.raises(ValueError, match="not recognized") as raised:
        Adafactor(**{given: 0.5})
    assert meant in str(raised.value)


def test_a_decay_of_averages_that_are_not_kept_is_told():
    with pytest.warns(UserWarning, match="unless `use_ema` is True"):
        Adafactor(ema_momentum=0.9)


# Regular expressions.


@pytest.mark.parametrize(
    ("optimizer", "argument"),
    [
        (lambda: Lion(fallback="embeding"), "fallback"),
        (
            lambda: Adafactor(exclude_from_parameter_scale=["bias", "nrom"]),
            "exclude_from_parameter_scale",
        ),
        (lambda: Adafactor(axis_groups={"nrom": "auto"}), "axis_groups"),
        (lambda: Adalayer(blocks={"nrom": "rows"}), "blocks"),
        (
            lambda: Adalayer(freeze_after=5, keep_adapting="nrom"),
            "keep_adapting",
        ),
    ],
)
def test_a_pattern_that_is_found_nowhere_is_told(optimizer, argument):
    variables = [
        keras.Variable(np.ones(3, "float32"), name=name)
        for name in ("bias", "norm", "kernel", "other")
    ]
    said = f"`{argument}` is found in no .*: bias, norm, kernel$"
    with pytest.warns(UserWarning, match=said) as caught:
        optimizer().build(variables)
    assert len([w for w in caught if "is found in no" in str(w.message)]) == 1


def test_a_pattern_of_weight_decay_that_is_found_nowhere_is_told():
    optimizer = Lion(weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bais"])
    with pytest.warns(UserWarning, match="'bais' of `exclude_from_weight"):
        optimizer.build(harness.variables([np.ones(3, "float32")]))


def test_an_invalid_pattern_is_named():
    said = r"must be a valid regular expression .*Received: fallback='\[abc'"
    with pytest.raises(ValueError, match=said):
        Lion(fallback="[abc")
