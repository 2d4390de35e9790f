"""The largest decoder-only Transformer whose training step fits.

    pip install -e ".[tensorflow,jax,tpu-compile,examples]"
    python -m benchmarks.largest_model

Asks the TPU compiler (`tpu_scripts.precompile --search layers`; nothing is run
on a TPU) for one v5e chip, for a slice of 16, whose weights are split, or
weights and all that comes of them (fully sharded), and for one of 256. Models
grow by layers at one width. Takes about two minutes of two CPU cores a
compilation, two hours in all.
Writes `results/largest_model.json` after every answer, goes on from there if it
is started again, and draws `results/largest_model.png`.
"""

import argparse
import os

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"  # run here, compile for a TPU

from matplotlib.figure import Figure  # noqa: E402

from benchmarks import records  # noqa: E402
from tpu_scripts import precompile  # noqa: E402

COMMON = ("--model=decoder", "--length=512", "--search=layers")
# Where to begin: what does not fit is found out soonest.
SLICES = {
    "one v5e chip, width 4,096": (
        ("--topology=v5e:1x1", "--width=4096", "--global_batch=8"),
        {
            "adam": 6,
            "keras_adafactor": 9,
            "adafactor": 14,
            "adafactor@bfloat16": 26,
        },
    ),
    "v5e:4x4, 16 chips, width 16,384": (
        (
            *("--topology=v5e:4x4", "--width=16384", "--model_parallel=16"),
            "--global_batch=8",
        ),
        {
            "adam": 7,
            "keras_adafactor": 8,
            "adafactor": 12,
            "adafactor@bfloat16": 19,
        },
    ),
    "v5e:4x4, fully sharded, width 16,384": (
        (
            *("--topology=v5e:4x4", "--width=16384", "--model_parallel=4"),
            *("--sharding=fully_sharded", "--global_batch=8"),
        ),
        {
            "adafactor": 11,
            "adam": 6,
            "keras_adafactor": 8,
            "adafactor@bfloat16": 17,
        },
    ),
    "v5e:16x16, fully sharded, width 65,536": (
        (
            *("--topology=v5e:16x16", "--width=65536", "--model_parallel=16"),
            *("--sharding=fully_sharded", "--global_batch=16"),
        ),
        {
            "adafactor": 11,
            "adam": 6,
            "keras_adafactor": 8,
            "adafactor@bfloat16": 10,
        },
    ),
}
LABELS = {
    "adam": "keras Adam",
    "keras_adafactor": "keras Adafactor",
    "adafactor": "Adafactor",
    "adafactor@bfloat16": "Adafactor, bfloat16 weights",
}


def ask(arguments, optimizer, layers):
    """One answer of the compiler, as `precompile --json` writes it."""
    request, optimizers, values = precompile.parse(
        [
            "precompile",
            *COMMON,
            *arguments,
            f"--optimizer={optimizer}",
            f"--layers={layers}",
        ]
    )
    return precompile.run(request, optimizers, values.search)


def load():
    """Slice -> optimizer -> what `ask` returned."""
    return records.load("largest_model").get("answers", {})


def draw(answers, path):
    """A bar for every optimizer, a panel for every slice."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, (name, found) in zip(panels, answers.items(), strict=True):
        names = [o for o in LABELS if o in found]
        sizes = [found[o]["results"][0].get("parameters", 0) for o in names]
        bars = axes.barh(
            [LABELS[o].replace(", ", ",\n") for o in names],
            [size / 1e9 for size in sizes],
            color=["tab:gray", "tab:gray", "tab:blue", "tab:blue"],
        )
        axes.bar_label(bars, fmt="%.1f", padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("billion parameters")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "Largest training step that the TPU compiler fits into HBM", fontsize=11
    )
    figure.savefig(path, dpi=120)


def main():
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    answers = load()
    for name, (arguments, starts) in SLICES.items():
        found = answers.setdefault(name, {})
        for optimizer, layers in starts.items():
            if optimizer in found:
                continue
            found[optimizer] = ask(arguments, optimizer, layers)
            records.save("largest_model", {"answers": answers})
    path = records.path("largest_model")
    draw(answers, path.with_suffix(".png"))
    for name, found in answers.items():
        print(name)
        for optimizer in found:
            (best,) = found[optimizer]["results"]
            print(
                f"  {LABELS[optimizer]}: {best['largest']} layers, "
                f"{best.get('parameters', 0) / 1e9:.2f} billion parameters"
            )
    print(f"written to {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
