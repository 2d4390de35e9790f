"""Tables in Markdown files, written from data and checked against it.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`, with
an empty line on both sides: the site takes what follows for a part of it else.
"""

import re

_BLOCK = r"(<!-- table: {name} -->\n\n)(.*?)(\n<!-- end of table -->)"


def markdown(header, rows):
    """Returns a table; every cell is text.

    Args:
        header: List of words.
        rows: List of lists of as many.
    """
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def written(text, name):
    """Returns the table of a name that stands in a Markdown text.

    Raises:
        ValueError: There is none, or more than one.
    """
    return _found(text, name).group(2)


def replaced(text, name, table):
    """Returns the text with another table in the place of that of a name."""
    found = _found(text, name)
    return text[: found.start(2)] + table + text[found.end(2) :]


def _found(text, name):
    blocks = list(
        re.finditer(_BLOCK.format(name=re.escape(name)), text, re.DOTALL)
    )
    if len(blocks) != 1:
        raise ValueError(
            f"There must be one table '{name}'. Received: {len(blocks)}"
        )
    return blocks[0]
