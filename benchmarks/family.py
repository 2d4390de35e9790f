"""Trains the translation example with every optimizer, and sets them in order.

    python -m benchmarks.family
    python -m benchmarks.family --corpus multi30k --text_dir DIR
    python -m benchmarks.family --corpus base --optimizers adam adafactor

Every optimizer takes equal steps on equal batches. Its learning rate is the
best of a ladder of factors of two, by the validation loss of the first seed.
The ladder begins around the recipe's rate, on Multi30k and for `big` around
the best of the synthetic corpus and of `base`, and grows where the best is its
end. With the best the optimizer then trains on all seeds and translates the
test sentences.

`base` and `big` are the synthetic corpus and a Transformer of that preset, in
few and small batches, after which nothing can be translated: whether a rate is
good for a larger model too.

One line is printed a run, and `results/family_<corpus>.json` beside this file
is written after each: the same command goes on where it was stopped. `DIR`
holds `train`, `val` and `test_2016_flickr`, each as `.en.gz` and `.de.gz`.
"""

import argparse
import functools
import math
import os
import pathlib
import tempfile
from typing import NamedTuple

from benchmarks import records
from benchmarks import trainings
from benchmarks.trainings import final_loss
from examples.translation.config import PRESETS
from examples.translation.config import TranslationConfig
from examples.translation.optimizers import OPTIMIZERS as RECIPES
from examples.translation.train import prepared

OPTIMIZERS = (
    "adam",
    "adamw",
    "adafactor",
    "keras_adafactor",
    "came",
    "smmf",
    "hfac",
    "subset_norm",
    "subspace_momentum",
    "coap",
    "soap",
    "fadam",
    "signum",
    "lion",
    "adalayer",
    "muon",
)
SEEDS = (0, 1, 2)
LONGEST_LADDER = 4  # rungs from its middle to its end


def _of_preset(preset, steps):
    """The beginning of a run of a larger model, on the synthetic corpus."""
    return {
        "data": "synthetic",
        "synthetic_train_size": 30_000,
        "steps": steps,
        "warmup_steps": steps // 4,
        "checkpoint_every": steps // 2,
        "batch_size": 16,
        **{
            name: PRESETS[preset][name]
            for name in ("num_layers", "model_dim", "ff_dim", "num_heads")
        },
    }


SETTINGS = {
    "synthetic": {
        "data": "synthetic",
        "synthetic_train_size": 30_000,
        "steps": 400,
        "warmup_steps": 100,
        "checkpoint_every": 40,
    },
    "multi30k": {
        "data": "text",
        "steps": 400,
        "warmup_steps": 100,
        "checkpoint_every": 40,
        "vocab_size": 4_000,
        "dropout": 0.1,
    },
    "base": _of_preset("base", steps=100),
    "big": _of_preset("big", steps=40),
}
UNTRANSLATED = ("base", "big")
# Where a corpus' ladder begins: at the best of this one.
BEFORE = {"multi30k": "synthetic", "big": "base"}
QUICK = {
    "data": "synthetic",
    "synthetic_train_size": 1_000,
    "steps": 40,
    "warmup_steps": 10,
    "checkpoint_every": 40,
}
QUICK_OPTIMIZERS = ("adam", "adafactor")
# XLA takes minutes to compile their decompositions for a CPU.
WITHOUT_XLA = ("subspace_momentum", "coap", "soap")


class Run(NamedTuple):
    """One training.

    Attributes:
        optimizer: Name of `--optimizer`.
        rung: Int, the learning rate is the recipe's times `2 ** rung`.
        seed: Of weights and batches.
        scored: Whether it is one of the last, which translate.
    """

    optimizer: str
    rung: int
    seed: int
    scored: bool


def ladder_of(optimizer, losses):
    """Rung -> validation loss of the first seed, of what was done."""
    return {
        run.rung: loss
        for run, loss in losses.items()
        if run.optimizer == optimizer and run.seed == SEEDS[0]
    }


def wanted(optimizer, losses, middle=0):
    """The runs that come next for an optimizer.

    Args:
        optimizer: Name.
        losses: Dict from `Run` to validation loss, of what was done.
        middle: Int, the rung around which the ladder begins.

    Returns:
        List of `Run`; empty when all is done.
    """
    ladder = ladder_of(optimizer, losses)
    rungs = [middle - 1, middle, middle + 1]
    if set(rungs) <= set(ladder):
        best = min(ladder, key=ladder.get)
        if best in (min(ladder), max(ladder)) and (
            abs(best - middle) < LONGEST_LADDER
        ):
            rungs = [best + (1 if best == max(ladder) else -1)]
        else:
            runs = [Run(optimizer, best, seed, True) for seed in SEEDS]
            return [run for run in runs if run not in losses]
    return [
        Run(optimizer, rung, SEEDS[0], False)
        for rung in rungs
        if rung not in ladder
    ]


def recipe_rate(optimizer, settings):
    """The learning rate of rung 0."""
    config = TranslationConfig.from_preset(**settings)
    return RECIPES[optimizer].learning_rate(config)


def configure(run, corpus, text_dir, work_dir):
    """The `TranslationConfig` of a run."""
    quick = corpus == "quick"
    settings = dict(QUICK if quick else SETTINGS[corpus])
    if text_dir:
        for split, name in (
            ("train", "train"),
            ("validation", "val"),
            ("test", "test_2016_flickr"),
        ):
            for side, language in (("source", "en"), ("target", "de")):
                path = pathlib.Path(text_dir) / f"{name}.{language}.gz"
                settings[f"{split}_{side}"] = str(path)
    recipe = RECIPES[run.optimizer]
    if recipe.relative_step:
        settings["warmup_steps"] = 0
    rate = recipe_rate(run.optimizer, settings) * 2.0**run.rung
    # So few steps take less time than to compile them.
    without_xla = quick or run.optimizer in WITHOUT_XLA
    return TranslationConfig.from_preset(
        **settings,
        optimizer=run.optimizer,
        learning_rate=rate,
        seed=run.seed,
        run_dir=str(
            pathlib.Path(work_dir)
            / f"{corpus}-{run.optimizer}-{run.rung}-{run.seed}"
        ),
        jit_compile="off" if without_xla else "auto",
        keep_checkpoints=1,
        average_checkpoints=1,
        bleu_every=0,
    )


def train(run, corpus, text_dir, work_dir):
    """Does a run, in a process of its own; returns what it measured."""
    config = configure(run, corpus, text_dir, work_dir)
    trainings.log_to(f"{config.run_dir}.log")
    scored = run.scored and corpus not in UNTRANSLATED
    with prepared(config) as job:
        return {
            **run._asdict(),
            "learning_rate": config.learning_rate,
            **trainings.outcome(job, scored),
        }


def losses_of(results):
    return {
        Run(*(measured[name] for name in Run._fields)): final_loss(measured)
        for measured in results
    }


def describe(measured):
    return (
        f"{measured['optimizer']:18} rate {measured['learning_rate']:.2e}  "
        f"seed {measured['seed']}  {trainings.described(measured)}"
    )


def run_all(options):
    """Does all that is wanted, and writes each result as it comes."""
    results = load(options.corpus)
    middles = {}
    if options.corpus in BEFORE:
        before = losses_of(load(BEFORE[options.corpus]))
        for optimizer in options.optimizers:
            ladder = ladder_of(optimizer, before)
            middles[optimizer] = min(ladder, key=ladder.get, default=0)

    def todo():
        losses = losses_of(results)
        return [
            run
            for optimizer in options.optimizers
            for run in wanted(optimizer, losses, middles.get(optimizer, 0))
        ]

    def finished(measured):
        results.append(measured)
        print(describe(measured), flush=True)
        records.save(
            result_name(options.corpus),
            {"corpus": options.corpus, "runs": results},
        )

    arguments = {
        name: getattr(options, name)
        for name in ("corpus", "text_dir", "work_dir")
    }
    trainings.run_all(
        todo, functools.partial(train, **arguments), finished, options.workers
    )


def train_quickly(workers):
    """A few steps with a few optimizers."""
    left = [Run(name, 0, SEEDS[0], False) for name in QUICK_OPTIMIZERS]

    def finished(measured):
        left.remove(Run(*(measured[name] for name in Run._fields)))
        print(describe(measured), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        trainings.run_all(
            lambda: left,
            functools.partial(
                train, corpus="quick", text_dir=None, work_dir=folder
            ),
            finished,
            workers,
        )


def result_name(corpus):
    return f"family_{corpus}"


def load(corpus):
    """What was done on a corpus: a list of what `train` returned.

    Rungs are those of today's recipes, whatever they were then.
    """
    runs = records.runs(result_name(corpus))
    for run in runs:
        rate = recipe_rate(run["optimizer"], SETTINGS[corpus])
        run["rung"] = round(math.log2(run["learning_rate"] / rate))
    return runs


def corpus_parser(description, work_dir):
    """A parser of the arguments that say what to train on, and where."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--corpus", choices=SETTINGS, default="synthetic")
    parser.add_argument("--text_dir", help="of --corpus multi30k")
    parser.add_argument("--work_dir", default=work_dir)
    return parser


def parse(parser):
    """The arguments of a `corpus_parser`, checked."""
    options = parser.parse_args()
    if (options.corpus == "multi30k") != bool(options.text_dir):
        parser.error("--text_dir goes with --corpus multi30k, and only so")
    return options


def main():
    parser = corpus_parser(__doc__, "runs/family")
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a few steps of {', '.join(QUICK_OPTIMIZERS)}, no file written",
    )
    options = parse(parser)
    if options.quick:
        train_quickly(options.workers)
        return
    run_all(options)
    print("python -m benchmarks.family_report draws what was found")


if __name__ == "__main__":
    main()
