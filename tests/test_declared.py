"""Arguments are declared once: signature, check, docstring, configuration."""

import inspect
import re
import typing
from dataclasses import KW_ONLY

import keras
import numpy as np
import pytest

import keras_adafactor
from keras_adafactor import Adafactor
from keras_adafactor import Lion
from keras_adafactor import OptimizerKeywords
from keras_adafactor import UpdateRuleOptimizer
from keras_adafactor.arguments import Declared
from keras_adafactor.arguments import decay
from keras_adafactor.arguments import number
from keras_adafactor.arguments import rate
from tests.optimizers import MAIN
from tests.probe import as_numpy

OPTIMIZERS = [
    thing
    for thing in vars(keras_adafactor).values()
    if inspect.isclass(thing) and issubclass(thing, UpdateRuleOptimizer)
]
by_name = pytest.mark.parametrize(
    "cls", OPTIMIZERS, ids=lambda cls: cls.__name__
)


@keras.saving.register_keras_serializable(package="test")
class Plain(UpdateRuleOptimizer):
    """Gradient descent with an argument of its own.

    Example:

    >>> Plain()
    """

    learning_rate: float = rate(0.5, doc="The step.")
    _: KW_ONLY
    factor: float = number(2.0, above=0.0, doc="By this the step grows.")

    def state_spec(self, shape, path):
        return {}

    def update_rule(self, g, x, state, step):
        return self.factor * step.lr * g, {}


@keras.saving.register_keras_serializable(package="test")
class Slower(Plain):
    """Has another default, and one more argument.

    Example:

    >>> Slower()
    """

    factor: float = number(0.25, above=0.0, doc="By this the step shrinks.")
    beta: float = decay(0.75, doc="Does nothing.")


def test_one_declaration_is_an_argument():
    optimizer = Plain(0.25, factor=3, clipnorm=1.0)
    assert optimizer.factor == 3
    assert optimizer.clipnorm == 1.0
    parameter = inspect.signature(Plain).parameters["factor"]
    assert parameter.default == 2.0
    assert parameter.annotation is float
    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
    assert "factor: Float > 0. By this the step grows. Defaults to 2.0." in (
        Plain.__doc__
    )
    with pytest.raises(ValueError, match=r"`factor` must be a number > 0"):
        Plain(factor=0)
    copied = Plain.from_config(optimizer.get_config())
    assert copied.get_config() == optimizer.get_config()
    assert copied.factor == 3


def test_subclass_declares_more_and_other_defaults():
    names = list(inspect.signature(Slower).parameters)
    assert names[:3] == ["learning_rate", "factor", "beta"]
    optimizer = Slower(0.25, beta=0.5)
    assert (optimizer.factor, optimizer.beta) == (0.25, 0.5)
    assert Plain().factor == 2.0
    assert not hasattr(Plain(), "beta")
    copied = Slower.from_config(optimizer.get_config())
    assert copied.get_config() == optimizer.get_config()
    assert "shrinks" in Slower.__doc__
    assert "grows" not in Slower.__doc__


def test_written_constructor_must_be_written_again():
    class Written(Adafactor):
        def __init__(self, mine=1, **kwargs):
            super().__init__(**kwargs)
            self.mine = mine

    with pytest.raises(TypeError, match="`Written` has an `__init__` written"):

        class Declares(Written):
            beta: float = decay(0.5, doc="Of no use.")


def test_plain_class_declares_too():
    class Settings(Declared):
        """Some.

        Example:
        """

        low: float = number(1.0, at_least=0.0, at_most=2.0, doc="Low.")

    assert Settings().low == 1.0
    assert Settings(0).low == 0
    settings = Settings()
    settings.low = 2
    with pytest.raises(ValueError, match="`low` must be a number >= 0.0 and"):
        settings.low = 3
    assert "Float in [0, 2]. Low." in Settings.__doc__


def built(optimizer):
    optimizer.build([keras.Variable(np.ones((2, 3), "float32"), name="w")])
    return optimizer


@pytest.mark.parametrize("row", MAIN, ids=lambda row: row.name)
def test_nothing_declared_can_be_assigned_once_built(row):
    optimizer = built(row.optimizer())
    for name in optimizer.declared:
        if name == "learning_rate":
            continue
        before = getattr(optimizer, name)
        with pytest.raises(AttributeError, match=f"`{name}` of this `"):
            setattr(optimizer, name, before)
    optimizer.learning_rate = 0.125
    assert float(as_numpy(optimizer.learning_rate)) == 0.125


def test_what_is_assigned_before_counts_and_is_checked():
    optimizer = Adafactor()
    with pytest.raises(ValueError, match="`clip_threshold` must be"):
        optimizer.clip_threshold = -3
    optimizer.beta_1 = 0.9
    optimizer.weight_decay = 0.5
    built(optimizer)
    (_, slots), *_ = optimizer.slots()
    assert "m" in slots
    assert optimizer.plan_for(optimizer.variables_built_with[0]).decay == 0.5


def test_contradiction_that_was_assigned_is_an_error():
    optimizer = Adafactor()
    optimizer.momentum_dtype = "int8"
    with pytest.raises(ValueError, match="unless `beta_1` is given"):
        built(optimizer)
    assert not optimizer.built


@by_name
def test_signature_and_docstring_have_everything_declared(cls):
    assert list(inspect.signature(cls).parameters) == list(cls.declared)
    documented = re.findall(r"^        (\w+): ", cls.__doc__, re.MULTILINE)
    assert set(cls.declared) <= set(documented)
    assert set(OptimizerKeywords.__annotations__) <= set(cls.declared)
    assert all(len(line) <= 80 for line in cls.__doc__.splitlines())


@by_name
def test_every_default_passes_its_own_check(cls):
    if cls is UpdateRuleOptimizer:
        pytest.skip("its learning rate has no default")
    optimizer = cls()
    for name, argument in cls.declared.items():
        if name not in ("learning_rate", "name"):
            found = getattr(optimizer, name)
            assert found == argument.check(name, argument.default), name


def test_types_of_keywords_are_those_declared():
    declared = inspect.signature(UpdateRuleOptimizer).parameters
    for name, annotation in typing.get_type_hints(OptimizerKeywords).items():
        found = declared[name].annotation
        if name != "fallback":  # of `UpdateRule`, which is declared above it
            assert found == annotation, name


def test_unknown_keyword_is_named_with_the_class_of_the_object():
    class Mine(Lion):
        def __init__(self, *args, mine=1, **kwargs):
            super().__init__(*args, **kwargs)
            self.mine = mine

    with pytest.raises(ValueError, match=r"by Mine.*mean `mine`"):
        Mine(mines=2)
    with pytest.raises(TypeError, match="Lion: too many positional"):
        Lion(0.1, 0.9, 0.9, "float32")
