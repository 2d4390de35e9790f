"""The size that just fits, in few compilations."""

import math


def largest_that_fits(measure, start, multiple=1):
    """Finds the largest size that fits, trying as few as it can.

    Memory grows about linearly with size, and what does not fit says by how
    much. So the next size tried is where a line through two known ones meets
    the limit; the answer is one that was tried and fits, and the next larger
    one was tried and does not.

    Args:
        measure: Function of a size, called once for each, that returns
            something with attributes `fits`, and `required` and `available`
            in bytes.
        start: First size to try, a multiple of `multiple`.
        multiple: Only multiples of it are sizes.

    Returns:
        The largest size that fits; 0 if none does.
    """
    # size -> what it needs, as a part of what is available
    known = {0: 0.0}

    def fits(size):
        found = measure(size * multiple)
        known[size] = found.required / found.available
        return found.fits

    low, high = 0, None  # fits (or is nothing), does not
    size = max(1, start // multiple)
    slow = 0
    while high is None or high - low > 1:
        before = math.inf if high is None else high - low
        if fits(size):
            low = size
        else:
            high = size
        if high is not None:
            slow = slow + 1 if high - low > before / 2 else 0
        size = _next(known, low, high, halve=slow >= 2)
    return low * multiple


def first_that_fits(measure, sizes):
    """Finds the first of some sizes that fits, by halving.

    Args:
        measure: Function of a size, called once for each that is tried, that
            returns something with an attribute `fits`.
        sizes: List, such that all that come after one that fits fit too.

    Returns:
        The first that fits, which was tried, as was the one before it; `None`
        if none does.
    """
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        if measure(sizes[middle]).fits:
            high = middle
        else:
            low = middle + 1
    return sizes[high] if high < len(sizes) else None


def _next(known, low, high, halve):
    if halve:
        return (low + high) // 2
    # The sizes that are nearest to the limit.
    a, b = sorted(known, key=lambda size: abs(known[size] - 1))[:2]
    slope = (known[b] - known[a]) / (b - a)
    guess = 2 * low
    if slope > 0:
        guess = math.floor(a + (1 - known[a]) / slope)
    if high is None:
        return min(max(guess, low + 1), 4 * low)
    return min(max(guess, low + 1), high - 1)
