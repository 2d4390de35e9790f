"""Which learning rate of Adafactor does what Adam did, on small models.

    pip install -e ".[peers]"
    python -m benchmarks.learning_rates

Two models that are no Transformer of the example: a convolutional network on
scikit-learn's 1,797 handwritten digits, and a language model of characters on
the reference manual that Python carries. Each is trained with Adam, with
Adafactor as it comes (relative steps, no momentum), and with Adafactor in
Adam's units (absolute steps, `beta_1=0.9`), over a ladder of constant learning
rates and three seeds. The validation loss is looked at after 20, 100 and 400
steps, so that each number of steps has its own best rate.

Writes `results/learning_rates.json` beside this file after each run and
`results/learning_rates.png` at the end: the same command goes on where it was
stopped.
"""

import argparse
import functools
import importlib.util
import os
import pydoc_data.topics
import statistics
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from matplotlib.ticker import NullLocator

import keras_adafactor
from benchmarks import records
from benchmarks import tables
from benchmarks import trainings

SEEDS = (0, 1, 2)
STEPS = (20, 100, 400)
BATCH = 64
CONTEXT = 64


class Way(NamedTuple):
    """One way to train.

    Attributes:
        make: Function of a learning rate that returns an optimizer.
        rates: Tuple of floats, those tried.
        default: Float, the one that the optimizer has if nothing is said.
    """

    make: Callable
    rates: tuple[float, ...]
    default: float


WAYS = {
    "Adam": Way(
        keras.optimizers.Adam,
        (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016),
        0.001,
    ),
    "Adafactor": Way(
        keras_adafactor.Adafactor,
        (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32),
        0.01,
    ),
    "Adafactor in Adam's units": Way(
        functools.partial(
            keras_adafactor.Adafactor,
            multiply_by_parameter_scale=False,
            relative_step=False,
            beta_1=0.9,
        ),
        (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016),
        0.001,
    ),
}


def digits():
    """Images (8, 8, 1) and their digits: a tuple for training, one for test."""
    from sklearn.datasets import load_digits  # noqa: PLC0415

    data = load_digits()
    x = data.images[..., None].astype("float32") / 16.0
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], data.target[order]
    return (x[:1400], y[:1400]), (x[1400:], y[1400:])


def convolutional():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def characters():
    """Windows of text, and each shifted by one, as bytes."""
    topics = pydoc_data.topics.topics
    text = "".join(topics[name] for name in sorted(topics))
    codes = np.frombuffer(text.encode("ascii", "replace"), "uint8")
    codes = codes[: len(codes) // (CONTEXT + 1) * (CONTEXT + 1)]
    windows = codes.reshape(-1, CONTEXT + 1).astype("int32")
    windows = np.random.default_rng(0).permutation(windows)
    x, y = windows[:, :-1], windows[:, 1:]
    return (x[:-400], y[:-400]), (x[-400:], y[-400:])


def language_model():
    inputs = keras.Input((CONTEXT,), dtype="int32")
    x = keras.layers.Embedding(128, 128)(inputs)
    for _ in range(2):
        attended = keras.layers.MultiHeadAttention(4, 32)(
            *2 * [keras.layers.LayerNormalization()(x)], use_causal_mask=True
        )
        x = x + attended
        hidden = keras.layers.LayerNormalization()(x)
        hidden = keras.layers.Dense(256, activation="relu")(hidden)
        x = x + keras.layers.Dense(128)(hidden)
    x = keras.layers.LayerNormalization()(x)
    return keras.Model(inputs, keras.layers.Dense(128)(x))


TASKS = {
    "CNN, digits": (digits, convolutional),
    "characters": (characters, language_model),
}


class Run(NamedTuple):
    """One training a rate.

    Attributes:
        task: Key of `TASKS`.
        way: Key of `WAYS`.
        seed: Of weights and batches.
    """

    task: str
    way: str
    seed: int


RUNS = [
    Run(task, way, seed) for seed in SEEDS for task in TASKS for way in WAYS
]


def batches(data, steps, seed):
    """As many batches as there are steps, drawn with a seed."""
    x, y = data
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.integers(len(x), size=BATCH)
        yield x[rows], y[rows]


def train(run):
    """Does a run, in a process of its own; returns what it measured."""
    data, model = TASKS[run.task]
    training, validation = data()
    losses = {}
    for rate in WAYS[run.way].rates:
        keras.utils.set_random_seed(run.seed)
        network = model()
        network.compile(
            WAYS[run.way].make(rate),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,
        )
        found = losses[str(rate)] = {}
        stream = enumerate(batches(training, STEPS[-1], run.seed), 1)
        for step, batch in stream:
            network.train_on_batch(*batch)
            if step in STEPS:
                found[str(step)] = float(
                    network.evaluate(*validation, batch_size=400, verbose=0)
                )
    return {**run._asdict(), "losses": losses}


def load():
    return records.runs("learning_rates")


def mean_losses(results, task, way, step):
    """Rate -> mean validation loss of the seeds; NaN counts as infinite."""
    rows = [r for r in results if (r["task"], r["way"]) == (task, way)]
    return {
        rate: statistics.mean(
            np.nan_to_num(row["losses"][str(rate)][str(step)], nan=np.inf)
            for row in rows
        )
        for rate in (WAYS[way].rates if rows else ())
    }


def table():
    """The best of every way, as Markdown; empty where runs are missing."""
    results = trainings.of_whole_seeds(RUNS, load())
    rows = []
    for task in TASKS:
        for step in STEPS:
            row = [task, str(step)]
            for way, (_, _, default) in WAYS.items():
                losses = mean_losses(results, task, way, step)
                if not losses:
                    return ""
                best = min(losses, key=losses.get)
                row.append(
                    f"{losses[default]:.3f}; {losses[best]:.3f} at {best:g}"
                )
            rows.append(row)
    header = [f"default; best ({trainings.seeds(results)})", "steps"]
    header += [f"{way} ({WAYS[way].default:g})" for way in WAYS]
    return tables.markdown(header, rows)


def draw(results, path):
    """Loss against rate, a panel for every task and number of steps."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(len(TASKS), len(STEPS), squeeze=False)
    for line, task in zip(panels, TASKS, strict=True):
        for axes, step in zip(line, STEPS, strict=True):
            for way in WAYS:
                losses = mean_losses(results, task, way, step)
                axes.plot(
                    list(losses), list(losses.values()), "o-", ms=3, label=way
                )
            start = mean_losses(results, task, "Adam", step).values()
            axes.set(
                xscale="log",
                yscale="log",
                title=f"{task}, {step} steps",
                ylim=(None, 1.3 * max(start)),
            )
            low, high = axes.get_ylim()
            if high > 4 * low:  # no room for more labels
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
            axes.grid(alpha=0.3, which="both")
        line[0].set_ylabel("validation loss")
    for axes in panels[-1]:
        axes.set_xlabel("learning rate")
    lines, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=len(WAYS))
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if importlib.util.find_spec("sklearn") is None:
        parser.error('scikit-learn is needed: pip install -e ".[peers]"')
    results = load()

    def finished(measured):
        results.append(measured)
        last = {
            rate: list(losses.values())[-1]
            for rate, losses in measured["losses"].items()
        }
        print(
            f"{measured['task']}, {measured['way']}, seed {measured['seed']}: "
            + ", ".join(f"{rate}: {loss:.3f}" for rate, loss in last.items()),
            flush=True,
        )
        records.save("learning_rates", {"runs": results})

    trainings.run_all(
        lambda: trainings.missing(RUNS, results),
        train,
        finished,
        options.workers,
    )
    print(table())
    path = records.path("learning_rates").with_suffix(".png")
    draw(trainings.of_whole_seeds(RUNS, results), path)
    print(f"drawn: {path}")


if __name__ == "__main__":
    main()
