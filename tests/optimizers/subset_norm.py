"""Rows of Subset-Norm."""

import math

from keras_adafactor import SubsetNorm
from tests import oracles
from tests.optimizers.row import GROUPS
from tests.optimizers.row import Row
from tests.optimizers.row import like


class AsMatrix:
    """An oracle that sees a variable of more than two axes as a matrix."""

    def __init__(self, kind, x, **arguments):
        rows, cols = GROUPS.get(x.shape, ((), ()))
        self.shape = x.shape
        if x.ndim > 2:
            m, n = (math.prod(x.shape[a] for a in s) for s in (rows, cols))
            self.shape = (m, n)
        self.oracle = kind(x.reshape(self.shape), **arguments)

    def step(self, g):
        return self.oracle.step(g.reshape(self.shape)).reshape(g.shape)


# Of the longer side: its axes.
LONGER = {
    (): (),
    (7,): (7,),
    (3, 40): (40,),
    (40, 3): (40,),
    (6, 1): (6,),
    (2, 3, 4): (2, 3),
    (16, 4, 4): (16,),
    (3, 3, 4, 8): (4, 8),
}
# Of blocks of 4, or of fewer: 7 is a prime, and 6 and 3 are no multiples.
BLOCKS_OF_4 = {
    (): (1,),
    (7,): (7,),
    (3, 40): (3, 10),
    (40, 3): (30,),
    (6, 1): (2,),
    (2, 3, 4): (2, 3, 1),
    (16, 4, 4): (16, 4, 1),
    (3, 3, 4, 8): (3, 3, 4, 2),
}
# Of blocks of half the root of the size.
BLOCKS_OF_ROOTS = {
    (): (1,),
    (7,): (7,),
    (3, 40): (3, 8),
    (40, 3): (24,),
    (6, 1): (6, 1),
    (2, 3, 4): (2, 3, 2),
    (16, 4, 4): (32,),
    (3, 3, 4, 8): (3, 3, 4, 1),
}


def _row(name, sizes=LONGER, main=False, **arguments):
    momentum = arguments.get("variant") != "rmsprop"

    def oracle(x, shape):
        return AsMatrix(oracles.SubsetNorm, x, **arguments)

    def slots(shape):
        found = [like("m", shape)] * momentum
        return [*found, like("v", sizes[shape])]

    return Row(
        name,
        SubsetNorm,
        arguments,
        oracle,
        slots,
        main=main,
    )


ROWS = [
    _row("subset_norm", main=True),
    _row("subset_norm_blocks", BLOCKS_OF_4, subsets=4),
    _row("subset_norm_roots", BLOCKS_OF_ROOTS, subsets=-2),
    _row("subset_norm_adagrad", variant="adagrad"),
    _row("subset_norm_rmsprop", variant="rmsprop", bias_correction=True),
]

STATE_BYTES = [
    (SubsetNorm(), (4096, 4096), 67_125_248),
    (SubsetNorm(subsets=2048), (4096, 4096), 67_141_632),
    (SubsetNorm(subsets=-2), (4096, 4096), 67_141_632),
    (SubsetNorm(variant="rmsprop"), (4096, 4096), 16_384),
    (SubsetNorm(beta_1=None), (4096, 4096), 16_384),
    (SubsetNorm(variant="rmsprop"), (1024, 16, 64), 4_096),
    (SubsetNorm(variant="rmsprop"), (3, 3, 512, 512), 4 * 9 * 512),
    (SubsetNorm(variant="rmsprop"), (1024,), 4_096),
    (SubsetNorm(variant="rmsprop", subsets=2048), (1_048_573,), 4 * 1_048_573),
    (SubsetNorm(), (), 8),
    (SubsetNorm(), (0,), 0),
    (SubsetNorm(subsets=-2), (5, 0), 0),
]


def golden(arguments, hyper):
    if arguments["beta_2"] == 1:
        del arguments["beta_2"]
        arguments["variant"] = "adagrad"
    return SubsetNorm(**arguments)
