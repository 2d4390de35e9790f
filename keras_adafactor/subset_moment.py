"""The second moment of a gradient, one sum of squares for each subset.

State and step of the statistic of Subset-Norm, which has the momentum that an
optimizer gives it, so that neither is written twice.
"""

from keras import ops

from keras_adafactor.checks import check
from keras_adafactor.functional import subsets
from keras_adafactor.functional.moments import Moments
from keras_adafactor.functional.moments import bias_correction
from keras_adafactor.functional.moments import ema
from keras_adafactor.functional.moments import ema_weight
from keras_adafactor.storage import StateSpec


def check_subsets(name, value):
    """Checks a choice of subsets, and returns it.

    `"heuristic"`, or an integer: the size of blocks, see `subsets.blocks`.
    """
    check(
        value == "heuristic"
        or (isinstance(value, int) and not isinstance(value, bool) and value),
        name,
        "'heuristic' or an integer other than 0",
        value,
    )
    return value


def check_bias_correction(name, value):
    """Checks whether there is bias correction, and returns it."""
    valid = value is None or isinstance(value, bool)
    check(valid, name, "a boolean or None", value)
    return value


def check_variant(optimizer):
    """Checks that the bias correction of an optimizer fits its variant."""
    check(
        not (optimizer.bias_correction and optimizer.variant == "adagrad"),
        "bias_correction",
        "False or None for variant 'adagrad', whose sum is no average",
        optimizer.bias_correction,
    )


def resolve(choice, shape):
    """The `Subsets` of a variable."""
    if choice == "heuristic":
        return subsets.longer_side(shape)
    return subsets.blocks(shape, choice)


def apart(shape, choice):
    """Axes of a variable along which every index has a divisor of its own."""
    return resolve(choice, shape).apart


def second_moment_spec(shape, choice):
    """`v`, a number for each subset."""
    found = resolve(choice, shape)
    return {"v": StateSpec(found.sizes, found.axes, sees_gradient=True)}


def moments(m, v, shape, choice, variant, beta_1, beta_2, t):
    """`Moments` that the averages tell, which began at 0.

    Args:
        m: Tensor, the average of gradients, or `None`.
        v: Tensor, the entry of `second_moment_spec`.
        shape: Tuple of ints, the variable's.
        choice, variant, beta_2: As for `precondition`.
        beta_1: Float in (0, 1), the decay of `m`.
        t: Int, the steps that were taken.
    """
    first = None if m is None else m / ema_weight(t, beta_1)
    if variant == "adagrad":
        return Moments(first)
    found = resolve(choice, shape)
    mean = v / (found.count * ema_weight(t, beta_2))
    return Moments(first, ops.broadcast_to(found.spread(mean, shape), shape))


def adopt(given, shape, choice, variant, beta_1, beta_2, t):
    """The averages that `moments` would tell `given` of, as entries.

    None of a sum over all steps, nor a momentum without its divisor.

    Args:
        given: `Moments`.
        shape, choice, variant, beta_1, beta_2, t: As for `moments`; `beta_1`
            may be `None`, without momentum.
    """
    if given.second is None or variant == "adagrad":
        return {}
    v = resolve(choice, shape).sum(given.second) * ema_weight(t, beta_2)
    if beta_1 is None or given.first is None:
        return {"v": v}
    return {"m": ema_weight(t, beta_1) * given.first, "v": v}


def precondition(m, g, v, choice, variant, beta_2, epsilon):
    """`m / (sqrt(V) + epsilon)`, with the squares of `g` added to `V`.

    Args:
        m: Tensor, what is to be subtracted.
        g: Tensor of the same shape, the gradient.
        v: Tensor, the entry of `second_moment_spec`.
        choice: What `check_subsets` returned.
        variant: String. `"adagrad"` keeps a sum, all else an average.
        beta_2: Float in (0, 1), decay of the average.
        epsilon: Float > 0.

    Returns:
        Tuple of a tensor of the shape of `g`, and the new entry.
    """
    shape = tuple(g.shape)
    found = resolve(choice, shape)
    s = found.sum(ops.square(g))
    v = v + s if variant == "adagrad" else ema(v, s, 1.0 - beta_2)
    return m / (found.spread(ops.sqrt(v), shape) + epsilon), v


def step_size(step, corrected, variant, beta_1, beta_2):
    """The learning rate, with Adam's bias correction or without.

    Args:
        step: `Step`.
        corrected: Boolean, or `None` for that of the variant.
        variant: String; `"adam"` is corrected.
        beta_1: Float in (0, 1), or `None` without momentum.
        beta_2: Float in (0, 1).
    """
    corrected = variant == "adam" if corrected is None else corrected
    if not corrected:
        return step.lr
    return step.lr * bias_correction(step.t, beta_1, beta_2)
