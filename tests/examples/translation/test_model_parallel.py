"""JAX: `--model_parallel` on eight virtual devices, against one device."""

import functools
import re

import keras
import numpy as np
import pytest

from examples.translation import batching
from examples.translation import train as job
from examples.translation.config import TranslationConfig
from examples.translation.evaluate import read_pairs
from examples.translation.runs import build_translator
from examples.translation.runs import load_run
from examples.translation.train import train
from tests.examples.translation.conftest import SETTINGS

if keras.backend.backend() != "jax":
    pytest.skip(
        "Only JAX splits a model: KERAS_BACKEND=jax runs these tests.",
        allow_module_level=True,
    )

import jax

pytestmark = pytest.mark.virtual_devices

STEPS = 3
COLLECTIVE = r" (all-[a-z]+|reduce-scatter|collective-[a-z]+)(?:-start)?\("
ONE_DEVICE = {"strategy": "default"}
SPLIT = {"model_parallel": 2}


def fit(data_dir, run_dir, stops, **devices):
    """Trains up to each stop in turn; returns the last `Job`, unfinished."""
    for steps in stops:
        jobs = []
        config = TranslationConfig.from_preset(
            **SETTINGS
            | {
                "data_dir": data_dir,
                "run_dir": str(run_dir),
                "virtual_devices": 8,
                "steps": steps,
                "checkpoint_every": 1,
                "bleu_every": 0,
                "bucket_lengths": (96,),
                "evaluation_batch_size": 64,
                **devices,
            }
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                job.Job, "finish", lambda self, jobs=jobs: jobs.append(self)
            )
            train(config)
    return jobs[0]


# Not a fixture: those are also set up outside the child process.
@functools.cache
def split_run(data_dir):
    """A job on the devices, and its translations of some sentences."""
    found = fit(data_dir, f"{data_dir}/split", [STEPS], **SPLIT)
    return found, found.translator.translate(sentences(found.corpus))


def sentences(corpus):
    return [source for source, _ in read_pairs(corpus, "test", 8)]


def axes(variable):
    """The mesh axis that each axis of a variable is split over."""
    found = tuple(variable.value.sharding.spec)
    return found + (None,) * (len(variable.shape) - len(found))


def layouts(found):
    """Of all variables of a job, in order."""
    variables = (*found.model.variables, *found.optimizer.variables)
    return [axes(variable) for variable in variables]


def test_the_log_names_mesh_and_devices(data_dir):
    devices = split_run(data_dir)[0].devices
    assert devices.description.startswith("ModelParallel over 8 cpu devices, ")
    assert devices.description.endswith("mesh (data 4, model 2)")
    assert devices.replicas == 4


def test_matrices_and_their_statistics_are_split(data_dir):
    found, _ = split_run(data_dir)
    weights = found.model.trainable_variables
    for weight, (path, slots) in zip(
        weights, found.optimizer.slots(), strict=True
    ):
        assert weight.path == path
        whole = "layer_norm" in path or path.endswith("output/bias")
        assert ("model" in axes(weight)) != whole, path
        assert "data" not in axes(weight)
        if len(weight.shape) == 2:
            assert axes(slots["v_row"]) == axes(weight)[:1], path
            assert axes(slots["v_col"]) == axes(weight)[1:], path
        if "v" in slots:
            assert axes(slots["v"]) == axes(weight), path
    kernels = [w for w in weights if len(w.shape) > 1]
    for kernel in kernels:
        shard = kernel.value.addressable_shards[0].data
        assert shard.size * 2 == kernel.value.size, kernel.path


def test_a_step_only_sums_over_devices(data_dir):
    """No weight, activation or statistic is gathered on a device."""
    found, _ = split_run(data_dir)
    model, optimizer = found.model, found.optimizer
    batch = next(iter(batching.train_dataset(found.training_data, found.plan)))
    mesh = model.trainable_variables[0].value.sharding.mesh
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    batch = jax.tree.map(lambda x: jax.device_put(x.numpy(), rows), batch)

    def loss(weights, others, batch):
        features, labels, mask = batch
        logits, _ = model.stateless_call(
            weights, others, features, training=True
        )
        return model.loss(labels, logits, mask)

    def step(weights, others, slots, batch):
        gradients = jax.grad(loss)(weights, others, batch)
        return optimizer.stateless_apply(slots, gradients, weights)

    values = [
        [variable.value for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            optimizer.variables,
        )
    ]
    compiled = jax.jit(step, donate_argnums=(0, 2)).lower(*values, batch)
    found = set(re.findall(COLLECTIVE, compiled.compile().as_text()))
    assert found == {"all-reduce"}


def test_first_steps_equal_one_device(data_dir, tmp_path):
    split, _ = split_run(data_dir)
    single = fit(data_dir, tmp_path, [STEPS], **ONE_DEVICE)
    assert single.devices.description.startswith("one cpu device")
    assert [row["step"] for row in single.state.history] == [1, 2, 3]
    for name in ("loss", "val_loss"):
        losses = [
            [row[name] for row in found.state.history]
            for found in (split, single)
        ]
        np.testing.assert_allclose(*losses, rtol=1e-5)
    for ours, theirs in zip(
        split.model.trainable_variables,
        single.model.trainable_variables,
        strict=True,
    ):
        np.testing.assert_allclose(
            *(keras.ops.convert_to_numpy(v) for v in (ours, theirs)),
            rtol=1e-4,
            atol=1e-5,
            err_msg=ours.path,
        )


@pytest.mark.parametrize(
    "devices",
    [
        pytest.param(
            {"sharding": "fully_sharded"}, marks=pytest.mark.exhaustive
        ),
        {"sharding": "fully_sharded", "model_parallel": 2},
    ],
    ids=["data", "data and model"],
)
def test_fully_sharded_continues_what_is_not_and_back(
    data_dir, tmp_path, devices
):
    """Two steps of three are done with every variable split over `data`."""
    split, translations = split_run(data_dir)
    fit(data_dir, tmp_path, [1], **SPLIT)
    sharded = fit(data_dir, tmp_path, [2], **devices)
    assert "FullySharded over 8" in sharded.devices.description
    for weight in sharded.model.trainable_variables:
        if len(weight.shape) > 1:
            assert "data" in axes(weight), weight.path
    assert len(sharded.translator.translate(sentences(sharded.corpus))) == 8
    found = fit(data_dir, tmp_path, [STEPS], **SPLIT)
    # That a run of one layout continues bit for bit is in test_killed.py.
    assert layouts(found) == layouts(split)
    for name in ("loss", "val_loss"):
        losses = [
            [row[name] for row in job.state.history] for job in (split, found)
        ]
        np.testing.assert_allclose(*losses, rtol=1e-5)
    # All but rounding of the weights, which a beam may feel.
    assert len(found.translator.translate(sentences(found.corpus))) == len(
        translations
    )


def test_one_device_reads_and_translates_alike(data_dir):
    found, translations = split_run(data_dir)
    keras.distribution.set_distribution(None)
    config, tokenizer, model = load_run(found.run_dir, {})
    assert {len(v.value.devices()) for v in model.variables} == {1}
    translator = build_translator(config, tokenizer, model)
    assert translator.translate(sentences(found.corpus)) == translations
