"""Momentum in 8 bits where rows of a variable differ in size by four decades.

As those of an embedding do: rare tokens, and frequent ones.
"""

import numpy as np
import pytest

from keras_adafactor import CAME
from keras_adafactor import SOAP
from keras_adafactor import Adafactor
from keras_adafactor import Adalayer
from keras_adafactor import FAdam
from keras_adafactor import SubsetNorm
from keras_adafactor import SubspaceMomentum
from tests import harness

ROWS = {
    "Adafactor": (Adafactor, {"beta_1": 0.9}),
    "CAME": (CAME, {}),
    "FAdam": (FAdam, {}),
    "SubsetNorm": (SubsetNorm, {}),
    "SubspaceMomentum": (SubspaceMomentum, {"rank": 16}),
    "SubspaceMomentum of rows": (
        SubspaceMomentum,
        {"rank": 128, "basis": "top_k"},
    ),
    "Adalayer": (Adalayer, {"blocks": {"w": "rows"}}),
    "SOAP": (SOAP, {"one_sided": True, "refresh_every": 3}),
    "SOAP, factored": (
        SOAP,
        {"one_sided": True, "refresh_every": 3, "factored": True},
    ),
}


def gradients(shape, quiet_axis):
    rng = np.random.default_rng(0)
    sizes = [1] * len(shape)
    sizes[quiet_axis] = shape[quiet_axis]
    size = 10.0 ** -rng.uniform(0, 4, size=sizes)
    return (size * rng.normal(size=(12, *shape))).astype("float32")


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("tall", [True, False])
def test_steps_are_those_of_float32(name, tall):
    shape = (256, 64) if tall else (64, 256)
    given = gradients(shape, 0 if tall else 1)
    if name == "Adalayer" and not tall:
        pytest.skip("its blocks are rows")
    make, arguments = ROWS[name]
    start = np.zeros(shape, "float32")
    found = [
        np.array(harness.trace(optimizer, start, given, harness.MODE))
        for optimizer in (
            make(**arguments),
            make(**arguments, momentum_dtype="int8"),
        )
    ]
    exact, rounded = found
    distance = np.linalg.norm(exact[-1])
    assert np.linalg.norm(rounded[-1] - exact[-1]) < 0.05 * distance
    largest_exact, largest = (np.abs(np.diff(x, axis=0)).max() for x in found)
    assert largest < 1.2 * largest_exact
