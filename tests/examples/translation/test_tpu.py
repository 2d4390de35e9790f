"""The example under a `TPUStrategy`: traced, not run."""

import types

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip(
        "TPUStrategy is TensorFlow's: KERAS_BACKEND=tensorflow runs these "
        "tests.",
        allow_module_level=True,
    )

import tensorflow as tf

from examples.translation import batching
from examples.translation import train
from examples.translation.checkpoint import Checkpoints
from examples.translation.decode import compile_search
from examples.translation.devices import Devices
from examples.translation.errors import UserError
from examples.translation.runs import open_corpus
from examples.translation.tokenizer import train_tokenizer
from tests.fake_tpu import CORES
from tests.fake_tpu import count_ops
from tests.fake_tpu import fake_tpu_strategy
from tests.fake_tpu import nodes_of
from tests.fake_tpu import replica_assignments

pytestmark = pytest.mark.virtual_devices

# Shapes that depend on values, and what only a host can do.
NOT_ON_A_TPU = {
    "Where", "Unique", "UniqueV2", "BooleanMask", "PyFunc", "EagerPyFunc",
    "NumpyFunction", "Print", "PrintV2", "Assert", "ReadFile", "StringFormat",
}  # fmt: skip


@pytest.fixture
def tpu():
    return Devices("TPUStrategy over 2 cores", CORES, fake_tpu_strategy())


@pytest.fixture
def job(small_config, tpu):
    def make(**settings):
        config = small_config(batching="pack", **settings)
        run_dir = train.run_directory(config, "synthetic")
        run_dir.mkdir(parents=True, exist_ok=True)
        corpus = open_corpus(config)
        tokenizer = train_tokenizer(corpus, run_dir / "cache", 500)
        checkpoints = Checkpoints(
            run_dir / "checkpoints", interval=5, keep=1, identity={}
        )
        return train.Job(config, run_dir, corpus, tokenizer, tpu, checkpoints)

    return make


def replica_specs(job):
    """What each replica is given of a training batch."""
    dataset = batching.train_dataset(job.training_data, job.plan)

    def part(spec):
        rows, length = spec.shape.as_list()
        return tf.TensorSpec((rows // CORES, length), spec.dtype)

    return tf.nest.map_structure(part, dataset.element_spec)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"mixed_precision": "bfloat16", "optimizer": "adam"},
    ],
    ids=str,
)
def test_train_step_is_static_and_all_on_the_tpu(job, settings):
    job = job(**settings)
    features, *rest = replica_specs(job)
    model = job.model
    with replica_assignments(model.trainable_variables[0].value) as assigned:
        nodes = nodes_of(
            job.devices.strategy,
            lambda *batch: model.train_step(batch),
            features,
            *rest,
        )
    # The seeds of dropout advance alike on every replica.
    assert not [name for name in assigned if "seed_generator" not in name]
    count = count_ops(nodes)
    # Gradients; every other sum is of a scalar, for a metric.
    sums = [n for n in nodes if n.op == "CrossReplicaSum"]
    assert len(sums) >= len(model.trainable_variables)
    assert count["TPUReplicateMetadata"] == 1
    assert count["VarHandleOp"] == 0  # nothing is created in the step
    assert not NOT_ON_A_TPU & set(count)
    assert not [n.name for n in nodes if n.attr["_XlaMustCompile"].b]


def test_translations_are_searched_for_on_the_tpu(job, monkeypatch):
    """Read in the graph, since it cannot be run: nothing of it on the host."""
    model = job().model
    graphs = []

    def trace(function, **options):
        assert not options.get("jit_compile")
        traced = tf.function(function, **options)

        def run(ids):
            graphs.append(traced.get_concrete_function(ids).graph)
            rows = ids.shape[0]
            return tf.zeros((rows, 1, 4)), tf.zeros((rows, 1))

        return run

    monkeypatch.setattr(
        "examples.translation.decode.tf",
        types.SimpleNamespace(function=trace, distribute=tf.distribute),
    )
    options = {"beam_size": 2, "length_penalty": 0.6, "max_decode_length": 8}
    compile_search(model, **options)(np.ones((4, 16), "int32"))
    (graph,) = graphs
    loops = [op for op in graph.get_operations() if "While" in op.type]
    assert loops
    for op in loops:
        assert op.get_attr("_tpu_replicate")
    definition = graph.as_graph_def()
    bodies = [n for f in definition.library.function for n in f.node_def]
    count = count_ops([*definition.node, *bodies])
    assert count["TPUReplicateMetadata"] == 1
    assert not NOT_ON_A_TPU & set(count)


def test_training_batches_are_whole_and_of_one_shape(job):
    made = job()
    dataset = batching.train_dataset(made.training_data, made.plan, steps=3)
    for spec in tf.nest.flatten(dataset.element_spec):
        assert spec.shape.is_fully_defined()
        assert spec.shape[0] % CORES == 0
    for batch in dataset:
        tf.nest.assert_same_structure(batch, dataset.element_spec)


def test_batches_of_many_shapes_are_refused(small_config, tpu):
    config = small_config(batching="bucket", bucket_lengths=(32, 96))
    with pytest.raises(UserError, match="--batching pack.*32,96"):
        train.check_devices(config, tpu)
    train.check_devices(small_config(batching="pack"), tpu)


def test_xla_is_not_asked_for_twice(small_config, tpu):
    config = small_config(batching="pack", jit_compile="on")
    with pytest.raises(UserError, match="--jit_compile on"):
        train.check_devices(config, tpu)
