"""The Adafactor paper's story of instability, at a size for two CPU cores.

    python -m benchmarks.paper_claims

Sections 5 to 8 of the paper, https://arxiv.org/abs/1804.04235, drop momentum,
see what becomes unstable without warm-up, and what cures it. Here a small
Transformer with normalization after each layer learns the embedded synthetic
corpus, every row of the paper's table with and without warm-up, three seeds.
The steps are absolute, `A * min(t / 300, sqrt(300 / t))` with warm-up and
`A * min(1, sqrt(300 / t))` without, but for the last row.

`A` is 3e-3, chosen beforehand, with another program, as a size at which the
rows differ.

Section 8 makes steps relative to the size of a parameter, so that they suit
embeddings of any scale. Here the table of embeddings is stored ten times as
large, or as small, and divided by as much where it is used: the same function,
whose table needs other steps. With absolute steps, and with relative ones.

All runs are estimated to take two and a half hours; `--quick` does seven rows
of one seed. Writes `results/paper_claims.json` beside this file after each run
and `results/paper_claims.png` at the end: the same command goes on where it was
stopped.
"""

import argparse
import functools
import os
import shutil
import statistics
from typing import NamedTuple

import keras
from matplotlib.figure import Figure

import keras_adafactor
from benchmarks import records
from benchmarks import tables
from benchmarks import trainings
from benchmarks.family_report import bleu
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


class Row(NamedTuple):
    """One row of the experiment.

    Attributes:
        setting: Arguments of `Adafactor`.
        says: What the paper finds of it, in short: BLEU with warm-up and
            without where its Table 1 has them.
    """

    setting: dict
    says: str


_SLOW, _FAST, _GROWING = (
    {"beta_2": 0.999},
    {"beta_2": 0.9},
    {"beta_2_decay": -0.8},
)
ABSOLUTE = "increasing decay, clipped at 1, factored"
RELATIVE = "Adafactor: that, relative steps"
_FULL, _NO_CLIP = {"factored": False}, {"clip_threshold": None}
ROWS = {
    "momentum 0.9, slow decay": Row(
        {"beta_1": 0.9} | _SLOW | _FULL | _NO_CLIP,
        "trains without warm-up",
    ),
    "momentum 0.9, slow decay, factored": Row(
        {"beta_1": 0.9} | _SLOW | _NO_CLIP, "as without factors"
    ),
    "slow decay": Row(_SLOW | _FULL | _NO_CLIP, "25.6 and 0.1"),
    "fast decay": Row(_FAST | _FULL | _NO_CLIP, "18.4 and 15.6"),
    "slow decay, factored": Row(_SLOW | _NO_CLIP, "as without factors"),
    "slow decay, clipped at 1": Row(
        _SLOW | _FULL | {"clip_threshold": 1.0}, "trains without warm-up"
    ),
    "slow decay, clipped at 2": Row(
        _SLOW | _FULL | {"clip_threshold": 2.0}, "not enough"
    ),
    "increasing decay": Row(_GROWING | _FULL | _NO_CLIP, "not enough"),
    "increasing decay, clipped at 1": Row(
        _GROWING | _FULL | {"clip_threshold": 1.0}, "trains without warm-up"
    ),
    ABSOLUTE: Row(_GROWING | {"clip_threshold": 1.0}, "as without factors"),
    RELATIVE: Row(
        {"relative_step": True, "multiply_by_parameter_scale": True},
        "needs no warm-up",
    ),
}
QUICK = (
    ("slow decay", True),
    ("slow decay", False),
    ("fast decay", True),
    ("fast decay", False),
    ("slow decay, clipped at 1", False),
    ("slow decay, clipped at 2", False),
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
        **ROWS[run.row].setting,
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


def of_row(results, row, warm, scale=1.0):
    """The runs of a row, one a seed."""
    wanted = {"row": row, "warm": warm, "scale": scale}
    return [r for r in results if wanted.items() <= r.items()]


def _bleu_and_loss(runs):
    """Two cells: BLEU and its range, loss."""
    scores = list(map(bleu, runs))
    loss = statistics.mean(map(final_loss, runs))
    return [
        f"{statistics.mean(scores):.1f} "
        f"({min(scores):.1f} to {max(scores):.1f})",
        f"{loss:.2f}",
    ]


def table():
    """What was measured, as Markdown; empty where runs are missing."""
    results = trainings.of_whole_seeds(RUNS, load())
    if not results:
        return ""
    rows = []
    for name, row in ROWS.items():
        warm, cold = (of_row(results, name, w) for w in (True, False))
        size = warm[0]["state_bytes"] / warm[0]["parameters"]
        largest = max(run["largest_update_rms"] for run in cold)
        cells = [name, *_bleu_and_loss(warm), *_bleu_and_loss(cold)]
        rows.append([*cells, f"{largest:.1f}", f"{size:.2f}", row.says])
    header = [
        trainings.seeds(results),
        "BLEU, warm-up",
        "loss",
        "BLEU, none",
        "loss",
    ]
    header += ["largest RMS of an update, none", "state, bytes a parameter"]
    return tables.markdown([*header, "the paper"], rows)


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
            for cell in _bleu_and_loss(of_row(results, row, warm, scale))
        ]
        for scale in SCALES
    ]
    header = [trainings.seeds(results)]
    for row in OF_SCALES:
        header += [f"BLEU, {labels[row]}", "loss"]
    return tables.markdown(header, rows)


def draw(results, path):
    """RMS of one matrix' update, as in the paper's Figure 1."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, warm in zip(panels, (True, False), strict=True):
        for name in ("slow decay", "fast decay", "slow decay, clipped at 1"):
            for run in of_row(results, name, warm)[:1]:
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
    print(table(), table_of_scales(), sep="\n")
    draw(results, records.path("paper_claims").with_suffix(".png"))


if __name__ == "__main__":
    main()
