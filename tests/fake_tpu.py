"""What a TPU would compile, traced on a machine without one.

TensorFlow only, and only where the CPU is several devices: a `TPUStrategy`
whose variables live there. Its graphs cannot be run, only read.
"""

import collections
import contextlib
import types

import numpy as np
import pytest
import tensorflow as tf

CORES = 2


def fake_tpu_strategy():
    """A `TPUStrategy` that traces."""
    device = "/job:localhost/replica:0/task:0/device:TPU:{}"
    metadata = types.SimpleNamespace(
        num_cores=CORES,
        num_hosts=1,
        num_of_cores_per_host=CORES,
        topology=None,
        devices=[
            types.SimpleNamespace(name=device.format(i), device_type="TPU")
            for i in range(CORES)
        ],
    )
    resolver = types.SimpleNamespace(
        master=lambda: "",
        cluster_spec=lambda: None,
        get_tpu_system_metadata=lambda: metadata,
    )
    strategy = tf.distribute.TPUStrategy(resolver)
    if not hasattr(strategy.extended, "_tpu_devices"):
        pytest.skip(
            f"TensorFlow {tf.__version__} keeps a TPUStrategy's devices "
            "elsewhere: find where, to trace without a TPU."
        )
    cpus = [d.name for d in tf.config.list_logical_devices("CPU")]
    strategy.extended._tpu_devices = np.array([[d] for d in cpus[:CORES]])
    return strategy


def nodes_of(strategy, step, *specs):
    """The nodes of the graph of `strategy.run(step, specs)`, functions too."""

    def run(*args):
        strategy.run(step, args=args)

    graph = tf.function(run).get_concrete_function(*specs).graph.as_graph_def()
    functions = [f.node_def for f in graph.library.function]
    return [node for nodes in (graph.node, *functions) for node in nodes]


def count_ops(nodes):
    return collections.Counter(node.op for node in nodes)


@contextlib.contextmanager
def replica_assignments(like):
    """Collects what is assigned by each replica for itself.

    Such variables drift apart without an error, unless what is assigned is
    aggregated.

    Args:
        like: A distributed variable, of the class to watch.

    Yields:
        List of names of variables, that grows.
    """
    found = []

    def watch(assign):
        def watched(self, *args, **kwargs):
            alone = tf.distribute.get_replica_context() is not None
            if alone and self.aggregation == tf.VariableAggregation.NONE:
                found.append(self.name)
            return assign(self, *args, **kwargs)

        return watched

    cls = type(like)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("assign", "assign_add", "assign_sub"):
            patch.setattr(cls, name, watch(getattr(cls, name)))
        yield found
