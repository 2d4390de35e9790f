"""Constructor arguments: declared once, then checked, documented and saved.

A class that derives from `Declared` lists its arguments in its body, as a
dataclass does:

    class Lion(UpdateRuleOptimizer):
        learning_rate: LearningRate = rate(1e-4, doc="...")
        beta_1: float = decay(0.9, doc="Decay of the momentum.")
        _: KW_ONLY
        momentum_dtype: StateDtype = momentum_dtype()

The declaration gives the signature of its constructor, the check of every
value, the `Args:` section of its docstring and its saved configuration.
"""

import inspect
import re
import textwrap
import typing
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import KW_ONLY
from dataclasses import dataclass
from typing import Any
from typing import ClassVar
from typing import Literal
from typing import TypeAlias
from typing import TypedDict

import keras

from keras_adafactor import checks
from keras_adafactor.functional.axis_groups import AxisGroups

# Types of arguments. Keras has none of its own: its classes are `Any`.
LearningRate: TypeAlias = (
    float
    | keras.optimizers.schedules.LearningRateSchedule
    | Callable[[], float]
)
# Regular expressions.
Patterns: TypeAlias = str | Sequence[str] | None
# One of `storage.MOMENTUM_DTYPES`.
StateDtype: TypeAlias = str
AxisGroupsChoice: TypeAlias = (
    str
    | AxisGroups
    | Callable[[tuple[int, ...], str], str | AxisGroups]
    | dict[str, Any]
)

REQUIRED = inspect.Parameter.empty


# What is declared.


@dataclass(frozen=True)
class Argument:
    """A constructor argument, as a class declares it.

    Attributes:
        default: Its default, or `REQUIRED`.
        check: Function of name and value that returns the value as it is
            kept (numbers as Python's own, so that a configuration is JSON) or
            raises `ValueError`.
        type: String, what it must be: "Float > 0 or `None`".
        doc: String, sentences that say what it does.
        needs: Name of another argument. If that one is `None` or `False`, this
            one must have its default.
        excluded_by: Name of another argument. If that one is given, this one
            must have its default.
    """

    default: Any
    check: Callable[[str, Any], Any]
    type: str
    doc: str
    needs: str | None = None
    excluded_by: str | None = None

    def check_beside(self, name, owner):
        """Checks the argument against those that it depends on.

        Args:
            name: String, its name.
            owner: Object whose attributes are the values of all arguments.
        """
        relations = (
            (self.needs, True, "unless"),
            (self.excluded_by, False, "if"),
        )
        for other, holds, word in relations:
            if other is None or _equal(getattr(owner, name), self.default):
                continue
            value = getattr(owner, other)
            is_given = value is not None and value is not False
            default = "left at its default"
            if self.default is None or isinstance(self.default, bool):
                default = repr(self.default)
            given = "True" if isinstance(value, bool) else "given"
            checks.check(
                is_given is holds,
                name,
                f"{default} {word} `{other}` is {given}",
                getattr(owner, name),
            )

    def documentation(self, name):
        """The entry of an `Args:` section, indented as in a class."""
        text = f"{name}: {self.type}. {self.doc}"
        if self.needs:
            text += f" Only with `{self.needs}`."
        if self.default is not REQUIRED:
            text += f" Defaults to {_literal(self.default)}."
        return textwrap.fill(
            " ".join(text.split()),
            width=80,
            initial_indent=" " * 8,
            subsequent_indent=" " * 12,
            break_on_hyphens=False,
            break_long_words=False,
        )


def _literal(value):
    if isinstance(value, str):
        return f'`"{value}"`'
    if value is None or isinstance(value, bool):
        return f"`{value}`"
    return repr(value)


def _equal(value, default):
    return type(value) is type(default) and value == default


@typing.dataclass_transform()
class Declared:
    """Base of classes that declare their constructor arguments.

    A subclass without an `__init__` of its own gets one for everything that
    it and its parents declare. What a parent declares, a subclass may declare
    anew, with another default. A subclass may also have an `__init__` written
    by hand, which calls that of its parent.

    Every value that is assigned to an argument is checked, before and after
    construction.
    """

    declared: ClassVar[dict[str, Argument]] = {}
    _keyword_only: ClassVar[frozenset[str]] = frozenset()
    _annotations: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        is_keyword, mine, keywords = False, {}, set()
        annotations = inspect.get_annotations(cls)
        for name, annotation in annotations.items():
            if annotation is KW_ONLY:
                is_keyword = True
            elif isinstance(vars(cls).get(name), Argument):
                mine[name] = vars(cls)[name]
                # An instance has the value, a property of a parent stays.
                delattr(cls, name)
                if is_keyword:
                    keywords.add(name)
        types = {name: annotations[name] for name in mine}
        cls._annotations = cls._annotations | types
        cls._keyword_only = cls._keyword_only - mine.keys() | keywords
        names = dict.fromkeys([*cls.declared, *mine])
        by_keyword = dict.fromkeys([*mine, *cls.declared])
        everything = cls.declared | mine
        cls.declared = {
            name: everything[name]
            for name in (
                *(n for n in names if n not in cls._keyword_only),
                *(n for n in by_keyword if n in cls._keyword_only),
            )
        }
        if "__init__" in vars(cls) or not mine:
            return
        owner = next(each for each in cls.__mro__ if "__init__" in vars(each))
        if issubclass(owner, Declared) and not hasattr(
            owner.__init__, "is_generated"
        ):
            raise TypeError(
                f"`{cls.__name__}` declares arguments, but its parent "
                f"`{owner.__name__}` has an `__init__` written by hand: write "
                f"one for `{cls.__name__}` too, or declare the arguments of "
                f"`{owner.__name__}`."
            )
        cls.__init__ = _constructor(cls)  # type: ignore[method-assign]
        cls.__doc__ = _documented(cls)

    def initialize(self, values: dict[str, Any]) -> None:
        """Keeps the arguments of the constructor as attributes.

        Args:
            values: Dict from the name of every argument to its value, which
                is not checked yet.
        """
        for name, value in values.items():
            setattr(self, name, value)
        self.check_arguments()

    def check_arguments(self) -> None:
        """Checks the arguments against each other.

        Raises:
            ValueError: If an argument contradicts another.
        """
        for name, argument in self.declared.items():
            argument.check_beside(name, self)

    def is_fixed(self) -> bool:
        """Whether an argument that is assigned now would have no effect."""
        return False

    def __setattr__(self, name, value):
        argument = self.declared.get(name)
        # A property checks for itself.
        if argument and not isinstance(
            getattr(type(self), name, None), property
        ):
            cls = type(self).__name__
            if self.is_fixed():
                raise AttributeError(
                    f"`{name}` of this `{cls}` cannot be changed any more: the "
                    "optimizer is built, and its state and compiled steps "
                    "depend on it. Make a new one: `"
                    f"{cls}.from_config({{**optimizer.get_config(), "
                    f"{name!r}: {value!r}}})`."
                )
            value = argument.check(name, value)
        super().__setattr__(name, value)


def _constructor(cls):
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY
            if name in cls._keyword_only
            else inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=argument.default,
            annotation=cls._annotations[name],
        )
        for name, argument in cls.declared.items()
    ]
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.Signature([first, *parameters], return_annotation=None)

    def __init__(self, *args, **kwargs):
        checks.check_recognized(kwargs, cls, type(self))
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}: {error}") from None
        bound.apply_defaults()
        del bound.arguments["self"]
        self.initialize(bound.arguments)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    __init__.__module__ = cls.__module__
    __init__.is_generated = True  # type: ignore[attr-defined]
    return __init__


# Of a docstring, what the arguments come before.
_AFTER_ARGUMENTS = re.compile(
    r"^    (Deviations from the paper|Raises|Example|References?):",
    re.MULTILINE,
)


def _documented(cls):
    """The docstring of a class, with the section of its arguments."""
    doc = vars(cls).get("__doc__")
    if not doc:
        return doc
    entries = [a.documentation(name) for name, a in cls.declared.items()]
    section = "\n".join(["    Args:", *entries, "", ""])
    after = _AFTER_ARGUMENTS.search(doc)
    position = after.start() if after else len(doc.rstrip())
    if not after:
        section = "\n\n" + section.rstrip() + "\n    "
    return doc[:position] + section + doc[position:]


# Kinds of arguments.


def argument(default, *, check, type, doc, **relations):
    """Declares an argument with a check of its own; see `Argument`.

    The result is `Any`: type checkers read the annotation.
    """
    found: Any = Argument(default, check, type, doc, **relations)
    return found


def number(default, *, above=None, at_least=None, below=None, at_most=None,
           optional=False, doc, **relations):  # fmt: skip
    """Declares a number; for the bounds see `checks.check_number`."""

    def checked(name, value):
        return checks.check_number(
            name, value, above, at_least, below, at_most, optional
        )

    low = at_least if above is None else above
    high = at_most if below is None else below
    if low is not None and high is not None:
        left, right = "[("[above is not None], "])"[below is not None]
        interval = f"Float in {left}{low:g}, {high:g}{right}"
    elif low is not None:
        interval = f"Float {'>=' if above is None else '>'} {low:g}"
    else:
        interval = f"Float {'<=' if below is None else '<'} {high:g}"
    type_ = interval + " or `None`" * optional
    return argument(default, check=checked, type=type_, doc=doc, **relations)


def decay(default, *, doc, **options):
    """Declares the decay of an average, a number between 0 and 1."""
    return number(default, above=0.0, below=1.0, doc=doc, **options)


def integer(default, *, at_least, optional=False, doc, **relations):
    """Declares an integer with a lower bound."""

    def checked(name, value):
        return checks.check_integer(name, value, at_least, optional)

    type_ = f"Integer >= {at_least}" + " or `None`" * optional
    return argument(default, check=checked, type=type_, doc=doc, **relations)


def boolean(default, *, doc, **relations):
    """Declares a boolean."""
    return argument(
        default,
        check=checks.check_boolean,
        type="Boolean",
        doc=doc,
        **relations,
    )


def choice(default, *, choices, doc, **relations):
    """Declares one of a few values.

    Args:
        default: The default.
        choices: Values, or a dict with them as keys, which may grow.
        doc, **relations: See `Argument`.
    """

    def checked(name, value):
        return checks.check_choice(name, value, tuple(choices))

    words = [_literal(value) for value in choices]
    type_ = f"{', '.join(words[:-1])} or {words[-1]}"
    return argument(default, check=checked, type=type_, doc=doc, **relations)


def patterns(default, *, doc, **relations):
    """Declares a regular expression, a list of them, or `None`."""
    type_ = "Regular expression, list of them, or `None`"
    return argument(
        default, check=checks.check_patterns, type=type_, doc=doc, **relations
    )


def rate(default=REQUIRED, *, doc=""):
    """Declares the learning rate."""
    type_ = (
        "Float >= 0, a `keras.optimizers.schedules.LearningRateSchedule`, or a "
        "callable without arguments"
    )
    return argument(
        default, check=checks.check_learning_rate, type=type_, doc=doc
    )


def axis_groups(doc="", **relations):
    """Declares what the rows and columns of a variable are."""
    return argument(
        "auto",
        check=checks.check_axis_groups,
        type=(
            '`"auto"`, `"last_two"`, `AxisGroups`, a callable `(shape, path) '
            "-> axis groups`, or a dict from regular expression to axis groups"
        ),
        doc=(
            "The axes of a variable that are its rows and its columns. "
            '`"auto"` splits the axes where the fewest numbers are kept. '
            '`"last_two"` takes the last two axes. In a dict the first '
            "expression that is found in the path of the variable decides. "
            + doc
        ),
        **relations,
    )


class OptimizerKeywords(TypedDict, total=False):
    """Types of the keywords that every optimizer of this package takes.

    For the constructor of your own subclass: `**keywords:
    Unpack[OptimizerKeywords]`. `UpdateRuleOptimizer` says what they mean.
    """

    weight_decay: float | None
    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None
    name: str | None
    stochastic_rounding: bool
    skip_nonfinite: Literal["variable", "step"] | None
    fallback: Patterns | dict[str, Any]


def serialize(value):
    """The value of an argument as JSON data; see `deserialize`."""
    if isinstance(value, AxisGroups):
        return {name: list(axes) for name, axes in value._asdict().items()}
    if isinstance(value, dict):
        return {key: serialize(each) for key, each in value.items()}
    if value is None or isinstance(value, str | bool | int | float | list):
        return value
    return keras.saving.serialize_keras_object(value)


def deserialize(data, custom_objects=None):
    """The inverse of `serialize`.

    Callables and rules must be registered with
    `keras.saving.register_keras_serializable`.
    """
    if not isinstance(data, dict):
        return data
    if data.keys() == set(AxisGroups._fields):
        return AxisGroups(**{name: tuple(axes) for name, axes in data.items()})
    if "class_name" in data:
        return keras.saving.deserialize_keras_object(data, custom_objects)
    return {
        key: deserialize(each, custom_objects) for key, each in data.items()
    }
