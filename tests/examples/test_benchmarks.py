"""What the benchmarks do when they are only asked what they do."""

import math
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from benchmarks import change_optimizer
from benchmarks import data_input
from benchmarks import family
from benchmarks import family_report
from benchmarks import paper_claims
from benchmarks import records
from benchmarks import report
from benchmarks import tables
from benchmarks import trainings
from examples.translation.config import TranslationConfig
from examples.translation.model import build_model

RESULTS = records.FOLDER
PROGRAM = """
import runpy
import sys
sys.modules["jax"] = sys.modules["libtpu"] = None
sys.argv[1:] = ["--help"]
runpy.run_module({!r}, run_name="__main__")
"""


@pytest.mark.parametrize("name", ["largest_model", "tpu_compile"])
def test_help_is_help_without_the_compiler(name):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()}

    before = stamps()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(f"benchmarks.{name}")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert f"python -m benchmarks.{name}" in done.stdout
    assert stamps() == before


def follow(best_rung, middle=0):
    """The runs of an optimizer whose loss is least at a rung, in order."""
    losses = {}
    while todo := family.wanted("soap", losses, middle):
        for run in todo:
            assert run not in losses
            losses[run] = abs(run.rung - best_rung)
    return list(losses)


@pytest.mark.parametrize("middle", [-3, 0, 2])
def test_every_rate_has_a_neighbour_that_is_worse(middle):
    longest = family.LONGEST_LADDER
    for best in range(middle - longest, middle + longest + 1):
        runs = follow(best, middle)
        rungs = {run.rung for run in runs}
        assert best in rungs
        if abs(best - middle) < longest:
            assert {best - 1, best + 1} <= rungs
        assert runs[-3:] == [
            family.Run("soap", best, seed, True) for seed in family.SEEDS
        ]


def test_best_rate_beyond_the_ladder_is_its_end():
    assert follow(100)[-1].rung == family.LONGEST_LADDER


def test_run_that_diverged_is_worse_than_any():
    done = {"diverged": True, "history": []}
    assert family.final_loss(done) == float("inf")


def test_optimizers_compared_are_those_of_the_example():
    from examples.translation.config import OPTIMIZERS  # noqa: PLC0415

    # SGD does not train a Transformer.
    assert {*family.OPTIMIZERS, "sgd"} == set(OPTIMIZERS)
    assert set(family_report.LABELS) == set(family.OPTIMIZERS)


def test_rates_of_a_corpus_wait_for_every_seed(monkeypatch):
    def runs(optimizer, seeds):
        return [
            {
                "optimizer": optimizer,
                "seed": seed,
                "scored": True,
                "diverged": False,
                "learning_rate": 0.04,
                "history": [{"val_loss": 2.0 + seed}],
            }
            for seed in seeds
        ]

    whole = runs("adam", family.SEEDS) + runs("adafactor", family.SEEDS)
    found = {"base": whole, "multi30k": whole[:-1], "synthetic": [], "big": []}
    monkeypatch.setattr(family_report, "load", found.get)
    _, _, *rows = family_report.rates().splitlines()
    mean = "0.04: 3.000 ± 1.000"
    assert rows == [f"| `base`, embedded corpus, 100 steps | {mean} | {mean} |"]
    found["base"] = []
    assert family_report.rates() == ""


def test_table_is_replaced_where_it_stands():
    text = "a\n<!-- table: x -->\n\n| 1 |\n\n<!-- end of table -->\nb\n"
    table = tables.markdown(["p", "q"], [["1", "2"]])
    assert table == "| p | q |\n| --- | --- |\n| 1 | 2 |\n"
    assert tables.written(text, "x") == "| 1 |\n"
    changed = tables.replaced(text, "x", table)
    assert tables.written(changed, "x") == table
    assert changed.startswith("a\n") and changed.endswith("\nb\n")
    with pytest.raises(ValueError, match="one table 'y'. Received: 0"):
        tables.written(text, "y")


def test_committed_tables_are_those_of_their_data():
    assert report.outdated() == {}


def test_table_that_is_not_of_its_data_is_found(monkeypatch):
    page, name, make = report.TABLES[0]
    changed = report.Table(page, name, lambda: make().replace("1", "2", 1))
    monkeypatch.setattr(report, "TABLES", [changed])
    assert list(report.outdated()) == [changed]


@pytest.mark.parametrize(
    "path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem
)
def test_results_say_when_and_where_they_were_measured(path):
    assert {"date", "machine", "versions"} <= records.load(path.stem).keys()


def test_runs_that_are_missing_are_those_without_a_result():
    runs = [change_optimizer.Run(w, s) for s in (0, 1) for w in ("a", "b")]
    results = [{**run._asdict(), "bleu": 1.0} for run in runs[:3]]
    assert trainings.missing(runs, results) == runs[3:]
    assert trainings.of_whole_seeds(runs, results) == results[:2]


def test_rescaled_embeddings_are_the_same_function():
    config = TranslationConfig.from_preset(
        model_dim=16, ff_dim=16, num_heads=2, num_layers=1
    )
    model = build_model(config, vocab_size=32, piece_count=32)
    ids = np.arange(1, 9, dtype="int32")[None]
    segments, positions = np.ones_like(ids), np.arange(8, dtype="int32")[None]
    features = {
        f"{side}_{name}": value
        for side in ("source", "target")
        for name, value in zip(
            ("ids", "segments", "positions"),
            (ids, segments, positions),
            strict=True,
        )
    }
    before = keras.ops.convert_to_numpy(model(features))
    table = keras.ops.convert_to_numpy(model.target_embedding.embeddings)
    paper_claims.rescale(model, 10.0)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(model.target_embedding.embeddings),
        10.0 * table,
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(model(features)), before, atol=1e-5
    )


@pytest.mark.parametrize(
    ("one", "other", "ahead", "found"),
    [
        ([1.0, 1.2], [1.3, 1.4], True, "yes"),
        ([1.0, 1.3], [1.3, 1.4], True, "**no**: level"),
        ([1.5, 1.6], [1.3, 1.4], True, "**no**: behind"),
        ([1.0, 1.3], [1.2, 1.4], False, "yes"),
        ([1.0, 1.2], [1.3, math.inf], False, "**no**: ahead"),
        ([1.5, math.inf], [1.3, 1.4], False, "**no**: behind"),
    ],
)
def test_order_is_seen_where_every_seed_has_it(one, other, ahead, found):
    assert paper_claims.seen(one, other, ahead) == found


def test_every_claim_is_of_runs_that_are_made():
    made = {(run.row, run.warm, run.scale) for run in paper_claims.RUNS}
    for claim in paper_claims.CLAIMS:
        assert {tuple(claim.one), tuple(claim.other)} <= made


def test_measured_input_is_small_and_starts_fast():
    for row in records.load("data_input")["rows"]:
        assert row["peak_resident_gib"] <= 2
        assert row["start"] == "cold" or row["seconds_to_first_batch"] < 10


@pytest.mark.parametrize(
    "names",
    [["step_time"], pytest.param([], marks=pytest.mark.exhaustive)],
    ids=["step_time", "all"],
)
def test_quick_benchmarks_run_and_write_nothing(names):
    before = {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()}
    backend = keras.backend.backend()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", *names, "--quick"),
            *("--backends", backend),
        ],
        cwd=RESULTS.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (ours,) = re.findall(
        r"^(?:graph|eager|jit) +Adafactor +.* s +(\d\.\d+)$",
        done.stdout,
        re.MULTILINE,
    )[:1]
    assert float(ours) < 0.2
    assert before == {
        path: path.stat().st_mtime_ns for path in RESULTS.iterdir()
    }


def test_benchmarks_are_listed():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks"],
        cwd=RESULTS.parents[1],
        capture_output=True,
        text=True,
    )
    modules = {path.stem for path in RESULTS.parent.glob("*.py")}
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    assert listed <= modules
    without_main = {"__init__", "__main__", "records", "optimizers", "steps"}
    without_main |= {"trainings"}
    # It takes finished runs as arguments.
    without_main |= {"tables", "compare_runs"}
    assert modules - listed == without_main


def test_input_that_was_cut_into_pieces_once_is_not_cut_again(tmp_path):
    data_input.write_text(2_000, tmp_path)
    cold = data_input.measure(tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.bin")}
    warm = data_input.measure(tmp_path)
    assert kept
    assert kept == {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.bin")
    }
    assert cold["pairs"] == warm["pairs"] == 2_000
    rows = [{"start": "cold", **cold}, {"start": "warm", **warm}]
    assert data_input.table_of(rows).count("2,000") == 2
