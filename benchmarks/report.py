"""Writes the tables of README and docs from what was measured.

    python -m benchmarks.report
    python -m benchmarks.report --check

A table stands between marks that `benchmarks.tables` knows. With `--check`
nothing is written, and the exit status is 1 when one is not that of its data.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

from benchmarks import data_input
from benchmarks import family
from benchmarks import family_report
from benchmarks import records
from benchmarks import refresh_cost
from benchmarks import tables

ROOT = pathlib.Path(__file__).parents[1]


class Table(NamedTuple):
    """A table of a page.

    Attributes:
        page: Path, relative to the repository.
        name: What its mark says.
        make: Function that returns the table as Markdown; empty when nothing
            was measured.
    """

    page: str
    name: str
    make: Callable


def largest_model():
    """Billions of parameters, and layers, a column for every slice."""
    answers = records.load("largest_model")
    header = [
        "",
        "one v5e chip",
        "16 chips, split",
        "16 chips, fully sharded",
        "256 chips, fully sharded",
    ]
    labels = {
        "adam": "`keras.optimizers.Adam`",
        "keras_adafactor": "`keras.optimizers.Adafactor`",
        "adafactor": "`Adafactor`",
        "adafactor@bfloat16": "`Adafactor`, bfloat16 weights",
    }
    rows = []
    for optimizer, label in labels.items():
        row = [label]
        for found in answers.values():
            (best,) = found[optimizer]["results"]
            size = best["parameters"] / 1e9
            row.append(
                f"{size:.{0 if size >= 100 else 1}f} ({best['largest']})"
            )
        rows.append(row)
    return tables.markdown(header, rows)


TABLES = (
    Table("docs/tpu.md", "largest model", largest_model),
    Table("docs/memory_and_speed.md", "refresh", refresh_cost.table),
    Table("examples/translation/README.md", "data input", data_input.table),
    Table(
        "docs/which_optimizer.md",
        "family synthetic",
        lambda: family_report.table(family.load("synthetic")),
    ),
)


def outdated():
    """The tables that are not those of their data, and what they should be."""
    found = {}
    for table in TABLES:
        made = table.make()
        page = (ROOT / table.page).read_text()
        if made and tables.written(page, table.name) != made:
            found[table] = made
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    found = outdated()
    for table, made in found.items():
        if not options.check:
            path = ROOT / table.page
            text = tables.replaced(path.read_text(), table.name, made)
            path.write_text(text)
        said = "is outdated" if options.check else "written"
        print(f"{table.page}, {table.name}: {said}")
    return 1 if options.check and found else 0


if __name__ == "__main__":
    sys.exit(main())
