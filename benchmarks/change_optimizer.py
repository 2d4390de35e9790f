"""Changes from Adam to Adafactor in the middle of a run, cold and warm.

    python -m benchmarks.change_optimizer
    python -m benchmarks.change_optimizer --corpus multi30k --text_dir DIR

The translation example trains with Adam for a third of its steps. From these
weights it goes on with Adam, with Adafactor that starts from nothing, and with
Adafactor after `keras_adafactor.warm_start`: as its recipe has it, with its
default rate, and with Adam's own learning rates. Prints, of three seeds, the
largest rise of the validation loss above its value at the change, and the BLEU
at the end. Writes `results/change_optimizer_<corpus>.json` beside this file
after each run, and a `.png` after the last: the same command goes on where it
was stopped.
"""

import dataclasses
import statistics
from typing import NamedTuple

from matplotlib.figure import Figure

import keras_adafactor
from benchmarks import family
from benchmarks import records
from benchmarks import tables
from benchmarks import trainings
from benchmarks.family_report import spread
from examples.translation.evaluate import read_pairs
from examples.translation.evaluate import translate_pairs
from examples.translation.optimizers import build_optimizer
from examples.translation.optimizers import rate_or_schedule
from examples.translation.termination import Termination
from examples.translation.train import prepared

STEPS, CHANGE, EVERY = 360, 120, 10
SENTENCES = 300  # that are translated at the end


def _recipe(config):
    return build_optimizer(
        dataclasses.replace(
            config, optimizer="adafactor", learning_rate=None, warmup_steps=0
        )
    )


def _default(config):
    return keras_adafactor.Adafactor()


def _with_adams_rates(config):
    return keras_adafactor.Adafactor(
        rate_or_schedule(config), multiply_by_parameter_scale=False, beta_1=0.9
    )


# Name -> optimizer of the configuration, and whether it starts warm.
WAYS = {
    "Adam goes on": (build_optimizer, True),
    "Adam, statistics gone": (build_optimizer, False),
    "Adafactor, cold": (_recipe, False),
    "Adafactor, warm": (_recipe, True),
    "Adafactor, Adam's rates, cold": (_with_adams_rates, False),
    "Adafactor, Adam's rates, warm": (_with_adams_rates, True),
    "Adafactor, cap of 0.01, warm": (_default, True),
}


class Run(NamedTuple):
    """What is trained after the change.

    Attributes:
        way: Key of `WAYS`.
        seed: Of weights and batches.
    """

    way: str
    seed: int


RUNS = [Run(way, seed) for seed in family.SEEDS for way in WAYS]


def begin(config):
    """Trains with Adam; returns weights, optimizer and history."""
    config = dataclasses.replace(
        config, steps=CHANGE, run_dir=f"{config.run_dir}-begin"
    )
    with prepared(config) as job:
        job.fit(Termination())
        return job.model.get_weights(), job.optimizer, job.state.history


def go_on(config, way, weights, adam):
    """Trains the rest one way; returns its history and BLEU."""
    make, warm = WAYS[way]
    config = dataclasses.replace(
        config, run_dir=f"{config.run_dir}-{list(WAYS).index(way)}"
    )
    with prepared(config) as job:
        job.compile(make(config))
        job.model.set_weights(weights)
        if warm:
            keras_adafactor.warm_start(job.model, adam)
        job.state.step = CHANGE
        job.fit(Termination())
        pairs = read_pairs(job.corpus, "test", SENTENCES)
        score = translate_pairs(job.translator, pairs).score()
        return job.state.history, score.bleu


def result_name(corpus):
    return f"change_optimizer_{corpus}"


def run_seed(options, seed, results):
    config = family.configure(
        family.Run("adam", 0, seed, True),
        options.corpus,
        options.text_dir,
        options.work_dir,
    )
    config = dataclasses.replace(
        config,
        steps=STEPS,
        checkpoint_every=EVERY,
        run_dir=f"{options.work_dir}/{options.corpus}-{seed}",
    )
    left = [run for run in trainings.missing(RUNS, results) if run.seed == seed]
    if not left:
        return
    weights, adam, before = begin(config)
    for way, _ in left:
        history, bleu = go_on(config, way, weights, adam)
        results.append(
            {
                "way": way,
                "seed": seed,
                "before": _curve(before),
                "after": _curve(history),
                "bleu": bleu,
            }
        )
        records.save(
            result_name(options.corpus),
            {"corpus": options.corpus, "runs": results},
        )
        print(f"seed {seed}  {way}: {_row(results[-1])}", flush=True)


def _curve(history):
    return [[row["step"], row["loss"], row["val_loss"]] for row in history]


def rise(row):
    """Largest validation loss after the change, less that before it."""
    start = row["before"][-1][2]
    return max(max(point[2] for point in row["after"]) - start, 0.0)


def _row(row):
    return (
        f"largest rise {rise(row):.4f}, "
        f"{row['after'][-1][2]:.4f} at the end, BLEU {row['bleu']:.1f}"
    )


def load(corpus):
    return records.runs(result_name(corpus))


def table(corpus):
    """What each way comes to, as Markdown; empty where runs are missing."""
    results = trainings.of_whole_seeds(RUNS, load(corpus))
    if not results:
        return ""
    lines = []
    for way in WAYS:
        rows = [row for row in results if row["way"] == way]
        lines.append(
            [
                way,
                f"{max(map(rise, rows)):.3f}",
                spread([row["after"][-1][2] for row in rows], 3),
                spread([row["bleu"] for row in rows], 1),
            ]
        )
    return tables.markdown(
        [
            f"from step {CHANGE} to {STEPS}, {trainings.seeds(results)}",
            "largest rise",
            "validation loss",
            "BLEU",
        ],
        lines,
    )


def plot(results, title, path):
    """Validation loss around the change, the mean of the seeds."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot(
        title=f"{title}: from Adam to Adafactor at step {CHANGE}",
        xlabel="step",
        ylabel="validation loss",
    )
    for index, way in enumerate(WAYS):
        rows = [row for row in results if row["way"] == way]
        curves = [row["before"][-1:] + row["after"] for row in rows]
        points = list(zip(*curves, strict=True))
        axes.plot(
            [point[0][0] for point in points],
            [statistics.mean(p[2] for p in point) for point in points],
            "-" if WAYS[way][1] else ":",
            color=f"C{index // 2}",
            # Another lies upon it.
            linewidth=4 if index < 2 else 1.5,
            alpha=0.5 if index < 2 else 1,
            label=way,
        )
    axes.axvline(CHANGE, color="0.6", linewidth=0.8)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png", dpi=120)


def main():
    options = family.parse(
        family.corpus_parser(__doc__, "runs/change_optimizer")
    )
    results = load(options.corpus)
    for seed in family.SEEDS:
        run_seed(options, seed, results)
    print(table(options.corpus))
    plot(
        trainings.of_whole_seeds(RUNS, results),
        options.corpus,
        records.path(result_name(options.corpus)).with_suffix(".png"),
    )


if __name__ == "__main__":
    main()
