"""Memory is the claim, so memory is asserted: exact bytes of state."""

import math

import keras
import numpy as np
import pytest

import keras_adafactor
from keras_adafactor import Adafactor
from tests import harness
from tests.optimizers import STATE_BYTES
from tests.optimizers import TABLE


class Shape:
    """A variable of which only shape and path are asked."""

    def __init__(self, *shape, path="w"):
        self.shape = shape
        self.path = path


def state_bytes(optimizer, *shape):
    return keras_adafactor.state_report(optimizer, [Shape(*shape)]).total_bytes


COUNTERS = (
    *("iteration", "learning_rate"),
    *("skipped_updates", "failed_refreshes"),
)


@pytest.mark.parametrize(
    ("optimizer", "shape", "expected"),
    STATE_BYTES,
    ids=lambda value: str(value) if isinstance(value, tuple) else "",
)
def test_state_is_exact(optimizer, shape, expected):
    assert state_bytes(optimizer, *shape) == expected


@pytest.mark.parametrize(
    ("dtype", "bytes_a_parameter"),
    [("float32", 4.0), ("bfloat16", 2.0), ("int8", 1.0)],
)
@pytest.mark.parametrize(
    "shape", [(4096, 4096), (1024, 16, 64), (3, 3, 512, 512), (1000, 3000)]
)
def test_momentum_costs_its_dtype_and_under_two_percent(
    shape, dtype, bytes_a_parameter
):
    momentum = state_bytes(
        Adafactor(beta_1=0.9, momentum_dtype=dtype), *shape
    ) - state_bytes(Adafactor(), *shape)
    codes = bytes_a_parameter * math.prod(shape)
    assert codes <= momentum <= codes * (1.02 if dtype == "int8" else 1)


def transformer_big(vocabulary=32_000, d=1024, ff=4096, heads=16, layers=6):
    """Shapes of Vaswani et al.'s big model, with its embeddings tied."""
    attention = [(d, heads, d // heads), (heads, d // heads)] * 3 + [
        (heads, d // heads, d),
        (d,),
    ]
    feed_forward = [(d, ff), (ff,), (ff, d), (d,)]
    norm = [(d,), (d,)]
    encoder = attention + feed_forward + 2 * norm
    decoder = 2 * attention + feed_forward + 3 * norm
    return [(vocabulary, d)] + layers * (encoder + decoder) + 2 * norm


def test_transformer_big_needs_a_hundredth_of_a_byte_a_parameter():
    variables = [Shape(*shape) for shape in transformer_big()]
    report = keras_adafactor.state_report(Adafactor(), variables)
    assert report.parameters == pytest.approx(209e6, rel=0.01)
    assert report.bytes_per_parameter <= 0.01
    assert report.adam_bytes == 8 * report.parameters


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_report_before_the_first_step_is_what_is_allocated(row):
    optimizer = row.optimizer()
    variables = [keras.Variable(np.zeros(s), name="w") for s in row.shapes]
    report = keras_adafactor.state_report(optimizer, variables)
    optimizer.build(variables)
    allocated = sum(
        array.nbytes
        for _, slots in optimizer.slots()
        for array in harness.values(slots.values())
    )
    assert report.total_bytes == allocated
    assert keras_adafactor.state_report(optimizer).rows == report.rows
    # Nothing else is kept: a counter, a learning rate, a count of skips, and
    # one of failed refreshes where a rule has a refresh.
    refreshes = any("count" in slots for _, slots in optimizer.slots())
    assert len(optimizer.variables) == 3 + refreshes + sum(
        len(slots) for _, slots in optimizer.slots()
    )


def dense_model():
    return keras.Sequential(
        [keras.Input((256,)), keras.layers.Dense(64, name="dense")]
    )


def test_report_of_a_model_is_a_table_and_data():
    model = dense_model()
    model.compile(Adafactor(), "mse")
    assert not model.optimizer.built
    report = keras_adafactor.state_report(model)
    assert not model.optimizer.built
    text = str(report)
    for word in ("dense/kernel", "(256, 64)", "Adafactor", "v_row", "1,280"):
        assert word in text
    assert "1,536 bytes of state for 16,448 parameters" in text
    assert "Adam: 131,584" in text
    data = report.as_dict()
    assert data["total_bytes"] == 1536
    assert data["variables"][0]["slots"]["v_row"] == {
        "shape": [256],
        "dtype": "float32",
    }


def test_report_finds_the_optimizer_inside_a_loss_scale_optimizer():
    model = dense_model()
    model.compile(keras.optimizers.LossScaleOptimizer(Adafactor()), "mse")
    assert keras_adafactor.state_report(model).total_bytes == 1536


def test_report_refuses_what_it_cannot_know():
    with pytest.raises(ValueError, match="must be an optimizer of keras_ada"):
        keras_adafactor.state_report(keras.optimizers.Adam())
    with pytest.raises(ValueError, match="Argument `variables` must be given"):
        keras_adafactor.state_report(Adafactor())


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"),
    reason="this Keras has no MultiOptimizer yet",
)
def test_report_of_a_multi_optimizer_counts_what_is_ours():
    model = dense_model()
    multi = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            Adafactor(), {".*bias": keras.optimizers.Adam()}
        )
    )
    model.compile(multi, "mse")
    for _ in range(2):
        report = keras_adafactor.state_report(model)
        assert [row.path.rpartition("/")[2] for row in report.rows] == [
            "kernel"
        ]
        assert [path.rpartition("/")[2] for path in report.uncounted] == [
            "bias"
        ]
        assert report.total_bytes == 1280
        assert "not counted, of other optimizers" in str(report)
        model.fit(np.ones((4, 256)), np.ones((4, 64)), verbose=0)


def test_report_counts_averages_and_accumulated_gradients():
    keywords = {"use_ema": True, "gradient_accumulation_steps": 2}
    for dtype, average in (("float32", 4), ("bfloat16", 2)):
        optimizer = Adafactor(**keywords)
        shape = (8, 4)
        variables = [keras.Variable(np.zeros(shape), dtype=dtype, name="w")]
        report = keras_adafactor.state_report(optimizer, variables)
        (row,) = report.rows
        assert report.shared_bytes == (average + 4) * 32
        assert f"{report.shared_bytes} of them" in str(report)
        assert row.state_bytes == 4 * (8 + 4) + (average + 4) * 32
        assert row.slots["average"] == (shape, dtype)
        assert row.slots["gradient_accumulator"] == (shape, "float32")
        optimizer.build(variables)
        assert keras_adafactor.state_report(optimizer).rows == [row]
        counted = [v for v in optimizer.variables if v.name not in COUNTERS]
        allocated = sum(array.nbytes for array in harness.values(counted))
        # `values` are float32 where they were bfloat16.
        assert allocated == row.state_bytes + (4 - average) * 32


def test_report_of_a_model_that_is_not_built_says_so():
    model = keras.Sequential([keras.layers.Dense(4)])
    model.compile(Adafactor(), "mse")
    with pytest.raises(ValueError, match="build the model first"):
        keras_adafactor.state_report(model)
