"""Every optimizer against traces that were made apart from this package."""

import numpy as np
import pytest
from keras import ops

from tests import harness
from tests.golden import CASES
from tests.golden import GOLDEN
from tests.golden import golden_arguments
from tests.optimizers import GOLDEN_MAKERS

# A step of CAME's first case divides by averages of 1e-4.
TOLERANCES = {("came", "matrix_2x3"): 5e-6}


@pytest.mark.parametrize(
    ("family", "name"), [case for case in CASES if case[0] in GOLDEN_MAKERS]
)
def test_follows_the_golden_trace(family, name):
    case = GOLDEN[family][name]
    optimizer = GOLDEN_MAKERS[family](
        golden_arguments(case["hyper"]), case["hyper"]
    )
    x = np.asarray(case["inputs"]["theta0"], "float32")
    (variable,) = variables = harness.variables([x])
    step = harness.make_step(optimizer, variables, "eager")
    tolerance = TOLERANCES.get((family, name), 1e-6)
    for g, row in zip(case["inputs"]["grads"], case["trace"], strict=True):
        step([ops.convert_to_tensor(np.asarray(g, "float32"))])
        (got,) = harness.values([variable])
        np.testing.assert_allclose(
            got, row["theta"], rtol=tolerance, atol=tolerance
        )
