"""THE TABLE: one row an optimizer, or one of its settings.

A row brings every contract test with it. One file an optimizer has its `ROWS`,
its `STATE_BYTES` (optimizer, shape, bytes), and `golden`, which makes it for a
case of `tests/golden`.
"""

import pytest

from tests.optimizers import adafactor
from tests.optimizers import adalayer
from tests.optimizers import came
from tests.optimizers import coap
from tests.optimizers import fadam
from tests.optimizers import hfac
from tests.optimizers import lion
from tests.optimizers import signum
from tests.optimizers import smmf
from tests.optimizers import soap
from tests.optimizers import subset_norm
from tests.optimizers import subspace_momentum
from tests.optimizers.row import GROUPS
from tests.optimizers.row import SHAPES
from tests.optimizers.row import Row

OPTIMIZERS = (
    adafactor,
    adalayer,
    came,
    coap,
    fadam,
    hfac,
    lion,
    signum,
    smmf,
    soap,
    subset_norm,
    subspace_momentum,
)
TABLE = [row for optimizer in OPTIMIZERS for row in optimizer.ROWS]
MAIN = [row for row in TABLE if row.main]
# For what takes long: the other settings are run by hand.
MAIN_FIRST = [
    row if row.main else pytest.param(row, marks=pytest.mark.exhaustive)
    for row in TABLE
]
STATE_BYTES = [case for o in OPTIMIZERS for case in o.STATE_BYTES]
# Family in `tests/golden` -> `(arguments, hyper) -> optimizer`.
GOLDEN_MAKERS = {
    "came": came.golden,
    "fadam": fadam.golden,
    "hfac": hfac.golden,
    "signum_adalayer": lambda arguments, hyper: (
        adalayer if "block" in hyper else signum
    ).golden(arguments, hyper),
    "coap": coap.golden,
    "smmf": smmf.golden,
    "snsm": lambda arguments, hyper: (
        subspace_momentum if "rank" in hyper else subset_norm
    ).golden(arguments, hyper),
    "soap": soap.golden,
}

__all__ = [
    "GOLDEN_MAKERS",
    "GROUPS",
    "MAIN",
    "SHAPES",
    "STATE_BYTES",
    "TABLE",
    "Row",
]
