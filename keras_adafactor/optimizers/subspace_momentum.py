"""Subspace-Momentum (Nguyen and Nguyen, 2024)."""

from dataclasses import replace
from typing import Any
from typing import Literal
from typing import Unpack

import keras
from keras import ops

from keras_adafactor import subset_moment
from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import OptimizerKeywords
from keras_adafactor.arguments import StateDtype
from keras_adafactor.arguments import check_choice
from keras_adafactor.arguments import check_decay
from keras_adafactor.arguments import check_integer
from keras_adafactor.arguments import check_number
from keras_adafactor.backends import backend
from keras_adafactor.functional import projection
from keras_adafactor.functional.decompositions import orthonormal_columns
from keras_adafactor.functional.moments import ema
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.storage import MOMENTUM_DTYPES
from keras_adafactor.storage import StateSpec
from keras_adafactor.storage import in_dtype
from keras_adafactor.storage import momentum_spec
from keras_adafactor.subset_moment import check_bias_correction
from keras_adafactor.subset_moment import check_subsets
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

    Args:
        learning_rate: Float >= 0, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments: in units of an update whose subsets have a norm
            of 1. Defaults to 1e-3.
        beta_1: Float in (0, 1), decay of the first moment. Defaults to 0.9.
        beta_2: Float in (0, 1), decay of the second; `"adagrad"` has none.
            Defaults to 0.999.
        epsilon: Float > 0, added to the root of the second moment, before
            bias correction. Defaults to 1e-6.
        rank: Integer >= 1, the dimension of the subspace. Defaults to 128.
        refresh_every: Integer >= 1, the steps from one basis to the next.
            Defaults to 200.
        basis: What the subspace is. `"svd"`: singular vectors of the gradient.
            `"random"`: random directions of the shorter side. `"top_k"`: the
            rows of the largest norm, columns if they are longer. `"uniform"`:
            random rows or columns. The last two cost next to nothing.
            Defaults to `"svd"`.
        variant: `"adam"` or `"adagrad"`, as for `SubsetNorm`. Defaults to
            `"adam"`.
        subsets: `"heuristic"` or an integer, as for `SubsetNorm`. Defaults to
            `"heuristic"`.
        bias_correction: Boolean, or `None` for that of the variant: with
            `"adam"` only. Multiplies the complement as well, which is no
            average: by 10 in the first step. A warm-up hides that. Defaults to
            `None`.
        momentum_dtype: `"float32"`, `"bfloat16"` or `"int8"`, how the first
            moment is stored. Defaults to `"float32"`.
        **kwargs: See `UpdateRuleOptimizer`. Weight decay comes after the step,
            as in the authors' code.

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

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        *,
        rank: int = 128,
        refresh_every: int = 200,
        basis: Literal["svd", "random", "top_k", "uniform"] = "svd",
        variant: Literal["adam", "adagrad"] = "adam",
        subsets: int | Literal["heuristic"] = "heuristic",
        bias_correction: bool | None = None,
        momentum_dtype: StateDtype = "float32",
        **kwargs: Unpack[OptimizerKeywords],
    ) -> None:
        super().__init__(learning_rate, **kwargs)
        self.beta_1 = check_decay("beta_1", beta_1)
        self.beta_2 = check_decay("beta_2", beta_2)
        self.epsilon = check_number("epsilon", epsilon, above=0.0)
        self.rank = check_integer("rank", rank, 1)
        self.refresh_every = check_integer("refresh_every", refresh_every, 1)
        self.basis = check_choice(
            "basis", basis, ("svd", "random", *INDEX_KINDS)
        )
        self.variant = check_choice("variant", variant, ("adam", "adagrad"))
        self.subsets = check_subsets(subsets)
        self.bias_correction = check_bias_correction(bias_correction, variant)
        self.momentum_dtype = check_choice(
            "momentum_dtype", momentum_dtype, MOMENTUM_DTYPES
        )

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
