"""What an update rule is: a paper's algorithm, and nothing of Keras.

A rule is pure: tensors go in, tensors come out. It assigns nothing, looks at
no backend and draws no unseeded noise.
"""

from collections.abc import Hashable
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from typing import ClassVar

from keras_adafactor.arguments import Declared
from keras_adafactor.functional.moments import Moments
from keras_adafactor.functional.noise import normal_noise
from keras_adafactor.functional.noise import uniform_noise

Shape = tuple[int, ...]
# Of the backend, or a `keras.KerasTensor`.
Tensor = Any

# Noise of the rule, apart from that of what is stored.
_FIRST_SALT = 1 << 11


def noise_key(variable, salt):
    """Key of one array of noise, of up to 4,096 for each variable."""
    return variable * 4096 + salt


def letter_of(name):
    """What an entry is of, as in the paper: `m` of `m_row`."""
    return name.partition("_")[0]


@dataclass(frozen=True)
class Step:
    """What a rule may know beside gradient, variable and state.

    Attributes:
        count: int32 scalar, the steps taken before this one. For a variable
            with a `refresh` its own steps: those that skipped it, or gave it
            no gradient, are not among them.
        t: Float scalar, `count + 1`.
        lr: Float scalar, the learning rate.
        path: String, the path of the variable.
        choice: What the rule's `choose` returned for the variable.
        decay: Float, the weight decay; 0 for an excluded variable.
        iteration: int32 scalar, the steps of the optimizer before this one.
        key: Int, or int32 scalar, different for every variable.
    """

    count: Any
    t: Any
    lr: Any
    path: str
    decay: float = 0.0
    iteration: Any = 0
    key: Any = 0
    choice: Any = None

    def uniform(self, shape: Shape, salt: int = 0) -> Tensor:
        """Noise in [0, 1), the same on every replica and after a restart."""
        return uniform_noise(shape, self.iteration + 1, self._noise_key(salt))

    def normal(self, shape: Shape, salt: int = 0) -> Tensor:
        """Standard normal noise, the same on every replica."""
        return normal_noise(shape, self.iteration + 1, self._noise_key(salt))

    def _noise_key(self, salt):
        return noise_key(self.key, _FIRST_SALT + salt)


class UpdateRule(Declared):
    """Abstract base of the algorithms.

    Attributes:
        weight_decay_order: When `x <- x - weight_decay * lr * x` is done:
            `"before"` the rule sees `x`, `"after"` its update was subtracted,
            or by the `"rule"` itself, which finds it in `step.decay`.
        pattern_arguments: Names of attributes, where there are such, that hold
            regular expressions for paths, or a dict from them. The optimizer
            warns of an expression that is found in no path.
        meaning: Dict from the letter of an entry (`m` for `m_row`) to the
            names of attributes without which nobody knows what it means: the
            decay of an average that is not bias-corrected, say. Rules of one
            class that agree in these take each other's entry as it is.
    """

    weight_decay_order: ClassVar[str] = "before"
    pattern_arguments: ClassVar[tuple[str, ...]] = ("axis_groups",)
    meaning: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def rule_for(self, shape: Shape, path: str) -> "UpdateRule":
        """The rule that a variable takes. Asked once, in `build`.

        Args:
            shape: Tuple of ints, the shape of the variable.
            path: String, the path of the variable.

        Returns:
            `UpdateRule`: this one, or another for what it does not suit.
        """
        return self

    def choose(self, shape: Shape, path: str) -> Hashable:
        """What is decided about a variable beforehand. Asked once, in `build`.

        The rule finds it in `step.choice`. Small variables of one shape for
        which it is equal are updated together, as one array with a leading
        axis: of such `step.path` is the path of one of them.

        Args:
            shape: Tuple of ints, the shape of the variable.
            path: String, the path of the variable.

        Returns:
            Anything that can be hashed: by default the path, so that every
            variable is updated alone; `None` of a rule that looks at nothing
            but the shape.
        """
        return path

    def state_spec(self, shape: Shape, path: str) -> dict[str, Any]:
        """What is kept for a variable.

        Args:
            shape: Tuple of ints, the shape of the variable.
            path: String, the path of the variable.

        Returns:
            Dict from slot name to `StateSpec`. Its order is the order on disk.
        """
        raise NotImplementedError

    def update_rule(
        self, g: Tensor, x: Tensor, state: dict[str, Tensor], step: Step
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The paper's algorithm box for one variable, as a pure function.

        Branches in Python only on shapes, keys, hyper-parameters and paths.

        Args:
            g: Dense tensor, the gradient.
            x: Tensor of the same shape, the variable.
            state: Dict from the keys of `state_spec` to tensors.
            step: `Step`.

        Returns:
            Tuple of what is to be subtracted from `x`, and the new state with
            the keys of the old. An entry returned as it was given, the same
            object, stays bit for bit as it is stored.
        """
        raise NotImplementedError

    def is_refresh_due(self, count: Tensor) -> Tensor:
        """Whether `refresh` comes before this step.

        Asked of rules with an entry that is `refreshed`.

        Args:
            count: int32 scalar, the steps this variable has taken so far.

        Returns:
            Boolean scalar.
        """
        raise NotImplementedError

    def refresh(
        self, g: Tensor, x: Tensor, state: dict[str, Tensor], step: Step
    ) -> dict[str, Tensor]:
        """What changes every so many steps only: a basis, say.

        Nothing of it is computed in other steps. It sees no gradient that is
        not finite, and none that is zero everywhere: the variable then stays
        at its count, so that the refresh is due again.

        Args:
            g, x, state, step: As for `update_rule`, which follows with the
                new state.

        Returns:
            Dict with the entries that are `refreshed`.
        """
        raise NotImplementedError

    # What the entries mean, for `warm_start`.

    def meaning_of(self, name: str) -> tuple[Any, ...]:
        """The values of the attributes that `meaning` names for an entry."""
        attributes = self.meaning.get(letter_of(name), ())
        return tuple(getattr(self, attribute) for attribute in attributes)

    def moments(
        self, state: dict[str, Tensor], shape: Shape, path: str, t: int
    ) -> Moments:
        """What the state of a variable says of its gradient.

        Args:
            state: Dict, as `update_rule` sees it.
            shape, path: As for `state_spec`.
            t: Int >= 1, the steps the variable has taken.

        Returns:
            `Moments`; by default nothing.
        """
        return Moments()

    def adopt(
        self, moments: Moments, shape: Shape, path: str, t: int
    ) -> dict[str, Tensor]:
        """The state that `t` steps with gradients of such moments leave.

        An average of updates, `g / sqrt(v)` say, is taken for the update of
        the average: as if the second moment had stood still.

        Args:
            moments: `Moments` of the gradient.
            shape, path: As for `state_spec`.
            t: Int >= 1, the steps that were taken.

        Returns:
            Dict with those entries that follow; by default none. An entry that
            would be wrong beside one that is missing is not among them.
        """
        return {}
