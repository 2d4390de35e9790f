"""Clipping of gradients."""

import numpy as np
import pytest

from keras_adafactor import Adafactor
from tests.fit.common import SHAPES
from tests.fit.common import STARTS
from tests.fit.common import assert_close
from tests.fit.common import expected
from tests.probe import fit
from tests.probe import gradients
from tests.probe import probe_model
from tests.probe import weights


def clip_by_norm(g, norm):
    return g * min(1.0, norm / np.sqrt((g.astype("float64") ** 2).sum()))


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_clipped_gradients_are_what_the_rule_sees(clip):
    given = gradients(6, SHAPES)
    seen = {name: [] for name in given}
    for row in zip(*given.values(), strict=True):
        together = np.concatenate([g.ravel() for g in row])
        for name, g in zip(given, row, strict=True):
            if clip == "clipvalue":
                clipped = np.clip(g, -0.7, 0.7)
            elif clip == "clipnorm":
                clipped = clip_by_norm(g, 0.7)
            else:
                norm = clip_by_norm(together, 0.7)
                size = np.linalg.norm(together)
                clipped = g * np.linalg.norm(norm) / size
            seen[name].append(clipped)
    model = probe_model(STARTS, Adafactor(**{clip: 0.7}))
    fit(model, given)
    assert_close(weights(model), expected(seen))


def test_clipping_acts_on_the_accumulated_mean():
    given = gradients(6, SHAPES)
    large = probe_model(STARTS, Adafactor(clipnorm=0.7))
    fit(large, given, batch_size=3)
    small = probe_model(
        STARTS, Adafactor(clipnorm=0.7, gradient_accumulation_steps=3)
    )
    fit(small, given, batch_size=1)
    assert_close(weights(small), weights(large))
