"""Bases of fewer vectors than an axis is long, learnt from gradients.

A basis is a matrix of shape (size, rank) with its vectors in the columns.
`rotate(g, bases)` of `eigenbasis` projects onto them, and `back` again.
"""

import math

from keras import ops

from keras_adafactor.functional.decompositions import eigenvectors
from keras_adafactor.functional.decompositions import of_unit_size
from keras_adafactor.functional.decompositions import orthonormal_columns
from keras_adafactor.functional.decompositions import product
from keras_adafactor.functional.decompositions import with_signs
from keras_adafactor.functional.eigenbasis import cross_gram
from keras_adafactor.functional.eigenbasis import rotate

# The smallest norm that a vector is divided by.
_MIN_NORM = 1e-8


def sketched_basis(g, axis, omega):
    """Right singular vectors of a sketch, after Halko et al., 2011.

    With `A` the transposed unfolding of `g` along the axis and `Q` an
    orthonormal basis of the columns of `A @ omega`, returns those of `Q^T A`.

    Args:
        g: Tensor, not zero everywhere, with at least `rank` elements for
            every index of the axis.
        axis: Int; its size is `d`.
        omega: Tensor of shape (d, rank): noise, or a basis that was good.

    Returns:
        Tensor of shape (d, rank), orthonormal columns, that of the largest
        singular value first. NaN if a decomposition has failed.
    """
    a = ops.reshape(ops.moveaxis(g, axis, -1), (-1, g.shape[axis]))
    a = of_unit_size(a)
    q = orthonormal_columns(product(a, omega))
    b = product(ops.transpose(a), q)
    # B^T = Q^T A has its right singular vectors in the space of P. There they
    # are the eigenvectors of R R^T, which is small.
    p = orthonormal_columns(b)
    r = product(ops.transpose(p), b)
    turn = eigenvectors(product(r, ops.transpose(r)))
    return with_signs(product(p, turn))


def objective_slopes(g, m, bases, cosine_axis):
    """Slopes of COAP's objective, a closed form.

    The objective is the mean squared error of the gradient projected and
    projected back, times one minus the mean cosine of gradient and momentum.

    Args:
        g: Tensor, the gradient.
        m: Tensor, the momentum, in the bases.
        bases: Dict from axis of `g` to tensor of shape (size, rank).
        cosine_axis: Int, the axis that the compared vectors run along.

    Returns:
        Dict from axis to tensor of the basis' shape: the slope with the other
        bases held.
    """
    m_up = rotate(m, bases, back=True)
    g_hat, _ = _unit_vectors(g, cosine_axis)
    m_hat, per_norm = _unit_vectors(m_up, cosine_axis)
    cosines = ops.sum(m_hat * g_hat, axis=cosine_axis, keepdims=True)
    cosine = ops.mean(cosines)
    by_m = (g_hat - cosines * m_hat) * per_norm / math.prod(cosines.shape)

    e = _twice_projected(g, bases) - g
    error = ops.mean(ops.square(e))
    by_e = e * (2.0 / math.prod(g.shape))
    slopes = {}
    for axis, p in bases.items():
        others = {a: basis for a, basis in bases.items() if a != axis}
        h = _twice_projected(g, others)
        by_error = cross_gram(by_e, rotate(h, {axis: p}), axis) + cross_gram(
            h, rotate(by_e, {axis: p}), axis
        )
        by_cosine = cross_gram(by_m, rotate(m, others, back=True), axis)
        slopes[axis] = (1.0 - cosine) * by_error - error * by_cosine
    return slopes


def correlated_bases(g, m, bases, cosine_axis, rate=0.1):
    """One step of every basis down COAP's objective, of length `rate` at most.

    Args:
        g, m, bases, cosine_axis: As for `objective_slopes`; `g` is not zero
            everywhere.
        rate: Float > 0.

    Returns:
        Dict from axis to the new basis, which is not quite orthonormal.
    """
    # The slopes are those of g = unit * g', as unit ** 2 * slope': taken in
    # such units, squares of slopes do not overflow.
    unit = ops.max(ops.abs(g))
    square = ops.clip(ops.square(unit), 1e-30, 1e30)
    slopes = objective_slopes(g / unit, m, bases, cosine_axis)
    new = {}
    for axis, slope in slopes.items():
        length = ops.sqrt(ops.sum(ops.square(slope)))
        size = ops.minimum(square, 1.0 / (length + 1e-6 / square))
        new[axis] = bases[axis] - rate * size * slope
    return new


def _twice_projected(g, bases):
    return rotate(rotate(g, bases), bases, back=True)


def _unit_vectors(x, axis):
    """The vectors along an axis, and the inverses, over their norms."""
    largest = ops.maximum(ops.max(ops.abs(x)), 1e-30)
    x = x / largest
    floor = ops.maximum(_MIN_NORM / largest, 1e-15)
    square = ops.sum(ops.square(x), axis=axis, keepdims=True)
    inverse = ops.rsqrt(ops.maximum(square, ops.square(floor)))
    return x * inverse, inverse / largest
