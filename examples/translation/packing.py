"""Which pairs share a row: first-fit packing of source and target together.

A sentence is much shorter than the longest that must fit, so rows that hold one
pair each are mostly padding. A packed row holds several pairs end to end, and
the segment number of each token says which pair it belongs to; positions start
over in every segment. With room for 8 tokens on either side, the pairs

    A  guten Morgen -> good morning      (eos is written .)
    B  ja           -> yes
    C  bis bald     -> see you soon

become the following row (`^` is bos, `_` padding). The source of C would fit
too, its target (4 with eos) would not, so C opens the next row:

    source_ids        guten  Morgen        .    ja  .  _  _  _
    source_segments       1       1        1     2  2  0  0  0
    source_positions      0       1        2     0  1  0  0  0

    target_ids            ^    good  morning     ^  yes  _  _  _
    labels             good morning        .   yes    .  _  _  _
    target_segments       1       1        1     2    2  0  0  0
    target_positions      0       1        2     0    1  0  0  0
    weights               1       1        1     1    1  0  0  0

Attention is allowed within a segment only, so a pair is computed exactly as if
it had the row to itself.
"""

import numpy as np


def first_fit(
    source_lengths: np.ndarray,
    target_lengths: np.ndarray,
    capacity: int,
    open_rows: int = 32,
) -> np.ndarray:
    """The row of each pair, in one pass over pairs in the order given.

    A pair goes to the oldest open row where both of its sides fit. If there is
    none, the oldest row is closed and a new one opened. More open rows fill
    better and cost more time: with log-normal lengths of mean 30 (targets a
    little longer) and a capacity of 256, one open row leaves 10 % padding on
    the target side, 32 leave 2 %.

    Args:
        source_lengths: `(n,)`, tokens of each source, at most `capacity`.
        target_lengths: `(n,)`, tokens of each target, at most `capacity`.
        capacity: Tokens that a row holds on either side.
        open_rows: How many rows are tried for a pair.

    Returns:
        `(n,)` int64 row numbers, counted from 0 without a gap.

    Raises:
        ValueError: A sequence is longer than `capacity`.
    """
    longest = max(source_lengths.max(), target_lengths.max())
    if longest > capacity:
        raise ValueError(
            f"`capacity` must be at least the longest sequence ({longest}). "
            f"Received: {capacity}"
        )
    rows = np.empty(len(source_lengths), np.int64)
    number = 0
    # One list per open row, oldest first: source room, target room, number.
    window = []
    pairs = zip(source_lengths.tolist(), target_lengths.tolist(), strict=True)
    for index, (source, target) in enumerate(pairs):
        for row in window:
            if row[0] >= source and row[1] >= target:
                break
        else:
            row = [capacity, capacity, number]
            number += 1
            window.append(row)
            del window[:-open_rows]
        row[0] -= source
        row[1] -= target
        rows[index] = row[2]
    return rows
