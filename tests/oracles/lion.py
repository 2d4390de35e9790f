"""Lion."""

import numpy as np


class Lion:
    """Chen et al. (2023), arXiv 2302.06675."""

    def __init__(
        self,
        x,
        learning_rate=1e-4,
        beta_1=0.9,
        beta_2=0.99,
        weight_decay=0.0,
    ):
        self.__dict__.update(locals())
        self.x = np.array(x, dtype="float64")
        self.m = np.zeros_like(self.x)
        self.t = 0

    def step(self, g):
        self.t += 1
        g = np.asarray(g, "float64")
        u = np.sign(self.beta_1 * self.m + (1 - self.beta_1) * g)
        self.m = self.beta_2 * self.m + (1 - self.beta_2) * g
        self.x = self.x - self.learning_rate * (u + self.weight_decay * self.x)
        return self.x
