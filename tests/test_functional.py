"""The pure functions: rounding and quantisation; the rest through Adafactor."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_adafactor import StateSpec
from keras_adafactor.backends import backend
from keras_adafactor.functional import bits
from keras_adafactor.functional import eigenbasis
from keras_adafactor.functional import matricization
from keras_adafactor.functional import moments
from keras_adafactor.functional import quantization
from keras_adafactor.functional import rounding
from keras_adafactor.functional import scaling
from keras_adafactor.functional.noise import uniform_noise


def noise(shape, t=1, key=0):
    step = ops.convert_to_tensor(t, "int32")
    return ops.convert_to_numpy(uniform_noise(shape, step, key))


def test_noise_is_the_same_on_every_backend():
    # Golden: a change of the hash changes every resumed run.
    np.testing.assert_array_equal(
        np.int32(noise((2, 3), t=5, key=7) * 2**16), GOLDEN_NOISE
    )
    assert noise((), t=1).shape == ()
    assert noise((2, 0)).size == 0


GOLDEN_NOISE = [[20871, 5254, 609], [14753, 49754, 31947]]


def test_noise_is_uniform_and_independent_of_element_step_and_key():
    sample = noise((256, 256))
    assert 0.0 <= sample.min() and sample.max() < 1.0
    assert sample.mean() == pytest.approx(0.5, abs=0.005)
    assert sample.var() == pytest.approx(1 / 12, abs=0.002)
    others = [
        noise((256, 256), t=2),
        noise((256, 256), key=1),
        noise((256, 256), t=1_000_000),
        np.roll(sample, 1, axis=0),
        np.roll(sample, 1, axis=1),
    ]
    for other in others:
        correlation = np.corrcoef(sample.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 0.02


def test_noise_of_a_slice_is_a_slice_of_the_noise():
    # A shard can make its own part.
    np.testing.assert_array_equal(noise((8, 6))[:4], noise((4, 6)))
    np.testing.assert_array_equal(noise((8, 6))[:, :4], noise((8, 4)))


@pytest.mark.parametrize("shape", [(64, 4096), (4096, 64), (64, 64, 64)])
def test_any_two_elements_of_the_noise_are_independent(shape):
    sample = noise(shape)
    if shape[0] > shape[-1]:
        sample = sample.T
    rows = sample.reshape(64, 4096)
    for function in (lambda x: x, lambda x: x < 0.25):
        ours = function(rows)
        for shift in (0, 1):
            theirs = np.roll(function(rows), shift, axis=1)
            both = np.corrcoef(ours, theirs)[:64, 64:]
            if not shift:
                np.fill_diagonal(both, 0)
            # Five deviations.
            assert np.abs(both).max() < 5 / np.sqrt(4096)


def test_no_direction_has_more_noise_than_others():
    # A sum of two vectors' noise has a large part of rank 2.
    error = (noise((512, 512)) < 0.3) - 0.3
    spectrum = np.linalg.svd(error, compute_uv=False)
    assert spectrum[0] < 1.1 * 2 * np.sqrt(512 * 0.3 * 0.7)


EDGE_VALUES = [0.0, -0.0, 1.0, -1.0, 1.5, 3.0e38, -6.1e-5, 1e-30, -1e-38]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stochastic_rounding_returns_representable_values_exactly(dtype):
    values = ops.cast(
        ops.cast(np.float32([*EDGE_VALUES, 6e-8, 65504.0]), dtype), "float32"
    )
    for u in (0.0, 0.5, 1 - 2**-16):
        u = ops.full(values.shape, u, dtype="float32")
        rounded = rounding.stochastic_round(values, dtype, u)
        assert keras.backend.standardize_dtype(rounded.dtype) == dtype
        kept = np.abs(ops.convert_to_numpy(values)) >= 2.0**-100
        np.testing.assert_array_equal(
            ops.convert_to_numpy(ops.cast(rounded, "float32"))[kept],
            ops.convert_to_numpy(values)[kept],
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stochastic_rounding_keeps_nan_and_infinity(dtype):
    values = ops.convert_to_tensor(np.float32([np.nan, np.inf, -np.inf]))
    rounded = rounding.stochastic_round(values, dtype, ops.zeros(3))
    np.testing.assert_array_equal(
        ops.convert_to_numpy(ops.cast(rounded, "float32")),
        [np.nan, np.inf, -np.inf],
    )


@pytest.mark.parametrize(
    ("dtype", "value", "spacing"),
    [
        ("bfloat16", 1.00123, 2.0**-7),
        ("bfloat16", -1.00123, 2.0**-7),
        ("bfloat16", 0.9995, 2.0**-8),
        ("bfloat16", 3.14159e-20, 2.0**-72),
        ("float16", 1.0003, 2.0**-10),
        ("float16", -513.2, 0.5),
        ("float16", 1.23e-6, 2.0**-24),
    ],
)
def test_stochastic_rounding_picks_a_neighbour_and_has_the_right_mean(
    dtype, value, spacing
):
    size = 1 << 14
    x = ops.full((size,), value, dtype="float32")
    u = ops.convert_to_tensor((np.arange(size) + 0.5) / size, "float32")
    rounded = rounding.stochastic_round(x, dtype, u)
    rounded = ops.convert_to_numpy(ops.cast(rounded, "float64"))
    low = np.floor(value / spacing) * spacing
    assert set(rounded) == {low, low + spacing}
    assert rounded.mean() == pytest.approx(value, abs=spacing / 1000)


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [
        ((4096, 4096), (1, 512)),
        # The rows of an embedding differ in size.
        ((32000, 512), (1, 512)),
        ((512, 64), (8, 64)),
        ((1024, 16, 64), (1, 8, 64)),
        ((3, 3, 512, 512), (1, 1, 1, 512)),
        ((3, 3, 64, 64), (1, 1, 8, 64)),
        ((1000, 3000), (1, 500)),
        ((5000,), (500,)),
        # Primes: no row joins, unless the last axis is no block at all.
        ((1031, 64), (1, 64)),
        ((1031, 8), (1031, 8)),
        ((), ()),
    ],
)
def test_blocks_lie_along_the_last_axis(shape, blocks):
    assert quantization.block_shape(shape) == blocks


@pytest.mark.parametrize(
    ("shape", "apart", "blocks"),
    [
        ((512, 64), (0,), (1, 64)),
        ((64, 512), (1,), (64, 1)),
        ((1024, 16, 64), (0,), (1, 8, 64)),
        ((3, 3, 64, 128), (2, 3), (3, 3, 1, 1)),
        ((5000,), (0,), (1,)),
    ],
)
def test_blocks_do_not_cross_what_is_apart(shape, apart, blocks):
    assert quantization.block_shape(shape, apart) == blocks


def scales_of(shape):
    blocks = quantization.block_shape(shape)
    return tuple(n // b for n, b in zip(shape, blocks, strict=True))


@pytest.mark.parametrize("shape", [(8, 512), (512, 8), (3, 5, 64), (1031, 2)])
def test_quantisation_is_within_a_unit_and_unbiased(shape):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    errors = []
    for t in range(64):
        codes, scale = quantization.quantize(
            ops.convert_to_tensor(x),
            ops.convert_to_tensor(noise(shape, t)),
            scales_of(shape),
        )
        assert keras.backend.standardize_dtype(codes.dtype) == "int8"
        restored = quantization.dequantize(codes, scale)
        errors.append(ops.convert_to_numpy(restored) - x)
    unit = np.abs(x).max() / 127
    assert np.abs(errors).max() <= unit * 1.0001
    # The mean of 64 roundings, each of variance <= unit ** 2 / 4.
    assert np.abs(np.mean(errors, axis=0)).max() <= unit * 5 / 16


@pytest.mark.parametrize("shape", [(8, 512), (8, 1536), (3, 5, 606)])
def test_rows_cut_as_on_a_tpu_are_quantised_to_the_same_bits(
    shape, monkeypatch
):
    x = ops.convert_to_tensor(noise(shape, 1) - 0.3)
    random = ops.convert_to_tensor(noise(shape, 2))

    def quantised():
        codes, scale = quantization.quantize(x, random, scales_of(shape))
        restored = quantization.dequantize(codes, scale)
        return [ops.convert_to_numpy(a) for a in (codes, scale, restored)]

    elsewhere = quantised()
    cut = []

    def by_platform(on_tpu, elsewhere, *arrays):
        cut.append(arrays)
        return on_tpu(*arrays)

    monkeypatch.setattr(backend, "by_platform", by_platform)
    on_tpu = quantised()
    assert len(cut) == (3 if shape[-1] > 512 else 0)
    for here, there in zip(on_tpu, elsewhere, strict=True):
        np.testing.assert_array_equal(here, there)


def test_quantised_zeros_stay_zero():
    codes, scale = quantization.quantize(
        ops.zeros((4, 512)), ops.ones((4, 512)) * 0.9, (4, 1)
    )
    assert not ops.convert_to_numpy(codes).any()
    assert not ops.convert_to_numpy(quantization.dequantize(codes, scale)).any()


@pytest.mark.parametrize("rate", [1.0, 0.6, 0.4, 1e-5])
def test_ema_neither_cancels_nor_drifts(rate):
    for rate_of in (rate, ops.convert_to_tensor(rate, "float32")):
        for average, value in ((1e12, 1e-3), (1e-3, 1e12), (0.0, 3.0)):
            got = moments.ema(
                ops.convert_to_tensor(average, "float32"),
                ops.convert_to_tensor(value, "float32"),
                rate_of,
            )
            expected = (1 - rate) * average + rate * value
            assert float(got) == pytest.approx(expected, rel=1e-6)
    assert moments.ema(2.5, 2.5, rate) == 2.5


@pytest.mark.parametrize("threshold", [1.0, 2.0])
def test_clipping_divides_by_the_excess_over_the_threshold(threshold):
    unit = np.ones((3, 4), "float32")
    for size in (0.5, 1.5, 3.0):
        x = ops.convert_to_tensor(size * unit)
        clipped = x * scaling.rms_clip_scale(scaling.update_rms(x), threshold)
        np.testing.assert_allclose(
            ops.convert_to_numpy(clipped), min(size, threshold), rtol=1e-6
        )


def _by_xla(function):
    import tensorflow as tf  # noqa: PLC0415

    return tf.function(function, jit_compile=True)


@pytest.fixture(
    params=["eager", "XLA"]
    if keras.backend.backend() == "tensorflow"
    else ["eager"]
)
def as_it_runs(request):
    """What a function becomes: TensorFlow takes other ways for XLA."""
    return _by_xla if request.param == "XLA" else lambda function: function


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((4096,), (0,)),
        ((1031, 3), (0,)),
        ((33, 64), (0, 1)),
        ((64, 70), (1,)),
        ((96, 8, 64), (1, 2)),
        ((96, 8, 64), (0,)),
        ((8, 64, 96), (0, 1)),
        ((5, 7, 2, 11, 3), (0, 3, 4)),
        ((3, 3, 64, 32), (0, 1, 2, 3)),
    ],
    ids=str,
)
def test_means_are_those_of_float64_whatever_is_summed_first(
    shape, axes, as_it_runs
):
    x = np.random.default_rng(0).normal(2.0, 1.0, size=shape)
    tensor = ops.convert_to_tensor(x, "float32")
    mean = as_it_runs(lambda x: backend.mean(x, axes))
    mean_square = as_it_runs(lambda x: backend.mean_square(x, axes))
    np.testing.assert_allclose(
        ops.convert_to_numpy(mean(tensor)), x.mean(axes), rtol=1e-6
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(mean_square(tensor)),
        np.square(x).mean(axes, keepdims=True),
        rtol=1e-6,
    )
    for square in backend.square_for_two(tensor):
        np.testing.assert_array_equal(square, ops.square(tensor))


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((), None),
        ((7,), None),
        ((5, 3), None),
        ((2, 3, 4), None),
        ((2, 3, 4), (1, 2)),
        ((2, 3, 4), (0, 1)),
        ((64, 48), None),
    ],
    ids=str,
)
def test_both_sizes_are_those_of_two_passes(shape, axis):
    u, x = np.random.default_rng(0).normal(size=(2, *shape))
    u, x = (ops.convert_to_tensor(a, "float32") for a in (1e25 * u, x))
    found = scaling.update_and_parameter_rms(u, x, axis)
    expected = scaling.update_rms(u, axis), scaling.rms(x, axis)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(
            ops.convert_to_numpy(one), ops.convert_to_numpy(other), rtol=1e-6
        )


# Bits.

BIT_SHAPES = [(), (1,), (7,), (8,), (9,), (16, 3), (3, 16), (5, 3), (2, 3, 4)]


@pytest.mark.parametrize("shape", BIT_SHAPES, ids=str)
def test_bits_come_back(shape):
    booleans = np.random.default_rng(0).random(shape) < 0.5
    packed = bits.pack_bits(ops.convert_to_tensor(booleans))
    assert keras.backend.standardize_dtype(packed.dtype) == "uint8"
    assert tuple(packed.shape) == bits.packed_shape(shape)
    again = ops.convert_to_numpy(bits.unpack_bits(packed, shape))
    np.testing.assert_array_equal(again, booleans)


def test_bits_are_packed_along_the_first_axis_that_eight_divides():
    assert bits.packed_shape((3, 16)) == (3, 2)
    assert bits.packed_shape((16, 24)) == (2, 24)
    assert bits.packed_shape((4096, 4096)) == (512, 4096)
    # Nothing that eight divides: the longest is padded.
    assert bits.packed_shape((5, 3)) == (1, 3)
    # A shard of bytes holds the bits of a shard of elements.
    booleans = np.random.default_rng(0).random((16, 3)) < 0.5
    whole = ops.convert_to_numpy(bits.pack_bits(booleans))
    for half in (slice(0, 8), slice(8, 16)):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(bits.pack_bits(booleans[half])),
            whole[half.start // 8 : half.stop // 8],
        )


@pytest.mark.parametrize(
    ("storage", "expected"),
    [("sign_bits", [-1, -1, 1, -1, 1]), ("ternary_bits", [-1, 0, 1, 0, 1])],
)
def test_signs_are_seen_as_numbers(storage, expected):
    spec = StateSpec.like((5,), storage)
    value = np.array([-2.0, 0.0, 1e-30, -0.0, np.inf], "float32")
    arrays = spec.encode(ops.convert_to_tensor(value), 1, 0)
    assert [tuple(a.shape) for a in arrays] == [
        array.shape for array in spec.arrays().values()
    ]
    seen = spec.decode(arrays, "float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(seen), expected)


# Matrices.


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, (0, 1)),
        (1, (1, 1)),
        (2, (2, 1)),
        (12, (4, 3)),
        (36, (6, 6)),
        (97, (97, 1)),
        (4096**2, (4096, 4096)),
        # Beyond what a float64 root can tell from its neighbours.
        ((2**27 + 1) * (2**27 - 1), None),
    ],
)
def test_square_shape_is_the_pair_of_divisors_nearest_to_the_root(
    size, expected
):
    found = matricization.square_shape(size)
    assert found[0] * found[1] == size
    if expected is None:
        expected = (2**27 + 1, 2**27 - 1)
    assert found == expected


def test_merged_neighbours_keep_the_product():
    merge = matricization.merge_neighbours
    assert merge((2, 2, 4), 7) == (4, 4)
    assert merge((2, 3, 4), 100) == (24,)
    assert merge((50, 3, 4), 10) == (50, 3, 4)


# Bases.


def test_rotation_along_every_axis_is_undone():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 5)).astype("float32")
    bases = {
        axis: ops.convert_to_tensor(
            np.linalg.qr(rng.normal(size=(d, d)))[0].astype("float32")
        )
        for axis, d in enumerate(x.shape)
    }
    rotated = eigenbasis.rotate(ops.convert_to_tensor(x), bases)
    expected = np.einsum(
        "abc,ai,bj,ck->ijk", x, *(np.array(b) for b in bases.values())
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(rotated), expected, atol=1e-5
    )
    again = eigenbasis.rotate(rotated, bases, back=True)
    np.testing.assert_allclose(ops.convert_to_numpy(again), x, atol=1e-5)


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99, 0.999, 1 - 1e-7])
def test_debiased_decay_rate_is_exact_at_the_first_step(beta):
    steps = np.array([1, 2, 10, 1000], "float32")
    got = [
        float(moments.debiased_decay_rate(ops.convert_to_tensor(t), beta))
        for t in steps
    ]
    assert got[0] == 1.0
    expected = (1 - beta) / -np.expm1(steps.astype("float64") * np.log(beta))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
