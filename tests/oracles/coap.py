"""COAP."""

import math

import numpy as np

from tests.oracles.common import bounded
from tests.oracles.common import clip
from tests.oracles.common import largest_entry_positive
from tests.oracles.common import rank_1
from tests.oracles.common import rms


def unfold(x, axis):
    """The matrix with a row for every index of the axis."""
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


def along(x, axis, matrix):
    """The product of a matrix with every vector along an axis."""
    return np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)


def sketch(a, omega):
    """The right singular vectors of `a`, as columns, from a random sketch."""
    q = np.linalg.qr(a @ omega)[0]
    vectors = np.linalg.svd(q.T @ a, full_matrices=False)[2]
    return largest_entry_positive(vectors).T


class COAP:
    """Xiao et al. (2024), arXiv 2412.00071, with Adam's or Adafactor's rule.

    A factor P of (size, rank) belongs to every projected axis: to the last
    axis of a matrix (m, n) with m >= n, to the first of another, to the last
    two of a convolution (height, width, in, out), of which a kernel of 1 x 1
    has the last one alone. All steps are written for any set of axes. `rank`
    is a number, or one for each of the last two axes of a convolution. An
    axis that `rank` does not shorten is not projected; a variable without
    projected axes, such as a vector, follows the plain rule, without `scale`.

    `omega` is the Gaussian matrix (size, rank) of the sketch, or a tuple of
    one an axis, or a function of that shape. `recalibrate_every` counts
    refreshes.

    The factors of a convolution are each the sketch of the gradient's
    unfolding, and each takes its own step on one objective, with the other
    held as it was before: mean squared error of the twice projected gradient,
    times one minus the mean cosine of momentum and gradient, of the vectors
    along the in axis, as in the authors' code.

    Deviations: the factors of a convolution do not alternate until they
    converge. A refresh that is due waits for a gradient that is not zero.
    Signs of the factors: the entry of largest magnitude is positive. As in
    the authors' code, factors are not made orthonormal again after a step,
    epsilon is added before the bias correction, weight decay is decoupled and
    comes after the step (with Adafactor's rule: before it, times its step
    size), and Adafactor's rule averages the steps, not the directions, and
    factors the last two axes. With `restore_state` an update of Adam's rule is
    bounded by what it can be in a basis that stays.
    """

    def __init__(
        self,
        x,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-6,
        variant="adamw",
        rank=512,
        omega=None,
        refresh_every=32,
        recalibrate_every=5,
        restore_state=False,
        scale=1.0,
        beta_2_decay=-0.8,
        epsilon_1=1e-30,
        epsilon_2=1e-3,
        clip_threshold=1.0,
        weight_decay=0.0,
    ):
        self.__dict__.update(locals())
        self.x = np.array(x, dtype="float64")
        self.rank_of = self.projected_axes(self.x.shape)
        shape = list(self.x.shape)
        for axis, r in self.rank_of.items():
            shape[axis] = r
        self.m = np.zeros(shape)
        self.v = np.zeros(shape)
        self.factor = {
            axis: np.zeros((self.x.shape[axis], r))
            for axis, r in self.rank_of.items()
        }
        # The cosine is of vectors along it.
        self.cosine_axis = self.x.ndim - 2 if self.x.ndim == 4 else 1
        self.k = 0
        self.t = 0

    def projected_axes(self, shape):
        if len(shape) == 2:
            axis = 1 if shape[0] >= shape[1] else 0
            ranks = {axis: self.rank}
        elif len(shape) == 4:
            pair = self.rank
            if not isinstance(pair, tuple):
                one_by_one = shape[:2] == (1, 1)
                pair = (None if one_by_one else self.rank, self.rank)
            ranks = {2: pair[0], 3: pair[1]}
        else:
            ranks = {}
        return {
            axis: r
            for axis, r in ranks.items()
            if r is not None and r < shape[axis]
        }

    def down(self, x):
        for axis, p in self.factor.items():
            x = along(x, axis, p.T)
        return x

    def up(self, y):
        for axis, p in self.factor.items():
            y = along(y, axis, p)
        return y

    def gaussian(self, place, shape):
        if self.omega is None:
            return np.random.default_rng(3407).normal(size=shape)
        if callable(self.omega):
            return self.omega(shape)
        if isinstance(self.omega, tuple):
            return self.omega[place]
        return np.asarray(self.omega)

    def refresh(self, g):
        if self.k == 0:
            for i, (axis, p) in enumerate(self.factor.items()):
                omega = self.gaussian(i, p.shape)
                self.factor[axis] = sketch(unfold(g, axis).T, omega)
            return
        m, root_v = self.up(self.m), self.up(np.sqrt(self.v))
        if self.k % (self.refresh_every * self.recalibrate_every) == 0:
            for axis, p in self.factor.items():
                self.factor[axis] = sketch(unfold(g, axis).T, p)
        else:
            self.factor = self.moved_factors(g)
        if self.restore_state:
            self.m = self.down(m)
            if self.variant == "adamw":
                self.v = self.down(root_v) ** 2

    def objective(self, g):
        error = np.mean((self.up(self.down(g)) - g) ** 2)
        return error * (1 - self.cosine(g)[0].mean())

    def cosine(self, g):
        """Of momentum and gradient, and its derivative by the momentum."""
        m = self.up(self.m)

        def norm(x):
            norms = np.sqrt((x**2).sum(self.cosine_axis, keepdims=True))
            return np.maximum(norms, 1e-8)

        inner = (m * g).sum(self.cosine_axis, keepdims=True)
        cosine = inner / (norm(m) * norm(g))
        return cosine, g / (norm(m) * norm(g)) - cosine * m / norm(m) ** 2

    def moved_factors(self, g):
        e = self.up(self.down(g)) - g
        error = np.mean(e**2)
        cosine, d = self.cosine(g)
        moved = {}
        for axis, p in self.factor.items():
            # With the other factor held.
            h, k = g, self.m
            for other, q in self.factor.items():
                if other != axis:
                    h = along(h, other, q @ q.T)
                    k = along(k, other, q)
            e_, h_ = unfold(e, axis), unfold(h, axis)
            by_error = 2 / g.size * (e_ @ h_.T + h_ @ e_.T) @ p
            by_cosine = unfold(d, axis) @ unfold(k, axis).T / cosine.size
            slope = (1 - cosine.mean()) * by_error - error * by_cosine
            length = np.linalg.norm(slope)
            moved[axis] = p - 0.1 * slope * min(1, 1 / (length + 1e-6))
        return moved

    def step(self, g):
        self.t += 1
        g = np.asarray(g, "float64")
        due = self.k % self.refresh_every == 0
        if self.factor and due and g.any():
            self.refresh(g)
        if g.any() or not due:
            self.k += 1

        y = self.down(g)
        scale = self.scale if self.factor else 1.0
        if self.variant == "adamw":
            self.adamw(y, scale)
        else:
            self.adafactor(y, scale)
        return self.x

    def adamw(self, y, scale):
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * y
        self.v = self.beta_2 * self.v + (1 - self.beta_2) * y**2
        alpha = self.learning_rate * math.sqrt(1 - self.beta_2**self.t)
        alpha = alpha / (1 - self.beta_1**self.t)
        u = self.m / (np.sqrt(self.v) + self.epsilon)
        if self.restore_state:
            u = bounded(u, self.beta_1, self.beta_2)
        u = self.up(u)
        x = self.x - alpha * scale * u
        self.x = x * (1 - self.learning_rate * self.weight_decay)

    def adafactor(self, y, scale):
        beta_2 = 1 - self.t**self.beta_2_decay
        self.v = beta_2 * self.v + (1 - beta_2) * (y**2 + self.epsilon_1)
        v = rank_1(self.v) if self.v.ndim > 1 else self.v
        u = clip(y / np.sqrt(v), self.clip_threshold)
        alpha = self.learning_rate * max(self.epsilon_2, rms(self.x))
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * alpha * u
        x = self.x * (1 - alpha * self.weight_decay)
        self.x = x - scale * self.up(self.m)
