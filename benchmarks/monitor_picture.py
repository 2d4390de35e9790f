"""Draws what `OptimizerMonitor` shows of a healthy run, and of six ill ones.

    python -m benchmarks.monitor_picture            # trains, and draws
    python -m benchmarks.monitor_picture --redraw   # draws what was measured

Each run is the same small network on the same generated data, in 300 steps,
with one thing wrong. Writes `results/monitor.json` and `results/monitor.png`
beside this file, the picture of `docs/monitor.md`.
"""

import argparse
import warnings

import keras
import numpy as np
from matplotlib.figure import Figure

import keras_adafactor
from benchmarks import records

STEPS, BATCH, LOG_FREQ = 300, 64, 5
WORDS, CONTEXT = 64, 4
WRONG_FROM = 150
LOWERED_RATE = 0.25


def corpus():
    """Words, each drawn from what the four before it make likely."""
    rng = np.random.default_rng(0)
    likely = 1.5 * rng.normal(size=(CONTEXT, WORDS, WORDS))
    words = rng.integers(0, WORDS, size=(STEPS * BATCH, CONTEXT))
    logits = sum(likely[i][words[:, i]] for i in range(CONTEXT))
    noise = rng.gumbel(size=logits.shape)
    return words, np.argmax(logits + noise, axis=-1)


def network(embeddings="uniform", biases="zeros"):
    return keras.Sequential(
        [
            keras.Input((CONTEXT,), dtype="int32"),
            keras.layers.Embedding(
                WORDS, 32, embeddings_initializer=embeddings, name="embedding"
            ),
            keras.layers.Flatten(),
            keras.layers.Dense(
                128,
                activation="relu",
                bias_initializer=biases,
                name="hidden",
            ),
            keras.layers.Dense(WORDS, name="output"),
        ],
        name="model",
    )


class Collect(keras.callbacks.Callback):
    """Keeps the reports of a monitor; comes after it."""

    def __init__(self, monitor):
        super().__init__()
        self.monitor = monitor
        self.reports = []

    def on_train_batch_begin(self, batch, logs=None):
        self._collect()

    def on_epoch_end(self, epoch, logs=None):
        self._collect()

    def _collect(self):
        report = self.monitor.report
        if report and report not in self.reports:
            self.reports.append(report)


def train(initial=None, weights=None, at=None, **settings):
    """One run.

    Args:
        initial: Dict, the arguments of `network`.
        weights: Dict from step to the weight of one sample's loss.
        at: Dict from step to a function of the optimizer, called before it.
        **settings: Of the optimizer.

    Returns:
        Dict of the series, one value a measured step, the steps at which
        there was a warning, and the mean loss over all steps.
    """
    keras.utils.set_random_seed(0)
    optimizer = keras_adafactor.Adafactor(
        **{"learning_rate": 0.05, "record_update_rms": True, **settings}
    )
    model = network(**(initial or {}))
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    words, labels = corpus()
    sample_weights = np.ones(len(words), "float32")
    for step, weight in (weights or {}).items():
        sample_weights[BATCH * step] = weight
    monitor = keras_adafactor.OptimizerMonitor(log_freq=LOG_FREQ)
    collect = Collect(monitor)
    told = []

    def begin(batch, logs):
        if batch in (at or {}):
            at[batch](optimizer)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def look(batch, logs):
            if not told and any("in a row" in str(w.message) for w in caught):
                told.append(monitor.report.step)

        history = model.fit(
            words,
            labels,
            sample_weight=sample_weights,
            batch_size=BATCH,
            shuffle=False,
            verbose=0,
            callbacks=[
                keras.callbacks.LambdaCallback(on_train_batch_begin=begin),
                monitor,
                collect,
                keras.callbacks.LambdaCallback(on_train_batch_begin=look),
            ],
        )
    series = {"step": [report.step for report in collect.reports]}
    for report in collect.reports:
        found = report.logs() | {
            f"{name}/{row.path}": getattr(row, name)
            for row in report.rows
            for name in ("weight_rms", "change_rms")
        }
        for name, value in found.items():
            series.setdefault(name, []).append(float(f"{value:.4g}"))
    loss = history.history["loss"][-1]
    return {"loss": loss, "series": series, "warned_at": told}


def measure():
    half = range(WRONG_FROM, STEPS)

    def lower(optimizer):
        optimizer.learning_rate = LOWERED_RATE

    return {
        "healthy": train(),
        "high": train(learning_rate=0.5, relative_step=False),
        "cap": train(learning_rate=0.5, at={WRONG_FROM: lower}),
        "nan": train(weights=dict.fromkeys(half[::3], float("nan"))),
        "outliers": train(weights=dict.fromkeys(half[4::30], 1e4)),
        "small": train(
            {"embeddings": keras.initializers.RandomNormal(stddev=1e-6)}
        ),
        "dead": train({"biases": keras.initializers.Constant(-3.0)}),
    }


HEALTHY, ILL = "#9a9a9a", "#d62728"


def draw(runs, path):
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    panels = figure.subplots(2, 3)

    def panel(axes, title, run, name, label=None, **settings):
        for key, color in (("healthy", HEALTHY), (run, ILL)):
            series = runs[key]["series"]
            axes.plot(series["step"], series[name], color=color, lw=2)
        axes.set_title(title, fontsize=13, fontweight="bold", loc="left")
        axes.set_ylabel(label or name, fontsize=11)
        axes.set(**settings)
        axes.grid(alpha=0.25)

    def note(axes, text, at, color=ILL):
        axes.annotate(
            text, at, xycoords="axes fraction", fontsize=11, color=color
        )

    first, second, third, fourth, fifth, sixth = panels.flat
    name = "weight_rms"
    panel(first, "Learning rate too high", "high", name, yscale="log")
    grown = runs["high"]["series"][name]
    note(first, f"weights grow {grown[-1] / grown[0]:.0f}-fold", (0.3, 0.72))
    note(first, "healthy run", (0.6, 0.12), HEALTHY)

    name = "effective_learning_rate"
    panel(second, "Rate past its cap", "cap", name)
    second.plot(
        [1, WRONG_FROM, WRONG_FROM, STEPS],
        [0.5, 0.5, LOWERED_RATE, LOWERED_RATE],
        "--",
        color="black",
        lw=1.2,
    )
    note(second, "learning_rate: a\ncallback halves it", (0.52, 0.8), "black")
    note(second, "used all the same:\n1 / sqrt(t)", (0.42, 0.24))

    panel(third, "NaN in the data", "nan", "skipped_updates")
    for step in runs["nan"]["warned_at"]:
        third.axvline(step, color="black", ls="--", lw=1.2)
        note(third, "warning, once", (0.17, 0.85), "black")
    note(third, "skips go on", (0.2, 0.4))

    panel(fourth, "Outlier batches", "outliers", "update_rms")
    note(fourth, "peaks:\nclipped to 1", (0.6, 0.8))
    note(fourth, "1 is normal", (0.05, 0.22), HEALTHY)

    name = "weight_rms/model/embedding/embeddings"
    label = "weight_rms of the embedding"
    panel(fifth, "Weight starts too small", "small", name, label, yscale="log")
    fifth.axhline(1e-3, color="black", ls="--", lw=1.2)
    note(fifth, "epsilon_2", (0.04, 0.6), "black")
    note(fifth, "creeps: steps are\nrelative to its size", (0.4, 0.3))

    name = "change_rms/model/hidden/kernel"
    label = "change_rms of a kernel"
    panel(sixth, "Dead units", "dead", name, label)
    note(sixth, "0: it gets no gradient", (0.3, 0.1))
    for axes in panels[1]:
        axes.set_xlabel("step")
    figure.savefig(path, format="png", dpi=120)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--redraw", action="store_true")
    options = parser.parse_args()
    if not options.redraw:
        records.save("monitor", {"runs": measure()})
    path, runs = records.path("monitor"), records.load("monitor")["runs"]
    for name, run in runs.items():
        last = {k: v[-1] for k, v in run["series"].items() if "/" not in k}
        print(f"{name}: loss {run['loss']:.2f}", run["warned_at"], last)
    draw(runs, path.with_suffix(".png"))
    print(f"written to {path.name} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
