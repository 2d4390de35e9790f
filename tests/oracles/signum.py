"""Signum."""

import numpy as np


class Signum:
    """Bernstein et al. (2018), as Zhao et al. (2024), arXiv 2407.07972,
    run it.

    Deviations: decoupled weight decay, before the step.
    """

    def __init__(self, x, learning_rate=1e-3, beta_1=0.9, weight_decay=0.0):
        self.__dict__.update(locals())
        self.x = np.array(x, dtype="float64")
        self.m = np.zeros_like(self.x)
        self.t = 0

    def step(self, g):
        self.t += 1
        g = np.asarray(g, "float64")
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * g
        x = self.x * (1 - self.learning_rate * self.weight_decay)
        self.x = x - self.learning_rate * np.sign(self.m)
        return self.x
