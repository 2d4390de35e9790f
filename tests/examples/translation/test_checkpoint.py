import pathlib
import shutil

import keras
import numpy as np
import pytest

from examples.translation import checkpoint
from examples.translation.checkpoint import Checkpoints
from examples.translation.checkpoint import TrainingState
from examples.translation.errors import UserError

TEMPORARY = ".orbax-checkpoint-tmp"
IDENTITY = {"vocabulary": "v1"}


def build(optimizer=None, units=3, dtype="float32"):
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(units, dtype=dtype),
        ]
    )
    optimizer = optimizer or keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    return model, optimizer


def open_checkpoints(path, identity=IDENTITY):
    return Checkpoints(path, interval=1, keep=2, identity=identity)


def scramble(variables, seed):
    random = np.random.default_rng(seed)
    for variable in variables:
        variable.assign(random.uniform(0, 100, variable.shape))


def values(variables):
    return [keras.ops.convert_to_numpy(v).tobytes() for v in variables]


@pytest.fixture
def checkpoints(tmp_path):
    return open_checkpoints(tmp_path)


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        "bfloat16",
        pytest.param("float16", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize(
    "new_optimizer",
    [
        keras.optimizers.Adam,
        keras.optimizers.Adafactor,
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
        lambda: keras.optimizers.Adam(gradient_accumulation_steps=2),
    ],
    ids=["adam", "keras_adafactor", "loss_scale", "accumulation"],
)
def test_restore_gives_back_every_bit(checkpoints, new_optimizer, dtype):
    keras.utils.clear_session()
    model, optimizer = build(new_optimizer(), dtype=dtype)
    scramble(model.variables + optimizer.variables, seed=1)
    saved = values(model.variables), values(optimizer.variables)
    state = TrainingState(7, [{"loss": 1.5}])
    checkpoints.save(model, optimizer, state)

    scramble(model.variables + optimizer.variables, seed=2)
    assert checkpoints.restore(model, optimizer) == state
    assert (values(model.variables), values(optimizer.variables)) == saved


def test_dropout_seeds_are_saved(checkpoints):
    model, optimizer = build()
    state = TrainingState(1)
    checkpoints.save(model, optimizer, state)
    x = np.ones((8, 4), "float32")
    expected = keras.ops.convert_to_numpy(model(x, training=True))
    model(x, training=True)
    checkpoints.restore(model, optimizer)
    again = keras.ops.convert_to_numpy(model(x, training=True))
    np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize(
    ("losses", "stalled"),
    [
        ([], []),
        ([3, 2, 1], []),
        ([3, 2, 2, 2], [1, 2]),
        ([3, 1, 2, 0.5], []),
        ([3, 1, 2], [1]),
    ],
)
def test_a_run_stalls_when_its_validation_loss_does(losses, stalled):
    state = TrainingState(history=[{"val_loss": loss} for loss in losses])
    assert [n for n in (1, 2, 3) if state.has_stalled(n)] == stalled
    assert not state.has_stalled(None)


def test_a_bucket_that_cannot_be_used_is_named(monkeypatch):
    """`test_processes.py` uses one."""

    def refuse(*args, **kwargs):
        raise RuntimeError("No such\n bucket [and much more]")

    monkeypatch.setattr(checkpoint.ocp, "CheckpointManager", refuse)
    with pytest.raises(
        UserError,
        match=r"^--checkpoint_dir must be .* Received: gs://bucket/run "
        r"\(No such bucket\)$",
    ):
        open_checkpoints("gs://bucket/run")
    with pytest.raises(RuntimeError):
        open_checkpoints("run")


def test_nothing_to_restore_is_none(checkpoints):
    assert checkpoints.restore(*build()) is None


def test_only_the_newest_are_kept(checkpoints):
    model, optimizer = build()
    for step in (10, 20, 30, 40):
        checkpoints.save(model, optimizer, TrainingState(step))
    assert checkpoints.steps() == [30, 40]


def test_an_irregular_checkpoint_is_kept_while_it_is_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, interval=10, keep=2, identity={})
    model, optimizer = build()
    for step, kept in (
        (10, [10]),
        (20, [10, 20]),
        (23, [20, 23]),
        (30, [20, 30]),
    ):
        checkpoints.save(model, optimizer, TrainingState(step))
        assert checkpoints.steps() == kept


def test_an_unfinished_checkpoint_is_not_seen(tmp_path, checkpoints):
    """Nor is what a killed process left removed by one that only reads."""
    model, optimizer = build()
    checkpoints.save(model, optimizer, TrainingState(1))
    checkpoints.wait()
    unfinished = tmp_path / f"step_00000002{TEMPORARY}-1"
    unfinished.mkdir()
    assert Checkpoints.of(tmp_path).steps() == [1]
    assert unfinished.exists()
    again = open_checkpoints(tmp_path)
    assert again.steps() == [1]
    again.save(model, optimizer, TrainingState(2))
    assert again.steps() == [1, 2]
    assert not unfinished.exists()


def damaged_files(path):
    """Every file of a checkpoint that holds something, by its contents."""
    return [
        file
        for file in pathlib.Path(path).rglob("*")
        if file.is_file()
        and file.name != "commit_success.txt"
        and file.stat().st_size
    ]


def test_a_damaged_checkpoint_is_passed_over_or_right(tmp_path):
    """Each file is cut, changed in the middle, or lost.

    Some of Orbax' files hold what is also elsewhere: without them the values
    are still right. They never are wrong.
    """
    model, optimizer = build()
    checkpoints = open_checkpoints(tmp_path)
    saved = {}
    for step in (1, 2):
        scramble(model.variables + optimizer.variables, seed=step)
        saved[step] = values(model.variables + optimizer.variables)
        checkpoints.save(model, optimizer, TrainingState(step))
    checkpoints.wait()
    found = []
    for file in damaged_files(checkpoints.path(2)):
        whole = file.read_bytes()
        middle = len(whole) // 2
        flipped = bytes([whole[middle] ^ 1])
        for damaged in (
            whole[:-1],
            whole[:middle] + flipped + whole[middle + 1 :],
            None,
        ):
            if damaged is None:
                file.unlink()
            else:
                file.write_bytes(damaged)
            step = open_checkpoints(tmp_path).restore(model, optimizer).step
            found.append(step)
            now = values(model.variables + optimizer.variables)
            assert now == saved[step], file
            file.write_bytes(whole)
    assert {1, 2} == set(found)


def test_one_changed_bit_is_seen(checkpoints):
    """In whatever file of whatever store: the values are what is held."""
    model, optimizer = build()
    checkpoints.save(model, optimizer, TrainingState(1))
    checkpoints.wait()
    before = checkpoint._sums(checkpoints.arrays(1)["model"])
    for index, value in enumerate(checkpoints.arrays(1)["model"]):
        value = np.array(value)
        value.reshape(-1).view("uint8")[1] ^= 64
        assert checkpoint._sums([value]) != [before[index]]


def test_a_damaged_checkpoint_can_be_written_again(tmp_path, checkpoints):
    model, optimizer = build()
    checkpoints.save(model, optimizer, TrainingState(1))
    checkpoints.wait()
    (checkpoints.path(1) / "description" / "metadata").write_bytes(b"")
    checkpoints = open_checkpoints(tmp_path)
    assert checkpoints.restore(model, optimizer) is None
    checkpoints.save(model, optimizer, TrainingState(1))
    assert checkpoints.restore(model, optimizer).step == 1


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path, checkpoints, monkeypatch
):
    model, optimizer = build()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=9)
    )
    with pytest.raises(OSError, match="No space left on device: a checkpoint"):
        checkpoints.save(model, optimizer, TrainingState(1))
    assert list(tmp_path.iterdir()) == []


def test_saving_does_not_wait_and_keeps_the_values_of_its_time(checkpoints):
    model, optimizer = build()
    scramble(model.variables, seed=1)
    saved = values(model.variables)
    checkpoints.save(model, optimizer, TrainingState(1))
    scramble(model.variables, seed=2)
    checkpoints.restore(model, optimizer)
    assert values(model.variables) == saved


def test_another_identity_is_refused_by_name(tmp_path, checkpoints):
    model, optimizer = build()
    checkpoints.save(model, optimizer, TrainingState(1))
    checkpoints.wait()
    other = open_checkpoints(tmp_path, {"vocabulary": "v2"})
    with pytest.raises(UserError, match="vocabulary is v1, this run's is v2"):
        other.restore(model, optimizer)


def test_other_slots_are_refused_naming_both_sides(checkpoints):
    checkpoints.save(*build(), TrainingState(1))
    model, optimizer = build(keras.optimizers.SGD())
    with pytest.raises(UserError) as error:
        checkpoints.restore(model, optimizer)
    assert "does not fit the optimizer" in str(error.value)
    assert "Only in the checkpoint: adam/iteration" in str(error.value)
    assert "Only in the run: sgd/iteration" in str(error.value)


def test_other_shapes_are_refused_naming_both_sides(checkpoints):
    checkpoints.save(*build(units=3), TrainingState(1))
    model, optimizer = build(units=5)
    with pytest.raises(UserError) as error:
        checkpoints.restore(model, optimizer)
    assert "kernel (4, 3) float32" in str(error.value)
    assert "kernel (4, 5) float32" in str(error.value)


def test_a_refused_checkpoint_changes_nothing(checkpoints):
    checkpoints.save(*build(), TrainingState(1))
    model, optimizer = build(keras.optimizers.SGD())
    scramble(model.variables, seed=1)
    before = values(model.variables + optimizer.variables)
    with pytest.raises(UserError):
        checkpoints.restore(model, optimizer)
    assert values(model.variables + optimizer.variables) == before


def test_loaded_weights_are_the_mean_of_the_steps(checkpoints):
    model, optimizer = build()
    kernel = model.trainable_variables[0]
    seed = model.non_trainable_variables[0]
    for step, value in ((1, 1.0), (2, 4.0)):
        kernel.assign(np.full(kernel.shape, value))
        seed.assign(np.full(seed.shape, step))
        checkpoints.save(model, optimizer, TrainingState(step))
    checkpoints.load_weights(model, [1, 2])
    np.testing.assert_array_equal(kernel, np.full(kernel.shape, 2.5))
    np.testing.assert_array_equal(seed, np.full(seed.shape, 2))
