"""Subset-Norm."""

import math

import numpy as np


def subset_sums(q, subsets):
    """For every entry of `q`, the sum over the subset that it is in.

    Args:
        q: Array.
        subsets: "heuristic": in a matrix an index of the longer axis is a
            subset, rows if both are as long; elsewhere every entry is one.
            k > 0: blocks of the largest divisor of the size that is at most
            k, in row-major order. -q: as k = sqrt(size) / q, at least 1.
    """
    if subsets == "heuristic":
        if q.ndim != 2:
            return q
        axis = 1 if q.shape[0] >= q.shape[1] else 0
        return np.broadcast_to(q.sum(axis, keepdims=True), q.shape)
    if subsets < 0:
        subsets = max(1, math.isqrt(q.size) // -subsets)
    block = max(k for k in range(1, subsets + 1) if q.size % k == 0)
    blocks = q.reshape(-1, block)
    sums = np.broadcast_to(blocks.sum(1, keepdims=True), blocks.shape)
    return sums.reshape(q.shape)


class SubsetNorm:
    """Nguyen and Nguyen (2024), arXiv 2411.07120, Subset-Norm.

    The second moment is kept for every entry. `variant` is "adam", "adagrad"
    (a sum in place of the average, which is `beta_2` = 1) or "rmsprop" (no
    momentum). `bias_correction` of None is on for "adam" alone; with
    "adagrad" it would stop every step, 1 - 1^t being zero.

    Deviations, all as in the authors' code: epsilon is added before the bias
    correction; decoupled weight decay, after the step.
    """

    def __init__(
        self,
        x,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-6,
        variant="adam",
        subsets="heuristic",
        bias_correction=None,
        weight_decay=0.0,
    ):
        self.__dict__.update(locals())
        self.x = np.array(x, dtype="float64")
        self.m = np.zeros_like(self.x)
        self.v = np.zeros_like(self.x)
        self.t = 0
        if variant == "adagrad":
            self.beta_2 = 1.0
        if variant == "rmsprop":
            self.beta_1 = 0.0
        if bias_correction is None:
            self.bias_correction = variant == "adam"

    def direction(self, g):
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * g
        return self.m

    def step(self, g):
        self.t += 1
        g = np.asarray(g, "float64")
        a = self.direction(g)
        s = subset_sums(g**2, self.subsets)
        if self.variant == "adagrad":
            self.v = self.v + s
        else:
            self.v = self.beta_2 * self.v + (1 - self.beta_2) * s
        alpha = self.learning_rate
        if self.bias_correction:
            alpha = alpha * math.sqrt(1 - self.beta_2**self.t)
            alpha = alpha / (1 - self.beta_1**self.t)
        x = self.x - alpha * a / (np.sqrt(self.v) + self.epsilon)
        self.x = x * (1 - self.learning_rate * self.weight_decay)
        return self.x
