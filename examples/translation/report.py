"""What a run leaves to read: a table, JSON, a CSV and a picture."""

import contextlib
import csv
import importlib.metadata
import io
import math
import pathlib
import platform
import subprocess

import keras
import numpy as np
from matplotlib.figure import Figure

from keras_adafactor.tables import lines_of_table

HISTORY_COLUMNS = (
    "step",
    "steps",
    "loss",
    "token_accuracy",
    "val_loss",
    "val_token_accuracy",
    "val_bleu",
    "effective_learning_rate",
    "weight_rms",
    "change_rms",
    "update_rms",
    "clipped_fraction",
    "skipped_updates",
    "loss_scale",
    "tokens",
    "seconds",
    "tokens_per_second",
)
_PACKAGES = (
    "keras",
    "keras_adafactor",
    "tensorflow",
    "tensorflow-tpu",
    "jax",
    "jaxlib",
    "numpy",
    "sentencepiece",
    "sacrebleu",
    "tensorflow-datasets",
)


def state_bytes(variables):
    """Returns the bytes that Keras variables take."""
    return sum(
        math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in variables
    )


def adam_state_bytes(variables):
    """Returns the bytes of Adam's two moments, 8 for a parameter."""
    return 8 * sum(math.prod(v.shape) for v in variables)


def keras_adafactor_state_bytes(variables):
    """Returns the bytes of the state of `keras.optimizers.Adafactor`.

    It keeps a full-size second moment beside the row and column factors, and
    two int32 scalars in place of the factors of a vector.
    """
    return sum(
        4 * (math.prod(shape) + _factors(shape))
        for shape in (tuple(v.shape) for v in variables)
    )


def _factors(shape):
    if len(shape) < 2:
        return 2
    return math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1]


def history_csv(history):
    """Returns the history, a row for each interval, as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, HISTORY_COLUMNS, extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def plot_history(history, title, path):
    """Draws training and validation loss, and BLEU where there is one.

    Args:
        history: Rows with `step`, `loss`, `val_loss` and maybe `val_bleu`.
        title: Must name the data source.
        path: PNG to write.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="step", ylabel="loss")
    steps = [row["step"] for row in history]
    for name, label in (("loss", "training"), ("val_loss", "validation")):
        axes.plot(steps, [row[name] for row in history], label=label)
    axes.grid(alpha=0.3)
    scored = [row for row in history if "val_bleu" in row]
    if scored:
        right = axes.twinx()
        right.set(ylabel="validation BLEU", ylim=(0, 100))
        right.plot(
            [row["step"] for row in scored],
            [row["val_bleu"] for row in scored],
            "o-",
            color="tab:green",
            label="BLEU",
        )
        axes.plot([], [], "o-", color="tab:green", label="BLEU")
    axes.legend(loc="center right")
    figure.savefig(path, format="png", dpi=120)


def commit():
    """Returns the commit of this code, `-dirty` if it was changed since.

    `None` where there is no git, or the code is not a clone.
    """
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"]
            + ["--exclude=*"],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions():
    """Returns the versions of Python, the backend and the packages."""
    found = {
        "python": platform.python_version(),
        "backend": keras.backend.backend(),
    }
    for package in _PACKAGES:
        # A TPU's TensorFlow is a package of another name, or there is no jax.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def format_report(metrics):
    """Returns the final table of a run as text.

    Args:
        metrics: What `train` writes to `metrics.json`.
    """
    facts = {
        "data": metrics["data"],
        "devices": metrics["devices"],
        "optimizer": metrics["optimizer"],
        "steps": f"{metrics['steps']:,}",
        "training time": _minutes(metrics["training_seconds"]),
        "time in all": _minutes(metrics["process_seconds"])
        + ", since this process began",
        "loss": f"{metrics['loss']:.4f} training, "
        f"{metrics['val_loss']:.4f} validation",
        "parameters": f"{metrics['parameters']:,}",
        "optimizer state": _state(metrics),
    }
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {value}" for name, value in facts.items()]
    return "\n".join([*lines, "", format_scores(metrics["scores"])])


def _state(metrics):
    own = metrics["optimizer_state_bytes"]
    others = {
        "Adam": metrics["adam_state_bytes"],
        "Keras' Adafactor": metrics["keras_adafactor_state_bytes"],
    }
    return f"{own:,} bytes" + "".join(
        f"; {name} {count:,}" for name, count in others.items()
    )


def _minutes(seconds):
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def format_scores(scores):
    """Returns a table of scores with sacrebleu's signatures below.

    Args:
        scores: Dict from the name of some weights to a dict from split to
            the fields of `evaluate.Scores`.
    """
    rows = [("weights", "split", "sentences", "BLEU", "chrF", "exact match")]
    for weights, splits in scores.items():
        for split, score in splits.items():
            rows.append(
                (
                    weights,
                    split,
                    f"{score['sentences']:,}",
                    f"{score['bleu']:.1f}",
                    f"{score['chrf']:.1f}",
                    f"{score['exact_match']:.1f} %",
                )
            )
    return "\n".join(
        [
            *lines_of_table(rows, right_aligned=4),
            f"BLEU {score['bleu_signature']}",
            f"chrF {score['chrf_signature']}",
        ]
    )


def format_samples(samples):
    """Returns (source, reference, hypothesis) triples, three lines each."""
    return "\n\n".join(
        f"  source      {source}\n"
        f"  translation {hypothesis}\n"
        f"  reference   {reference}"
        for source, reference, hypothesis in samples
    )
