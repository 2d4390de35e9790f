"""`python -m tpu_scripts.precompile`: what it asks, finds and prints."""

import dataclasses
import json
import re
import subprocess
import sys
import types

import keras
import pytest

from examples.translation.errors import UserError
from tests.conftest import ROOT
from tpu_scripts import precompile
from tpu_scripts import tpu_compiler
from tpu_scripts.measurement import Measurement
from tpu_scripts.search import largest_that_fits


class Sizes:
    """Stands in for the compiler, and keeps what it was asked."""

    def __init__(self, needed, available=1000):
        self.needed, self.available, self.asked = needed, available, []

    def __call__(self, size):
        assert size not in self.asked, "compiled twice"
        self.asked.append(size)
        required = self.needed(size)
        return types.SimpleNamespace(
            required=required,
            available=self.available,
            fits=required <= self.available,
        )


@pytest.mark.parametrize("start", [1, 7, 12, 40, 300])
@pytest.mark.parametrize("slope", [3, 10, 37, 90, 450])
def test_search_of_linear_memory_finds_the_largest_in_few_steps(slope, start):
    sizes = Sizes(lambda n: 100 + slope * n)
    assert largest_that_fits(sizes, start) == 900 // slope
    assert len(sizes.asked) <= 8


@pytest.mark.parametrize(
    "needed",
    [
        lambda n: n * n,
        lambda n: 999 + 2 * (n > 31),
        lambda n: 2**n,
        lambda n: 500 + n + 300 * (n > 20),
    ],
)
def test_search_of_any_growing_memory_ends_at_the_largest(needed):
    sizes = Sizes(needed)
    best = largest_that_fits(sizes, 8)
    assert needed(best) <= 1000 < needed(best + 1)
    assert {best, best + 1} <= set(sizes.asked)
    assert len(sizes.asked) <= 20


def test_search_tries_multiples_only():
    sizes = Sizes(lambda n: 7 * n)
    assert largest_that_fits(sizes, 16, multiple=16) == 128
    assert all(size % 16 == 0 for size in sizes.asked)


def test_search_where_nothing_fits_gives_zero():
    assert largest_that_fits(Sizes(lambda n: 2000 + n), 64) == 0


def parse(text):
    return precompile.parse(["precompile", *text.split()])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--preset big", "Give a --topology"),
        ("--topology v5e:4x5", "no topology 'v5e:4x5'.*v5e:4x4 v5e:4x8"),
        ("--topology v9", "no topology 'v9'"),
        ("--topology v5e:4x4 --model bert", "--model must be one of trans"),
        ("--topology v5e:4x4 --preset huge", "--preset must be one of tiny"),
        ("--topology v5e:4x4 --policy int8", "--policy must be one of flo"),
        ("--topology v5e:4x4 --search width", "--search must be one of ba"),
        ("--topology v5e:4x4 --optimizer lamb", "Received: lamb"),
        ("--topology v5e:4x4 --compare adam@int4", "Received: adam@int4"),
        ("--topology v5e:4x4 --layers 0", "layers.*--help"),
        ("--topology v5e:4x4 --laiers 3", "laiers.*--help"),
        ("--topology v5e:4x4 now", "Only flags are taken. Received: now"),
        ("--topology v5e:4x4 --width 1000 --heads 16", "multiple of --heads"),
        ("--topology v5e:4x4 --model_parallel 3", "divide the 16 devices"),
        ("--topology v5e:4x4 --global_batch 40", "a multiple of 16"),
        ("--topology v4:2x2x1 --model_parallel 16", "divide the 8 devices"),
        ("--topology v5e:4x4 --sharding zero", "--sharding must be one of rep"),
        (
            "--topology v5e:4x4 --sharding replicated --model_parallel 2",
            "no axis model: --model_parallel must be 1. Received: 2",
        ),
        ("--topology v5e:4x4 --search chips", "one of v2, v3.*: v5e:4x4"),
        ("--topology v5e --search batch", "no topology 'v5e'"),
        ("--topology v5e --search chips", "needs a --global_batch"),
        (
            "--topology v5e --search chips --model_parallel 3 --global_batch 8",
            "No slice of v5e .*--model_parallel 3 divides",
        ),
        ("--topology v5e:4x4 --model a:b --width 8", "--width is of the mod"),
        (
            "--topology v5e:4x4 --model a:b --search layers",
            "--search layers is",
        ),
        (
            "--topology v5e:4x4 --model a:b --model_parallel 2",
            "known of the models translation and decoder alone.*--model a:b",
        ),
    ],
)
def test_bad_arguments_are_named(line, message):
    with pytest.raises(UserError, match=f"(?s){message}"):
        parse(line)


def test_defaults_come_from_the_preset_and_the_devices():
    request, optimizers, _ = parse(
        "--topology v5e:4x4 --model_parallel 4 "
        "--compare adam,adafactor@bfloat16"
    )
    assert optimizers == ["adafactor", "adam", "adafactor@bfloat16"]
    assert (request.width, request.heads, request.length) == (1024, 16, 256)
    assert request.global_batch == 32
    assert request.mesh_shape(16) == (4, 4)
    request, _, _ = parse("--topology v5e:1x1 --model decoder --width 512")
    assert (request.ff_dim, request.heads, request.layers) == (2048, 4, 12)


def test_sharding_is_that_of_the_model_unless_it_is_given():
    for line, sharding in {
        "": "model_parallel",
        "--model decoder": "fully_sharded",
        "--model a:b": "fully_sharded",
        "--sharding fully_sharded": "fully_sharded",
        "--model decoder --sharding replicated": "replicated",
    }.items():
        request, _, _ = parse(f"--topology v5e:4x4 {line}")
        assert request.sharding == sharding


def test_layers_are_recomputed_where_it_is_asked():
    for line, remat in {
        "": False,
        "--remat": True,
        "--model decoder": True,
        "--model decoder --noremat": False,
    }.items():
        request, _, _ = parse(f"--topology v5e:1x1 {line}")
        assert request.remat == remat
        assert request.described().count("rematerialised") == remat
    request, _, _ = parse("--topology v5e:1x1 --remat")
    assert request.translation_config("adafactor").remat == "on"
    with pytest.raises(UserError, match="--remat is of the models"):
        parse("--topology v5e:1x1 --model a:b --remat")


def test_accumulation_is_the_optimizers():
    request, _, _ = parse(
        "--topology v5e:1x1 --gradient_accumulation_steps 4 --global_batch 8"
    )
    config = request.translation_config("adafactor")
    assert config.gradient_accumulation_steps == 4
    assert request.described().endswith("8 rows of 256 tokens, 4 to an update")


GIB = 2**30


def fake(request, optimizer):
    """4 bytes a weight, 8 of state with Adam, 1 GiB that grows with rows."""
    weights = request.layers * GIB // 2
    state = {"adam": 2 * weights, "adafactor": 0}[optimizer]
    others = request.global_batch * GIB // 16
    required = weights + state + others + GIB // 4 + GIB
    return Measurement(
        parameters=weights // 4,
        weights=weights,
        optimizer_state=state,
        others=others,
        program=GIB // 4,
        required=required,
        available=16 * GIB,
        fits=required <= 16 * GIB,
    )


def test_comparison_is_a_table_and_json(capsys):
    request, optimizers, _ = parse(
        "--topology v5e:1x1 --model decoder --layers 12 --compare adam"
    )
    results = precompile.run(request, optimizers, measure=fake)
    printed = capsys.readouterr().out
    assert printed.endswith(
        """
GiB of one device            adafactor          adam
----------------------------------------------------
weights                          6.000         6.000
optimizer state                  0.000        12.000
activations and temporaries      1.000         1.000
program                          0.250         0.250
batch and the rest               0.500         0.500
needed                           7.750        19.750
usable                          16.000        16.000
                                  FITS  DOES NOT FIT
"""
    )
    assert (
        "adam: 12 layers, batch 8, 1,610,612,736 parameters: 19.75" in printed
    )
    assert json.loads(json.dumps(results)) == results
    assert [r["fits"] for r in results["results"]] == [True, False]
    assert results["results"][0]["temporaries"] == GIB
    assert (results["chips"], results["devices"]) == (1, 1)


@pytest.mark.parametrize(
    ("what", "largest"), [("layers", [28, 9]), ("batch", [140, 0])]
)
def test_search_says_what_was_compiled(capsys, what, largest):
    request, optimizers, _ = parse(
        "--topology v5e:1x1 --model decoder --layers 12 --compare adam"
    )
    results = precompile.run(request, optimizers, what, measure=fake)["results"]
    assert [r["largest"] for r in results] == largest
    for found in results:
        compiled = {int(n): m["fits"] for n, m in found["compiled"].items()}
        assert compiled[found["largest"] + 1] is False
        assert compiled.get(found["largest"], True) is True
    printed = capsys.readouterr().out
    assert f"adafactor: largest {what} that fits: {largest[0]}." in printed
    assert f"{largest[0] + 1} (does not)" in printed


SLICES = ["1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"]


@pytest.mark.parametrize("first", [*SLICES, None])
def test_search_of_chips_ends_at_the_smallest_slice(capsys, first):
    def fits_from(request, optimizer):
        shapes = SLICES[SLICES.index(first) :] if first else []
        shape = request.topology.partition(":")[2]
        assert tpu_compiler.chips(request.topology) <= 256
        fits = shape in shapes
        found = fake(request, optimizer)
        return dataclasses.replace(found, fits=fits)

    request, optimizers, _ = parse(
        "--topology v5e --search chips --model decoder --global_batch 256"
    )
    results = precompile.run(request, optimizers, "chips", measure=fits_from)
    assert results["topology"] == "v5e"
    (found,) = results["results"]
    smallest = first and f"v5e:{first}"
    assert found["smallest"] == smallest
    compiled = {name: m["fits"] for name, m in found["compiled"].items()}
    assert len(compiled) <= 4
    if first not in ("1x1", None):
        before = SLICES[SLICES.index(first) - 1]
        assert compiled[f"v5e:{before}"] is False
    printed = capsys.readouterr().out
    assert f"adafactor: smallest slice that fits: {smallest}".lower() in printed
    # A line for each compilation.
    for name, fits in compiled.items():
        does = "fits" if fits else "does not fit"
        assert re.search(rf"adafactor: {name}, 12 layers.* {does} \(", printed)


def test_slices_that_cannot_share_out_the_batch_are_not_asked_about():
    assert precompile.slices_of("v5e", 8, 1) == [
        "v5e:1x1",
        "v5e:2x2",
        "v5e:2x4",
    ]
    assert precompile.slices_of("v5e", 8, 4) == [
        *("v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:4x8"),
    ]
    # Two devices a chip.
    assert precompile.slices_of("v4", 16, 1) == ["v4:2x2x1", "v4:2x2x2"]


def run_program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tpu_scripts.precompile", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_mistyped_topology_is_a_message_and_no_traceback():
    done = run_program("--topology", "v5e:44")
    assert done.returncode == 2
    assert "v5e:4x4" in done.stderr
    assert "Traceback" not in done.stderr


only_jax = pytest.mark.skipif(
    bool(tpu_compiler.MISSING) or keras.backend.backend() != "jax",
    reason="Compiles with JAX whatever the backend: KERAS_BACKEND=jax and "
    "pip install -e '.[tpu-compile]' run this.",
)


@only_jax
def test_real_steps_that_fit_and_do_not(tmp_path):
    for layers, width, status in ((1, 256, "FITS"), (4, 2**15, "DOES NOT FIT")):
        done = run_program(
            *("--topology=v5e:2x2", "--model=decoder", f"--layers={layers}"),
            *(f"--width={width}", "--length=64", "--vocab_size=512"),
            *("--global_batch=16", "--model_parallel=2"),
            f"--json={tmp_path / 'found.json'}",
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].strip() == status
        results = json.loads((tmp_path / "found.json").read_text())
        (found,) = results["results"]
        assert found["fits"] == (status == "FITS")
        assert bool(found["cycles"]) == found["fits"]
        assert found["available"] == round(15.75 * GIB)
        # 4 d^2 + 2 d ff + their vectors, embedding, last norm.
        block = 12 * width**2 + 9 * width
        parameters = layers * block + 512 * width + 2 * width
        assert found["parameters"] == parameters
        kinds = ("weights", "optimizer_state", "others", "program")
        kept = sum(found[kind] for kind in kinds)
        assert found["required"] == kept + found["temporaries"]
        # A quarter of every matrix is on each device.
        assert parameters <= found["weights"] < 1.2 * parameters


@only_jax
@pytest.mark.exhaustive
def test_recomputed_layers_need_less(tmp_path):
    """The translation model, with its dropout."""
    temporaries = []
    for flag in ("--remat", "--noremat"):
        done = run_program(
            *("--topology=v5e:1x1", "--preset=tiny", "--layers=2", flag),
            *("--global_batch=256", f"--json={tmp_path / 'found.json'}"),
        )
        assert done.returncode == 0, done.stderr
        results = json.loads((tmp_path / "found.json").read_text())
        (found,) = results["results"]
        temporaries.append(found["temporaries"])
    recomputed, kept = temporaries
    assert recomputed < 0.7 * kept


def own_model():
    """For `--model`: a kernel and its bias."""
    inputs = keras.Input((1024,))
    model = keras.Model(inputs, keras.layers.Dense(1024)(inputs))
    model.compile(loss="mse")
    row = keras.KerasTensor((1024,), "float32")
    return model, (row, row)


def own_model_without_loss():
    return keras.Sequential([keras.layers.Dense(8)]), ()


@only_jax
def test_model_of_ones_own_whole_and_split(tmp_path):
    found = {}
    for sharding in ("replicated", "fully_sharded"):
        done = run_program(
            "--topology=v5e:2x2",
            f"--model={__name__}:own_model",
            f"--sharding={sharding}",
            "--optimizer=adam",
            "--gradient_accumulation_steps=2",
            f"--json={tmp_path / 'found.json'}",
        )
        assert done.returncode == 0, done.stderr
        results = json.loads((tmp_path / "found.json").read_text())
        (found[sharding],) = results["results"]
        assert results["sharding"] == sharding
    whole, split = found.values()
    assert whole["parameters"] == split["parameters"] == 1024 * 1025
    assert 4 * 1024 * 1025 <= whole["weights"] < 4.1 * 1024 * 1025
    # Moments and accumulators.
    assert whole["optimizer_state"] > 2.9 * whole["weights"]
    for kind in ("weights", "optimizer_state"):
        assert split[kind] == pytest.approx(whole[kind] / 4, rel=0.01)


@only_jax
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere:f", "--model nowhere:f: No module named 'nowhere'"),
        (f"{__name__}:nothing", "has no attribute 'nothing'"),
        (f"{__name__}:own_model_without_loss", "must return .* compiled"),
    ],
)
def test_wrong_model_of_ones_own_is_a_message(model, message):
    done = run_program("--topology=v5e:2x2", f"--model={model}")
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr
