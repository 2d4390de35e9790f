"""Subspace-Momentum (Nguyen and Nguyen, 2024)."""

from dataclasses import KW_ONLY
from dataclasses import replace
from typing import Any
from typing import Literal

import keras
from keras import ops

from keras_adafactor import subset_moment
from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import StateDtype
from keras_adafactor.arguments import argument
from keras_adafactor.arguments import choice
from keras_adafactor.arguments import decay
from keras_adafactor.arguments import integer
from keras_adafactor.arguments import number
from keras_adafactor.arguments import rate
from keras_adafactor.backends import backend
from keras_adafactor.functional import projection
from keras_adafactor.functional.decompositions import orthonormal_columns
from keras_adafactor.functional.moments import ema
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.storage import StateSpec
from keras_adafactor.storage import in_dtype
from keras_adafactor.storage import momentum_dtype
from keras_adafactor.storage import momentum_spec
from keras_adafactor.subset_moment import precondition
from keras_adafactor.subset_moment import second_moment_spec
from keras_adafactor.subset_moment import step_size

INDEX_KINDS = ("top_k", "uniform")


@keras.saving.register_keras_serializable(package="keras_adafactor")
class SubspaceMomentum(UpdateRuleOptimizer):
    """Subspace-Momentum: Subset-Norm with momentum in a few dimensions.

    Unlike Adam, the momentum of a matrix is kept in a subspace of `rank`
    dimensions, the largest singular vectors of a gradient now and then; in the
    complement the plain gradient is followed, so that nothing of it is
    dropped. With the second moment of Subset-Norm, 0.25 bytes a parameter of a
    4096 x 4096 matrix where Adam has 8.

    Algorithm (AdamSNSM, for a matrix (m, n) of which n is not longer):

    ```
    at t = 1 and every refresh_every steps:
        P = rank largest right singular vectors of G;  M = 0
    Y = G P
    M = beta_1 * M + (1 - beta_1) * Y
    A = M P^T + (G - Y P^T)
    v = beta_2 * v + (1 - beta_2) * sum(G ** 2, subset)
    alpha = learning_rate * sqrt(1 - beta_2 ** t) / (1 - beta_1 ** t)
    x = x - alpha * A / (sqrt(v) + epsilon)
    ```

    If m is shorter, of the left singular vectors and on the other side. A
    matrix with a side that is not longer than `rank`, and what is no matrix,
    has `A = M`, the momentum of all of `G`.

    State, with `d` the shorter side of a matrix:

    - `m` (M): `momentum_dtype`; the matrix with `rank` in place of `d`. Of the
      shape of the variable where it is not projected.
    - `v`: float32, one number for each subset.
    - `basis` (P): float32, (d, rank); or int32, (rank,), with a `basis` of
      indices, where `d` is the longer side.
    - `count`: int32 scalar, the steps of the variable; with a basis.

    Weight decay comes after the step, as in the authors' code.

    Deviations from the paper: variables of more than two axes are seen as the
    matrix whose rows and columns are fewest together. Singular vectors come
    from the Gram matrix of the shorter side, which mixes those of singular
    values under 1e-3 of the largest. Of more than 256 rows, orthogonal
    iteration finds vectors that hold as much of the square of the gradient as
    the exact ones, within 1e-3. The authors' code means to set the momentum to
    zero at a refresh and misses; here it is.

    If a decomposition fails, the variable keeps its old basis and momentum,
    trains on, and tries again in the next step; `failed_refreshes` counts that.
    If the first one fails, its basis is the identity until the next regular
    refresh: momentum is kept of the first `rank` rows or columns.

    Raises:
        ValueError: If an argument is out of range or contradicts another.

    Example:

    >>> import keras
    >>> from keras_adafactor import SubspaceMomentum
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model.compile(optimizer=SubspaceMomentum(0.01, rank=2), loss="mse")

    Reference:

    - [Nguyen and Nguyen, 2024](https://arxiv.org/abs/2411.07120)
    """

    weight_decay_order = "after"
    meaning = {"m": ("variant", "beta_1"), "v": ("variant", "beta_2")}

    learning_rate: LearningRate = rate(
        1e-3,
        doc="In units of an update whose subsets have a norm of 1.",
    )
    beta_1: float = decay(0.9, doc="Decay of the first moment.")
    beta_2: float = decay(
        0.999,
        doc='Decay of the second moment; `"adagrad"` has none.',
    )
    epsilon: float = number(
        1e-6,
        above=0.0,
        doc="Added to the root of the second moment, before bias correction.",
    )
    _: KW_ONLY
    rank: int = integer(128, at_least=1, doc="Dimension of the subspace.")
    refresh_every: int = integer(
        200,
        at_least=1,
        doc="Number of steps from one basis to the next.",
    )
    basis: Literal["svd", "random", "top_k", "uniform"] = choice(
        "svd",
        choices=("svd", "random", *INDEX_KINDS),
        doc='What the subspace is. `"svd"`: singular vectors of the '
        'gradient. `"random"`: random directions of the shorter side. '
        '`"top_k"`: the rows of the largest norm, or columns if they '
        'are longer. `"uniform"`: random rows or columns. The last two '
        "cost next to nothing.",
    )
    variant: Literal["adam", "adagrad"] = choice(
        "adam",
        choices=("adam", "adagrad"),
        doc="As for `SubsetNorm`.",
    )
    subsets: int | Literal["heuristic"] = argument(
        "heuristic",
        check=subset_moment.check_subsets,
        type='`"heuristic"` or an integer other than 0',
        doc="As for `SubsetNorm`.",
    )
    bias_correction: bool | None = argument(
        None,
        check=subset_moment.check_bias_correction,
        type="Boolean or `None`",
        doc='`None`: only with `variant="adam"`. It multiplies the '
        "complement as well, which is no average: by 10 in the first "
        "step. Use a warm-up.",
    )
    momentum_dtype: StateDtype = momentum_dtype()

    def check_arguments(self) -> None:
        super().check_arguments()
        subset_moment.check_variant(self)

    def _matrix(self, shape):
        """The shape of the matrix that is projected and the variable's axes
        along it, or `None`.
        """
        found = projection.matrix_of(shape)
        return found if found and self.rank < min(found[0]) else None

    def _axis(self, sizes):
        """The axis of the matrix that is projected."""
        tall = sizes[0] >= sizes[1]
        return int(tall != (self.basis in INDEX_KINDS))

    def choose(self, shape, path):
        return None

    def state_spec(self, shape, path):
        v = second_moment_spec(shape, self.subsets)
        matrix = self._matrix(shape)
        if matrix is None:
            apart = subset_moment.apart(shape, self.subsets)
            m = momentum_spec(shape, self.momentum_dtype, apart=apart)
            return {"m": m} | v
        sizes, axes = map(list, matrix)
        axis = self._axis(sizes)
        basis = StateSpec(
            (sizes[axis], self.rank),
            (axes[axis], None),
            initializer="identity",
        )
        if self.basis in INDEX_KINDS:
            basis = StateSpec((self.rank,), (None,), "int32")
        apart = subset_moment.apart(tuple(sizes), self.subsets)
        sizes[axis], axes[axis] = self.rank, None
        m = StateSpec(tuple(sizes), tuple(axes), refreshed=True, apart=apart)
        return {
            "m": in_dtype(m, self.momentum_dtype),
            **v,
            "basis": replace(basis, refreshed=True),
        }

    def is_refresh_due(self, count):
        # At t = 1, and at every multiple.
        t = count + 1
        return ops.logical_or(
            ops.equal(count, 0), ops.equal(t % self.refresh_every, 0)
        )

    def refresh(self, g, x, state, step):
        sizes, _ = self._matrix(tuple(g.shape))
        g = ops.reshape(g, sizes)
        return {
            "m": ops.zeros_like(state["m"]),
            "basis": self._new_basis(g, self._axis(sizes), step),
        }

    def _new_basis(self, g, axis, step):
        size = g.shape[axis]
        if self.basis == "top_k":
            return projection.largest_slices(g, axis, self.rank)
        if self.basis == "uniform":
            return projection.largest_entries(step.uniform((size,)), self.rank)
        with backend.full_precision():
            if self.basis == "svd":
                return projection.singular_vectors(g, axis, self.rank)
            noise = ops.cast(step.normal((size, self.rank)), g.dtype)
            return orthonormal_columns(noise)

    def update_rule(self, g, x, state, step):
        a, new = self._direction(g, state)
        u, new["v"] = precondition(
            a,
            g,
            state["v"],
            self.subsets,
            self.variant,
            self.beta_2,
            self.epsilon,
        )
        alpha = step_size(
            step, self.bias_correction, self.variant, self.beta_1, self.beta_2
        )
        return alpha * u, state | new

    def _direction(self, g, state):
        """Momentum where it is kept, the gradient in the complement."""
        shape = tuple(g.shape)
        matrix = self._matrix(shape)
        if matrix is None:
            m = ema(state["m"], g, 1.0 - self.beta_1)
            return m, {"m": m}
        sizes, _ = matrix
        along = (state["basis"], self._axis(sizes))
        g = ops.reshape(g, sizes)
        with backend.full_precision():
            y = projection.project(g, *along)
            m = ema(state["m"], y, 1.0 - self.beta_1)
            a = projection.with_projection(g, y, m, *along)
        return ops.reshape(a, shape), {"m": m}

    def moments(self, state, shape, path, t):
        # Of a subspace the momentum does not tell all of the first moment.
        m = state["m"] if self._matrix(shape) is None else None
        return subset_moment.moments(m, state["v"], shape, *self._statistics, t)

    def adopt(self, moments, shape, path, t):
        # A basis comes from a gradient, and its variable counts from there.
        if self._matrix(shape) is not None:
            return {}
        return subset_moment.adopt(moments, shape, *self._statistics, t)

    @property
    def _statistics(self) -> tuple[Any, Any, Any, Any]:
        return self.subsets, self.variant, self.beta_1, self.beta_2
