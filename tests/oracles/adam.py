"""Adam and AdamW."""

import numpy as np


class Adam:
    """Kingma and Ba (2015), Algorithm 1."""

    def __init__(self, x, learning_rate, beta_1, beta_2, epsilon):
        self.__dict__.update(locals())
        self.x = np.array(x, dtype="float64")
        self.m = np.zeros_like(self.x)
        self.v = np.zeros_like(self.x)
        self.t = 0

    def step(self, g):
        self.t += 1
        g = np.asarray(g, "float64")
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * g
        self.v = self.beta_2 * self.v + (1 - self.beta_2) * g**2
        m_hat = self.m / (1 - self.beta_1**self.t)
        v_hat = self.v / (1 - self.beta_2**self.t)
        self.x = self.x - self.learning_rate * m_hat / (
            np.sqrt(v_hat) + self.epsilon
        )
        return self.x


class AdamW(Adam):
    """Loshchilov and Hutter (2019), Algorithm 2, without its schedule.

    As in PyTorch, the learning rate multiplies the decay, which comes first.
    """

    def __init__(
        self,
        x,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        weight_decay=0.0,
    ):
        super().__init__(x, learning_rate, beta_1, beta_2, epsilon)
        self.weight_decay = weight_decay

    def step(self, g):
        self.x = self.x * (1 - self.learning_rate * self.weight_decay)
        return super().step(g)
