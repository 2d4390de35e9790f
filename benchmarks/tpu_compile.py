"""What the TPU compiler makes of an optimizer, without a TPU.

    pip install -e ".[tensorflow,jax,tpu-compile]"
    python -m benchmarks.tpu_compile

Compiles for one TPU v5e, executes nothing: the figures are the compiler's. For
the step of the optimizer alone it prints the bytes it moves and its estimate
of cycles: for single variables and, on a v6e too, for all of a small
Transformer, which are many kernels. For a whole training step of twelve
4096 x 4096 layers it prints the memory it needs, which shows what a guard makes
wait. What some optimizers do every so many steps alone is left out:
`benchmarks.refresh_cost` has it. Writes `results/tpu_compile.json` beside this
file.
"""

import argparse
import os

if __name__ == "__main__":
    # Before the imports, so that --help needs no compiler.
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="one matrix, no file written"
    )
    options = parser.parse_args()

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"  # run here, compile for a TPU

import functools  # noqa: E402
import math  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import keras  # noqa: E402

from benchmarks import optimizers  # noqa: E402
from benchmarks import records  # noqa: E402
from benchmarks.step_time import transformer_shapes  # noqa: E402
from keras_adafactor import Adafactor  # noqa: E402
from tpu_scripts import tpu_compiler  # noqa: E402
from tpu_scripts import train_step  # noqa: E402

TOPOLOGY = "v5e:2x2"
TOPOLOGIES = (TOPOLOGY, "v6e:2x2")
SHAPES = [(4096, 4096), (16384, 8192), (1024, 16, 64), (3, 3, 512, 512)]
QUICK_SHAPES = [(512, 512)]
# On every shape; the rest of the family on the first one.
OPTIMIZERS = {
    "Adafactor": Adafactor,
    "Adafactor, no guard": functools.partial(Adafactor, skip_nonfinite=None),
    "Adafactor, whole-step guard": functools.partial(
        Adafactor, skip_nonfinite="step"
    ),
    "keras.Adafactor": keras.optimizers.Adafactor,
    "keras.Adam": keras.optimizers.Adam,
}
FAMILY = OPTIMIZERS | {
    name: optimizers.refreshing(make, False)
    for name, make in (
        optimizers.KERAS | optimizers.FAMILY | optimizers.VARIANTS
    ).items()
    if name not in OPTIMIZERS
}
TRAINED = FAMILY | {
    "Adafactor, RMS recorded": functools.partial(
        Adafactor, record_update_rms=True
    )
}
# What each of its kernels costs where variables are small.
SMALL = {
    name: FAMILY[name]
    for name in (
        "keras.Adam",
        "keras.Adafactor",
        "Adafactor",
        "Adafactor, no guard",
    )
} | {
    "Adafactor, no guard, no clip": functools.partial(
        Adafactor, skip_nonfinite=None, clip_threshold=None
    )
}
LAYERS, WIDTH, BATCH = 12, 4096, 64


def variables(shapes):
    return [
        keras.Variable("zeros", shape=shape, dtype="float32", name=f"w{i}")
        for i, shape in enumerate(shapes)
    ]


def built(make, shapes):
    """An optimizer and its variables, of which none has a value."""

    def build():
        optimizer, weights = make(), variables(shapes)
        optimizer.build(weights)
        return optimizer, weights

    return train_step.without_memory(build)


def compile_optimizer_step(make, shape, device):
    program = train_step.compile_optimizer_step(*built(make, [shape]), device)
    size = math.prod(shape)
    return {
        "bytes_accessed": program.bytes_accessed / size,
        "cycles": 1000 * program.estimated_cycles() / size,
        "temporary_bytes": program.temporary_bytes / size,
    }


def compile_training_step(make, device):
    """A stack of matrices in bfloat16, weights in float32."""
    optimizer, weights = built(make, LAYERS * [(WIDTH, WIDTH)])

    def loss(weights, x):
        for w in weights:
            x = jnp.tanh(x @ w.astype("bfloat16"))
        return jnp.sum(jnp.square(x.astype("float32")))

    def step(weights, state, x):
        gradients = jax.grad(loss)(weights, x)
        return optimizer.stateless_apply(state, gradients, weights)

    x = jax.ShapeDtypeStruct((BATCH, WIDTH), "bfloat16")
    program = tpu_compiler.compile_jax(
        step,
        tpu_compiler.on_device(device, [weights, optimizer.variables, x]),
        donate=(0, 1),
    )
    parameters = LAYERS * WIDTH * WIDTH
    return {
        "argument_bytes": program.argument_bytes / parameters,
        "temporary_bytes": program.temporary_bytes / parameters,
    }


def optimizer_steps(shapes, device):
    """A dict for each optimizer and shape; prints it."""
    rows = []
    print("optimizer step, a parameter (cycles: a thousand parameters)")
    print(f"{'shape':20} {'optimizer':28} {'bytes':>7} {'cycles':>7} temp")
    for shape in shapes:
        for name, make in (
            FAMILY if shape == SHAPES[0] else OPTIMIZERS
        ).items():
            row = compile_optimizer_step(make, shape, device)
            rows.append({"shape": shape, "optimizer": name, **row})
            print(
                f"{shape!s:20} {name:28} {row['bytes_accessed']:7.2f} "
                f"{row['cycles']:7.1f} {row['temporary_bytes']:.3f}",
                flush=True,
            )
    return rows


def small_transformer():
    """Cycles of a step of all its variables, by topology; prints them."""
    rows = []
    print("\nstep of a small Transformer, cycles")
    for topology in TOPOLOGIES:
        device = tpu_compiler.devices(topology)[0]
        for name, make in SMALL.items():
            program = train_step.compile_optimizer_step(
                *built(make, transformer_shapes()), device
            )
            cycles = program.estimated_cycles()
            rows.append(
                {"topology": topology, "optimizer": name, "cycles": cycles}
            )
            print(f"{topology:8} {name:28} {cycles:10,}", flush=True)
    return rows


def training_steps(device):
    """A dict for each optimizer; prints it."""
    rows = []
    print("\nwhole training step, bytes a parameter")
    for name, make in TRAINED.items():
        row = compile_training_step(make, device)
        rows.append({"optimizer": name, **row})
        print(
            f"{name:28} arguments {row['argument_bytes']:6.3f}, temporaries "
            f"{row['temporary_bytes']:.3f}",
            flush=True,
        )
    return rows


def main(quick):
    device = tpu_compiler.devices(TOPOLOGY)[0]
    if quick:
        optimizer_steps(QUICK_SHAPES, device)
        return
    result = {
        "topology": TOPOLOGY,
        "optimizer_step": optimizer_steps(SHAPES, device),
        "small_transformer": small_transformer(),
        "training_step": training_steps(device),
    }
    print(f"written to {records.save('tpu_compile', result)}")


if __name__ == "__main__":
    main(options.quick)
