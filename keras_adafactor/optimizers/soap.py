"""SOAP (Vyas et al., 2024)."""

from dataclasses import KW_ONLY
from typing import Literal

import keras
from keras import ops

from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import StateDtype
from keras_adafactor.arguments import boolean
from keras_adafactor.arguments import choice
from keras_adafactor.arguments import decay
from keras_adafactor.arguments import integer
from keras_adafactor.arguments import number
from keras_adafactor.arguments import rate
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
from keras_adafactor.storage import StateSpec
from keras_adafactor.storage import in_dtype
from keras_adafactor.storage import momentum_dtype
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

    learning_rate: LearningRate = rate(
        3e-3,
        doc="The size of an update, as for Adam.",
    )
    beta_1: float = decay(0.95, doc="Decay of the first moment.")
    beta_2: float = decay(0.95, doc="Decay of the second moment.")
    epsilon: float = number(
        1e-8,
        above=0.0,
        doc="Added to the root of the second moment.",
    )
    _: KW_ONLY
    shampoo_beta: float | None = decay(
        None,
        optional=True,
        doc="Decay of the Gram matrices. `None`: `beta_2`.",
    )
    refresh_every: int = integer(
        10,
        at_least=1,
        doc="Number of updates from one refresh of the bases to the next.",
    )
    max_precondition_dim: int = integer(
        10000,
        at_least=0,
        doc="A longer axis has no basis: its entries stay as they are. The "
        "compiler of a TPU takes seconds over the decomposition of 512 "
        "rows, minutes over that of 2,048: choose 512 there.",
    )
    one_sided: bool = boolean(
        False,
        doc="Whether only the smallest axis has a basis.",
    )
    merge_axes: bool = boolean(
        False,
        doc="Whether neighbouring axes of variables with more than two are "
        "merged while their product is at most `max_precondition_dim`.",
    )
    factored: bool = boolean(
        False,
        doc="Whether the second moment of matrices is kept as row and "
        "column means.",
    )
    precondition_1d: bool = boolean(
        False,
        doc="Whether vectors have a basis too; without one the rule is Adam's.",
    )
    normalize_updates: bool = boolean(
        False,
        doc="Whether an update is divided by its RMS. Helps if bases are "
        "refreshed seldom.",
    )
    bound_updates: bool = boolean(
        True,
        doc="Whether `|M'| / sqrt(V)` is clipped at the largest value that "
        "it can have in a basis that stays: `(1 - beta_1) / sqrt((1 - "
        "beta_2) * (1 - beta_1 ** 2 / beta_2))`, which is 1 for the "
        "defaults. After a refresh a new basis vector can meet a second "
        "moment of almost zero: in a network whose units are mostly "
        "dead, one step moved a weight by 790 learning rates without "
        "the bound, and by 9 with it. Other steps stay as they are. "
        "There is no such value, and no bound, if `beta_1 ** 2 >= "
        "beta_2`, or if the second moment is `factored`.",
    )
    momentum_dtype: StateDtype = momentum_dtype(
        "In 8 bits it is stored as its quotient by `sqrt(V) + epsilon`, whose "
        "entries are of one size."
    )
    second_moment_dtype: Literal["float32", "bfloat16"] = choice(
        "float32",
        choices=("float32", "bfloat16"),
        doc="How the second moment is stored, if it is not factored.",
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
