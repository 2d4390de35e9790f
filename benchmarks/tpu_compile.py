"""What the TPU compiler makes of an optimizer, without a TPU.

    pip install jax libtpu
    python -m benchmarks.tpu_compile

Compiles for one TPU v5e, executes nothing: the figures are the compiler's. For
the step of the optimizer alone it prints the bytes it moves and its estimate
of cycles; for a whole training step of twelve 4096 x 4096 layers the memory it
needs, which shows what a guard makes wait. Writes `results/tpu_compile.json`
beside this file.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"  # run here, compile for a TPU
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # ask no cloud for a machine

import json  # noqa: E402
import math  # noqa: E402
import pathlib  # noqa: E402
import re  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec  # noqa: E402

from keras_adafactor import Adafactor  # noqa: E402

RESULTS = pathlib.Path(__file__).parent / "results" / "tpu_compile.json"
TOPOLOGY = "v5e:2x2"
SHAPES = [(4096, 4096), (16384, 8192), (1024, 16, 64), (3, 3, 512, 512)]
OPTIMIZERS = {
    "Adafactor": lambda: Adafactor(),
    "Adafactor, no guard": lambda: Adafactor(skip_nonfinite=None),
    "Adafactor, whole-step guard": lambda: Adafactor(skip_nonfinite="step"),
    "keras.Adafactor": lambda: keras.optimizers.Adafactor(),
    "keras.Adam": lambda: keras.optimizers.Adam(),
}
LAYERS, WIDTH, BATCH = 12, 4096, 64


def chip():
    """Where a tensor of one TPU core lives."""
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=TOPOLOGY
    )
    mesh = Mesh(np.array(topology.devices[:1]), ("chip",))
    return NamedSharding(mesh, PartitionSpec())


def shape_on(place, tensor, dtype=None):
    return jax.ShapeDtypeStruct(
        tuple(tensor.shape), dtype or tensor.dtype, sharding=place
    )


def compile_optimizer_step(make, shape, place):
    optimizer = make()
    variable = keras.Variable(np.zeros(shape, "float32"), name="w")
    optimizer.build([variable])
    weights = [shape_on(place, variable.value)]
    state = [shape_on(place, v.value) for v in optimizer.variables]
    step = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2))
    compiled = step.lower(state, weights, weights).compile()
    size = math.prod(shape)
    cycles = re.findall(r'"estimated_cycles":"(\d+)"', compiled.as_text())
    return {
        "bytes_accessed": compiled.cost_analysis()["bytes accessed"] / size,
        "cycles": 1000 * sum(map(int, cycles)) / size,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes / size,
    }


def compile_training_step(make, place):
    """A stack of matrices in bfloat16, weights in float32."""
    variables = [
        keras.Variable(np.zeros((WIDTH, WIDTH), "float32"), name=f"w{i}")
        for i in range(LAYERS)
    ]
    optimizer = make()
    optimizer.build(variables)

    def loss(weights, x):
        for w in weights:
            x = jnp.tanh(x @ w.astype("bfloat16"))
        return jnp.sum(jnp.square(x.astype("float32")))

    def step(weights, state, x):
        gradients = jax.grad(loss)(weights, x)
        return optimizer.stateless_apply(state, gradients, weights)

    compiled = (
        jax.jit(step, donate_argnums=(0, 1))
        .lower(
            [shape_on(place, v.value) for v in variables],
            [shape_on(place, v.value) for v in optimizer.variables],
            jax.ShapeDtypeStruct((BATCH, WIDTH), "bfloat16", sharding=place),
        )
        .compile()
    )
    memory = compiled.memory_analysis()
    parameters = LAYERS * WIDTH * WIDTH
    return {
        "argument_bytes": memory.argument_size_in_bytes / parameters,
        "temporary_bytes": memory.temp_size_in_bytes / parameters,
    }


def main():
    place = chip()
    results = {
        "topology": TOPOLOGY,
        "jax": jax.__version__,
        "keras": keras.version(),
        "optimizer_step": [],
        "training_step": [],
    }
    print("optimizer step, a parameter (cycles: a thousand parameters)")
    print(f"{'shape':20} {'optimizer':28} {'bytes':>7} {'cycles':>7} temp")
    for shape in SHAPES:
        for name, make in OPTIMIZERS.items():
            row = compile_optimizer_step(make, shape, place)
            results["optimizer_step"].append(
                {"shape": shape, "optimizer": name, **row}
            )
            print(
                f"{str(shape):20} {name:28} {row['bytes_accessed']:7.2f} "
                f"{row['cycles']:7.1f} {row['temporary_bytes']:.3f}",
                flush=True,
            )
    print("\nwhole training step, bytes a parameter")
    for name, make in OPTIMIZERS.items():
        row = compile_training_step(make, place)
        results["training_step"].append({"optimizer": name, **row})
        print(
            f"{name:28} arguments {row['argument_bytes']:6.3f}, temporaries "
            f"{row['temporary_bytes']:.3f}",
            flush=True,
        )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1))
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
