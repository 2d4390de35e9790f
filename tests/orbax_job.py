"""One of two hosts that train one model, for `test_orbax.py`.

Four devices of the CPU are one host; weights and slots are split over both.
"""

import hashlib
import json

import jax
import keras
import numpy as np

from keras_adafactor import Adafactor

HOSTS, DEVICES = 2, 4
# Checkpoints are in the middle of an accumulation.
STEPS_PER_EPOCH = 3
MESH = ("data", "model")


def distribution():
    mesh = keras.distribution.DeviceMesh(
        (HOSTS, DEVICES), MESH, keras.distribution.list_devices("cpu")
    )
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*kernel"] = MESH
    layouts[".*bias"] = ("model",)
    return keras.distribution.ModelParallel(
        layout_map=layouts, batch_dim_name="data", auto_shard_dataset=False
    )


def build_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(8),
        ]
    )
    optimizer = Adafactor(
        0.1,
        beta_1=0.9,
        momentum_dtype="int8",
        use_ema=True,
        gradient_accumulation_steps=2,
    )
    model.compile(optimizer, loss="mse")
    return model


def data(index):
    """This host's half of every batch."""
    random = np.random.default_rng(index)
    rows = 8 * STEPS_PER_EPOCH
    return (random.normal(size=(rows, n)).astype("float32") for n in (64, 8))


def digests(variables):
    """Path -> hash of the parts of a variable that this host holds."""
    return {
        variable.path: [
            [
                str(shard.index),
                hashlib.sha256(np.asarray(shard.data).tobytes()).hexdigest(),
            ]
            for shard in variable.value.addressable_shards
        ]
        for variable in variables
    }


def run(index, port, directory, epochs):
    """Trains from the newest checkpoint to the end, and writes what it holds.

    Args:
        index: Number of this host.
        port: Of the first host, free.
        directory: `pathlib.Path`, the same for all hosts.
        epochs: In all.
    """
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    keras.distribution.initialize(f"localhost:{port}", HOSTS, index)
    keras.distribution.set_distribution(distribution())
    model = build_model()
    checkpoints = directory / "checkpoints"
    # Keras puts into a model what it has variables for, and says nothing of
    # the rest: slots have to be there before.
    model.optimizer.build(model.trainable_variables)
    callback = keras.callbacks.OrbaxCheckpoint(str(checkpoints), max_to_keep=2)
    newest = callback.checkpointer.latest
    epoch = 0
    if newest:
        model.load_weights(checkpoints)
        epoch = newest.step + 1
    print(f"begins with epoch {epoch}", flush=True)
    x, y = data(index)

    def tell(epoch, logs):
        print(f"epoch {epoch} loss {logs['loss']:.9g}", flush=True)

    model.fit(
        x,
        y,
        batch_size=8,
        shuffle=False,
        initial_epoch=epoch,
        epochs=epochs,
        callbacks=[
            callback,
            keras.callbacks.LambdaCallback(on_epoch_end=tell),
        ],
        verbose=0,
    )
    found = digests([*model.variables, *model.optimizer.variables])
    addressable = [
        v.path
        for v in model.optimizer.variables
        if v.value.is_fully_addressable
    ]
    result = {"digests": found, "addressable": addressable}
    (directory / f"end-{index}.json").write_text(json.dumps(result))
