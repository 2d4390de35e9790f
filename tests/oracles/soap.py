"""SOAP."""

import numpy as np

from tests.oracles.common import bounded
from tests.oracles.common import rank_1
from tests.oracles.common import rms


def merged_shape(shape, limit):
    """Neighbouring axes merged from the left while the product allows it."""
    sizes = []
    for size in shape:
        if sizes and sizes[-1] * size <= limit:
            sizes[-1] *= size
        else:
            sizes.append(size)
    return tuple(sizes)


class SOAP:
    """Vyas et al. (2024), arXiv 2409.11321, as the authors' code has it.

    Momentum is kept unrotated, the second moment in the eigenbasis. `t` counts
    updates, one less than the calls.

    Deviations, all as in that code: the first call only sets the bases up;
    epsilon is outside the root and added before the bias correction; at a
    refresh the basis and the second moment are sorted by the estimated
    eigenvalues; decoupled weight decay, after the step. Ours: axes are merged
    only where there are more than two; of equal sides the first is the
    smaller; and an update is bounded as in a basis that stays.
    """

    def __init__(
        self,
        x,
        learning_rate=3e-3,
        beta_1=0.95,
        beta_2=0.95,
        epsilon=1e-8,
        shampoo_beta=None,
        refresh_every=10,
        max_precondition_dim=10000,
        one_sided=False,
        precondition_1d=False,
        merge_axes=False,
        factored=False,
        normalize_updates=False,
        bound_updates=True,
        weight_decay=0.0,
    ):
        self.__dict__.update(locals())
        self.x = np.array(x, dtype="float64")
        if shampoo_beta is None:
            self.shampoo_beta = beta_2
        shape = self.x.shape
        if merge_axes and len(shape) > 2:
            shape = merged_shape(shape, max_precondition_dim)
        axes = [a for a, d in enumerate(shape) if d <= max_precondition_dim]
        if self.x.ndim == 1 and not precondition_1d:
            axes = []
        if one_sided and len(shape) > 1:
            axes = [a for a in axes if a == int(np.argmin(shape))]
        self.m = np.zeros(shape)
        self.v = np.zeros(shape)
        self.gram = {a: np.zeros((shape[a], shape[a])) for a in axes}
        self.basis = {}
        self.first_call = True
        self.t = 0

    def add_to_grams(self, g):
        beta = self.shampoo_beta
        for a, old in self.gram.items():
            unfolded = np.moveaxis(g, a, 0).reshape(g.shape[a], -1)
            new = unfolded @ unfolded.T
            self.gram[a] = beta * old + (1 - beta) * new

    def rotated(self, x, back=False):
        for a, q in self.basis.items():
            matrix = q if back else q.T
            x = np.moveaxis(np.tensordot(matrix, x, (1, a)), 0, a)
        return x

    def step(self, g):
        g = np.asarray(g, "float64").reshape(self.m.shape)
        if self.first_call:
            self.first_call = False
            self.add_to_grams(g)
            for a, gram in self.gram.items():
                self.basis[a] = np.linalg.eigh(gram)[1][:, ::-1]
            return self.x

        self.t += 1
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * g
        square = self.rotated(g) ** 2
        self.v = self.beta_2 * self.v + (1 - self.beta_2) * square
        v = self.v
        if self.factored and v.ndim == 2:
            v = rank_1(v)
        u = self.rotated(self.m) / (np.sqrt(v) + self.epsilon)
        exact = not (self.factored and v.ndim == 2)
        if self.bound_updates and exact:
            u = bounded(u, self.beta_1, self.beta_2)
        u = self.rotated(u, back=True)
        if self.normalize_updates:
            u = u / (rms(u) + 1e-30)
        alpha = self.learning_rate * np.sqrt(1 - self.beta_2**self.t)
        alpha = alpha / (1 - self.beta_1**self.t)
        x = self.x - alpha * u.reshape(self.x.shape)
        self.x = x * (1 - self.learning_rate * self.weight_decay)

        self.add_to_grams(g)
        if self.t % self.refresh_every == 0:
            self.refresh()
        return self.x

    def refresh(self):
        for a, gram in self.gram.items():
            q = self.basis[a]
            eigenvalues = np.diag(q.T @ gram @ q)
            order = np.argsort(-eigenvalues, kind="stable")
            self.basis[a] = np.linalg.qr(gram @ q[:, order])[0]
            self.v = np.take(self.v, order, a)
