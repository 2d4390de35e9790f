"""CAME."""

import numpy as np

from tests.oracles.common import Axes
from tests.oracles.common import clip
from tests.oracles.common import rank_1


class CAME:
    """Luo et al. (2023), arXiv 2307.02047.

    `rows` and `cols` are tuples of axes; other axes are kept by both
    statistics. The averages are of full matrices: averaging commutes with the
    sums over rows and columns.

    Deviations: decoupled weight decay, before the step, as in the authors'
    code. Without rows and columns there is no confidence, as there.
    `debias_beta_3` corrects the average of the instability as Adam does.
    """

    def __init__(
        self,
        x,
        learning_rate=2e-4,
        beta_1=0.9,
        beta_2=0.999,
        beta_3=0.9999,
        epsilon_1=1e-30,
        epsilon_2=1e-16,
        clip_threshold=1.0,
        debias_beta_3=False,
        rows=(),
        cols=(),
        weight_decay=0.0,
    ):
        self.__dict__.update(locals())
        self.x = np.array(x, dtype="float64")
        self.axes = Axes(self.x.shape, rows, cols)
        self.m = np.zeros(self.axes.merged)
        self.v = np.zeros(self.axes.merged)
        self.s = np.zeros(self.axes.merged)
        self.t = 0

    def step(self, g):
        self.t += 1
        g, x = self.axes.merge(g), self.axes.merge(self.x)
        x = x * (1 - self.learning_rate * self.weight_decay)

        square = g**2 + self.epsilon_1
        self.v = self.beta_2 * self.v + (1 - self.beta_2) * square
        u = clip(g / np.sqrt(rank_1(self.v)), self.clip_threshold)
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * u
        d = self.m
        if self.rows:
            instability = (u - self.m) ** 2 + self.epsilon_2
            self.s = self.beta_3 * self.s + (1 - self.beta_3) * instability
            s = self.s
            if self.debias_beta_3:
                s = s / (1 - self.beta_3**self.t)
            d = self.m / np.sqrt(rank_1(s))
        self.x = self.axes.split(x - self.learning_rate * d)
        return self.x
