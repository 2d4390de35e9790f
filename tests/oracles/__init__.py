"""Float64 transcriptions of the papers: slow, plain, numpy only.

Each is written from the paper, not from the library: full matrices where the
library keeps factors, sums where it has means, Adam's own bias correction
where it has a corrected decay. One file an algorithm; `Oracle(x, **settings)`
has `step(g)`, which returns the new `x`.
"""

from tests.oracles.adafactor import Adafactor
from tests.oracles.adalayer import Adalayer
from tests.oracles.adam import Adam
from tests.oracles.adam import AdamW
from tests.oracles.came import CAME
from tests.oracles.coap import COAP
from tests.oracles.fadam import FAdam
from tests.oracles.hfac import HFac
from tests.oracles.lion import Lion
from tests.oracles.signum import Signum
from tests.oracles.sm3 import SM3
from tests.oracles.smmf import SMMF
from tests.oracles.soap import SOAP
from tests.oracles.subset_norm import SubsetNorm
from tests.oracles.subspace_momentum import SubspaceMomentum

__all__ = [
    "CAME",
    "COAP",
    "SM3",
    "SMMF",
    "SOAP",
    "Adafactor",
    "Adalayer",
    "Adam",
    "AdamW",
    "FAdam",
    "HFac",
    "Lion",
    "Signum",
    "SubsetNorm",
    "SubspaceMomentum",
]
