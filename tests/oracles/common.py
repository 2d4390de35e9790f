"""What several papers share: groups of axes, rank-1 matrices, clipping."""

import math

import numpy as np


class Axes:
    """Axes merged into groups: batch, kept, rows, cols, in this order.

    Axes that are in no group are kept by both statistics of a matrix.
    """

    def __init__(self, shape, rows, cols, batch=()):
        kept = [a for a in range(len(shape)) if a not in (*rows, *cols, *batch)]
        self.order = [*batch, *kept, *rows, *cols]
        self.apart = [shape[a] for a in self.order]
        self.merged = tuple(
            math.prod(shape[a] for a in axes)
            for axes in (batch, kept, rows, cols)
        )

    def merge(self, x):
        return (
            np.asarray(x, "float64").transpose(self.order).reshape(self.merged)
        )

    def split(self, x):
        return x.reshape(self.apart).transpose(np.argsort(self.order))


def rank_1(q):
    """Row sums times column sums over the total, of the last two axes."""
    rows = q.sum(-1, keepdims=True)
    cols = q.sum(-2, keepdims=True)
    total = rows.sum(-2, keepdims=True)
    return rows * cols / np.where(total == 0, 1, total)


def bounded(u, beta_1, beta_2):
    """A quotient `m / sqrt(v)`, within what two averages of one series allow.

    Cauchy and Schwarz: the weights of both averages, summed. There is no bound
    unless `beta_1 ** 2 < beta_2`.
    """
    if beta_1**2 >= beta_2:
        return u
    k = np.arange(5000)
    bound = (1 - beta_1) / np.sqrt(1 - beta_2)
    bound *= np.sqrt(np.sum((beta_1**2 / beta_2) ** k))
    return np.clip(u, -bound, bound)


def rms(x):
    return np.sqrt((x**2).mean())


def clip(x, threshold):
    """Adafactor's clipping, over the whole variable."""
    if threshold is None:
        return x
    return x / max(1, rms(x) / threshold)


def largest_entry_positive(vectors):
    """The sign of every row such that its entry of largest magnitude is > 0.

    A decomposition is free in the signs of its vectors, and where moments
    outlive a basis the result depends on them.
    """
    largest = np.abs(vectors).argmax(1)
    return vectors * np.sign(vectors[np.arange(len(vectors)), largest])[:, None]
