"""Float64 transcriptions of the papers: slow, plain, numpy only.

Each is written from the paper, not from the library: full matrices where the
library keeps factors, sums where it has means, Adam's own bias correction
where it has a corrected decay.
"""

import math

import numpy as np


class Adafactor:
    """Shazeer and Stern (2018), Algorithms 2 and 4 to 6, and the options.

    `rows`, `cols` and `batch` are tuples of axes; other axes are kept by both
    statistics. Without rows and columns the second moment is not factored.
    """

    def __init__(
        self,
        x,
        learning_rate=0.01,
        beta_2_decay=-0.8,
        epsilon_1=1e-30,
        epsilon_2=1e-3,
        clip_threshold=1.0,
        relative_step=True,
        warmup_steps=None,
        multiply_by_parameter_scale=True,
        max_parameter_scale=None,
        beta_2=None,
        beta_2_cap=None,
        step_offset=0,
        beta_1=None,
        rows=(),
        cols=(),
        batch=(),
    ):
        self.__dict__.update(locals())
        self.x = np.array(x, dtype="float64")
        ndim = self.x.ndim
        kept = [a for a in range(ndim) if a not in (*rows, *cols, *batch)]
        # (batch, kept, rows, cols), each group of axes merged into one.
        self.order = [*batch, *kept, *rows, *cols]
        shape = self.x.shape
        self.merged = tuple(
            math.prod(shape[a] for a in axes)
            for axes in (batch, kept, rows, cols)
        )
        # Accumulated with explicit weights, so that no decay is transcribed.
        self.m = np.zeros(self.merged)
        self.v_row = np.zeros(self.merged[:3])
        self.v_col = np.zeros((*self.merged[:2], self.merged[3]))
        self.t = 0

    def merge(self, x):
        return (
            np.asarray(x, "float64").transpose(self.order).reshape(self.merged)
        )

    def split(self, x):
        shape = [self.x.shape[a] for a in self.order]
        return x.reshape(shape).transpose(np.argsort(self.order))

    def beta_2_t(self):
        t = max(self.t - self.step_offset, 1)
        if self.beta_2 is not None:  # section 7.1
            b = self.beta_2
            return b * (1 - b ** (t - 1)) / (1 - b**t)
        beta = 1 - t**self.beta_2_decay  # section 7.2
        return min(beta, self.beta_2_cap) if self.beta_2_cap else beta

    def step(self, g):
        self.t += 1
        g, x = self.merge(g), self.merge(self.x)
        slices = (1, 2, 3)

        # Algorithm 4, lines 5 to 7, with sums as in the paper.
        beta = self.beta_2_t()
        square = g**2 + self.epsilon_1
        self.v_row = beta * self.v_row + (1 - beta) * square.sum(-1)
        self.v_col = beta * self.v_col + (1 - beta) * square.sum(-2)
        total = self.v_row.sum(-1)[..., None, None]
        v = self.v_row[..., :, None] * self.v_col[..., None, :] / total
        u = g / np.sqrt(v)

        # Line 9.
        rms_u = np.sqrt((u**2).mean(slices, keepdims=True))
        if self.clip_threshold is not None:
            u = u / np.maximum(1, rms_u / self.clip_threshold)
        if self.beta_1 is not None:
            self.m = self.beta_1 * self.m + (1 - self.beta_1) * u
            u = self.m

        # Lines 4 and 10.
        rho = self.learning_rate
        if self.relative_step:
            if self.warmup_steps:
                rho = rho * min(1, self.t / self.warmup_steps)
            rho = min(rho, 1 / math.sqrt(self.t))
        if self.multiply_by_parameter_scale:
            scale = np.sqrt((x**2).mean(slices, keepdims=True))
            scale = np.maximum(scale, self.epsilon_2)
            if self.max_parameter_scale is not None:
                scale = np.minimum(scale, self.max_parameter_scale)
            rho = rho * scale
        self.x = self.split(x - rho * u)
        return self.x


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
