"""Matrices as gradients of models are: few of them have full rank."""

import numpy as np


def matrices(rows, columns, seed=0):
    """Name -> float32 matrix."""
    rng = np.random.default_rng(seed)
    smaller = min(rows, columns)
    diagonal = np.arange(smaller)

    def normal(*shape):
        return rng.normal(size=shape)

    def zeros():
        return np.zeros((rows, columns))

    def orthonormal(size, count):
        return np.linalg.qr(normal(size, count))[0]

    found = {
        "full rank": normal(rows, columns),
        "zero": zeros(),
        "rank one": np.outer(normal(rows), normal(columns)),
        "ones": np.ones((rows, columns)),
        "identity": np.eye(rows, columns),
        "minus identity": -np.eye(rows, columns),
        "shift": np.eye(rows, columns, 1),
        "low rank": normal(rows, smaller // 5 + 1)
        @ normal(smaller // 5 + 1, columns),
        "equal singular values": orthonormal(rows, smaller // 2 + 1)
        @ orthonormal(columns, smaller // 2 + 1).T,
    }
    found["duplicate columns"] = np.repeat(
        normal(rows, columns // 3 + 1), 3, axis=1
    )[:, :columns]
    graded = 10.0 ** -np.linspace(0, 12, smaller)
    found["graded"] = (
        orthonormal(rows, smaller) * graded @ orthonormal(columns, smaller).T
    )
    found["graded diagonal"] = zeros()
    found["graded diagonal"][diagonal, diagonal] = graded
    found["one entry"] = zeros()
    found["one entry"][rows // 2, columns // 2] = 3.0
    # An image with an empty border, and units that are dead.
    empty = found["zero rows and columns"] = normal(rows, columns)
    empty[rng.permutation(rows)[: rows // 2]] = 0.0
    empty[:, rng.permutation(columns)[: columns // 2]] = 0.0
    # An embedding, of which a batch uses a few rows.
    found["few rows"] = zeros()
    used = rng.integers(0, rows, columns // 4 + 1)
    found["few rows"][used] = normal(len(used), columns)
    found["one-hot"] = zeros()
    found["one-hot"][np.arange(rows), rng.integers(0, columns, rows)] = 1.0
    # One row a thousand times, beside a few larger ones: the leading singular
    # vector is along no row of the largest norm.
    found["one row repeated"] = np.ones((rows, columns))
    found["one row repeated"][: rows // 4] = (
        1.1 * columns**0.5 * np.eye(rows // 4, columns)
    )
    for name, place in (("large column", np.s_[:, 0]), ("large row", 0)):
        found[name] = normal(rows, columns)
        found[name][place] *= 1e8
    return {name: x.astype("float32") for name, x in found.items()}
