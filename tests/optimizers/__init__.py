"""THE TABLE: one row an optimizer, or one of its settings.

A row brings every contract test with it. One file an optimizer has its `ROWS`,
its `STATE_BYTES` (optimizer, shape, bytes), and `golden`, which makes it for a
case of `tests/golden`.
"""

from tests.optimizers import adafactor
from tests.optimizers import coap
from tests.optimizers import lion
from tests.optimizers import smmf
from tests.optimizers import soap
from tests.optimizers.row import GROUPS
from tests.optimizers.row import SHAPES
from tests.optimizers.row import Row

OPTIMIZERS = (adafactor, coap, lion, smmf, soap)
TABLE = [row for optimizer in OPTIMIZERS for row in optimizer.ROWS]
MAIN = [row for row in TABLE if row.main]
STATE_BYTES = [case for o in OPTIMIZERS for case in o.STATE_BYTES]
# Family in `tests/golden` -> `(arguments, hyper) -> optimizer`.
GOLDEN_MAKERS = {
    "coap": coap.golden,
    "smmf": smmf.golden,
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
