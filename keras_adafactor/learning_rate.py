"""The learning rate of an optimizer, that may change while it trains."""

from typing import Any

import keras

from keras_adafactor import checks
from keras_adafactor.backends import backend

Schedule = keras.optimizers.schedules.LearningRateSchedule


class WithLearningRate(keras.optimizers.Optimizer):
    """A Keras optimizer whose learning rate is checked when it is assigned.

    It can be assigned as a number, an array or tensor of one element, a
    schedule, or a callable without arguments.
    """

    @property
    def learning_rate(self) -> Any:
        # Schedules count updates. Keras counts micro-steps.
        if isinstance(self._learning_rate, Schedule):
            return self._learning_rate(self.iterations)
        return keras.optimizers.Optimizer.learning_rate.fget(self)

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        if backend.is_symbolic(learning_rate):
            # Its value is known when the step that is traced now runs.
            self._learning_rate.assign(learning_rate)
            return
        rate = checks.check_learning_rate("learning_rate", learning_rate)
        self._check_learning_rate(rate)
        self._warn_of_learning_rate(rate)
        # Keras' own setter: a property cannot be assigned through `super()`.
        keras.optimizers.Optimizer.learning_rate.fset(self, rate)

    def _check_learning_rate(self, learning_rate):
        """Raises where the constructor would, for a new learning rate."""

    def _warn_of_learning_rate(self, learning_rate):
        """Warns where a new learning rate is not what it seems."""

    @property
    def effective_learning_rate(self) -> Any:
        """The learning rate that the next update uses: a scalar.

        `learning_rate`, unless the rule makes something else of it.
        """
        return self.learning_rate
