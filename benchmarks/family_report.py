"""Table and plots of what `benchmarks.family` measured.

    python -m benchmarks.family_report

Draws `results/family_<corpus>_loss.png`, `..._bleu.png` and, of Adam and
Adafactor alone, `..._time.png` beside this file. The tables of
`docs/which_optimizer.md` are written by `python -m benchmarks.report`.
"""

import argparse
import itertools
import statistics

from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from matplotlib.ticker import NullLocator

from benchmarks import records
from benchmarks import tables
from benchmarks.family import OPTIMIZERS
from benchmarks.family import SEEDS
from benchmarks.family import SETTINGS
from benchmarks.family import load
from benchmarks.trainings import final_loss

COLUMN = 11  # bytes a parameter, where the labels of many points stand
TITLES = {
    "synthetic": "embedded synthetic corpus",
    "multi30k": "Multi30k",
}
PRESETS = {
    "synthetic": "`tiny`, embedded corpus",
    "multi30k": "`tiny`, Multi30k",
    "base": "`base`, embedded corpus",
    "big": "`big`, embedded corpus",
}
LABELS = {
    "adafactor": "Adafactor",
    "came": "CAME",
    "smmf": "SMMF",
    "subset_norm": "SubsetNorm",
    "subspace_momentum": "SubspaceMomentum",
    "coap": "COAP",
    "soap": "SOAP",
    "hfac": "HFac",
    "fadam": "FAdam",
    "signum": "Signum",
    "adalayer": "Adalayer",
    "lion": "Lion",
    "keras_adafactor": "keras.Adafactor",
    "adam": "keras.Adam",
    "adamw": "keras.AdamW",
    "muon": "keras.Muon",
}


def finals(results):
    """Optimizer -> its runs with the best rate, one a seed.

    Optimizers of which a seed is missing are left out.
    """
    found = {
        name: [r for r in results if r["optimizer"] == name and r["scored"]]
        for name in OPTIMIZERS
    }
    return {
        name: runs
        for name, runs in found.items()
        if {run["seed"] for run in runs} == set(SEEDS)
    }


def bleu(run):
    """BLEU of the test sentences; 0 for a run that diverged."""
    return run["scores"].get("bleu", 0.0)


def bytes_a_parameter(run):
    return run["state_bytes"] / run["parameters"]


def spread(values, digits):
    """Mean, and half the range if there is one, as text."""
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    half = (max(values) - min(values)) / 2
    return f"{mean} ± {half:.{digits}f}"


def table(results):
    """The table of a corpus, the best BLEU first; empty without results."""
    if not finals(results):
        return ""
    rows = []
    ordered = sorted(
        finals(results).items(),
        key=lambda item: -statistics.mean(map(bleu, item[1])),
    )
    for name, runs in ordered:
        rows.append(
            [
                f"`{LABELS[name]}`",
                spread([final_loss(run) for run in runs], 3),
                spread([bleu(run) for run in runs], 1),
                f"{bytes_a_parameter(runs[0]):.2f}",
                f"{runs[0]['learning_rate']:.1e}",
            ]
        )
    header = ["", "validation loss", "BLEU", "state, bytes a parameter", "rate"]
    return tables.markdown(header, rows)


def rates():
    """What rates did best with Adam and Adafactor, a row a corpus and preset.

    A corpus of which a seed of either is missing is left out.
    """
    rows = []
    for corpus, name in PRESETS.items():
        found = finals(load(corpus))
        if not {"adam", "adafactor"} <= set(found):
            continue
        row = [f"{name}, {SETTINGS[corpus]['steps']} steps"]
        for optimizer in ("adam", "adafactor"):
            runs = found[optimizer]
            loss = spread([final_loss(run) for run in runs], 3)
            row.append(f"{runs[0]['learning_rate']:.2g}: {loss}")
        rows.append(row)
    header = ["best rate: validation loss", "Adam, peak", "Adafactor, cap"]
    return tables.markdown(header, rows) if rows else ""


def plot_losses(results, title, path):
    """Mean validation loss of the seeds, a line an optimizer."""
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.add_subplot(
        title=f"{title}: validation loss, mean of {len(SEEDS)} seeds",
        xlabel="step",
        ylabel="loss",
        yscale="log",
    )
    curves = {}
    for name, runs in finals(results).items():
        if any(run["diverged"] for run in runs):
            continue
        steps = [row["step"] for row in runs[0]["history"]]
        losses = [
            statistics.mean(rows)
            for rows in zip(
                *[[row["val_loss"] for row in r["history"]] for r in runs],
                strict=True,
            )
        ]
        curves[name] = steps, losses
    ordered = sorted(curves, key=lambda name: -curves[name][1][-1])
    for index, name in enumerate(ordered):
        ours = not LABELS[name].startswith("keras")
        # There are ten colours.
        again = index >= 10
        axes.plot(
            *curves[name],
            (":" if again else "-") if ours else ("-." if again else "--"),
            color=f"C{index % 10}",
            linewidth=1.8 if ours else 1.2,
            label=f"{LABELS[name]}  {curves[name][1][-1]:.2f}",
        )
    axes.yaxis.set_major_locator(MultipleLocator(0.5))
    axes.yaxis.set_major_formatter("{x:.1f}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9, title="at the end")
    figure.savefig(path, format="png", dpi=120)


def apart(values, gap):
    """Sorted numbers, moved as little as it takes to be `gap` apart."""
    groups = []
    for value in values:
        group = [value]
        while groups and (
            statistics.mean(group) - statistics.mean(groups[-1])
            < gap * (len(group) + len(groups[-1])) / 2
        ):
            group = groups.pop() + group
        groups.append(group)
    return [
        statistics.mean(group) + gap * (i - (len(group) - 1) / 2)
        for group in groups
        for i in range(len(group))
    ]


def plot_bleu(results, title, path):
    """BLEU against bytes of state, a point an optimizer.

    Most keep what one or two moments need, and lie close together: their
    labels stand in a column. Who is far below the others is named at the edge.
    """
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.add_subplot(
        title=f"{title}: quality against memory, up and left is better",
        xlabel="optimizer state, bytes a parameter",
        ylabel=f"BLEU, mean and range of {len(SEEDS)} seeds",
        xscale="log",
    )
    points = sorted(
        (statistics.mean(map(bleu, runs)), name)
        for name, runs in finals(results).items()
    )
    least = points[len(points) // 2][0] / 2
    shown = [(mean, name) for mean, name in points if mean > least]
    below = [
        f"{LABELS[name]} {mean:.0f}" for mean, name in points if mean <= least
    ]
    in_column = [
        (mean, name)
        for mean, name in shown
        if 1 < bytes_a_parameter(finals(results)[name][0]) < COLUMN
    ]
    line = 0.055 * (shown[-1][0] - shown[0][0])
    heights = apart([mean for mean, _ in in_column], line)
    column = {
        name: height
        for (_, name), height in zip(in_column, heights, strict=True)
    }
    for mean, name in shown:
        runs = finals(results)[name]
        scores = [bleu(run) for run in runs]
        size = bytes_a_parameter(runs[0])
        ours = not LABELS[name].startswith("keras")
        axes.errorbar(
            size,
            mean,
            yerr=[[mean - min(scores)], [max(scores) - mean]],
            fmt="o" if ours else "s",
            color="C0" if ours else "0.45",
            capsize=3,
        )
        at = 1.25 * size, mean
        if name in column:
            at = COLUMN, column[name]
        axes.annotate(
            LABELS[name],
            (size, mean),
            xytext=at,
            va="center",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.7},
        )
    if below:
        axes.text(
            0.99,
            0.015,
            f"below: {', '.join(below)}",
            transform=axes.transAxes,
            ha="right",
            fontsize=9,
            color="0.4",
        )
    axes.grid(alpha=0.3)
    axes.margins(x=0.25)
    figure.savefig(path, format="png", dpi=120)


def plot_times(results, title, path):
    """Validation loss of Adam and Adafactor, against steps and seconds."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    figure.suptitle(f"{title}: the best rate of each, {len(SEEDS)} seeds")
    for index, name in enumerate(("adam", "adafactor")):
        for run in finals(results)[name]:
            history = run["history"]
            seconds = itertools.accumulate(row["seconds"] for row in history)
            for axes, x in zip(
                panels,
                ([row["step"] for row in history], list(seconds)),
                strict=True,
            ):
                axes.plot(
                    x,
                    [row["val_loss"] for row in history],
                    color=f"C{index}",
                    label=LABELS[name] if run["seed"] == SEEDS[0] else None,
                )
    for axes, label in zip(
        panels, ("step", "seconds of training, one CPU core"), strict=True
    ):
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("validation loss")
    panels[0].legend()
    figure.savefig(path, format="png", dpi=120)


def has_times(results):
    """Whether it is known when Adam and Adafactor were how far."""
    found = finals(results)
    return {"adam", "adafactor"} <= set(found) and all(
        "seconds" in row
        for name in ("adam", "adafactor")
        for run in found[name]
        for row in run["history"]
    )


def main():
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    for corpus, title in TITLES.items():
        results = load(corpus)
        if not finals(results):
            continue
        plots = {"loss": plot_losses, "bleu": plot_bleu}
        if has_times(results):
            plots["time"] = plot_times
        for kind, plot in plots.items():
            path = records.FOLDER / f"family_{corpus}_{kind}.png"
            plot(results, title, path)
            print(f"written to {path}")


if __name__ == "__main__":
    main()
