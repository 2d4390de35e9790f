"""SM3."""

import numpy as np


class SM3:
    """Anil et al. (2019), arXiv 1901.11150, SM3-II, a set for every index of
    every axis.

    Deviations: 0 / 0 is 0. Momentum is an average, of the preconditioned
    gradient. `beta` > 0 averages the squares in place of adding them up.
    Decoupled weight decay, before the step. A scalar has its own sum.
    """

    def __init__(
        self, x, learning_rate=0.1, momentum=0.9, beta=0.0, weight_decay=0.0
    ):
        self.__dict__.update(locals())
        self.x = np.array(x, dtype="float64")
        self.m = np.zeros_like(self.x)
        self.t = 0
        ndim = self.x.ndim
        self.others = [
            tuple(a for a in range(ndim) if a != axis) for axis in range(ndim)
        ] or [()]
        self.a = [
            np.zeros_like(self.x).max(other, keepdims=True)
            for other in self.others
        ]

    def step(self, g):
        self.t += 1
        g = np.asarray(g, "float64")
        least = np.broadcast_to(self.a[0], g.shape)
        for a in self.a:
            least = np.minimum(least, a)
        if self.beta:
            nu = self.beta * least + (1 - self.beta) * g**2
        else:
            nu = least + g**2
        self.a = [
            np.maximum(a, nu.max(other, keepdims=True))
            for a, other in zip(self.a, self.others, strict=True)
        ]
        u = np.where(nu > 0, g / np.sqrt(np.where(nu > 0, nu, 1)), 0)
        self.m = self.momentum * self.m + (1 - self.momentum) * u
        x = self.x * (1 - self.learning_rate * self.weight_decay)
        self.x = x - self.learning_rate * self.m
        return self.x
