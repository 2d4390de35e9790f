"""What a step leaves as it was when a gradient is not finite.

A policy is a class: `skip_nonfinite` takes the name of each in `POLICIES`.
A gradient counts as finite if its squares are finite too. In float32 no element
may then be larger than 1.8e19.
"""

from keras import ops

from keras_adafactor.backends import backend


class Guard:
    """Skips nothing; the base of the policies.

    Each question is answered by a boolean scalar, or by `None` for "in any
    case", of which nothing is compiled.

    Attributes:
        skips_updates: Whether updates of single variables may be skipped.
        skips_steps: Whether whole steps may be.
    """

    skips_updates = False
    skips_steps = False

    def takes_step(self, gradients):
        """Whether anything is changed at all, of all gradients, unclipped."""
        return None

    def takes_updates(self, gradients, clipping):
        """What of the gradients must be known before they are clipped.

        Clipped, infinity would be an ordinary value, or zero.

        Args:
            gradients: List of tensors.
            clipping: `"each"` or `"together"`: how they are to be clipped;
                `None` if they are not.

        Returns:
            List of boolean scalars, whether each variable is updated, or
            `None`.
        """
        return None

    def takes_update(self, known, is_finite):
        """Whether a variable is updated, asked after its update was computed.

        Args:
            known: What `takes_updates` said of it.
            is_finite: Function without arguments that says whether the
                gradient was finite, by the new statistics where it can.
        """
        return known


class VariableGuard(Guard):
    """Leaves the variable as it was, and its statistics."""

    skips_updates = True

    def takes_updates(self, gradients, clipping):
        if clipping is None:
            return None
        finite = ops.stack([has_finite_square(g) for g in gradients])
        if clipping == "together":
            return [ops.all(finite)] * len(gradients)
        return ops.unstack(finite, len(gradients))

    def takes_update(self, known, is_finite):
        seen = is_finite()
        return seen if known is None else ops.logical_and(known, seen)


class StepGuard(Guard):
    """Leaves every variable as it was, and the count of steps."""

    skips_steps = True

    def takes_step(self, gradients):
        return ops.all(ops.stack([has_finite_square(g) for g in gradients]))


POLICIES = {None: Guard(), "variable": VariableGuard(), "step": StepGuard()}


def has_finite_square(g):
    """Whether all of a tensor can be squared in its dtype."""
    return ops.isfinite(backend.sum_of_squares(g))
