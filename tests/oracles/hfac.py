"""H-Fac."""

import numpy as np

from tests.oracles.common import Axes
from tests.oracles.common import clip
from tests.oracles.common import rank_1


class HFac:
    """Nguyen et al. (2024), arXiv 2406.09958, the Hamiltonian descent on
    factored first and second moments.

    `rows` and `cols` are tuples of axes; other axes are kept by both. The
    averages are of full matrices, with Adam's bias correction, of which row
    and column means are taken: all these commute.

    Deviations: the paper says nothing of vectors, here the variables without
    rows and columns: they take Adam's quotient, clipped. Weight decay is
    added to the direction, times the learning rate.
    """

    def __init__(
        self,
        x,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-30,
        clip_threshold=1.0,
        rows=(),
        cols=(),
        weight_decay=0.0,
    ):
        self.__dict__.update(locals())
        self.x = np.array(x, dtype="float64")
        self.axes = Axes(self.x.shape, rows, cols)
        self.m = np.zeros(self.axes.merged)
        self.v = np.zeros(self.axes.merged)
        self.t = 0

    def averages(self):
        return (
            self.m / (1 - self.beta_1**self.t),
            self.v / (1 - self.beta_2**self.t),
        )

    def step(self, g):
        self.t += 1
        g, x = self.axes.merge(g), self.axes.merge(self.x)
        square = g**2 + self.epsilon
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * g
        self.v = self.beta_2 * self.v + (1 - self.beta_2) * square
        m, v = self.averages()
        if self.rows:
            # The weight of the past in the corrected average.
            past = 1 - (1 - self.beta_1) / (1 - self.beta_1**self.t)
            phi = past * (m - g).mean(-1) / np.sqrt(v.mean(-1))
            psi = past * (m - g).mean(-2) / np.sqrt(v.mean(-2))
            u = (phi[..., :, None] + psi[..., None, :]) / 2
            u = u + clip(g / np.sqrt(rank_1(v)), self.clip_threshold)
        else:
            u = clip(m / np.sqrt(v), self.clip_threshold)
        x = x - self.learning_rate * (u + self.weight_decay * x)
        self.x = self.axes.split(x)
        return self.x
