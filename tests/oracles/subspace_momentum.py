"""Subspace-Momentum."""

import numpy as np

from tests.oracles.common import largest_entry_positive
from tests.oracles.subset_norm import SubsetNorm


class SubspaceMomentum(SubsetNorm):
    """Nguyen and Nguyen (2024), arXiv 2411.07120, Subset-Norm with momentum
    in a subspace and the plain gradient in its complement.

    The momentum is kept in full, as what comes back from the subspace, so
    that down and up are one projection of the gradient. `basis` is "svd",
    "top_k", or, with `draw(t)`, which returns them, "random" for a matrix and
    "uniform" for indices. A matrix has orthonormal rows (rank, n) that
    project the rows of a tall gradient, or columns (m, rank) for a wide one;
    indices are rows of a tall gradient, columns of a wide one.

    Deviations: momentum is set to zero at a refresh, which the authors' code
    intends and misses. Other than there, a matrix with a `rank` that is not
    smaller than both sides has ordinary momentum, as all that is no matrix.
    The bias correction multiplies the complement as well, as in that code.
    """

    def __init__(
        self,
        x,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-6,
        rank=128,
        refresh_every=200,
        basis="svd",
        subsets="heuristic",
        variant="adam",
        bias_correction=None,
        weight_decay=0.0,
        draw=None,
    ):
        super().__init__(
            x,
            learning_rate,
            beta_1,
            beta_2,
            epsilon,
            variant,
            subsets,
            bias_correction,
            weight_decay,
        )
        self.rank = rank
        self.refresh_every = refresh_every
        self.kind = basis
        self.draw = draw
        self.basis = None

    def direction(self, g):
        if g.ndim != 2 or self.rank >= min(g.shape):
            return super().direction(g)
        if self.t == 1 or self.t % self.refresh_every == 0:
            self.basis = self.new_basis(g)
            self.m = np.zeros_like(g)
        y = self.projected(g)
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * y
        return self.m + (g - y)

    def new_basis(self, g):
        m, n = g.shape
        if self.kind == "svd":
            left, _, right = np.linalg.svd(g)
            if m >= n:
                return largest_entry_positive(right[: self.rank])
            return largest_entry_positive(left.T[: self.rank]).T
        if self.kind == "top_k":
            norm = np.sqrt((g**2).sum(1 if m >= n else 0))
            return np.argsort(-norm, kind="stable")[: self.rank]
        return np.asarray(self.draw(self.t))

    def projected(self, g):
        m, n = g.shape
        p = self.basis
        if self.kind in ("top_k", "uniform"):
            axis = 0 if m >= n else 1
            chosen = np.isin(np.arange(g.shape[axis]), p)
            return np.where(np.expand_dims(chosen, 1 - axis), g, 0)
        return g @ p.T @ p if m >= n else p @ p.T @ g
