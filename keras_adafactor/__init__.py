"""Memory-efficient optimizers for Keras 3."""

from keras_adafactor import private_names

# First: without one of these names, a step could silently be a wrong one.
private_names.check()

# ruff: noqa: E402, I001
from keras_adafactor._version import __version__ as __version__
from keras_adafactor.adamw_rule import AdamWRule
from keras_adafactor.arguments import OptimizerKeywords
from keras_adafactor.fully_sharded import FullySharded
from keras_adafactor.functional.axis_groups import AxisGroups
from keras_adafactor.monitor import OptimizerMonitor
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.optimizers.adafactor import Adafactor
from keras_adafactor.optimizers.adalayer import Adalayer
from keras_adafactor.optimizers.came import CAME
from keras_adafactor.optimizers.coap import COAP
from keras_adafactor.optimizers.fadam import FAdam
from keras_adafactor.optimizers.hfac import HFac
from keras_adafactor.optimizers.lion import Lion
from keras_adafactor.optimizers.signum import Signum
from keras_adafactor.optimizers.smmf import SMMF
from keras_adafactor.optimizers.soap import SOAP
from keras_adafactor.optimizers.subset_norm import SubsetNorm
from keras_adafactor.optimizers.subspace_momentum import SubspaceMomentum
from keras_adafactor.rule import Step
from keras_adafactor.rule import UpdateRule
from keras_adafactor.state_report import state_report
from keras_adafactor.storage import StateSpec
from keras_adafactor.warm_start import WarmStartReport
from keras_adafactor.warm_start import warm_start

__all__ = [
    "Adafactor",
    "Adalayer",
    "AdamWRule",
    "AxisGroups",
    "CAME",
    "COAP",
    "FAdam",
    "FullySharded",
    "HFac",
    "Lion",
    "OptimizerKeywords",
    "OptimizerMonitor",
    "SMMF",
    "SOAP",
    "Signum",
    "StateSpec",
    "Step",
    "SubsetNorm",
    "SubspaceMomentum",
    "UpdateRule",
    "UpdateRuleOptimizer",
    "WarmStartReport",
    "state_report",
    "warm_start",
]
