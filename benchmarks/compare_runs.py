"""Sets finished runs of the translation example beside each other.

    python -m benchmarks.compare_runs --name real_text RUN_DIR RUN_DIR ...

Prints a table and writes `results/<name>.json` and `results/<name>.png` beside
this file: settings, curves and scores, none of the text that was trained on.
"""

import argparse
import csv
import json
import pathlib

from matplotlib.figure import Figure

from benchmarks import records

CURVES = ("step", "loss", "val_loss", "val_bleu", "seconds")
SETTINGS = (
    "preset",
    "optimizer",
    "learning_rate",
    "warmup_steps",
    "steps",
    "batch_size",
    "vocab_size",
    "dropout",
    "beam_size",
    "length_penalty",
    "seed",
)


def read_run(run_dir):
    """What a run measured, without paths or sentences."""
    run_dir = pathlib.Path(run_dir)
    metrics = json.loads((run_dir / "metrics.json").read_text())
    with (run_dir / "history.csv").open() as file:
        history = [
            {name: float(row[name]) if row[name] else None for name in CURVES}
            for row in csv.DictReader(file)
        ]
    return {
        "settings": {name: metrics["config"][name] for name in SETTINGS},
        **{
            name: metrics[name]
            for name in (
                "data",
                "optimizer",
                "devices",
                "versions",
                "steps",
                "training_seconds",
                "loss",
                "val_loss",
                "parameters",
                "optimizer_state_bytes",
                "scores",
            )
        },
        "history": history,
    }


def plot(runs, title, path):
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="step", ylabel="loss")
    for color, run in enumerate(runs):
        steps = [row["step"] for row in run["history"]]
        for curve, style in (("loss", ":"), ("val_loss", "-")):
            kind = "training" if curve == "loss" else "validation"
            axes.plot(
                steps,
                [row[curve] for row in run["history"]],
                style,
                color=f"C{color}",
                label=f"{run['settings']['optimizer']}, {kind}",
            )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png", dpi=120)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--name", required=True)
    parser.add_argument("--title", required=True, help="names the data")
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR")
    options = parser.parse_args()
    runs = [read_run(run_dir) for run_dir in options.run_dirs]
    for run in runs:
        run["data"] = options.title
    print(f"{options.title}\n")
    print(
        f"{'optimizer':16} {'weights':8} {'BLEU':>5} {'chrF':>5} "
        f"{'val. loss':>9} {'state bytes':>12}"
    )
    for run in runs:
        for weights, splits in run["scores"].items():
            print(
                f"{run['settings']['optimizer']:16} {weights:8} "
                f"{splits['test']['bleu']:5.1f} {splits['test']['chrf']:5.1f} "
                f"{run['val_loss']:9.3f} {run['optimizer_state_bytes']:12,}"
            )
    for run in runs:
        print(f"{run['settings']['optimizer']}: {run['optimizer']}")
    path = records.save(options.name, {"runs": runs})
    plot(runs, options.title, path.with_suffix(".png"))
    print(f"written to {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
