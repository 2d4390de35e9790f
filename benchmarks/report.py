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

from benchmarks import change_optimizer
from benchmarks import data_input
from benchmarks import family
from benchmarks import family_report
from benchmarks import learning_rates
from benchmarks import optimizers
from benchmarks import paper_claims
from benchmarks import programs
from benchmarks import records
from benchmarks import refresh_cost
from benchmarks import state_bytes
from benchmarks import tables
from benchmarks import train_step
from benchmarks import trainings

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
    answers = records.load("largest_model")["answers"]
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


# Mode of `step_time`, by backend -> heading.
_MODES = {
    ("tensorflow", "graph"): "TensorFlow, graph",
    ("tensorflow", "jit"): "TensorFlow, XLA",
    ("jax", "jit"): "JAX",
    ("torch", "eager"): "PyTorch, eager",
}


def _steps():
    """(backend, mode) -> optimizer -> row of `benchmarks.step_time`."""
    found = {}
    for backend, mode in _MODES:
        rows = records.load(f"step_time_{backend}").get("results", [])
        found[backend, mode] = {
            row["optimizer"]: row for row in rows if row["mode"] == mode
        }
    return found


def _of_steps(names, cell):
    """A table of `step_time`, a column for every way to run.

    Args:
        names: Of the optimizers.
        cell: Function of a row that returns text.
    """
    columns = _steps().values()
    rows = [
        [
            f"`{name}`",
            *(
                cell(column[name]) if name in column else ""
                for column in columns
            ),
        ]
        for name in names
    ]
    return tables.markdown(["", *_MODES.values()], rows)


def _measured():
    """Names of the optimizers that were timed, ours first."""
    names = [*optimizers.FAMILY, *optimizers.VARIANTS, *optimizers.KERAS]
    for peers in optimizers.PEERS.values():
        names += peers
    columns = _steps().values()
    return [name for name in names if any(name in c for c in columns)]


def step_time():
    """Milliseconds of the processors, and over Adam's."""
    return _of_steps(
        _measured(),
        lambda row: (
            f"{row['cpu_milliseconds']:.0f} ({row['cpu_over_adam']:.2f})"
        ),
    )


def first_step():
    """Seconds to the end of the first step."""
    return _of_steps(_measured(), lambda row: f"{row['first_seconds']:.1f}")


def speed():
    """What a step takes over Adam's, of the three that a reader knows."""
    return _of_steps(
        ("Adafactor", "keras.Adafactor", "keras.Adam"),
        lambda row: f"{row['cpu_over_adam']:.2f}",
    )


def _bytes_and_cycles(row, adam):
    return f"{row['bytes_accessed']:.1f}; {row['cycles'] / adam['cycles']:.2f}"


def tpu_compile():
    """Bytes and cycles a parameter of the step, by the TPU compiler."""
    rows = records.load("tpu_compile")["optimizer_step"]
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))
    found = {(tuple(r["shape"]), r["optimizer"]): r for r in rows}
    names = [
        row["optimizer"] for row in rows if tuple(row["shape"]) == shapes[1]
    ]
    return tables.markdown(
        ["bytes moved; cycles over Adam's", *map(str, shapes)],
        [
            [
                f"`{name}`",
                *(
                    _bytes_and_cycles(
                        found[shape, name], found[shape, "keras.Adam"]
                    )
                    for shape in shapes
                ),
            ]
            for name in names
        ],
    )


def small_transformer():
    """Cycles over Adam's of a step that is many kernels, by topology."""
    rows = records.load("tpu_compile").get("small_transformer", [])
    cycles = {
        (row["optimizer"], row["topology"]): row["cycles"] for row in rows
    }
    topologies = list(dict.fromkeys(row["topology"] for row in rows))
    names = list(dict.fromkeys(row["optimizer"] for row in rows))
    return rows and tables.markdown(
        ["", *(topology.partition(":")[0] for topology in topologies)],
        [
            [
                f"`{name}`",
                *(
                    f"{cycles[name, t] / cycles['keras.Adam', t]:.2f}"
                    for t in topologies
                ),
            ]
            for name in names
        ],
    )


def family_cost():
    """What an ordinary step of each of the family costs, beside Adam."""
    steps = _steps()
    compiled = records.load("tpu_compile")
    shape = compiled["optimizer_step"][0]["shape"]
    moved = {
        row["optimizer"]: row["bytes_accessed"]
        for row in compiled["optimizer_step"]
        if row["shape"] == shape
    }
    held = {
        row["optimizer"]: row["argument_bytes"] + row["temporary_bytes"]
        for row in compiled["training_step"]
    }
    names = [*optimizers.FAMILY, *optimizers.KERAS]
    rows = [
        [
            f"`{name}`",
            *(
                f"{steps[way][name]['cpu_over_adam']:.1f}"
                for way in (("tensorflow", "jit"), ("jax", "jit"))
            ),
            f"{moved[name]:.0f}",
            f"{held[name]:.1f}",
        ]
        for name in names
        if name in moved and all(name in column for column in steps.values())
    ]
    header = ["", "step over Adam's, TensorFlow XLA", "JAX"]
    header += ["TPU: bytes moved", "TPU: bytes held"]
    return tables.markdown(header, rows)


def _slices():
    """(chips, name) -> what the compiler says of the step of `base`."""
    return {
        (row["chips"], optimizers.OF_EXAMPLE[row["optimizer"]]): row
        for row in records.load("scaling").get("chips", [])
    }


def slices():
    """What a chip of each slice holds and computes."""
    found = _slices()
    names = list(optimizers.OF_EXAMPLE.values())
    counts = [
        chips
        for chips in sorted({chips for chips, _ in found})
        if all((chips, name) in found for name in names)
    ]
    rows = []
    for name in names:
        cells = [f"`{name}`"]
        for chips in counts:
            row, adam = found[chips, name], found[chips, "keras.Adam"]
            cells.append(
                f"{row['required'] / 2**30:.2f}; "
                f"{row['cycles'] / adam['cycles']:.2f}"
            )
        rows.append(cells)
    header = ["GiB of a chip; cycles over Adam's"]
    header += [f"{n} chips" if n > 1 else "1 chip" for n in counts]
    return tables.markdown(header, rows) if counts else ""


def in_short():
    """What a user decides by; empty until all of it was measured."""
    names = optimizers.OF_EXAMPLE
    whole = {
        backend: {row["optimizer"]: row for row in train_step.load(backend)}
        for backend in train_step.BACKENDS
    }
    chip = {name: row for (chips, name), row in _slices().items() if chips == 1}
    if not (all(whole.values()) and set(names.values()) <= set(chip)):
        return ""
    kept = state_bytes.rows()
    held = {
        row["optimizer"]: row["argument_bytes"] + row["temporary_bytes"]
        for row in records.load("tpu_compile")["training_step"]
    }
    largest, *_ = records.load("largest_model")["answers"].values()
    trained = {
        corpus: family_report.finals(family.load(corpus))
        for corpus in ("synthetic", "multi30k")
    }

    def row(label, cell):
        return [label, *(cell(*both) for both in names.items())]

    def billions(of_example, _):
        (found,) = largest[of_example]["results"]
        return f"{found['parameters'] / 1e9:.1f} B"

    def on_a_cpu(backend):
        return lambda _, name: f"{whole[backend][name]['cpu_over_adam']:.2f}"

    def on_a_tpu(_, name):
        return f"{chip[name]['cycles'] / chip['keras.Adam']['cycles']:.2f}"

    def loss(corpus):
        def cell(of_example, _):
            runs = map(trainings.final_loss, trained[corpus][of_example])
            return family_report.spread(list(runs), 3)

        return cell

    big = state_bytes.TRANSFORMER
    rows = [
        row(
            f"state of {big}, bytes a parameter",
            lambda _, name: state_bytes.a_parameter(kept[name][big]),
        ),
        row(
            "all that a training step holds on a TPU, bytes a parameter",
            lambda _, name: f"{held[name]:.1f}",
        ),
        row("largest decoder on one v5e chip, parameters", billions),
        row(
            "time of a training step of `base` on a CPU, TensorFlow",
            on_a_cpu("tensorflow"),
        ),
        row("on a CPU, JAX", on_a_cpu("jax")),
        row("on a v5e, 32 rows, by the compiler", on_a_tpu),
        row("loss after 400 steps, embedded corpus", loss("synthetic")),
        row("loss after 400 steps, Multi30k", loss("multi30k")),
    ]
    return tables.markdown(["", *(f"`{n}`" for n in names.values())], rows)


TABLES = (
    Table("docs/tpu.md", "largest model", largest_model),
    Table("README.md", "state", state_bytes.beside_adam),
    Table("docs/memory_and_speed.md", "in short", in_short),
    Table("docs/memory_and_speed.md", "state", state_bytes.table),
    Table("docs/memory_and_speed.md", "refresh", refresh_cost.table),
    Table("docs/memory_and_speed.md", "step time", step_time),
    Table("docs/memory_and_speed.md", "first step", first_step),
    Table("docs/memory_and_speed.md", "training step", train_step.table),
    Table("docs/tpu.md", "slices", slices),
    Table("docs/memory_and_speed.md", "tpu compile", tpu_compile),
    Table("docs/memory_and_speed.md", "small transformer", small_transformer),
    Table("docs/which_optimizer.md", "family cost", family_cost),
    Table("docs/which_optimizer.md", "programs", programs.table),
    Table("README.md", "speed", speed),
    Table("examples/translation/README.md", "data input", data_input.table),
    Table(
        "docs/which_optimizer.md",
        "family synthetic",
        lambda: family_report.table(family.load("synthetic")),
    ),
    Table(
        "docs/which_optimizer.md",
        "family multi30k",
        lambda: family_report.table(family.load("multi30k")),
    ),
    Table(
        "docs/coming_from_adam.md",
        "change synthetic",
        lambda: change_optimizer.table("synthetic"),
    ),
    Table(
        "docs/coming_from_adam.md",
        "change multi30k",
        lambda: change_optimizer.table("multi30k"),
    ),
    Table("docs/coming_from_adam.md", "learning rates", learning_rates.table),
    Table("docs/coming_from_adam.md", "preset rates", family_report.rates),
    Table("docs/paper_claims.md", "paper claims", paper_claims.table),
    Table(
        "docs/paper_claims.md",
        "expected and seen",
        paper_claims.table_of_claims,
    ),
    Table("docs/paper_claims.md", "scales", paper_claims.table_of_scales),
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
