"""The optimizers that are measured: this package's, Keras', and their peers.

A peer of Keras is a function without arguments that returns an optimizer; of
optax one that returns a `GradientTransformation`; of PyTorch one that takes a
list of parameters.
"""

import functools
import importlib

import keras
from keras import ops

import keras_adafactor

# A basis of 8,000 pieces would cost more than the model, and the paper's rank
# is that of a width of 512.
FAMILY = {
    "Adafactor": keras_adafactor.Adafactor,
    "CAME": keras_adafactor.CAME,
    "SMMF": keras_adafactor.SMMF,
    "HFac": keras_adafactor.HFac,
    "SubsetNorm": keras_adafactor.SubsetNorm,
    "SubspaceMomentum": functools.partial(
        keras_adafactor.SubspaceMomentum, rank=128
    ),
    "COAP": keras_adafactor.COAP,
    "SOAP": functools.partial(keras_adafactor.SOAP, max_precondition_dim=4096),
    "FAdam": keras_adafactor.FAdam,
    "Signum": keras_adafactor.Signum,
    "Lion": keras_adafactor.Lion,
    "Adalayer": keras_adafactor.Adalayer,
}
KERAS = {
    "keras.SGD": keras.optimizers.SGD,
    "keras.Adam": keras.optimizers.Adam,
    "keras.AdamW": keras.optimizers.AdamW,
    "keras.Adafactor": keras.optimizers.Adafactor,
    "keras.Lion": keras.optimizers.Lion,
    "keras.Muon": keras.optimizers.Muon,
}
VARIANTS = {
    "Adafactor, no guard": functools.partial(
        keras_adafactor.Adafactor, skip_nonfinite=None
    ),
    "Adafactor, last two axes": functools.partial(
        keras_adafactor.Adafactor, axis_groups="last_two"
    ),
    "Adafactor, beta_1=0.9": functools.partial(
        keras_adafactor.Adafactor, beta_1=0.9
    ),
    "Adafactor, beta_1=0.9 int8": functools.partial(
        keras_adafactor.Adafactor, beta_1=0.9, momentum_dtype="int8"
    ),
}
# Name -> module, name in it, arguments.
_OPTAX = {
    "optax.adam": ("optax", "adam", {"learning_rate": 1e-3}),
    "optax.adafactor": ("optax", "adafactor", {"learning_rate": 1e-3}),
}
_TORCH = {
    "torch.optim.Adam": ("torch.optim", "Adam", {}),
    "torch.optim.Adafactor": ("torch.optim", "Adafactor", {"foreach": False}),
    "torch.optim.Adafactor, foreach": (
        *("torch.optim", "Adafactor"),
        {"foreach": True},
    ),
    "transformers.Adafactor": ("transformers", "Adafactor", {}),
    "pytorch_optimizer.AdaFactor": ("pytorch_optimizer", "AdaFactor", {}),
}
PEERS = {"tensorflow": {}, "jax": _OPTAX, "torch": _TORCH}

# What the example's `--optimizer` calls them -> as they are called here.
OF_EXAMPLE = {
    "adam": "keras.Adam",
    "keras_adafactor": "keras.Adafactor",
    "adafactor": "Adafactor",
}


def of_keras(names):
    """Those of the names that are Keras optimizers, as functions."""
    return {
        name: make
        for name, make in (KERAS | FAMILY | VARIANTS).items()
        if name in names
    }


def peers(backend):
    """Other libraries' optimizers for a backend's arrays.

    Returns:
        Functions by name, and the names whose package is not installed.
    """
    found, missing = {}, []
    for name, (module, attribute, arguments) in PEERS[backend].items():
        try:
            make = getattr(importlib.import_module(module), attribute)
        except ImportError:
            missing.append(name)
        else:
            found[name] = functools.partial(make, **arguments)
    return found, missing


def refreshing(make, due):
    """A function that makes the optimizer, its refreshes always due, or never.

    New bases, say, are what some do every so many steps. It is timed apart from
    an ordinary step: `benchmarks.refresh_cost`.
    """

    def made():
        optimizer = make()
        optimizer.is_refresh_due = lambda count: ops.convert_to_tensor(due)
        return optimizer

    return made
