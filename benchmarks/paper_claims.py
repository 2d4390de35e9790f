"""The Adafactor paper's story of instability, at a size for two CPU cores.

    python -m benchmarks.paper_claims

Sections 5 to 8 of the paper, https://arxiv.org/abs/1804.04235, drop momentum,
see what becomes unstable without warm-up, and what cures it. Here a small
Transformer with normalization after each layer learns the embedded synthetic
corpus, rows of the paper's tables with and without warm-up, three seeds.
The steps are absolute, `A * min(t / 300, sqrt(300 / t))` with warm-up and
`A * min(1, sqrt(300 / t))` without, but for the last row.

`A` is 3e-3, chosen beforehand, with another program, as a size at which the
rows differ.

Section 8 makes steps relative to the size of a parameter, so that they suit
embeddings of any scale. Here the table of embeddings is stored ten times as
large, or as small, and divided by as much where it is used: the same function,
whose table needs other steps. With absolute steps, and with relative ones.

All runs take two hours on two cores; `--quick` does seven rows of one seed.
Writes `results/paper_claims.json` beside this file after each run and
`results/paper_claims.png` at the end: the same command goes on where it was
stopped.
"""

import argparse
import functools
import os
import shutil
from typing import NamedTuple

import keras
from matplotlib.figure import Figure

import keras_adafactor
from benchmarks import records
from benchmarks import tables
from benchmarks import trainings
from benchmarks.family_report import bleu
from benchmarks.family_report import spread
from benchmarks.trainings import final_loss
from examples.translation.config import TranslationConfig
from examples.translation.optimizers import WarmupRsqrt
from examples.translation.train import prepared

SEEDS = (0, 1, 2)
STEPS, WARMUP, STEP_SIZE = 700, 300, 3e-3
SETTINGS = {
    "data": "synthetic",
    "synthetic_train_size": 30_000,
    "max_length": 32,
    "norm": "post",
    "steps": STEPS,
    "beam_size": 1,
}
# The weight whose update is drawn.
MATRIX = "encoder/layer_0/feed_forward"


_SLOW, _FAST, _GROWING = (
    {"beta_2": 0.999},
    {"beta_2": 0.9},
    {"beta_2_decay": -0.8},
)
_FULL, _NO_CLIP = {"factored": False}, {"clip_threshold": None}
_CLIP_1, _CLIP_2 = {"clip_threshold": 1.0}, {"clip_threshold": 2.0}
# Name of a row -> arguments of `Adafactor`.
MOMENTUM = "momentum 0.9, slow decay"
MOMENTUM_FACTORED = "momentum 0.9, slow decay, factored"
SLOW, SLOW_FACTORED = "slow decay", "slow decay, factored"
FAST = "fast decay"
# Not of the paper: it forgets within the warm-up, as slow decay does there.
MIDDLE = "decay 0.99"
SLOW_CLIP_1 = "slow decay, clipped at 1"
SLOW_CLIP_2 = "slow decay, clipped at 2"
GROWING, GROWING_CLIP = "increasing decay", "increasing decay, clipped at 1"
ABSOLUTE = "increasing decay, clipped at 1, factored"
RELATIVE = "Adafactor: that, relative steps"
ROWS = {
    MOMENTUM: {"beta_1": 0.9} | _SLOW | _FULL | _NO_CLIP,
    MOMENTUM_FACTORED: {"beta_1": 0.9} | _SLOW | _NO_CLIP,
    SLOW: _SLOW | _FULL | _NO_CLIP,
    SLOW_FACTORED: _SLOW | _NO_CLIP,
    FAST: _FAST | _FULL | _NO_CLIP,
    MIDDLE: {"beta_2": 0.99} | _FULL | _NO_CLIP,
    SLOW_CLIP_1: _SLOW | _FULL | _CLIP_1,
    SLOW_CLIP_2: _SLOW | _FULL | _CLIP_2,
    GROWING: _GROWING | _FULL | _NO_CLIP,
    GROWING_CLIP: _GROWING | _FULL | _CLIP_1,
    ABSOLUTE: _GROWING | _CLIP_1,
    RELATIVE: {"relative_step": True, "multiply_by_parameter_scale": True},
}
QUICK = (
    (SLOW, True),
    (SLOW, False),
    (FAST, True),
    (FAST, False),
    (SLOW_CLIP_1, False),
    (SLOW_CLIP_2, False),
    (ABSOLUTE, False),
)
# Each row that trains at any scale of the embeddings, or not: with warm-up?
OF_SCALES = {ABSOLUTE: True, RELATIVE: False}
SCALES = (0.1, 1.0, 10.0)


class Run(NamedTuple):
    """One training.

    Attributes:
        row: Key of `ROWS`.
        warm: Whether there is a warm-up.
        seed: Of weights and batches.
        scale: Float, by which the table of embeddings is multiplied, and
            divided where it is used.
    """

    row: str
    warm: bool
    seed: int
    scale: float = 1.0


RUNS = [
    Run(row, warm, seed)
    for seed in SEEDS
    for row in ROWS
    for warm in (False, True)
] + [
    Run(row, warm, seed, scale)
    for seed in SEEDS
    for row, warm in OF_SCALES.items()
    for scale in SCALES
    if scale != 1.0
]


class Kind(NamedTuple):
    """Runs that differ in nothing but the seed.

    Attributes:
        row, warm, scale: As of a `Run`.
    """

    row: str
    warm: bool = False
    scale: float = 1.0

    def __str__(self):
        name = RELATIVE.partition(":")[0] if self.row == RELATIVE else self.row
        name += ", warm-up" if self.warm else ""
        return name + (
            f", embeddings x {self.scale:g}" if self.scale != 1.0 else ""
        )


class Claim(NamedTuple):
    """An order of two kinds of runs that the paper found.

    Attributes:
        says: What the paper says, and where.
        one: `Kind`.
        other: `Kind`, which is as good, or not.
        ahead: Whether `one` is ahead of the other, and not level with it.
    """

    says: str
    one: Kind
    other: Kind
    ahead: bool = True


def _level(says, one, other):
    return Claim(says, one, other, ahead=False)


_SAME = 'Table 2, factored or not: "similar in all tested cases"'
CLAIMS = (
    _level(_SAME, Kind(MOMENTUM, True), Kind(MOMENTUM_FACTORED, True)),
    _level(_SAME, Kind(MOMENTUM), Kind(MOMENTUM_FACTORED)),
    _level(_SAME, Kind(SLOW, True), Kind(SLOW_FACTORED, True)),
    _level(_SAME, Kind(GROWING_CLIP), Kind(ABSOLUTE)),
    Claim(
        "Table 1: 25.6 BLEU with warm-up, 0.1 without",
        Kind(SLOW, True),
        Kind(SLOW),
    ),
    Claim("not so with momentum", Kind(MOMENTUM), Kind(SLOW)),
    Claim(
        "Table 1: with warm-up 25.6 and 18.4",
        Kind(SLOW, True),
        Kind(FAST, True),
    ),
    Claim(
        "the same, of slow decay without its spikes",
        Kind(SLOW_CLIP_1, True),
        Kind(FAST, True),
    ),
    Claim("Table 1: without 15.6 and 0.1", Kind(FAST), Kind(SLOW)),
    Claim("section 6: clipping cures it, at 1", Kind(SLOW_CLIP_1), Kind(SLOW)),
    Claim("and not at 2", Kind(SLOW_CLIP_1), Kind(SLOW_CLIP_2)),
    Claim(
        "section 7: the increasing decay alone does not",
        Kind(GROWING_CLIP),
        Kind(GROWING),
    ),
    _level(
        "section 8: relative steps need no warm-up",
        Kind(RELATIVE),
        Kind(RELATIVE, True),
    ),
    *(
        claim
        for scale in (0.1, 10.0)
        for claim in (
            Claim(
                "section 8: absolute steps suit one scale",
                Kind(ABSOLUTE, True),
                Kind(ABSOLUTE, True, scale),
            ),
            _level(
                "section 8: relative steps suit any",
                Kind(RELATIVE),
                Kind(RELATIVE, scale=scale),
            ),
        )
    ),
)


@keras.saving.register_keras_serializable(package="benchmarks")
class Rsqrt(WarmupRsqrt):
    """`peak * min(1, sqrt(warmup_steps / t))`: that, with no warm-up."""

    def __call__(self, step):
        t = keras.ops.cast(step, "float32") + 1.0
        return self.peak * keras.ops.minimum(
            1.0, keras.ops.sqrt(self.warmup_steps / t)
        )


class RecordUpdates(keras.callbacks.Callback):
    """RMS of the updates before they are clipped, step by step.

    Attributes:
        largest: List of the largest of all variables.
        of_matrix: List of that of `MATRIX`'s first kernel.
    """

    def __init__(self):
        super().__init__()
        self.largest, self.of_matrix = [], []

    def on_train_batch_end(self, batch, logs=None):
        found = self.model.optimizer.update_rms()
        self.largest.append(max(found.values()))
        self.of_matrix.append(
            next(v for path, v in found.items() if MATRIX in path)
        )


def build_optimizer(run):
    setting = {
        "relative_step": False,
        "multiply_by_parameter_scale": False,
        "record_update_rms": True,
        **ROWS[run.row],
    }
    if setting["relative_step"]:
        return keras_adafactor.Adafactor(
            0.02, warmup_steps=WARMUP if run.warm else None, **setting
        )
    schedule = (WarmupRsqrt if run.warm else Rsqrt)(STEP_SIZE, WARMUP)
    return keras_adafactor.Adafactor(schedule, **setting)


def rescale(model, scale):
    """Multiplies the table of embeddings, and leaves the function as it is."""
    embedding = model.target_embedding
    call = embedding.call
    embedding.embeddings.assign(scale * embedding.embeddings)

    def divided(inputs, reverse=False):
        if reverse:
            return call(inputs / scale, reverse=True)
        return call(inputs) / scale

    embedding.call = divided


def train(run, steps, work_dir):
    """Does a run, in a process of its own; returns what it measured."""
    name = "".join(c if c.isalnum() else "_" for c in run.row)
    name += f"-{'warm' if run.warm else 'cold'}-{run.scale:g}-{run.seed}"
    run_dir = f"{work_dir}/{name}"
    # What was broken off would lack the updates of its first steps.
    shutil.rmtree(run_dir, ignore_errors=True)
    config = TranslationConfig.from_preset(
        **SETTINGS | {"steps": steps},
        seed=run.seed,
        run_dir=run_dir,
        checkpoint_every=max(steps // 10, 1),
        keep_checkpoints=1,
        average_checkpoints=1,
        bleu_every=0,
    )
    trainings.log_to(f"{run_dir}.log")
    updates = RecordUpdates()
    with prepared(config) as job:
        if run.scale != 1.0:
            rescale(job.model, run.scale)
        job.compile(build_optimizer(run))
        measured = trainings.outcome(job, True, updates)
    return {
        **run._asdict(),
        **measured,
        "largest_update_rms": max(updates.largest),
        "update_rms": [round(rms, 4) for rms in updates.of_matrix],
    }


def load():
    return records.runs("paper_claims")


def of_kind(results, kind):
    """The runs of a `Kind`, one a seed."""
    return [r for r in results if kind._asdict().items() <= r.items()]


def _bleu_and_loss(runs):
    return [
        spread(list(map(bleu, runs)), 1),
        spread(list(map(final_loss, runs)), 2),
    ]


def table():
    """What was measured, as Markdown; empty where runs are missing."""
    results = trainings.of_whole_seeds(RUNS, load())
    if not results:
        return ""
    rows = []
    for name in ROWS:
        warm, cold = (of_kind(results, Kind(name, w)) for w in (True, False))
        size = warm[0]["state_bytes"] / warm[0]["parameters"]
        largest = max(run["largest_update_rms"] for run in cold)
        cells = [*_bleu_and_loss(warm), *_bleu_and_loss(cold)]
        rows.append([name, *cells, f"{largest:.1f}", f"{size:.2f}"])
    header = [
        trainings.seeds(results),
        "BLEU, warm-up",
        "loss",
        "BLEU, none",
        "loss",
        "largest RMS of an update, none",
        "state, bytes a parameter",
    ]
    return tables.markdown(header, rows)


def table_of_scales():
    """Embeddings of other scales, as Markdown; empty where runs are missing."""
    results = trainings.of_whole_seeds(RUNS, load())
    if not results:
        return ""
    labels = {ABSOLUTE: "absolute steps", RELATIVE: "relative steps"}
    rows = [
        [f"table times {scale:g}"]
        + [
            cell
            for row, warm in OF_SCALES.items()
            for cell in _bleu_and_loss(of_kind(results, Kind(row, warm, scale)))
        ]
        for scale in SCALES
    ]
    header = [trainings.seeds(results)]
    for row in OF_SCALES:
        header += [f"BLEU, {labels[row]}", "loss"]
    return tables.markdown(header, rows)


def seen(one, other, ahead):
    """Whether what was expected of two lists of losses was seen, in words.

    Ahead is who is ahead with each of the seeds; else the two are level.
    """
    found = "level"
    if max(one) < min(other):
        found = "ahead"
    elif max(other) < min(one):
        found = "behind"
    expected = "ahead" if ahead else "level"
    return "yes" if found == expected else f"**no**: {found}"


def table_of_claims():
    """What the paper says, and what was seen; empty where runs are missing."""
    results = trainings.of_whole_seeds(RUNS, load())
    if not results:
        return ""
    rows = []
    for claim in CLAIMS:
        one, other = (
            list(map(final_loss, of_kind(results, kind)))
            for kind in (claim.one, claim.other)
        )
        rows.append(
            [
                claim.says,
                f"{claim.one} **{'<' if claim.ahead else '='}** {claim.other}",
                f"{spread(one, 2)}; {spread(other, 2)}",
                seen(one, other, claim.ahead),
            ]
        )
    header = ["the paper", "expected of the loss", "loss", "seen"]
    return tables.markdown(header, rows)


def draw(results, path):
    """RMS of one matrix' update, as in the paper's Figure 1."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, warm in zip(panels, (True, False), strict=True):
        for name in (SLOW, FAST, SLOW_CLIP_1):
            for run in of_kind(results, Kind(name, warm))[:1]:
                axes.plot(run["update_rms"], label=name, linewidth=0.9)
        axes.set(
            title="with warm-up" if warm else "without warm-up",
            xlabel="step",
        )
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("RMS of the update before clipping")
    panels[1].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work_dir", default="runs/paper_claims")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument(
        "--quick", action="store_true", help="seven rows of one seed"
    )
    options = parser.parse_args()
    wanted = RUNS
    if options.quick:
        wanted = [Run(*row, SEEDS[0]) for row in QUICK]
    results = load()

    def finished(measured):
        results.append(measured)
        print(
            f"{measured['row']:42} {'warm' if measured['warm'] else 'cold'} "
            f"seed {measured['seed']}  times {measured['scale']:g}  "
            f"{trainings.described(measured)}",
            flush=True,
        )
        records.save("paper_claims", {"steps": STEPS, "runs": results})

    trainings.run_all(
        lambda: trainings.missing(wanted, results),
        functools.partial(train, steps=STEPS, work_dir=options.work_dir),
        finished,
        options.workers,
    )
    print(table(), table_of_scales(), table_of_claims(), sep="\n")
    draw(results, records.path("paper_claims").with_suffix(".png"))


if __name__ == "__main__":
    main()
