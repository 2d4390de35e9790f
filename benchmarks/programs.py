"""Small programs whose gradients are as those of models: few have full rank.

Images with an empty border, embeddings of which a batch uses a few rows, dead
units and channels, one-hot inputs: random gradients are like none of these.
Loss and gradients are computed by numpy, from the same data and the same start
on every backend, so that what differs is the optimizer.

    KERAS_BACKEND=torch python -m benchmarks.programs

trains all optimizers on them, prints the losses at the end, and writes
`results/programs_<backend>.json` beside this file. The tests train again, and
compare with what the other backends have found.
"""

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

import keras_adafactor
from benchmarks import records
from benchmarks import tables

STEPS = 40
# The loss at the end is the mean over so many steps.
LAST = 10
BACKENDS = ("tensorflow", "jax", "torch")


def _of(name, learning_rate, **arguments):
    return functools.partial(
        getattr(keras_adafactor, name), learning_rate, **arguments
    )


# Ranks below those of the parameters, and refreshes within these few steps.
OPTIMIZERS = {
    "Adafactor": _of("Adafactor", 0.03),
    "CAME": _of("CAME", 3e-3),
    "SMMF": _of("SMMF", 3e-3),
    "HFac": _of("HFac", 3e-3),
    "SubsetNorm": _of("SubsetNorm", 1e-2),
    "FAdam": _of("FAdam", 1e-3),
    "Signum": _of("Signum", 1e-3),
    "Lion": _of("Lion", 1e-3),
    "Adalayer": _of("Adalayer", 3e-3),
    "SubspaceMomentum": _of("SubspaceMomentum", 1e-2, rank=4, refresh_every=10),
    "COAP": _of("COAP", 3e-3, rank=4, refresh_every=3, recalibrate_every=3),
    "COAP, restored": _of(
        "COAP",
        3e-3,
        rank=4,
        refresh_every=3,
        recalibrate_every=3,
        restore_state=True,
    ),
    "SOAP": _of("SOAP", 3e-3),
    "SOAP, int8": _of("SOAP", 3e-3, momentum_dtype="int8"),
    "SOAP, refreshed always": _of("SOAP", 3e-3, refresh_every=1),
}


@dataclass(frozen=True)
class Program:
    """A loss to minimize.

    Attributes:
        name: What is special about its gradients.
        starts: List of float32 arrays, the parameters.
        loss: Function of a step and a list of arrays that returns the loss of
            that step's batch and its gradients, in float64.
    """

    name: str
    starts: list[np.ndarray]
    loss: Callable[[int, list[np.ndarray]], tuple[float, list[np.ndarray]]]


def _softmax_loss(logits, labels):
    """Mean cross-entropy, and its gradient."""
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    rows = np.arange(len(labels))
    slope = np.exp(log_p)
    slope[rows, labels] -= 1.0
    return -log_p[rows, labels].mean(), slope / len(labels)


def _labels(rng, x, classes):
    """Labels that are nearly a linear function of the inputs."""
    truth = rng.normal(size=(x.shape[1], classes))
    noise = rng.gumbel(size=(len(x), classes))
    return np.argmax(2.0 * (x @ truth) / np.std(x @ truth) + noise, axis=1)


def _batches(rng, x, *columns, size=64):
    order = rng.permutation(len(x))

    def batch(step):
        chosen = np.take(
            order, range(step * size, (step + 1) * size), mode="wrap"
        )
        return [column[chosen] for column in (x, *columns)]

    return batch


def _linear(name, rng, x, classes, **settings):
    """Softmax regression, with a bias vector."""
    batch = _batches(rng, x, _labels(rng, x, classes), **settings)

    def loss(step, parameters):
        inputs, labels = batch(step)
        kernel, bias = parameters
        value, slope = _softmax_loss(inputs @ kernel + bias, labels)
        return value, [inputs.T @ slope, slope.sum(0)]

    kernel = 0.05 * rng.normal(size=(x.shape[1], classes))
    return Program(name, [kernel, np.zeros(classes)], loss)


def images(rng):
    """28 x 28 pixels with an empty border: 784 rows, of which 256 are used."""
    x = np.zeros((2048, 28, 28))
    ink = rng.random((2048, 16, 16)) < 0.3
    x[:, 6:22, 6:22] = ink * rng.random((2048, 16, 16))
    return _linear("images with an empty border", rng, x.reshape(2048, -1), 10)


def bag_of_words(rng):
    frequencies = 1.0 / np.arange(1, 401)
    x = rng.poisson(4.0 * frequencies, size=(2048, 400)).astype("float64")
    return _linear("bag of words", rng, x, 6)


def one_hot(rng):
    x = np.eye(40)[rng.integers(0, 40, 2048)]
    return _linear("one-hot inputs", rng, x, 12)


def embedding(rng):
    """Mean of 8 of 200 vectors, then a linear layer."""
    tokens = rng.zipf(1.3, size=(2048, 8)) % 200
    labels = rng.permutation(200)[tokens].sum(1) % 4
    labels = np.where(rng.random(2048) < 0.7, tokens[:, 0] % 4, labels)
    batch = _batches(rng, tokens, labels, size=16)

    def loss(step, parameters):
        chosen, label = batch(step)
        table, head = parameters
        hidden = table[chosen].mean(1)
        value, slope = _softmax_loss(hidden @ head, label)
        below = np.zeros_like(table)
        np.add.at(below, chosen, (slope @ head.T)[:, None] / chosen.shape[1])
        return value, [below, hidden.T @ slope]

    starts = [0.05 * rng.normal(size=(200, 32)), rng.normal(size=(32, 4)) / 6]
    return Program("embedding with few tokens", starts, loss)


def dead_units(rng):
    """Two hidden layers of 64 units, most of which are never active."""
    x = rng.normal(size=(2048, 20))
    batch = _batches(rng, x, _labels(rng, x, 6))

    def loss(step, parameters):
        inputs, labels = batch(step)
        first, bias_1, second, bias_2, head = parameters
        one = np.maximum(inputs @ first + bias_1, 0.0)
        two = np.maximum(one @ second + bias_2, 0.0)
        value, slope = _softmax_loss(two @ head, labels)
        below_2 = (slope @ head.T) * (two > 0)
        below_1 = (below_2 @ second.T) * (one > 0)
        return value, [
            inputs.T @ below_1,
            below_1.sum(0),
            one.T @ below_2,
            below_2.sum(0),
            two.T @ slope,
        ]

    starts = [
        rng.normal(size=(20, 64)) / 3,
        np.full(64, -3.0),
        rng.normal(size=(64, 64)),
        np.full(64, -3.0),
        rng.normal(size=(64, 6)) / 8,
    ]
    return Program("dead units", starts, loss)


def convolution(rng):
    """A 3 x 3 kernel: half of the channels come in empty, half go out dead."""
    x = rng.normal(size=(256, 6, 6, 32))
    x[..., ::2] = 0.0
    patches = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
    # (image, place, height, width, channel)
    patches = patches.transpose(0, 1, 2, 4, 5, 3).reshape(256, 16, 3, 3, 32)
    labels = _labels(rng, x.mean((1, 2)), 4)
    batch = _batches(rng, patches, labels, size=16)

    def loss(step, parameters):
        inputs, label = batch(step)
        kernel, bias, head = parameters
        before = np.einsum("nphwi,hwio->npo", inputs, kernel) + bias
        hidden = np.maximum(before, 0.0)
        value, slope = _softmax_loss(hidden.mean(1) @ head, label)
        below = (slope @ head.T)[:, None] * (before > 0) / before.shape[1]
        return value, [
            np.einsum("nphwi,npo->hwio", inputs, below),
            below.sum((0, 1)),
            hidden.mean(1).T @ slope,
        ]

    bias = np.where(np.arange(34) % 2, 0.0, -20.0)
    starts = [
        rng.normal(size=(3, 3, 32, 34)) / 12,
        bias,
        rng.normal(size=(34, 4)) / 4,
    ]
    return Program("convolution with dead channels", starts, loss)


def rank_one(rng):
    """Regression on one example a step: each gradient is an outer product."""
    x = rng.normal(size=(256, 24))
    y = x @ rng.normal(size=(24, 10)) / 5
    batch = _batches(rng, x, y, size=1)

    def loss(step, parameters):
        inputs, wanted = batch(step)
        error = inputs @ parameters[0] - wanted
        # Of all examples: that of one is noise.
        value = np.square(x @ parameters[0] - y).mean()
        return value, [inputs.T @ error / error.size]

    return Program("gradients of rank one", [np.zeros((24, 10))], loss)


def constant(rng):
    """A linear loss, whose gradient is the same in every step."""
    slope = np.outer(rng.normal(size=30), rng.normal(size=12))
    slope += np.eye(30, 12)
    slope /= np.abs(slope).sum()

    def loss(step, parameters):
        # Starts at 10, so that losses can be compared by their ratio.
        return 10.0 + (slope * parameters[0]).sum(), [slope]

    return Program("a constant gradient", [np.zeros((30, 12))], loss)


MAKERS = (
    images,
    bag_of_words,
    one_hot,
    embedding,
    dead_units,
    convolution,
    rank_one,
    constant,
)


def programs(seed=0):
    """All of them, with the same data and the same start in every call."""
    made = [
        make(np.random.default_rng([seed, i])) for i, make in enumerate(MAKERS)
    ]
    return [
        Program(p.name, [x.astype("float32") for x in p.starts], p.loss)
        for p in made
    ]


@dataclass(frozen=True)
class Trained:
    """What became of one program.

    Attributes:
        name: Of the program.
        loss: Float, the mean over the last steps.
        largest_change: Float, of any weight in any step.
    """

    name: str
    loss: float
    largest_change: float


def train(optimizer, make_step, steps=STEPS):
    """Trains all programs at a time, with one optimizer.

    Args:
        optimizer: `keras.optimizers.Optimizer`, not yet built.
        make_step: Function of the optimizer and a list of variables that
            returns a function of a list of gradients.
        steps: Int.

    Returns:
        List of `Trained`, one a program.
    """
    todo = programs()
    variables = [[keras.Variable(x) for x in p.starts] for p in todo]
    take = make_step(optimizer, sum(variables, []))
    losses = [[] for _ in todo]
    largest = [0.0] * len(todo)
    before = [p.starts for p in todo]
    for step in range(steps):
        gradients = []
        for i, program in enumerate(todo):
            exact = [x.astype("float64") for x in before[i]]
            loss, found = program.loss(step, exact)
            losses[i].append(loss)
            gradients += found
        take([ops.convert_to_tensor(g.astype("float32")) for g in gradients])
        after = [[ops.convert_to_numpy(v) for v in own] for own in variables]
        for i, pairs in enumerate(zip(before, after, strict=True)):
            changes = [np.abs(a - b).max() for a, b in zip(*pairs, strict=True)]
            largest[i] = max(largest[i], *map(float, changes))
        before = after
    return [
        Trained(program.name, statistics.fmean(found[-LAST:]), change)
        for program, found, change in zip(todo, losses, largest, strict=True)
    ]


def compiled_step(optimizer, variables):
    """A step as `fit` compiles it; PyTorch's is not compiled."""
    optimizer.build(variables)
    if keras.backend.backend() == "torch":
        return optimizer.apply
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf  # noqa: PLC0415

        return tf.function(optimizer.apply)
    import jax  # noqa: PLC0415

    stateless = jax.jit(optimizer.stateless_apply)
    both = [*variables, *optimizer.variables]

    def take(gradients):
        state = [v.value for v in optimizer.variables]
        weights, state = stateless(
            state, gradients, [v.value for v in variables]
        )
        for variable, value in zip(both, [*weights, *state], strict=True):
            variable.assign(value)

    return take


def result_name(backend):
    return f"programs_{backend}"


def losses_of(backend):
    """Optimizer -> program -> loss at the end, as it was measured."""
    return records.load(result_name(backend)).get("losses", {})


def table():
    """Losses at the end, mean and range over the backends, as Markdown."""
    found = [losses_of(backend) for backend in BACKENDS]
    names = [p.name for p in programs()]
    rows = []
    for optimizer in OPTIMIZERS:
        row = [f"`{optimizer}`"]
        for name in names:
            losses = [losses[optimizer][name] for losses in found]
            mean = statistics.fmean(losses)
            apart = 100 * (max(losses) - min(losses)) / mean
            bracket = f" ({apart:.1g} %)" if apart >= 0.01 else ""
            row.append(f"{mean:.4g}{bracket}")
        rows.append(row)
    return tables.markdown(["", *names], rows)


def main():
    losses = {}
    for name, make in OPTIMIZERS.items():
        optimizer = make()
        trained = train(optimizer, compiled_step)
        losses[name] = {program.name: program.loss for program in trained}
        rate = float(optimizer.learning_rate)
        print(f"{name}: {int(optimizer.failed_refreshes)} failed refreshes")
        for program in trained:
            print(
                f"    {program.name:32} loss {program.loss:.4f}, largest "
                f"change {program.largest_change / rate:.1f} learning rates",
                flush=True,
            )
    backend = keras.backend.backend()
    result = {"steps": STEPS, "last": LAST, "losses": losses}
    print(f"written to {records.save(result_name(backend), result)}")


if __name__ == "__main__":
    main()
