"""FAdam."""

import numpy as np

from tests.oracles.common import clip
from tests.oracles.common import rms


class FAdam:
    """Hwang (2024), arXiv 2405.12807.

    `epsilon_mode` names which of the published adaptive epsilons: "latest" is
    min(epsilon, epsilon_2 RMS(g))^(2 p), and epsilon^(2 p) where g is zero;
    "paper_v3" is epsilon min(1, RMS(g)), which divides zero by zero where all
    gradients were zero; "port" is epsilon max(1, RMS(g)).

    Deviations: the Fisher information starts at 0, not 1; the first step
    forgets either. `mask_decay` decays only where it is not zero.
    """

    def __init__(
        self,
        x,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        epsilon_2=0.01,
        fisher_exponent=0.5,
        clip_threshold=1.0,
        epsilon_mode="latest",
        mask_decay=False,
        weight_decay=0.1,
    ):
        self.__dict__.update(locals())
        self.x = np.array(x, dtype="float64")
        self.m = np.zeros_like(self.x)
        self.f = np.zeros_like(self.x)
        self.t = 0

    def fisher(self):
        return self.f / (1 - self.beta_2**self.t)

    def adaptive_epsilon(self, g):
        if self.epsilon_mode == "paper_v3":
            return self.epsilon * min(1, rms(g))
        if self.epsilon_mode == "port":
            return self.epsilon * max(1, rms(g))
        epsilon = self.epsilon
        if rms(g) > 0:
            epsilon = min(epsilon, self.epsilon_2 * rms(g))
        return epsilon ** (2 * self.fisher_exponent)

    def step(self, g):
        self.t += 1
        g = np.asarray(g, "float64")
        self.f = self.beta_2 * self.f + (1 - self.beta_2) * g**2
        d = self.fisher() ** self.fisher_exponent + self.adaptive_epsilon(g)
        natural = clip(g / d, self.clip_threshold)
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * natural
        decay = self.x / d
        if self.mask_decay:
            decay = np.where(self.f > 0, decay, 0)
        decay = clip(decay, self.clip_threshold)
        self.x = self.x - self.learning_rate * (
            self.m + self.weight_decay * decay
        )
        return self.x
