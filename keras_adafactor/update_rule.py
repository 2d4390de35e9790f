"""The shell: everything an optimizer needs that is Keras and not the paper.

A paper's algorithm is two pure methods, `state_spec` and `update_rule`. The
shell keeps the state, and takes every variable through the same step:

    x <- float32(variable)
    x <- x - weight_decay * lr * x
    delta, state <- update_rule(g, x, state, t, lr, path)
    x <- x - delta
    average <- ema_momentum * average + (1 - ema_momentum) * x
    variable <- round(x)

in one place, so that it is the same on every backend, in one pass over
memory, and under every distribution strategy. No variable of the model and no
slot is assigned outside of it.
"""

import re
import warnings
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_adafactor import backend
from keras_adafactor.arguments import check_boolean
from keras_adafactor.arguments import check_choice
from keras_adafactor.arguments import check_keywords
from keras_adafactor.arguments import check_number
from keras_adafactor.arguments import check_patterns
from keras_adafactor.functional.moments import ema
from keras_adafactor.saved_state import check_fits
from keras_adafactor.storage import StateSpec
from keras_adafactor.storage import round_to
from keras_adafactor.storage import stored_parts


@dataclass(frozen=True)
class _Plan:
    """What `build` decides about one variable, once and for all."""

    path: str
    key: int
    specs: dict[str, StateSpec]
    slots: list[Any]  # every part of every spec, in order
    decayed: bool
    average: Any
    accumulator: Any


class UpdateRuleOptimizer(keras.optimizers.Optimizer):
    """Abstract base of optimizers that are a pure update rule.

    A subclass implements `state_spec` and `update_rule`. Unlike a subclass of
    `keras.optimizers.Optimizer` it never touches a variable.

    All keywords of `keras.optimizers.Optimizer` work. These differ from it:

    - Statistics and arithmetic are float32 whatever the dtype of the weights
      (arithmetic float64 for float64 weights).
    - Sparse gradients are made dense, repeated rows summed, before anything
      is squared.
    - Accumulators are float32, the gradients of all replicas are summed
      before they are accumulated or clipped, and nothing of the update is
      computed in a step that only accumulates.
    - Weight decay goes by the whole path of a variable on every backend, and
      is saved with the optimizer.
    - A checkpoint that does not fit is an error.

    Args:
        learning_rate: Float >= 0, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            without arguments.
        stochastic_rounding: Boolean, defaults to `True`. Whether weights of
            dtype bfloat16 and float16 are rounded up or down at random so
            that their mean is exact. Rounding to nearest never moves a
            bfloat16 weight of 1.0 by 1e-3. The noise is a hash of element,
            step and variable: the same on all replicas, and in a resumed run.
        skip_nonfinite: `"variable"` (the default), `"step"` or `None`: what is
            left as it was when a gradient holds NaN or infinity, or an
            element too large to be squared in float32 (1.8e19).
            `"variable"`: the variable it belongs to, with its statistics;
            read from statistics that are computed anyway, without a pass over
            the gradient. `"step"`: every variable, statistic and the counter
            of steps. All updates then wait for the last gradient, and no
            gradient is freed early: compiled for a TPU v5e, a training step of
            twelve 4096 x 4096 layers needs 2.4 bytes of temporaries a
            parameter, with `"variable"` 0.6, without a guard 0.4. Skips are
            counted in `skipped_updates`.
        **kwargs: See `OptimizerKeywords`.
    """

    def __init__(
        self,
        learning_rate,
        *,
        stochastic_rounding=True,
        skip_nonfinite="variable",
        **kwargs,
    ):
        check_keywords(kwargs)
        # Legacy `.h5` files are read by this name: with that of a built-in,
        # where this package is not imported, as the built-in.
        kwargs["name"] = (
            kwargs.get("name")
            or f"keras_adafactor_{type(self).__name__.lower()}"
        )
        # A class is callable too: a schedule that was not made.
        if not callable(learning_rate) or isinstance(learning_rate, type):
            check_number("learning_rate", learning_rate, at_least=0.0)
            learning_rate = float(learning_rate)
        check_boolean("stochastic_rounding", stochastic_rounding)
        check_choice(
            "skip_nonfinite", skip_nonfinite, ("variable", "step", None)
        )
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.stochastic_rounding = stochastic_rounding
        self.skip_nonfinite = skip_nonfinite
        self._undecayed = []
        self._waiting = {}

    # The contract.

    def state_spec(self, shape, path):
        """What is kept for a variable.

        Args:
            shape: Tuple of ints, the shape of the variable.
            path: String, the path of the variable.

        Returns:
            Dict from slot name to `StateSpec`. Its order is the order on disk.
        """
        raise NotImplementedError

    def update_rule(self, g, x, state, t, lr, path):
        """The paper's algorithm box for one variable, as a pure function.

        Branches in Python only on shapes, keys, hyper-parameters and `path`.

        Args:
            g: Dense tensor, the gradient.
            x: Tensor of the same shape, the variable.
            state: Dict from the keys of `state_spec` to tensors.
            t: Float scalar, the step, counted from 1.
            lr: Float scalar, the learning rate.
            path: String, the path of the variable.

        Returns:
            Tuple of what is to be subtracted from `x`, and the new state with
            the keys of the old.
        """
        raise NotImplementedError

    # State.

    def build(self, variables):
        if self.built:
            return
        # All that can be wrong with a choice of the user raises here, before
        # anything is made.
        specs = [self._specs(variable) for variable in variables]
        count = len(self.variables)
        with backend.creation_scope(self):
            # Keras would make accumulators of the variables' dtype: in
            # bfloat16, 599 additions of 1.0 give 256.
            accumulate = self.gradient_accumulation_steps
            self.gradient_accumulation_steps = None
            super().build(variables)
            self.gradient_accumulation_steps = accumulate
            if self.skip_nonfinite:
                self._skipped_updates = self.add_variable(
                    shape=(),
                    dtype="int32",
                    aggregation="only_first_replica",
                    name="skipped_updates",
                )
            self._plans = [
                self._plan(key, variable, specs[key])
                for key, variable in enumerate(variables)
            ]
            self._accumulated_gradients = [p.accumulator for p in self._plans]
        if self._waiting:
            self._load_waiting(count)

    def _specs(self, variable):
        if self._overwrite_variable_with_gradient(variable):
            return {}
        return self.state_spec(tuple(variable.shape), path_of(variable))

    def _plan(self, key, variable, specs):
        path = path_of(variable)
        whole = StateSpec.like(tuple(variable.shape), _compute_dtype(variable))
        return _Plan(
            path=path,
            key=key,
            specs=specs,
            slots=[
                self._add_slot(variable, path, name, part)
                for name, part in stored_parts(specs).items()
            ],
            decayed=bool(self.weight_decay)
            and not any(re.search(p, path) for p in self._undecayed),
            average=self._model_variables_moving_average[key]
            if self.use_ema
            else None,
            accumulator=self._add_slot(
                variable, path, "gradient_accumulator", whole
            )
            if self.gradient_accumulation_steps
            else None,
        )

    def _add_slot(self, variable, path, name, spec):
        with backend.colocate_with(self, variable):
            return self.add_variable(
                shape=spec.shape,
                initializer=spec.initializer,
                dtype=spec.dtype,
                layout=backend.derive_layout(variable, spec.axes),
                name=f"{path.replace('/', '_')}_{name}",
            )

    def slots(self):
        """What is kept for every variable.

        Returns:
            List of pairs of a variable's path and a dict from slot name to
            `keras.Variable`, in the order of the variables; empty before the
            optimizer is built.
        """
        return [
            (
                plan.path,
                dict(zip(stored_parts(plan.specs), plan.slots, strict=True)),
            )
            for plan in getattr(self, "_plans", ())
        ]

    @property
    def variables_built_with(self):
        """The variables of the model; empty before the optimizer is built."""
        return list(self._trainable_variables)

    @property
    def skipped_updates(self):
        """Number of updates skipped for NaN or infinity so far.

        An integer `keras.Variable`: updates of single variables with
        `skip_nonfinite="variable"`, whole steps with `"step"`. 0 before the
        optimizer is built, and with `skip_nonfinite=None`.
        """
        return getattr(self, "_skipped_updates", 0)

    # The step.

    def apply(self, grads, trainable_variables=None):
        grads = [backend.densify(gradient) for gradient in grads]
        if self.loss_scale_factor is not None:
            # Unscaled in float16, a small gradient would be 0.
            grads = [
                None if g is None else ops.cast(g, _compute_dtype(g))
                for g in grads
            ]
        super().apply(grads, trainable_variables)

    def _get_current_learning_rate(self):
        # A schedule counts updates, as all else does; Keras' micro-steps.
        if isinstance(
            self._learning_rate,
            keras.optimizers.schedules.LearningRateSchedule,
        ):
            return self._learning_rate(self.iterations)
        return super()._get_current_learning_rate()

    def _backend_apply_gradients(self, grads, trainable_variables):
        # Accumulation, decay and averages belong to `_update_variable`, where
        # a strategy allows them: Keras' own, around it, raise in `fit` under
        # `MirroredStrategy`.
        grads = [
            backend.ensure_shape(
                ops.cast(gradient, _compute_dtype(variable)),
                tuple(variable.shape),
            )
            for gradient, variable in zip(
                backend.sum_over_replicas(grads),
                trainable_variables,
                strict=True,
            )
        ]
        count = len(grads)
        step_finite = None
        if self.skip_nonfinite == "step":
            step_finite = ops.all(_have_finite_squares(grads))
            self._count_step(step_finite)
        totals = [None] * count
        if self.gradient_accumulation_steps:
            totals = [
                gradient
                + self._accumulated_gradients[self._get_variable_index(v)]
                for gradient, v in zip(grads, trainable_variables, strict=True)
            ]
            grads = [g / self.gradient_accumulation_steps for g in totals]
        finite = [step_finite] * count
        if self.skip_nonfinite == "variable":
            # Clipped, infinity would be an ordinary value, or zero.
            if self.global_clipnorm:
                finite = [ops.all(_have_finite_squares(grads))] * count
            elif self.clipnorm or self.clipvalue:
                finite = ops.unstack(_have_finite_squares(grads), count)
        backend.update_variables(
            self,
            self._update_variable,
            trainable_variables,
            self._clip_gradients(grads),
            [self.learning_rate] * count,
            totals,
            finite,
        )
        if self.use_ema:
            self._average_the_rest(trainable_variables, step_finite)

    def _count_step(self, finite):
        """Counts a step that is skipped, and takes it back."""
        skipped = ops.cast(ops.logical_not(finite), "int32")
        self._skipped_updates.assign_add(skipped)
        # `apply` will add 1.
        self._iterations.assign_sub(ops.cast(skipped, self._iterations.dtype))

    def _average_the_rest(self, given, finite):
        """Moves the averages of variables that got no gradient."""
        given = {self._get_variable_index(variable) for variable in given}
        rest = [
            variable
            for i, variable in enumerate(self._trainable_variables)
            if i not in given and self._plans[i].average is not None
        ]
        if rest:
            backend.update_variables(
                self, self._update_average, rest, [finite] * len(rest)
            )

    def update_step(self, gradient, variable, learning_rate):
        self._update_variable(variable, gradient, learning_rate)

    def _update_variable(
        self, variable, gradient, learning_rate, total=None, finite=None
    ):
        """Assigns a variable and its slots.

        Args:
            variable: Variable, of Keras or of the backend.
            gradient: Dense tensor, of which the update is made.
            learning_rate: Scalar.
            total: Tensor, the sum of the gradients accumulated so far, or
                `None` without accumulation.
            finite: Boolean scalar, whether the update is to be made, or `None`
                where that is for the statistics to say.
        """
        plan = self._plans[self._get_variable_index(variable)]
        average = [] if plan.average is None else [plan.average]
        targets = [variable, *average, *plan.slots]
        old = [ops.convert_to_tensor(target) for target in targets]

        def update():
            return self._updated(plan, gradient, old, learning_rate, finite)

        if total is None:
            new, skipped = update()
        else:
            steps = self.gradient_accumulation_steps
            complete = ops.equal((self._iterations + 1) % steps, 0)
            new, skipped = ops.cond(
                complete,
                update,
                lambda: (old, ops.zeros((), dtype="int32")),
            )
            kept = backend.select(complete, ops.zeros_like(total), total)
            if self.skip_nonfinite == "step":
                before = ops.convert_to_tensor(plan.accumulator)
                kept = backend.select(finite, kept, before)
            self.assign(plan.accumulator, kept)
        for target, value in zip(targets, new, strict=True):
            self.assign(target, value)
        if self.skip_nonfinite == "variable":
            self.assign_add(self._skipped_updates, skipped)

    def _update_average(self, variable, finite):
        """Assigns the average of a variable that got no gradient."""
        plan = self._plans[self._get_variable_index(variable)]
        old = ops.convert_to_tensor(plan.average)
        x = ops.convert_to_tensor(variable)
        dtype = _compute_dtype(old)
        steps = self.gradient_accumulation_steps or 1
        moves = ops.equal((self._iterations + 1) % steps, 0)
        if finite is not None:
            moves = ops.logical_and(moves, finite)
        average = self._averaged(
            ops.cast(old, dtype),
            ops.cast(x, dtype),
            ops.cast(self.iterations, "int32") + 1,
        )
        average = ops.cast(average, old.dtype)
        self.assign(plan.average, backend.select(moves, average, old))

    def _averaged(self, average, x, step):
        # The first average is the first value, as in Keras.
        rate = ops.where(ops.equal(step, 1), 1.0, 1.0 - self.ema_momentum)
        return ema(average, x, ops.cast(rate, x.dtype))

    def _updated(self, plan, gradient, old, learning_rate, finite):
        """New values of the variable, its average and its slots, as stored.

        Returns:
            Tuple of the list of tensors in the order of `old`, and the int32
            number of skipped updates, 0 or 1.
        """
        dtypes = [keras.backend.standardize_dtype(o.dtype) for o in old]
        dtype = _compute_dtype(old[0])
        step = ops.cast(self.iterations, "int32") + 1
        t = ops.cast(step, dtype)
        lr = ops.cast(learning_rate, dtype)
        g = ops.cast(gradient, dtype)
        x = ops.cast(old[0], dtype)
        # Keys of noise: one for each of the up to 32 arrays of a variable.
        keys = iter(range(plan.key << 5, plan.key + 1 << 5))

        if plan.decayed:
            x = x - x * (self.weight_decay * lr)
        slots = old[len(old) - len(plan.slots) :]
        delta, state = self.update_rule(
            g, x, self._decode(plan, slots, dtype), t, lr, plan.path
        )
        x = x - delta
        if self.skip_nonfinite == "variable":
            seen = _is_finite(g, state)
            finite = seen if finite is None else ops.logical_and(finite, seen)
        averages = []
        if plan.average is not None:
            if self.skip_nonfinite == "variable":
                # The average goes on, of a variable that stays where it was.
                x = backend.select(finite, x, ops.cast(old[0], dtype))
            average = self._averaged(ops.cast(old[1], dtype), x, step)
            averages = [self._rounded(average, dtypes[1], step, next(keys))]
            if self.ema_overwrite_frequency:
                overwrite = ops.equal(step % self.ema_overwrite_frequency, 0)
                x = backend.select(overwrite, average, x)
        new = [self._rounded(x, dtypes[0], step, next(keys)), *averages]
        for name, spec in plan.specs.items():
            new += spec.encode(state[name], step, next(keys))

        if finite is None:
            return new, ops.zeros((), dtype="int32")
        if self.skip_nonfinite == "variable":
            old = [old[0], *new[1 : 1 + len(averages)], *slots]
        new = [
            backend.select(finite, n, o) for n, o in zip(new, old, strict=True)
        ]
        return new, ops.cast(ops.logical_not(finite), "int32")

    def _decode(self, plan, slots, dtype):
        slots = iter(slots)
        return {
            name: spec.decode([next(slots) for _ in spec.parts()], dtype)
            for name, spec in plan.specs.items()
        }

    def _rounded(self, value, dtype, step, key):
        if self.stochastic_rounding:
            return round_to(value, dtype, step, key)
        return ops.cast(value, dtype)

    def finalize_variable_values(self, var_list):
        if not self.use_ema:
            return
        for variable in var_list:
            average = self._plans[self._get_variable_index(variable)].average
            if average is not None:
                # A copy: JAX refuses to donate one buffer as two variables.
                variable.assign(ops.copy(ops.convert_to_tensor(average)))

    # Weight decay.

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Excludes variables from weight decay.

        Args:
            var_list: List of variables.
            var_names: List of regular expressions. A variable is excluded if
                one is found anywhere in its path, `"encoder/dense/bias"`.

        Raises:
            ValueError: If the optimizer is built already.
        """
        if self.built:
            raise ValueError(
                "`exclude_from_weight_decay()` can only be called before the "
                "optimizer is built."
            )
        names = check_patterns("var_names", var_names) or []
        paths = [f"^{re.escape(path_of(v))}$" for v in var_list or ()]
        self._undecayed = names + paths

    # On disk.

    def _stored(self):
        """Key on disk -> variable.

        A key is the position and what the variable is, but not whose: layers
        are named anew in every process.
        """
        owned = {
            id(slot): path_of(slot)
            .rpartition("/")[2]
            .removeprefix(plan.path.replace("/", "_") + "_")
            for plan in getattr(self, "_plans", ())
            for slot in (*plan.slots, plan.average, plan.accumulator)
            if slot is not None
        }
        return {
            f"{i}_{owned.get(id(variable), variable.name)}": variable
            for i, variable in enumerate(self.variables)
        }

    def save_own_variables(self, store):
        # Before it is built it has no state but what was loaded.
        if not self.built and not self._waiting:
            return
        stored = {key: v.numpy() for key, v in self._stored().items()}
        for key, value in (self._waiting | stored).items():
            store[key] = value

    def load_own_variables(self, store):
        saved = {key: np.asarray(store[key]) for key in store.keys()}
        if not saved:
            warnings.warn(
                f"Optimizer '{self.name}' keeps the state it has: the file "
                "holds no optimizer state.",
                stacklevel=2,
            )
            return
        expected = self._stored()
        if not self.built:
            # Of the slots only `build` knows what they are.
            self._waiting = saved
            saved = {k: v for k, v in saved.items() if k in expected}
        check_fits(self, saved, expected)
        for key, variable in expected.items():
            variable.assign(saved[key])

    def _load_waiting(self, count):
        """Gives what was loaded to all variables but the first `count`."""
        waiting, self._waiting = self._waiting, {}
        expected = self._stored()
        check_fits(self, waiting, expected)
        with backend.outside_graph():
            for key, variable in list(expected.items())[count:]:
                variable.assign(waiting[key])

    def get_config(self):
        config = super().get_config()
        config["stochastic_rounding"] = self.stochastic_rounding
        config["skip_nonfinite"] = self.skip_nonfinite
        if self._undecayed:
            config["excluded_from_weight_decay"] = list(self._undecayed)
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        undecayed = config.pop("excluded_from_weight_decay", None)
        optimizer = super().from_config(config, custom_objects)
        if undecayed:
            optimizer.exclude_from_weight_decay(var_names=undecayed)
        return optimizer


def path_of(variable):
    """The path of a variable: what every regular expression is held against."""
    # A raw `tf.Variable` has a name only.
    path = getattr(variable, "path", None)
    return variable.name.partition(":")[0] if path is None else path


def _compute_dtype(variable):
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return "float64" if dtype == "float64" else "float32"


def _have_finite_squares(gradients):
    """Whether each gradient can be trusted, as a boolean vector."""
    squares = [ops.sum(ops.square(gradient)) for gradient in gradients]
    return ops.isfinite(ops.stack(squares))


def _is_finite(g, state):
    """Whether the new state can be trusted.

    Entries smaller than the gradient have seen all of it: to look at them
    costs no pass over memory. Scalars are no witness: the RMS of an update is
    0 where the second moment is infinite.
    """
    entries = list(state.values())
    smaller = [e for e in entries if e.shape != g.shape and len(e.shape) > 0]
    whole = [e for e in entries if e.shape == g.shape]
    entries = smaller or whole or [g]
    return ops.all(ops.stack([ops.all(ops.isfinite(e)) for e in entries]))
