"""SMMF."""

import math

import numpy as np

from tests.oracles.common import rank_1


def square_shape(size):
    """The two divisors of `size` that are nearest to its root, large first."""
    small = max(d for d in range(1, math.isqrt(size) + 1) if size % d == 0)
    return size // small, small


class SMMF:
    """Park and Lee (2024), arXiv 2412.08894.

    What is kept of a moment is its rank-1 matrix, here in full: `m` with its
    signs, and `v`.

    Deviations: epsilon is outside the root, and an entry of momentum that is
    exactly zero comes back negative, both as in the authors' code. With
    `zero_sign` it comes back zero. Decoupled weight decay, before the step.
    """

    def __init__(
        self,
        x,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_1_growth=0.999,
        beta_2_decay=-0.5,
        epsilon=1e-8,
        zero_sign=False,
        reshape_vectors=True,
        weight_decay=0.0,
    ):
        self.__dict__.update(locals())
        self.x = np.array(x, dtype="float64")
        self.factored = reshape_vectors or np.squeeze(self.x).ndim > 1
        self.m = np.zeros(square_shape(self.x.size))
        self.v = np.zeros(square_shape(self.x.size))
        self.t = 0

    def compressed(self, m):
        sign = np.sign(m) if self.zero_sign else np.where(m > 0, 1, -1)
        return sign * rank_1(np.abs(m))

    def step(self, g):
        self.t += 1
        g = np.asarray(g, "float64").reshape(self.m.shape)
        x = self.x * (1 - self.learning_rate * self.weight_decay)

        m = g
        if self.beta_1 is not None:
            beta_1 = self.beta_1 * self.beta_1_growth ** (self.t - 1)
            m = beta_1 * self.m + (1 - beta_1) * g
        beta_2 = 1 - self.t**self.beta_2_decay
        v = beta_2 * self.v + (1 - beta_2) * g**2
        u = m / (np.sqrt(v) + self.epsilon)
        self.m = self.compressed(m) if self.factored else m
        self.v = rank_1(v) if self.factored else v
        self.x = x - self.learning_rate * u.reshape(x.shape)
        return self.x
