"""Bytes of state of every optimizer, counted after it is built.

    python -m benchmarks.state_bytes

Each is built for single variables and for those of the translation example's
Transformer-big, and the arrays that it then has are counted, without scalars,
such as the step counter. Takes up to 8 GiB of memory. Prints a table and writes
`results/state_bytes.json` beside this file.
"""

import argparse
import math

import keras

from benchmarks import optimizers
from benchmarks import records
from benchmarks import tables
from examples.translation import report
from examples.translation.config import TranslationConfig
from examples.translation.model import build_model

SHAPES = {
    "matrix (4096, 4096)": (4096, 4096),
    "attention kernel (1024, 16, 64)": (1024, 16, 64),
    "convolution (3, 3, 512, 512)": (3, 3, 512, 512),
}
TRANSFORMER, VOCABULARY = "Transformer-big", 32_768
NAMES = optimizers.FAMILY | optimizers.KERAS


def variables_of(name):
    """The variables that stand under a name."""
    if name in SHAPES:
        return [keras.Variable(keras.ops.zeros(SHAPES[name]), name="weight")]
    model = build_model(
        TranslationConfig.from_preset("big"),
        vocab_size=VOCABULARY,
        piece_count=VOCABULARY,
    )
    return model.trainable_variables


def measure(name, make, variables):
    """What an optimizer has when it is built, as a row of the result."""
    optimizer = make()
    optimizer.build(variables)
    return {
        "optimizer": name,
        "parameters": sum(math.prod(v.shape) for v in variables),
        "bytes": report.state_bytes(v for v in optimizer.variables if v.shape),
    }


def rows():
    """Optimizer -> name of variables -> row."""
    found = {}
    for row in records.load("state_bytes")["rows"]:
        found.setdefault(row["optimizer"], {})[row["variables"]] = row
    return found


def a_parameter(row):
    """Bytes a parameter, to three significant digits."""
    value = row["bytes"] / row["parameters"]
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def table():
    """Bytes a parameter, an optimizer a line, as Markdown."""
    return tables.markdown(
        ["bytes of state a parameter", *SHAPES, TRANSFORMER],
        [
            [
                f"`{name}`",
                *(a_parameter(row[v]) for v in (*SHAPES, TRANSFORMER)),
            ]
            for name, row in rows().items()
        ],
    )


def beside_adam():
    """Adam, Keras' Adafactor and this package's, as Markdown."""
    found = rows()
    columns = [
        found[name] for name in ("keras.Adam", "keras.Adafactor", "Adafactor")
    ]
    lines = []
    for name in (*SHAPES, TRANSFORMER):
        if name in SHAPES:
            label, cells = name, [f"{c[name]['bytes']:,}" for c in columns]
        else:
            size = columns[0][name]["parameters"] / 1e6
            label = f"{name} ({size:.0f} M), a parameter"
            cells = [a_parameter(column[name]) for column in columns]
        lines.append([label, *cells[:-1], f"**{cells[-1]}**"])
    header = ["", "Adam", "`keras.optimizers.Adafactor`"]
    return tables.markdown(
        [*header, "`keras_adafactor.Adafactor`"],
        lines,
    )


def main():
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    found = []
    for variables in (*SHAPES, TRANSFORMER):
        built = variables_of(variables)
        for name, make in NAMES.items():
            if name != "keras.SGD":  # which keeps nothing
                row = measure(name, make, built)
                found.append({"variables": variables, **row})
                print(
                    f"{variables}, {name}: {row['bytes']:,} bytes", flush=True
                )
    print(f"written to {records.save('state_bytes', {'rows': found})}")
    print(table())


if __name__ == "__main__":
    main()
