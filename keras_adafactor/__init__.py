"""Memory-efficient optimizers for Keras 3."""

from keras_adafactor._version import __version__ as __version__
from keras_adafactor.adafactor import Adafactor
from keras_adafactor.functional.axis_groups import AxisGroups
from keras_adafactor.state_report import state_report
from keras_adafactor.storage import StateSpec
from keras_adafactor.update_rule import UpdateRuleOptimizer

__all__ = [
    "Adafactor",
    "AxisGroups",
    "StateSpec",
    "UpdateRuleOptimizer",
    "state_report",
]
