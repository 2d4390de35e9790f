"""What the step writes to memory on a CPU.

A value of full size that is not fused into the sum that needs it costs as much
time as two sums. Counted in the program that XLA has optimized, or in the graph
that TensorFlow runs without it, which are deterministic.
"""

import re

import keras
import pytest

from keras_adafactor import Adafactor
from keras_adafactor import Adalayer
from keras_adafactor import FAdam

if keras.backend.backend() == "torch":
    pytest.skip("PyTorch compiles no step", allow_module_level=True)


def compiled_step(shape):
    """Text of the compiled step of one variable."""
    variable = keras.Variable("ones", shape=shape, dtype="float32")
    optimizer = Adafactor()
    optimizer.build([variable])
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf  # noqa: PLC0415

        function = tf.function(
            lambda g: optimizer.apply([g]), jit_compile=True, autograph=False
        )
        gradient = tf.ones(shape)
        return function.experimental_get_compiler_ir(gradient)(
            stage="optimized_hlo"
        )
    import jax  # noqa: PLC0415

    def step(weights, state, gradient):
        return optimizer.stateless_apply(state, [gradient], weights)

    arguments = [variable.value], [v.value for v in optimizer.variables]
    with jax.default_device(jax.devices("cpu")[0]):
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(
            *arguments, variable.value
        )
    return lowered.compile().as_text()


def written(program, shape):
    """Names of the operations that write an array of the shape."""
    _, entry = program.split("\nENTRY ")
    dimensions = ",".join(map(str, shape))
    found = re.findall(
        rf"^ +(?:ROOT )?%(\S+) = f32\[{dimensions}\]\S* (?!parameter)",
        entry,
        re.MULTILINE,
    )
    return [name for name in found if "bitcast" not in name]


@pytest.mark.parametrize("shape", [(1024, 512), (512, 2048), (256, 8, 64)])
def test_only_the_weight_is_written_and_on_jax_the_update(shape):
    found = written(compiled_step(shape), shape)
    assert len(found) == (1 if keras.backend.backend() == "tensorflow" else 2)


def made_by_graph(optimizer, shape):
    """Types of the operations that make an array of the shape."""
    import tensorflow as tf  # noqa: PLC0415

    optimizer.build([keras.Variable("ones", shape=shape, dtype="float32")])
    function = tf.function(lambda g: optimizer.apply([g]), autograph=False)
    graph = function.get_concrete_function(tf.ones(shape)).graph
    given = ("Placeholder", "ReadVariableOp", "Identity", "IdentityN")
    return [
        operation.type
        for operation in graph.get_operations()
        if operation.type not in (*given, "Reshape")
        and any(tuple(o.shape) == shape for o in operation.outputs)
    ]


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="XLA is not optional"
)
@pytest.mark.parametrize("shape", [(1024, 512), (256, 8, 64)])
def test_a_graph_squares_once_and_makes_fewer_arrays_than_adam(shape):
    made = made_by_graph(Adafactor(), shape)
    assert made.count("Square") == 1
    assert len(made) == 6
    assert len(made_by_graph(keras.optimizers.Adam(), shape)) == 9


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="XLA is not optional"
)
@pytest.mark.parametrize("make", [Adalayer, FAdam])
def test_an_average_with_a_rate_that_changes_copies_none_of_its_ends(make):
    made = made_by_graph(make(), (1024, 512))
    # `Select`, with a scalar, hands on what it has chosen.
    assert "Select" in made
    assert "SelectV2" not in made
