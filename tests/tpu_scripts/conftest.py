"""What the TPU compiler is asked, it is asked as users do."""

import os

import keras
import pytest

if keras.backend.backend() == "jax":
    import jax


@pytest.fixture(autouse=True, scope="module")
def _all_optimizations():
    if keras.backend.backend() != "jax":
        yield
        return
    option = "jax_disable_most_optimizations"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, option.upper(), "0")
        before = jax.config.read(option)
        jax.config.update(option, False)
        yield
        jax.config.update(option, before)
