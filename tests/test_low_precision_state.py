"""State in less than float32.

Rows of a variable differ in size by four decades, as those of an embedding do:
rare tokens, and frequent ones.
"""

import keras
import numpy as np
import pytest

from keras_adafactor import CAME
from keras_adafactor import COAP
from keras_adafactor import SMMF
from keras_adafactor import SOAP
from keras_adafactor import Adafactor
from keras_adafactor import Adalayer
from keras_adafactor import FAdam
from keras_adafactor import SubsetNorm
from keras_adafactor import SubspaceMomentum
from tests import harness
from tests.probe import fit
from tests.probe import probe_model
from tests.probe import state

if keras.backend.backend() == "jax":
    pytest.skip(
        "the same on every backend; eager steps of JAX take long: "
        "KERAS_BACKEND=tensorflow runs this",
        allow_module_level=True,
    )

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


LESS = {
    **{
        f"{name}, int8": (make, {**arguments, "momentum_dtype": "int8"})
        for name, (make, arguments) in ROWS.items()
    },
    "SOAP, bfloat16": (
        SOAP,
        {"momentum_dtype": "bfloat16", "second_moment_dtype": "bfloat16"},
    ),
    "COAP, int8": (COAP, {"rank": 80, "state_dtype": "int8"}),
    "COAP, bfloat16": (COAP, {"rank": 80, "state_dtype": "bfloat16"}),
    "COAP of Adafactor, int8": (
        COAP,
        {"rank": 80, "state_dtype": "int8", "variant": "adafactor"},
    ),
    "SMMF, three states": (SMMF, {"zero_sign": True}),
}


@pytest.mark.parametrize("name", LESS)
def test_what_is_kept_in_less_goes_on_bit_for_bit(name, tmp_path):
    make, arguments = LESS[name]
    given = gradients((192, 256), 0)
    start = {"w": np.zeros((192, 256), "float32")}
    # XLA takes minutes over decompositions.
    model = probe_model(start, make(**arguments), run_eagerly=True)
    fit(model, {"w": given[:5]})
    model.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    resumed.run_eagerly = True
    for each in (model, resumed):
        fit(each, {"w": given[5:8]})
    ours, theirs = state(model), state(resumed)
    small = {"int8", "uint8", "bfloat16"}
    assert small & {slot.dtype for slot in model.optimizer.variables}
    for (slot, x), (_, y) in zip(ours.items(), theirs.items(), strict=True):
        np.testing.assert_array_equal(x, y, slot)
