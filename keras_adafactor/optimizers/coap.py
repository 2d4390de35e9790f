"""COAP (Xiao et al., 2024)."""

import math
from dataclasses import KW_ONLY
from dataclasses import replace
from typing import Literal

import keras
from keras import ops

from keras_adafactor import checks
from keras_adafactor import storage
from keras_adafactor.arguments import AxisGroupsChoice
from keras_adafactor.arguments import LearningRate
from keras_adafactor.arguments import StateDtype
from keras_adafactor.arguments import axis_groups
from keras_adafactor.arguments import boolean
from keras_adafactor.arguments import choice
from keras_adafactor.arguments import decay
from keras_adafactor.arguments import integer
from keras_adafactor.arguments import number
from keras_adafactor.arguments import rate
from keras_adafactor.backends import backend
from keras_adafactor.factored import precondition
from keras_adafactor.factored import second_moment_of
from keras_adafactor.factored import second_moment_spec
from keras_adafactor.factored import whole_second_moment
from keras_adafactor.functional import axis_groups as grouping
from keras_adafactor.functional.eigenbasis import rotate
from keras_adafactor.functional.eigenbasis import turn
from keras_adafactor.functional.matricization import grouped_axes
from keras_adafactor.functional.moments import Moments
from keras_adafactor.functional.moments import bias_correction
from keras_adafactor.functional.moments import ema
from keras_adafactor.functional.moments import ema_weight
from keras_adafactor.functional.moments import largest_quotient
from keras_adafactor.functional.moments import power_decay_rate
from keras_adafactor.functional.scaling import parameter_scale
from keras_adafactor.functional.scaling import rms
from keras_adafactor.functional.scaling import rms_clip_scale
from keras_adafactor.functional.scaling import update_rms
from keras_adafactor.functional.sketch import correlated_bases
from keras_adafactor.functional.sketch import sketched_basis
from keras_adafactor.optimizer import UpdateRuleOptimizer
from keras_adafactor.storage import StateSpec
from keras_adafactor.storage import in_dtype

# Convolutions up to this size are not projected.
MAX_WHOLE_CONVOLUTION = 9216


@keras.saving.register_keras_serializable(package="keras_adafactor")
class COAP(UpdateRuleOptimizer):
    """COAP: Adam, or Adafactor, on the gradient's projection onto few vectors.

    Unlike Adam, moments are kept of `G P`, with `P` a basis of a quarter of
    the smaller axis: 3 bytes a parameter where Adam has 8, and 0.8 with 8-bit
    state. The basis follows the gradients: every `refresh_every` steps it
    takes one cheap step down an objective that ties it to the momentum, every
    `recalibrate_every` of these it comes from a sketched decomposition. What
    the basis leaves of a gradient is not applied.

    Algorithm (G of m x n, m >= n; of a wider G the first axis is projected;
    `k` counts steps from 0, `t` from 1):

    ```
    at k = 0:                                    P = sketch(G, noise)
    every refresh_every * recalibrate_every:     P = sketch(G, P)
    every refresh_every else:                    P = P - 0.1 * clipped slope
        of mean((G P P^T - G) ** 2) * (1 - mean(cosine(rows of M P^T, of G)))
    sketch(A, W): Q = orthogonal factor of A W, P = right singular vectors of
                  Q^T A
    Y = G P
    "adamw":
        M = beta_1 * M + (1 - beta_1) * Y
        V = beta_2 * V + (1 - beta_2) * Y ** 2
        U = M / (sqrt(V) + epsilon)
        alpha = learning_rate * sqrt(1 - beta_2 ** t) / (1 - beta_1 ** t)
        x = x - alpha * scale * U P^T
        x = x - learning_rate * weight_decay * x
    "adafactor":
        beta_2t = 1 - t ** beta_2_decay
        V = row and column means of Y ** 2 + epsilon_1, decay beta_2t
        U = Y / sqrt(V);  U = U / max(1, rms(U) / clip_threshold)
        alpha = learning_rate * max(epsilon_2, rms(x))
        M = beta_1 * M + (1 - beta_1) * alpha * U
        x = x - alpha * weight_decay * x - scale * M P^T
    ```

    Convolution kernels (height, width, in, out) of more than 9,216 elements
    have a basis for each of the last two axes, of `1 / sqrt(rank_ratio)` of
    its size; those of 1 x 1 for the last alone. Vectors, smaller convolutions,
    and whatever a basis would not shorten, follow the rule with `Y = G`.

    State, with `r` the rank and shapes as for a matrix with m >= n:

    - `m` (M): `state_dtype`, (m, r).
    - `v` (V): `state_dtype`, (m, r); with 8 bits it is `v_root`, the root of
      it; with `"adafactor"` `v_row` (m,) and `v_col` (r,), float32.
    - `basis_i` (P): `state_dtype`, (size, r), for axis `i`.
    - `count`: int32 scalar, the steps of the variable, where it has a basis.

    Deviations from the paper: the two bases of a convolution are each one
    sketch of its unfolding, where the authors iterate until they fit one
    another. A refresh that is due waits for a gradient that is not zero
    everywhere, and `t` with it. Signs of a basis are fixed (its entries of
    largest magnitude are positive), so that backends agree. With
    `restore_state` the updates of `"adamw"` are bounded. As in the authors'
    code a basis is not made orthonormal again after a step. Where the rank is
    above that of the gradients, a vector that these do not need has what little
    of them a step of the basis gives it, and Adam's ordinary steps with that.

    If a sketch fails, the variable keeps its old basis, trains on, and tries
    again in the next step; `failed_refreshes` counts that. If the first one
    fails, its basis is the identity until the next regular refresh: only the
    first `r` rows or columns are trained.

    Raises:
        ValueError: If an argument is out of range or contradicts another.

    Example:

    >>> import keras
    >>> from keras_adafactor import COAP
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> model.compile(optimizer=COAP(rank_ratio=2), loss="mse")

    Reference:

    - [Xiao et al., 2024](https://arxiv.org/abs/2412.00071)
    """

    learning_rate: LearningRate = rate(
        1e-3,
        doc="The authors train LLaMA-1B with 0.01 and `scale=0.25`.",
    )
    beta_1: float = decay(0.9, doc="Decay of the first moment.")
    beta_2: float = decay(
        0.999,
        doc='Decay of the second moment; with `variant="adamw"` only.',
    )
    epsilon: float = number(
        1e-6,
        above=0.0,
        doc="Added to the root of the second moment before it is "
        'bias-corrected; with `variant="adamw"` only.',
    )
    _: KW_ONLY
    variant: Literal["adamw", "adafactor"] = choice(
        "adamw",
        choices=("adamw", "adafactor"),
        doc="See the algorithm.",
    )
    rank: int | None = integer(
        None,
        at_least=1,
        optional=True,
        doc="Number of vectors of a basis. It wins over `rank_ratio`; in "
        "the authors' code it loses.",
    )
    rank_ratio: float = number(
        4,
        at_least=1.0,
        doc="The rank is the smaller axis divided by this, and at least 1.",
    )
    refresh_every: int = integer(
        32,
        at_least=1,
        doc="Number of steps from one change of the basis to the next (T_u).",
    )
    recalibrate_every: int = integer(
        5,
        at_least=1,
        doc="Number of changes from one sketch to the next (lambda).",
    )
    restore_state: bool = boolean(
        False,
        doc="Whether the moments are carried over from the old basis to the "
        'new; else they keep their coordinates. With `variant="adamw"` '
        "and `beta_1 ** 2 < beta_2`, `|M| / sqrt(V)` is then clipped at "
        "`largest_quotient`, because a new direction can meet a second "
        "moment of almost zero.",
    )
    scale: float = number(
        1.0,
        above=0.0,
        doc="Updates of projected variables are multiplied by it.",
    )
    beta_2_decay: float = number(
        -0.8,
        below=0.0,
        doc="Exponent of the increasing decay. This and the next three are "
        'of `variant="adafactor"` only.',
    )
    epsilon_1: float = number(
        1e-30,
        above=0.0,
        doc="Added to the square of the projected gradient.",
    )
    epsilon_2: float = number(
        1e-3,
        above=0.0,
        doc="Floor of the parameter scale.",
    )
    clip_threshold: float | None = number(
        1.0,
        above=0.0,
        optional=True,
        doc="Largest RMS of an update in the basis, before it is multiplied "
        "by the step size. `None`: no clipping.",
    )
    axis_groups: AxisGroupsChoice = axis_groups(
        "These are for variables of three axes, or more than four. A "
        "variable is not projected if its rows are not its first axes "
        'and its columns all others, as with `"last_two"`, the '
        "authors' choice."
    )
    state_dtype: StateDtype = choice(
        "float32",
        choices=storage.MOMENTUM_DTYPES,
        doc="How moments and bases are stored. In 8 bits they have blocks "
        "along the last axis, and entries under 4,096 elements stay "
        "float32. The lower two are rounded without bias. A 4096 x 4096 "
        "matrix at a quarter of the rank takes 3.0, 1.5 or 0.76 bytes a "
        "parameter. In 8 bits, entries of V far below the largest of "
        "their block are sometimes rounded to 0: `|M| / sqrt(V)` is "
        "clipped at `largest_quotient`, which exact moments never pass. "
        "On a regression with 68,000 weights the loss after 1,472 steps "
        "was, in these three dtypes, 4.2e-4, 4.1e-4 and 4.1e-4 with a "
        "learning rate of 1e-3, and 2.1e-4, 2.4e-4 and 3.0e-4 with "
        "3e-3.",
    )

    meaning = {"m": ("variant", "beta_1"), "v": ("variant", "beta_2")}

    def check_arguments(self) -> None:
        super().check_arguments()
        checks.check(
            not self._rooted or self.beta_1**2 < self.beta_2,
            "state_dtype",
            "'float32' or 'bfloat16' unless `beta_1 ** 2 < beta_2`",
            self.state_dtype,
        )

    @property
    def weight_decay_order(self) -> str:  # type: ignore[override]
        return "after" if self.variant == "adamw" else "rule"

    @property
    def _rooted(self):
        """Whether the root of the second moment is kept, in its place."""
        return self.variant == "adamw" and self.state_dtype == "int8"

    @property
    def _is_bounded(self):
        """Whether state may hold moments that no gradients have made."""
        changed = self._rooted or self.restore_state
        return changed and self.beta_1**2 < self.beta_2

    def _projection(self, shape, path):
        """The shape in which a variable is projected, and axis -> rank."""
        if len(shape) == 4:
            working, ranks = shape, self._convolution_ranks(shape)
        else:
            groups = grouping.resolve(self.axis_groups, shape, path)
            sides = groups.rows, groups.cols
            if not groups.factored or sum(sides, ()) != tuple(
                range(len(shape))
            ):
                return shape, {}
            working = tuple(math.prod(shape[a] for a in s) for s in sides)
            axis = 1 if working[0] >= working[1] else 0
            ranks = {axis: self._rank(working[axis], self.rank_ratio)}
        ranks = {a: rank for a, rank in ranks.items() if rank < working[a]}
        return (working, ranks) if ranks else (shape, {})

    def _convolution_ranks(self, shape):
        size = math.prod(shape)
        if size <= MAX_WHOLE_CONVOLUTION:
            return {}
        one_by_one = shape[:2] == (1, 1)
        ratio = self.rank_ratio if one_by_one else math.sqrt(self.rank_ratio)
        return {
            # There are no more vectors than the unfolding has.
            axis: min(self._rank(shape[axis], ratio), size // shape[axis])
            for axis in ((3,) if one_by_one else (2, 3))
        }

    def _rank(self, size, ratio):
        return max(1, int(size / ratio)) if self.rank is None else self.rank

    def choose(self, shape, path):
        working, ranks = self._projection(shape, path)
        return working, tuple(ranks.items())

    def state_spec(self, shape, path):
        working, ranks = self._projection(shape, path)
        axes = tuple(range(len(shape)))
        if working != shape:
            axes = grouped_axes(shape, working)
        projected = tuple(
            ranks.get(axis, size) for axis, size in enumerate(working)
        )
        restored = self.restore_state and bool(ranks)

        m = StateSpec.like(projected, refreshed=restored)
        spec = {"m": in_dtype(m, self.state_dtype)}
        if self.variant == "adafactor":
            spec |= second_moment_spec(projected, grouping.last_two(projected))
        else:
            v = StateSpec.like(
                projected, refreshed=restored, sees_gradient=True
            )
            name = "v_root" if self._rooted else "v"
            spec[name] = in_dtype(v, self.state_dtype)
        # Axes of the projected gradient -> axes of the variable. A projection
        # may hide what is not finite.
        along = [None if a in ranks else axis for a, axis in enumerate(axes)]
        for name, entry in spec.items():
            spec[name] = replace(
                entry,
                axes=tuple(along[a] for a in entry.axes),
                sees_gradient=entry.sees_gradient and not ranks,
            )

        for axis, rank in ranks.items():
            basis = StateSpec(
                (working[axis], rank),
                (axes[axis], None),
                initializer="identity",
                refreshed=True,
            )
            spec[f"basis_{axis}"] = in_dtype(basis, self.state_dtype)
        return spec

    def is_refresh_due(self, count):
        return ops.equal(count % self.refresh_every, 0)

    def refresh(self, g, x, state, step):
        working, ranks = step.choice
        g = ops.reshape(g, working)
        old = {axis: state[f"basis_{axis}"] for axis, _ in ranks}

        def recalibrated():
            first = ops.equal(step.count, 0)
            return [
                sketched_basis(
                    g,
                    axis,
                    ops.where(first, step.normal(basis.shape, axis), basis),
                )
                for axis, basis in old.items()
            ]

        def correlated():
            # The vectors compared run along the in axis of a convolution.
            cosine_axis = 2 if len(working) == 4 else 1
            new = correlated_bases(g, state["m"], old, cosine_axis)
            return list(new.values())

        period = self.refresh_every * self.recalibrate_every
        recalibration = ops.equal(step.count % period, 0)
        with backend.full_precision():
            bases = ops.cond(recalibration, recalibrated, correlated)
            new = dict(zip(old, bases, strict=True))
            refreshed = {f"basis_{axis}": new[axis] for axis in new}
            if self.restore_state:
                refreshed |= self._restored(state, old, new)
        return refreshed

    def _restored(self, state, old, new):
        """The moments, projected back from the old bases and onto the new."""
        turns = {axis: turn(old[axis], new[axis]) for axis in new}
        restored = {"m": rotate(state["m"], turns)}
        if self.variant == "adamw":
            root = rotate(self._root(state), turns)
            if self._rooted:
                restored["v_root"] = ops.abs(root)
            else:
                restored["v"] = ops.square(root)
        return restored

    def _root(self, state):
        """Of the second moment."""
        return state["v_root"] if self._rooted else ops.sqrt(state["v"])

    def update_rule(self, g, x, state, step):
        shape = tuple(g.shape)
        working, ranks = step.choice
        bases = {axis: state[f"basis_{axis}"] for axis, _ in ranks}
        scale = self.scale if ranks else 1.0

        y = rotate(ops.reshape(g, working), bases)
        if self.variant == "adamw":
            u, new = self._adamw(y, state, step)
        else:
            alpha = step.lr * parameter_scale(rms(x), self.epsilon_2)
            u, new = self._adafactor(y, ops.squeeze(alpha), state, step)
        delta = scale * ops.reshape(rotate(u, bases, back=True), shape)
        if self.variant == "adafactor" and step.decay:
            delta = delta + (alpha * step.decay) * x
        return delta, state | new

    def _adamw(self, y, state, step):
        """The step in the basis, and the new moments."""
        m = ema(state["m"], y, 1.0 - self.beta_1)
        v = state["v_root"] ** 2 if self._rooted else state["v"]
        v = ema(v, ops.square(y), 1.0 - self.beta_2)
        root = ops.sqrt(v)
        u = m / (root + self.epsilon)
        if self._is_bounded:
            largest = largest_quotient(self.beta_1, self.beta_2)
            u = ops.clip(u, -largest, largest)
        alpha = step.lr * bias_correction(step.t, self.beta_1, self.beta_2)
        new = {"v_root": root} if self._rooted else {"v": v}
        return alpha * u, {"m": m} | new

    def _adafactor(self, y, alpha, state, step):
        """The step in the basis, and the new moments."""
        groups = grouping.last_two(tuple(y.shape))
        rate = power_decay_rate(step.t, self.beta_2_decay)
        u, new = precondition(y, state, groups, rate, self.epsilon_1)
        clip = 1.0
        if self.clip_threshold is not None:
            clip = rms_clip_scale(update_rms(u), self.clip_threshold)
        m = ema(state["m"], (alpha * clip) * u, 1.0 - self.beta_1)
        return m, {"m": m} | new

    def moments(self, state, shape, path, t):
        _, ranks = self._projection(shape, path)
        if ranks:
            # A projection does not tell what it left out.
            return Moments()
        if self.variant == "adafactor":
            # Its momentum is of steps, whose learning rates are gone.
            groups = grouping.last_two(shape)
            return Moments(None, whole_second_moment(state, groups))
        return Moments(
            state["m"] / ema_weight(t, self.beta_1),
            ops.square(self._root(state)) / ema_weight(t, self.beta_2),
        )

    def adopt(self, moments, shape, path, t):
        _, ranks = self._projection(shape, path)
        if ranks or moments.second is None:
            return {}
        if self.variant == "adafactor":
            groups = grouping.last_two(shape)
            return second_moment_of(moments.second, groups, self.epsilon_1)
        v = ema_weight(t, self.beta_2) * moments.second
        state = {"v_root": ops.sqrt(v)} if self._rooted else {"v": v}
        if moments.first is not None:
            state["m"] = ema_weight(t, self.beta_1) * moments.first
        return state
