"""Trainings of the translation example, side by side, one core each."""

import concurrent.futures
import math
import multiprocessing
import os
import pathlib
import time

from examples.translation import report
from examples.translation.errors import UserError
from examples.translation.evaluate import read_pairs
from examples.translation.evaluate import translate_pairs
from examples.translation.termination import Termination

TEST_SENTENCES = 500
# Of every interval between validations; its seconds are those of training.
RECORDED = ("step", "loss", "val_loss", "seconds")


def run_all(todo, train, finished, workers):
    """Does all that is wanted, each in a process of its own.

    Args:
        todo: Function that returns the runs that may begin now, and those that
            have, in the order in which they are wanted; asked whenever one has
            ended.
        train: Function of a run that returns what it measured, for a process.
        finished: Is called with that.
        workers: Number of processes at a time.
    """
    # A worker has one core; several of them keep all busy.
    os.environ |= {
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    running = {}
    with concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        max_tasks_per_child=1,
    ) as pool:
        while True:
            waiting = [run for run in todo() if run not in running.values()]
            for run in waiting[: workers - len(running)]:
                running[pool.submit(train, run)] = run
            if not running:
                return
            done, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                del running[future]
                finished(future.result())


def missing(wanted, results):
    """Those of the wanted runs, named tuples, of which there is no result."""
    return [
        run
        for run in wanted
        if not any(run._asdict().items() <= row.items() for row in results)
    ]


def of_whole_seeds(wanted, results):
    """The results of those seeds of which no wanted run is missing."""
    broken_off = {run.seed for run in missing(wanted, results)}
    return [row for row in results if row["seed"] not in broken_off]


def seeds(results):
    """How many seeds the results are of, in words."""
    return f"seeds: {len({row['seed'] for row in results})}"


def log_to(path):
    """Sends what this process prints to the end of a file."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def outcome(job, scored, *more_callbacks):
    """Trains, and returns what was measured.

    Args:
        job: Of `examples.translation.train.prepared`.
        scored: Whether the test sentences are translated at the end.
        *more_callbacks: Of Keras.

    Returns:
        Dict that JSON can hold.
    """
    began = time.monotonic()
    diverged = False
    try:
        job.fit(Termination(), *more_callbacks)
    except UserError as error:
        if "diverged" not in str(error):
            raise
        diverged = True
    measured = {
        "parameters": sum(
            math.prod(v.shape) for v in job.model.trainable_variables
        ),
        "state_bytes": report.state_bytes(job.optimizer.variables),
        "diverged": diverged,
        "history": [
            {name: row[name] for name in RECORDED}
            for row in job.state.history
            if math.isfinite(row["val_loss"])
        ],
        "scores": {},
        "versions": report.versions(),
    }
    if scored and not diverged:
        pairs = read_pairs(job.corpus, "test", TEST_SENTENCES)
        score = translate_pairs(job.translator, pairs).score()
        measured["scores"] = {"bleu": score.bleu, "chrf": score.chrf}
    return measured | {"seconds": time.monotonic() - began}


def final_loss(measured):
    """Validation loss at the end; infinite for a run that diverged."""
    if measured["diverged"]:
        return math.inf
    return measured["history"][-1]["val_loss"]


def described(measured):
    """Loss, BLEU and time of what `outcome` returned, in words."""
    bleu = measured["scores"].get("bleu")
    return (
        f"val. loss {final_loss(measured):.4f}"
        + (f"  BLEU {bleu:.1f}" if bleu is not None else "")
        + f"  {measured['seconds']:.0f} s"
    )
