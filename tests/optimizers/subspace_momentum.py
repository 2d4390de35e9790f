"""Rows of Subspace-Momentum."""

from dataclasses import replace

import numpy as np
from keras import ops

from keras_adafactor import SubspaceMomentum
from tests import harness
from tests import oracles
from tests.optimizers.row import Row
from tests.optimizers.row import like
from tests.optimizers.subset_norm import LONGER
from tests.optimizers.subset_norm import AsMatrix

# Matrices of which a rank of 2 is a part.
SHAPES = ((), (7,), (4, 5), (6, 4), (4, 6), (2, 3, 4), (16, 4, 4), (6, 1))
MATRICES = {
    (4, 5): (4, 5),
    (6, 4): (6, 4),
    (4, 6): (4, 6),
    (2, 3, 4): (6, 4),
    (16, 4, 4): (16, 16),
}
V = LONGER | {(4, 5): (5,), (6, 4): (6,), (4, 6): (6,)}


def noise_at(t, key):
    """The `Step` that the variable at this position draws from."""
    return replace(harness.step_at(t, 1e-3), key=key)


def drawn(basis, shape):
    """What the oracle is to take in place of noise of its own."""
    key = SHAPES.index(shape)
    m, n = MATRICES.get(shape, (1, 1))

    def uniform(t):
        noise = noise_at(t, key).uniform((max(m, n),))
        return np.argsort(-ops.convert_to_numpy(noise), kind="stable")[:2]

    def random(t):
        noise = noise_at(t, key).normal((min(m, n), 2))
        q = np.linalg.qr(ops.convert_to_numpy(noise).astype("float64"))[0]
        return q.T if m >= n else q

    return {"uniform": uniform, "random": random}.get(basis)


def _row(name, main=False, **arguments):
    arguments = {"rank": 2, "refresh_every": 3} | arguments
    basis = arguments.get("basis", "svd")

    def oracle(x, shape):
        draw = drawn(basis, shape)
        return AsMatrix(oracles.SubspaceMomentum, x, draw=draw, **arguments)

    def slots(shape):
        v = like("v", V[shape])
        if shape not in MATRICES:
            return [like("m", shape), v]
        sizes = list(MATRICES[shape])
        indices = basis in ("top_k", "uniform")
        axis = int((sizes[0] >= sizes[1]) != indices)
        kept = like("basis", (sizes[axis], 2))
        if indices:
            kept = like("basis", (2,), "int32")
        sizes[axis] = 2
        return [like("m", tuple(sizes)), v, kept, like("count", (), "int32")]

    return Row(
        name,
        SubspaceMomentum,
        arguments,
        oracle,
        slots,
        # Singular vectors from float32 Gram matrices.
        tolerance=1e-5 if basis == "svd" else 1e-6,
        shapes=SHAPES,
        # Singular values of which the second and third differ.
        decades=0.0,
        # A refresh at 1, 3 and 6 is put off where there is nothing to see.
        magnitudes=(1e-3, 0.0, 1e-30, 1e-18, 1e-3, 1e18, 1e18, 1e-18),
        resting=("basis",),
        main=main,
    )


ROWS = [
    _row("subspace_momentum", main=True),
    _row("subspace_momentum_random", basis="random"),
    _row("subspace_momentum_top_k", basis="top_k"),
    _row("subspace_momentum_uniform", basis="uniform", variant="adagrad"),
]

STATE_BYTES = [
    # 4 bytes more are the count of steps.
    (SubspaceMomentum(), (4096, 4096), 4_210_688 + 4),
    (SubspaceMomentum(rank=512), (4096, 4096), 16_793_600 + 4),
    (SubspaceMomentum(rank=1024), (4096, 4096), 33_570_816 + 4),
    (SubspaceMomentum(basis="random"), (4096, 4096), 4_210_688 + 4),
    (
        SubspaceMomentum(basis="top_k"),
        (4096, 4096),
        4 * (128 * 4096 + 4096 + 128) + 4,
    ),
    (
        SubspaceMomentum(momentum_dtype="bfloat16"),
        (4096, 1024),
        2 * 4096 * 128 + 4 * (1024 * 128 + 4096) + 4,
    ),
    (SubspaceMomentum(), (1024, 16, 64), 4 * (2 * 1024 * 128 + 1024) + 4),
    (SubspaceMomentum(), (4096, 128), 4 * (4096 * 128 + 4096)),
    (SubspaceMomentum(), (1024,), 8_192),
    (SubspaceMomentum(), (5, 0), 20),
]


def golden(arguments, hyper):
    return SubspaceMomentum(**arguments)
