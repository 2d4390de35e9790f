"""Adafactor."""

import math

import numpy as np

from tests.oracles.common import Axes


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
        self.axes = Axes(self.x.shape, rows, cols, batch)
        merged = self.axes.merged
        # Accumulated with explicit weights, so that no decay is transcribed.
        self.m = np.zeros(merged)
        self.v_row = np.zeros(merged[:3])
        self.v_col = np.zeros((*merged[:2], merged[3]))
        self.t = 0

    def beta_2_t(self):
        t = max(self.t - self.step_offset, 1)
        if self.beta_2 is not None:  # section 7.1
            b = self.beta_2
            return b * (1 - b ** (t - 1)) / (1 - b**t)
        beta = 1 - t**self.beta_2_decay  # section 7.2
        return min(beta, self.beta_2_cap) if self.beta_2_cap else beta

    def step(self, g):
        self.t += 1
        g, x = self.axes.merge(g), self.axes.merge(self.x)
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
        self.x = self.axes.split(x - rho * u)
        return self.x
