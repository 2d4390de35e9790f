"""One worker of a `MultiWorkerMirroredStrategy`: see `test_workers.py`.

The cluster is in the environment variable TF_CONFIG. `fit` is not used: under
this strategy Keras 3.15 raises in its own symbolic build, whatever the
optimizer.
"""

import os
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_adafactor import Adafactor
from tests.probe import as_numpy

START = np.linspace(-1.0, 2.0, 12, dtype="float32").reshape(3, 4)
SETTINGS = {
    "name": "adafactor",
    "learning_rate": 0.1,
    "beta_1": 0.9,
    "use_ema": True,
    "weight_decay": 0.1,
    "global_clipnorm": 0.5,
    "gradient_accumulation_steps": 2,
    "skip_nonfinite": "step",
}
BAD_STEP = 3


def gradients():
    """`(steps, workers, *shape)`; of one step, infinite for one worker."""
    given = np.random.default_rng(0).normal(size=(9, 2, *START.shape))
    given[BAD_STEP, 1, 0, 0] = np.inf
    return given.astype("float32")


def train(strategy):
    """Returns a dict from name to array: the weight, and all that is kept."""
    with strategy.scope():
        weight = keras.Variable(START, name="w")
        optimizer = Adafactor(**SETTINGS)
        optimizer.build([weight])
    replicas = strategy.num_replicas_in_sync

    def replica_step(rows):
        context = tf.distribute.get_replica_context()
        mine = rows[context.replica_id_in_sync_group]
        optimizer.apply([mine / replicas], [weight])

    @tf.function
    def step(rows):
        strategy.run(replica_step, args=(rows,))

    for rows in gradients():
        if replicas == 1:
            rows = rows.mean(axis=0, keepdims=True)
        step(tf.constant(rows))
    kept = [weight, *optimizer.variables]
    return {v.path.replace("/", "."): as_numpy(v) for v in kept}


if __name__ == "__main__":
    assert "TF_CONFIG" in os.environ
    np.savez(sys.argv[1], **train(tf.distribute.MultiWorkerMirroredStrategy()))
