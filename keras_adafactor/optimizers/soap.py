"""SOAP (Vyas et al., 2024)."""

from typing import Literal
from typing import Unpack

import keras
from keras import ops

from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import OptimizerKeywords
from keras_adafactor.arguments import StateDtype
from keras_adafactor.arguments import check_boolean
from keras_adafactor.arguments import check_choice
from keras_adafactor.arguments import check_decay
from keras_adafactor.arguments import check_integer
from keras_adafactor.arguments import check_number
from keras_adafactor.backends import backend
from keras_adafactor.factored import second_moment_of
from keras_adafactor.factored import update_second_moment
from keras_adafactor.factored import whole_second_moment
from keras_adafactor.functional.axis_groups import AxisGroups
from keras_adafactor.functional.decompositions import eigenvectors
from keras_adafactor.functional.decompositions import power_step
from keras_adafactor.functional.eigenbasis import gram
from keras_adafactor.functional.eigenbasis import rotate
from keras_adafactor.functional.eigenbasis import rotate_gradient
from keras_adafactor.functional.eigenbasis import turn
from keras_adafactor.functional.matricization import merge_neighbours
from keras_adafactor.functional.moments import Moments
from keras_adafactor.functional.moments import bias_correction
from keras_adafactor.functional.moments import ema_weight
from keras_adafactor.functional.moments import largest_quotient
from keras_adafactor.functional.scaling import rms
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.storage import MOMENTUM_DTYPES
from keras_adafactor.storage import StateSpec
from keras_adafactor.storage import in_dtype
from keras_adafactor.storage import momentum_spec


@keras.saving.register_keras_serializable(package="keras_adafactor")
class SOAP(UpdateRuleOptimizer):
    """SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

    Unlike Adam, gradients are rotated, along every axis of a variable, into
    the eigenvectors of an average of `G G^T`, where a second moment of each
    entry says most. The second moment moves every step, the bases only every
    `refresh_every`. It needs fewer steps than Adam and saves no memory: two
    square matrices an axis come on top of Adam's moments.

    Algorithm (for a matrix; `t` counts updates, one less than the calls):

    ```
    first call:  L, R = (1 - shampoo_beta) * (G G^T, G^T G)
                 Q_L, Q_R = eigenvectors(L), eigenvectors(R); no update
    G' = Q_L^T G Q_R
    M' = beta_1 * M' + (1 - beta_1) * G'
    V  = beta_2 * V + (1 - beta_2) * G' ** 2
    N  = Q_L clip(M' / (sqrt(V) + epsilon)) Q_R^T
    x  = x - learning_rate * sqrt(1 - beta_2 ** t) / (1 - beta_1 ** t) * N
    L, R = averages of G G^T, G^T G with decay shampoo_beta
    every refresh_every updates:
        sort the columns of Q, and V and M' with them, by q^T L q
        Q = orthogonal factor of L Q;  M' rotated from the old basis
    ```

    State, with `d` the size of an axis that has a basis:

    - `m` (M') and `v` (V): of the shape of the variable, in the eigenbasis;
      `v_row`, `v_col` in place of `v` with `factored`.
    - `gram_i` (L) and `basis_i` (Q): float32, (d, d), for axis `i`.
    - `count`: int32 scalar, the calls of the variable.

    Args:
        learning_rate: Float >= 0, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments: the size of an update, as for Adam. Defaults to
            3e-3.
        beta_1: Float in (0, 1), decay of the first moment. Defaults to 0.95.
        beta_2: Float in (0, 1), decay of the second. Defaults to 0.95.
        epsilon: Float > 0, added to the root of the second moment. Defaults
            to 1e-8.
        shampoo_beta: Float in (0, 1) or `None`, decay of the Gram matrices.
            Defaults to `None`, `beta_2`.
        refresh_every: Integer >= 1, the updates from one refresh of the bases
            to the next. Defaults to 10.
        max_precondition_dim: Integer >= 0. A longer axis has no basis: its
            entries stay as they are. Defaults to 10,000. The compiler of a
            TPU takes seconds over the decomposition of 512 rows, minutes over
            that of 2,048: choose 512 there.
        one_sided: Boolean, whether only the smallest axis has a basis.
            Defaults to `False`.
        merge_axes: Boolean, whether neighbouring axes of variables with more
            than two are merged while their product is at most
            `max_precondition_dim`. Defaults to `False`.
        factored: Boolean, whether the second moment of matrices is kept as
            row and column means. Defaults to `False`.
        precondition_1d: Boolean, whether vectors have a basis too; without
            one the rule is Adam's. Defaults to `False`.
        normalize_updates: Boolean, whether an update is divided by its RMS.
            Helps where bases are refreshed seldom. Defaults to `False`.
        bound_updates: Boolean, whether `|M'| / sqrt(V)` is clipped at the
            largest value that it can have in a basis that stays:
            `(1 - beta_1) / sqrt((1 - beta_2) * (1 - beta_1 ** 2 / beta_2))`,
            which is 1 for the defaults. After a refresh a new basis vector can
            meet a second moment of almost zero: in a network whose units are
            mostly dead, one step moved a weight by 790 learning rates without
            the bound, and by 9 with it. Other steps stay as they are. There is
            no such value, and no bound, if `beta_1 ** 2 >= beta_2`, or if the
            second moment is `factored`. Defaults to `True`.
        momentum_dtype: `"float32"`, `"bfloat16"` or `"int8"`, how the first
            moment is stored; in 8 bits as its quotient by
            `sqrt(V) + epsilon`, whose entries are of one size. Defaults to
            `"float32"`.
        second_moment_dtype: `"float32"` or `"bfloat16"`, how the second is,
            where it is not factored. Defaults to `"float32"`.
        **kwargs: See `UpdateRuleOptimizer`.

    Deviations from the paper, as in the authors' code, which made its figures:
    the first call only sets the bases up; epsilon is outside the root; a
    refresh sorts. Their default weight decay of 0.01 is none here.

    Deviations from that code: the first moment is kept in the eigenbasis, which
    saves a rotation a step and gives the same numbers. The first bases of more
    than 256 rows come from ten steps of orthogonal iteration. Coordinates of a
    gradient under 1e-5 of its norm are 0, and so is the update along an index
    that never had a gradient: divided by the root of their own square, what
    float32 leaves there would be steps of ordinary size. Updates are bounded;
    `bound_updates=False` turns that off.

    If a decomposition fails, the variable keeps its old bases, trains on, and
    tries again in the next step; `failed_refreshes` counts that. If the first
    one fails, a basis is the identity until the next regular refresh. Entries
    of a gradient below 1e-19 count as zero: their squares underflow.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> import keras
    >>> from keras_adafactor import SOAP
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=SOAP(one_sided=True), loss="mse")

    Reference:

    - [Vyas et al., 2024](https://arxiv.org/abs/2409.11321)
    """

    weight_decay_order = "rule"
    meaning = {"m": ("beta_1", "_keeps_quotient"), "v": ("beta_2",)}

    def __init__(
        self,
        learning_rate: LearningRate = 3e-3,
        beta_1: float = 0.95,
        beta_2: float = 0.95,
        epsilon: float = 1e-8,
        *,
        shampoo_beta: float | None = None,
        refresh_every: int = 10,
        max_precondition_dim: int = 10000,
        one_sided: bool = False,
        merge_axes: bool = False,
        factored: bool = False,
        precondition_1d: bool = False,
        normalize_updates: bool = False,
        bound_updates: bool = True,
        momentum_dtype: StateDtype = "float32",
        second_moment_dtype: Literal["float32", "bfloat16"] = "float32",
        **kwargs: Unpack[OptimizerKeywords],
    ) -> None:
        super().__init__(learning_rate, **kwargs)
        self.beta_1 = check_decay("beta_1", beta_1)
        self.beta_2 = check_decay("beta_2", beta_2)
        self.epsilon = check_number("epsilon", epsilon, above=0.0)
        self.shampoo_beta = check_decay(
            "shampoo_beta", shampoo_beta, optional=True
        )
        self.refresh_every = check_integer("refresh_every", refresh_every, 1)
        self.max_precondition_dim = check_integer(
            "max_precondition_dim", max_precondition_dim, 0
        )
        self.one_sided = check_boolean("one_sided", one_sided)
        self.merge_axes = check_boolean("merge_axes", merge_axes)
        self.factored = check_boolean("factored", factored)
        self.precondition_1d = check_boolean("precondition_1d", precondition_1d)
        self.normalize_updates = check_boolean(
            "normalize_updates", normalize_updates
        )
        self.bound_updates = check_boolean("bound_updates", bound_updates)
        self.momentum_dtype = check_choice(
            "momentum_dtype", momentum_dtype, MOMENTUM_DTYPES
        )
        self.second_moment_dtype = check_choice(
            "second_moment_dtype", second_moment_dtype, MOMENTUM_DTYPES[:2]
        )

    def _working_shape(self, shape):
        if self.merge_axes and len(shape) > 2:
            return merge_neighbours(shape, self.max_precondition_dim)
        return shape

    def _rotated_axes(self, shape):
        """Axes of the working shape that have a basis."""
        working = self._working_shape(shape)
        if len(shape) == 1 and not self.precondition_1d or 0 in shape:
            return []
        axes = list(range(len(working)))
        if self.one_sided and len(working) > 1:
            axes = [min(axes, key=lambda a: working[a])]
        return [a for a in axes if working[a] <= self.max_precondition_dim]

    def _factors(self, working):
        return self.factored and len(working) == 2

    def choose(self, shape, path):
        return None

    def state_spec(self, shape, path):
        working = self._working_shape(shape)
        axes = self._rotated_axes(shape)
        refreshed = bool(axes)
        m = momentum_spec(shape, self.momentum_dtype, refreshed=refreshed)
        if self._factors(working):
            own = working == shape
            v = {
                f"v_{side}": StateSpec(
                    (size,), (axis if own else None,), refreshed=refreshed
                )
                for side, size, axis in zip(
                    ("row", "col"), working, (0, 1), strict=True
                )
            }
        else:
            whole = StateSpec.like(shape, refreshed=refreshed)
            v = {"v": in_dtype(whole, self.second_moment_dtype)}
        spec = {"m": m} | v
        for axis in axes:
            along = axis if working == shape else None
            square = (working[axis], working[axis])
            for name in ("gram", "basis"):
                spec[f"{name}_{axis}"] = StateSpec(
                    square,
                    (along, None),
                    initializer="identity" if name == "basis" else "zeros",
                    sees_gradient=name == "gram" and axis == axes[0],
                    refreshed=True,
                )
        return spec

    def is_refresh_due(self, count):
        # In the first call, and after every `refresh_every` updates.
        updates = count - 1
        return ops.logical_or(
            ops.equal(count, 0),
            ops.logical_and(
                updates > 0, ops.equal(updates % self.refresh_every, 0)
            ),
        )

    def refresh(self, g, x, state, step):
        shape = tuple(g.shape)
        axes = self._rotated_axes(shape)

        def first():
            rate = 1.0 - self._shampoo_beta
            new = dict(state)
            with backend.full_precision():
                gradient = ops.reshape(g, self._working_shape(shape))
                for axis in axes:
                    new[f"gram_{axis}"] = rate * gram(gradient, axis)
                    new[f"basis_{axis}"] = eigenvectors(new[f"gram_{axis}"])
            return new

        def again():
            new = self._in_working_shape(state, shape)
            m = self._first_moment(new)
            turns = {}
            with backend.full_precision():
                for axis in axes:
                    old = state[f"basis_{axis}"]
                    order, basis = power_step(state[f"gram_{axis}"], old)
                    new[f"basis_{axis}"] = basis
                    turns[axis] = turn(old, basis)
                    new |= self._sorted(new, axis, order)
                m = rotate(m, turns)
            return new | {"m": self._kept_of(m, new)}

        def flat(branch):
            return lambda: [
                ops.reshape(value, state[name].shape)
                for name, value in branch().items()
            ]

        values = ops.cond(ops.equal(step.count, 0), flat(first), flat(again))
        return dict(zip(state, values, strict=True))

    def _sorted(self, state, axis, order):
        """The second moment, in the order of the new basis."""
        if "v" in state:
            return {"v": ops.take(state["v"], order, axis=axis)}
        name = ("v_row", "v_col")[axis]
        return {name: ops.take(state[name], order)}

    def update_rule(self, g, x, state, step):
        shape = tuple(g.shape)
        new = self._in_working_shape(state, shape)
        axes = self._rotated_axes(shape)
        bases = {axis: new[f"basis_{axis}"] for axis in axes}
        # Averages stay, and nothing moves, in the first call.
        t = step.t - 1.0
        moves = ops.minimum(t, 1.0)

        m = self._first_moment(new)
        with backend.full_precision():
            g = ops.reshape(g, self._working_shape(shape))
            rate = (1.0 - self._shampoo_beta) * moves
            for axis in axes:
                name = f"gram_{axis}"
                new[name] = new[name] + rate * (gram(g, axis) - new[name])
            rotated = rotate_gradient(g, bases)
        m = m + (1.0 - self.beta_1) * moves * (rotated - m)
        rate = (1.0 - self.beta_2) * moves
        groups = self._groups(new)
        new |= update_second_moment(rotated, new, groups, rate, 0.0)
        u = self._quotient(m, new)
        new["m"] = u if self._keeps_quotient else m
        u = self._where_seen(rotate(u, bases, back=True), new, axes)
        if self.normalize_updates:
            # XLA divides by the product of two divisors: it must not be 0.
            u = u / ops.maximum(rms(u), 1e-12)

        correction = bias_correction(
            ops.maximum(t, 1.0), self.beta_1, self.beta_2
        )
        lr = step.lr * moves
        delta = (lr * correction) * ops.reshape(u, shape)
        if step.decay:
            delta = delta + (lr * step.decay) * (x - delta)
        return delta, {
            name: ops.reshape(value, state[name].shape)
            for name, value in new.items()
        }

    def _where_seen(self, u, state, axes):
        """0 along indices that never had a gradient, whatever the bases."""
        for axis in axes:
            others = [a for a in range(len(u.shape)) if a != axis]
            seen = ops.diagonal(state[f"gram_{axis}"]) > 0
            u = ops.where(ops.expand_dims(seen, others), u, 0.0)
        return u

    def _in_working_shape(self, state, shape):
        working = self._working_shape(shape)
        moments = {
            name: ops.reshape(state[name], working)
            for name in ("m", "v")
            if name in state
        }
        return state | moments

    def _groups(self, state):
        """Rows and columns of the second moment."""
        return AxisGroups() if "v" in state else AxisGroups((0,), (1,))

    def _root(self, state):
        """`sqrt(V)`, of state in the working shape."""
        return ops.sqrt(whole_second_moment(state, self._groups(state)))

    def _quotient(self, m, state):
        """`M' / (sqrt(V) + epsilon)`; 0 where there never was a gradient.

        There a refresh may leave momentum of a neighbour.
        """
        root = self._root(state)
        u = ops.where(root > 0, m / (root + self.epsilon), 0.0)
        exact = "v" in state and self.beta_1**2 < self.beta_2
        if self.bound_updates and exact:
            largest = largest_quotient(self.beta_1, self.beta_2)
            u = ops.clip(u, -largest, largest)
        return u

    @property
    def _keeps_quotient(self):
        """Whether `m` is `M' / (sqrt(V) + epsilon)`, in place of `M'`.

        Its entries are of one size, as 8 bits with one scale want them.
        """
        return self.momentum_dtype == "int8"

    def _first_moment(self, state):
        """`M'`, of state in the working shape."""
        m = state["m"]
        if not self._keeps_quotient:
            return m
        return m * (self._root(state) + self.epsilon)

    def _kept_of(self, m, state):
        return self._quotient(m, state) if self._keeps_quotient else m

    def moments(self, state, shape, path, t):
        updates = t - 1
        if not updates:
            return Moments()
        state = self._in_working_shape(state, shape)
        axes = self._rotated_axes(shape)
        bases = {axis: state[f"basis_{axis}"] for axis in axes}
        v = whole_second_moment(state, self._groups(state))
        # In a basis in which entries are not correlated.
        squared = {axis: ops.square(basis) for axis, basis in bases.items()}
        with backend.full_precision():
            m = rotate(self._first_moment(state), bases, back=True)
            v = rotate(v, squared, back=True)
        return Moments(
            ops.reshape(m, shape) / ema_weight(updates, self.beta_1),
            ops.reshape(v, shape) / ema_weight(updates, self.beta_2),
        )

    def adopt(self, moments, shape, path, t):
        # Moments do not tell the basis, and are of no use in another.
        if self._rotated_axes(shape) or moments.second is None:
            return {}
        working = self._working_shape(shape)
        v = ema_weight(t - 1, self.beta_2) * moments.second
        groups = self._groups({} if self._factors(working) else {"v": v})
        state = second_moment_of(ops.reshape(v, working), groups, 0.0)
        if moments.first is not None:
            m = ema_weight(t - 1, self.beta_1) * moments.first
            state["m"] = self._kept_of(ops.reshape(m, working), state)
        return {
            name: ops.reshape(value, shape) if name in ("m", "v") else value
            for name, value in state.items()
        }

    @property
    def _shampoo_beta(self):
        given = self.shampoo_beta
        return self.beta_2 if given is None else given
