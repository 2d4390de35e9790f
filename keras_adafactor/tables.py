"""Tables of plain text."""


def lines_of_table(rows, right_aligned=0):
    """Lines of columns, with a rule under the first row.

    Args:
        rows: List of tuples of strings, of one length; the first is the header.
        right_aligned: Int, how many of the last columns are numbers.

    Returns:
        List of strings.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = len(widths) - right_aligned
    lines = [
        "  ".join(
            cell.rjust(width) if i >= numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return lines


def dimensions(shape):
    """A shape as it is shown: `(3, 4)`."""
    return "(" + ", ".join(map(str, shape)) + ")"
