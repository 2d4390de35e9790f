"""Adalayer."""

import numpy as np


class Adalayer:
    """Zhao et al. (2024), arXiv 2407.07972: Adam with one second moment for
    a block of entries.

    `block_axes` are the axes whose indices tell blocks apart: none for one
    block, (1,) for one a column. With `freeze_after` = K the first K steps
    only measure the second moment, which then stays (`keep_adapting`: goes on
    as an average), and is nowhere corrected for its bias. Its zero start is
    counted once, as in the authors' code: it is K / (K + 1) of the mean.

    Deviations: decoupled weight decay, before the step.
    """

    def __init__(
        self,
        x,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.95,
        epsilon=1e-15,
        block_axes=(),
        freeze_after=None,
        keep_adapting=False,
        weight_decay=0.0,
    ):
        self.__dict__.update(locals())
        self.x = np.array(x, dtype="float64")
        self.inside = tuple(
            a for a in range(self.x.ndim) if a not in block_axes
        )
        self.m = np.zeros_like(self.x)
        self.v = np.zeros_like(self.x).mean(self.inside, keepdims=True)
        self.t = 0

    def measuring(self):
        return self.freeze_after is not None and self.t <= self.freeze_after

    def rate(self):
        return 0.0 if self.measuring() else self.learning_rate

    def step(self, g):
        self.t += 1
        g = np.asarray(g, "float64")
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * g
        m_hat = self.m / (1 - self.beta_1**self.t)

        q = (g**2).mean(self.inside, keepdims=True)
        if self.measuring():
            self.v = (self.t * self.v + q) / (self.t + 1)
        elif self.freeze_after is None or self.keep_adapting:
            self.v = self.beta_2 * self.v + (1 - self.beta_2) * q
        v_hat = self.v
        if self.freeze_after is None:
            v_hat = self.v / (1 - self.beta_2**self.t)

        x = self.x * (1 - self.rate() * self.weight_decay)
        self.x = x - self.rate() * m_hat / (np.sqrt(v_hat) + self.epsilon)
        return self.x
