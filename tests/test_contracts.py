"""What every optimizer of the package promises, on every backend."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_adafactor import Adafactor
from tests import harness
from tests.optimizers import MAIN_FIRST
from tests.optimizers import TABLE

rows = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
# What tells settings of one optimizer apart is held to the oracle; the shell
# is the same for all.
mains = pytest.mark.parametrize("row", MAIN_FIRST, ids=lambda row: row.name)
# Eager steps are held to the compiled ones below: each takes as long as a
# compiled run of twenty.
COMPILED = harness.MODES[1:] or harness.MODES
# Main settings on every backend, each of the others on one of two.
rows_in_modes = pytest.mark.parametrize(
    ("row", "mode"),
    [
        pytest.param(
            *(row, mode),
            id=f"{row.name}-{mode}",
            marks=()
            if row.main
            else harness.once_on(("tensorflow", "jax")[position % 2]),
        )
        for position, row in enumerate(TABLE)
        for mode in (COMPILED if row.main else [harness.MODE])
    ],
)


def dense_problems(row, **kwargs):
    problems = [
        harness.problem(shape, seed=i, decades=row.decades, **kwargs)
        for i, shape in enumerate(row.shapes)
    ]
    starts = [x for x, _ in problems]
    return starts, list(zip(*(g for _, g in problems), strict=True))


@rows_in_modes
def test_equals_the_oracle_over_20_steps(row, mode):
    starts, gradients = dense_problems(row)
    variables = harness.run(row.optimizer(), starts, gradients, mode)
    for i, (shape, got) in enumerate(
        zip(row.shapes, harness.values(variables), strict=True)
    ):
        oracle = row.oracle(starts[i], shape)
        for step in gradients:
            expected = oracle.step(step[i])
        difference = np.abs(got - expected).max()
        assert difference <= row.tolerance, (shape, difference)


@rows
def test_slots_have_exact_names_shapes_dtypes_and_order(row):
    optimizer = row.optimizer()
    variables = [
        keras.Variable(np.zeros(shape), name="w") for shape in row.shapes
    ]
    optimizer.build(variables)
    for shape, (path, slots) in zip(row.shapes, optimizer.slots(), strict=True):
        assert path == "w"
        assert [
            (name, tuple(slot.shape), slot.dtype)
            for name, slot in slots.items()
        ] == row.slots(shape)


@rows
def test_config_round_trip_gives_the_same_optimizer(row):
    optimizer = row.optimizer()
    again = type(optimizer).from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(optimizer)
    )
    assert type(restored) is type(optimizer)
    assert restored.get_config() == optimizer.get_config()


@mains
def test_state_stays_float32_for_low_precision_weights(row):
    for dtype in ("bfloat16", "float16"):
        optimizer = row.optimizer()
        starts, gradients = dense_problems(row, steps=3, scale=1e-3)
        variables = harness.run(
            optimizer, starts, gradients, harness.MODE, dtype
        )
        assert all(v.dtype == dtype for v in variables)
        for shape, (_, slots) in zip(
            row.shapes, optimizer.slots(), strict=True
        ):
            dtypes = [dtype for _, _, dtype in row.slots(shape)]
            assert [slot.dtype for slot in slots.values()] == dtypes
            assert all(
                np.isfinite(v).all() for v in harness.values(slots.values())
            )
        assert all(np.isfinite(v).all() for v in harness.values(variables))


@mains
def test_low_precision_weights_follow_the_oracle_within_their_rounding(row):
    # 20 unbiased roundings, each within one unit in the last place.
    for dtype, unit in (("bfloat16", 2.0**-7), ("float16", 2.0**-10)):
        starts, gradients = dense_problems(row, scale=1e-2)
        starts = [
            np.array(ops.cast(ops.cast(x, dtype), "float32")) for x in starts
        ]
        gradients = [
            [np.array(ops.cast(ops.cast(g, dtype), "float32")) for g in step]
            for step in gradients
        ]
        variables = harness.run(
            row.optimizer(), starts, gradients, harness.MODE, dtype
        )
        errors = []
        for i, got in enumerate(harness.values(variables)):
            oracle = row.oracle(starts[i], row.shapes[i])
            for step in gradients:
                expected = oracle.step(step[i])
            error = np.abs(got - expected) / np.maximum(np.abs(starts[i]), 0.1)
            assert error.max() <= 20 * unit
            # Of one number the mean says no more than the largest.
            assert error.size == 1 or error.mean() <= 3 * unit
            errors.append(error.ravel())
        assert np.concatenate(errors).mean() <= 2 * unit


@mains
def test_zero_tiny_and_huge_gradients_equal_the_oracle(row):
    starts, gradients = dense_problems(row, steps=8)
    # No two of one size: a matrix of signs may have equal eigenvalues.
    gradients = [
        [np.sign(g) * (1 - np.abs(np.sin(g)) / 2) * magnitude for g in step]
        for step, magnitude in zip(gradients, row.magnitudes, strict=True)
    ]
    optimizer = row.optimizer()
    variables = harness.run(optimizer, starts, gradients, harness.MODE)
    for i, got in enumerate(harness.values(variables)):
        oracle = row.oracle(starts[i], row.shapes[i])
        for step in gradients:
            expected = oracle.step(step[i].astype("float32"))
        np.testing.assert_allclose(
            got, expected, rtol=2 * row.tolerance, atol=row.tolerance
        )
    assert int(optimizer.skipped_updates) == 0


def poisoned(gradients, which, poison):
    """Copies of the gradients, with one element replaced in some."""
    copies = [np.array(gradient) for gradient in gradients]
    for i in which:
        copies[i][(0,) * copies[i].ndim] = poison
    return copies


def moving(row, slots):
    """Values of the slots that move in every step."""
    return harness.values(
        [slot for name, slot in slots.items() if name not in row.resting]
    )


@mains
def test_a_poisoned_gradient_skips_its_variable_alone(row):
    starts, gradients = dense_problems(row, steps=5)
    optimizer = row.optimizer()
    variables = [keras.Variable(x, name="w") for x in starts]
    step = harness.make_step(optimizer, variables, harness.MODE)
    step([ops.convert_to_tensor(g) for g in gradients[0]])
    hit = (0, 3)  # a scalar, and a matrix
    # The last is finite, its square is not.
    for count, poison in enumerate([np.nan, np.inf, -np.inf, 1e30], start=1):
        weights = harness.values(variables)
        slots = [harness.values(s.values()) for _, s in optimizer.slots()]
        moved = [moving(row, s) for _, s in optimizer.slots()]
        bad = poisoned(gradients[count], hit, poison)
        step([ops.convert_to_tensor(g) for g in bad])
        for i in range(len(row.shapes)):
            now = optimizer.slots()[i][1]
            pairs = [(harness.values(variables)[i], weights[i])]
            if i in hit:
                pairs += zip(
                    harness.values(now.values()), slots[i], strict=True
                )
            else:
                pairs += zip(moving(row, now), moved[i], strict=True)
            kept = [np.array_equal(a, b) for a, b in pairs]
            assert all(kept) if i in hit else not any(kept)
        assert int(optimizer.skipped_updates) == 2 * count
        assert int(optimizer.iterations) == 1 + count


@mains
def test_a_poisoned_gradient_can_skip_the_whole_step(row):
    starts, gradients = dense_problems(row, steps=3)
    mode = harness.MODE
    reference = row.optimizer()
    expected = harness.run(reference, starts, gradients, mode)
    optimizer = row.optimizer(skip_nonfinite="step")
    steps = [
        gradients[0],
        poisoned(gradients[1], [1], np.nan),
        gradients[1],
        poisoned(gradients[1], [3], -np.inf),
        gradients[2],
    ]
    variables = harness.run(optimizer, starts, steps, mode)
    assert int(optimizer.skipped_updates) == 2
    assert int(optimizer.iterations) == 3
    for got, wanted in zip(
        harness.values([*variables, *_slots(optimizer)]),
        harness.values([*expected, *_slots(reference)]),
        strict=True,
    ):
        # Two programs: fused otherwise, they may round otherwise.
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def _slots(optimizer):
    return [slot for _, s in optimizer.slots() for slot in s.values()]


@mains
def test_still_moves_and_still_listens_at_a_million_steps(row):
    optimizer = row.optimizer()
    x, gradients = harness.problem(row.shapes[3], steps=3, decades=row.decades)
    variable = keras.Variable(x, name="w")
    optimizer.build([variable])
    optimizer.apply([ops.convert_to_tensor(gradients[0])])
    ((_, slots),) = optimizer.slots()
    for counter in (optimizer._iterations, slots.get("count")):
        if counter is not None:
            counter.assign(1_000_000)
    before = [*moving(row, slots), *harness.values([variable])]
    optimizer.apply([ops.convert_to_tensor(gradients[1])])
    after = [*moving(row, slots), *harness.values([variable])]
    for old, new in zip(before, after, strict=True):
        assert np.isfinite(new).all()
        assert not np.array_equal(old, new)


@mains
def test_compiled_steps_equal_eager_steps(row):
    starts, gradients = dense_problems(row, steps=3)
    # A sketch has noise by position: how far it separates singular values, and
    # with them what backends agree on, is known of all shapes together.
    some = slice(None, None, 3 if row.main else 1)
    starts, gradients = starts[some], [step[some] for step in gradients]
    eager, *compiled = [
        harness.values(harness.run(row.optimizer(), starts, gradients, mode))
        for mode in harness.MODES
    ]
    for other in compiled:
        for a, b in zip(eager, other, strict=True):
            np.testing.assert_allclose(
                a, b, rtol=row.tolerance, atol=row.tolerance
            )


@mains
def test_is_traced_once(row):
    if harness.BACKEND == "torch":
        pytest.skip("nothing is traced on PyTorch")
    traces = []

    class Counting(row.make):
        def update_rule(self, *args):
            traces.append(args[-1].path)
            return super().update_rule(*args)

    optimizer = Counting(**row.arguments)
    starts, gradients = dense_problems(row, steps=4)
    harness.run(optimizer, starts, gradients, harness.MODE)
    assert len(traces) == len(row.shapes)


@mains
def test_variables_without_elements_are_left_alone(row):
    shapes = ((0,), (0, 12), (3, 0, 12), (3, 3, 0, 12), row.shapes[-1])
    starts = [np.ones(shape, "float32") for shape in shapes]
    optimizer = row.optimizer()
    found = harness.run(optimizer, starts, [starts, starts], harness.MODE)
    assert [tuple(v.shape) for v in found] == list(shapes)
    assert (harness.values(found)[-1] != 1).any()
    assert int(ops.convert_to_numpy(optimizer.skipped_updates)) == 0
    for slot in (v for _, slots in optimizer.slots() for v in slots.values()):
        if 0 in slot.shape or not slot.shape:
            continue
        assert np.isfinite(harness.values([slot])[0]).all(), slot.path


@mains
def test_float64_weights_keep_their_precision(row):
    if harness.BACKEND == "jax":
        pytest.skip("JAX makes them float32 unless `jax_enable_x64` is set")
    starts, gradients = dense_problems(row)
    found = harness.run(row.optimizer(), starts, gradients, "eager", "float64")
    for i, variable in enumerate(found):
        assert keras.backend.standardize_dtype(variable.dtype) == "float64"
        oracle = row.oracle(starts[i], row.shapes[i])
        for step in gradients:
            expected = oracle.step(step[i])
        got = ops.convert_to_numpy(variable)
        assert np.abs(got - expected).max() <= row.tolerance, row.shapes[i]


@rows
def test_update_rule_keeps_its_keys_and_shapes(row):
    optimizer = row.optimizer()
    for shape in row.shapes:
        x, (g,) = harness.problem(shape, steps=1)
        spec = optimizer.state_spec(shape, "w")
        state = {
            k: ops.zeros(s.shape, "int32" if s.storage == "int32" else None)
            for k, s in spec.items()
        }
        delta, new = optimizer.update_rule(
            *map(ops.convert_to_tensor, (g, x)),
            state,
            harness.step_at(1, 0.01, choice=optimizer.choose(shape, "w")),
        )
        assert tuple(delta.shape) == shape
        assert list(new) == list(state)
        assert [tuple(v.shape) for v in new.values()] == [
            s.shape for s in spec.values()
        ]


@mains
def test_a_gradient_of_unknown_static_shape_is_one_like_any_other(row):
    if harness.BACKEND != "tensorflow":
        pytest.skip("shapes are always static but in a TensorFlow graph")
    import tensorflow as tf  # noqa: PLC0415

    x, (g,) = harness.problem((6, 4), steps=1)
    (expected,) = harness.run(row.optimizer(), [x], [[g]], "graph")
    variable = keras.Variable(x, name="w")
    optimizer = row.optimizer()
    optimizer.build([variable])
    unknown = tf.TensorSpec((None, None), "float32")
    tf.function(lambda g: optimizer.apply([g]), input_signature=[unknown])(
        tf.constant(g)
    )
    np.testing.assert_array_equal(*harness.values([variable, expected]))


@pytest.mark.skipif(
    harness.BACKEND != "tensorflow", reason="TensorFlow's graphs alone"
)
def test_a_gradient_of_unknown_static_shape_makes_no_dynamic_program():
    """XLA knows all shapes: asked by TensorFlow whether, it forgets them.

    A program of dynamic shapes is compiled with fewer optimizations.
    """
    import tensorflow as tf  # noqa: PLC0415

    x, (g,) = harness.problem((6, 4), steps=1)
    optimizer, variable = Adafactor(), keras.Variable(x)
    optimizer.build([variable])
    unknown = tf.TensorSpec((None, None), "float32")

    @tf.function(jit_compile=True, input_signature=[unknown])
    def step(g):
        optimizer.apply([g])

    hlo = step.experimental_get_compiler_ir(tf.constant(g))(stage="hlo")
    assert "f32[6,4]" in hlo
    assert "set-dimension-size" not in hlo


@pytest.mark.skipif(
    harness.BACKEND != "tensorflow", reason="TensorFlow's graphs alone"
)
@pytest.mark.parametrize("sizes", [(None, 5), (None,)], ids=str)
def test_a_gradient_that_cannot_have_the_shape_is_named(sizes):
    import tensorflow as tf  # noqa: PLC0415

    optimizer, variable = Adafactor(), keras.Variable(np.ones((6, 4)), name="w")
    optimizer.build([variable])
    spec = tf.TensorSpec(sizes, "float32")
    with pytest.raises(ValueError, match=r"'w' must be of its shape \(6, 4\)"):
        tf.function(
            lambda g: optimizer.apply([g]), input_signature=[spec]
        ).get_concrete_function()
