"""Rows of COAP."""

from dataclasses import replace

import numpy as np

from keras_adafactor import COAP
from tests import oracles
from tests.harness import step_at
from tests.optimizers.row import Row
from tests.optimizers.row import like

# Working shape, and axis -> rank, of the shapes, with a rank ratio of 2.
PROJECTED = {
    (6, 4): ((6, 4), {1: 2}),
    (4, 6): ((4, 6), {0: 2}),
    (2, 3, 4): ((6, 4), {1: 2}),
    (1, 1, 110, 90): ((1, 1, 110, 90), {3: 45}),
    (3, 3, 36, 30): ((3, 3, 36, 30), {2: 25, 3: 21}),
}
SHAPES = ((), (7,), (6, 1), (6, 4), (4, 6), (2, 3, 4))
CONVOLUTIONS = ((), (3, 3, 8, 16), (1, 1, 110, 90), (3, 3, 36, 30))


class Working:
    """An oracle of another shape than its variable's."""

    def __init__(self, x, working, **arguments):
        self.shape, self.working = x.shape, working
        self.oracle = oracles.COAP(x.reshape(working), **arguments)

    def step(self, g):
        return self.oracle.step(g.reshape(self.working)).reshape(self.shape)


def first_noise(key, axis, shape):
    """What the first sketch of a variable is made with."""
    step = replace(step_at(1, 0.0), key=key)
    return np.array(step.normal(shape, axis), "float64")


def make_row(
    name, shapes=SHAPES, tolerance=1e-6, largest=1e18, main=False, **arguments
):
    given = {"rank_ratio": 2, "refresh_every": 3, "recalibrate_every": 2}
    given |= arguments

    def oracle(x, shape):
        working, ranks = PROJECTED.get(shape, (shape, {}))
        rank = ranks.get(0, ranks.get(1))
        if len(shape) == 4:
            rank = (ranks.get(2), ranks.get(3))
        omega = tuple(
            first_noise(shapes.index(shape), axis, (working[axis], r))
            for axis, r in ranks.items()
        )
        settings = {k: v for k, v in given.items() if k != "rank_ratio"}
        settings |= {"rank": max(working, default=1), "omega": omega}
        if ranks:
            settings["rank"] = rank
        return Working(x, working, **settings)

    def slots(shape):
        working, ranks = PROJECTED.get(shape, (shape, {}))
        projected = [ranks.get(a, size) for a, size in enumerate(working)]
        projected = tuple(projected)
        found = [like("m", projected)]
        if given.get("variant") == "adafactor" and len(projected) > 1:
            found += [
                like("v_row", projected[:-1]),
                like("v_col", projected[:-2] + projected[-1:]),
            ]
        else:
            found += [like("v", projected)]
        for axis, rank in ranks.items():
            found.append(like(f"basis_{axis}", (working[axis], rank)))
        return found + [("count", (), "int32")] * bool(ranks)

    return Row(
        name,
        COAP,
        given,
        oracle,
        slots,
        tolerance=tolerance,
        shapes=shapes,
        decades=0.0,
        # No zero where a basis waits for a gradient: `t` then waits too.
        magnitudes=(1e-3, 0.0, 1e-18, 1e-10, 0.0, largest, largest, 1e-3),
        resting=("basis_0", "basis_1", "basis_2", "basis_3"),
        main=main,
    )


ROWS = [
    make_row("coap", main=True),
    make_row("coap_restored", restore_state=True, beta_2=0.9, scale=0.25),
    make_row("coap_adafactor", variant="adafactor", recalibrate_every=1),
    make_row(
        "coap_adafactor_restored",
        variant="adafactor",
        restore_state=True,
        clip_threshold=None,
    ),
    make_row(
        "coap_convolutions",
        CONVOLUTIONS,
        # Among thirty vectors some have nearly equal singular values; XLA's
        # iteration for TensorFlow is 1.3e-5 off, LAPACK 3.5e-6.
        tolerance=3e-5,
        # Of ten thousand larger ones the sum of squares is not finite.
        largest=1e15,
    ),
]

# 4 bytes more are the count of steps.
STATE_BYTES = [
    (COAP(), (4096, 4096), 50_331_648 + 4),
    (COAP(rank_ratio=8), (4096, 4096), 25_165_824 + 4),
    (COAP(rank=512), (4096, 4096), 25_165_824 + 4),
    (COAP(rank=2048), (4096, 4096), 3 * 4 * 4096 * 2048 + 4),
    (COAP(variant="adafactor"), (4096, 4096), 33_554_432 + 20_480 + 4),
    (COAP(state_dtype="bfloat16"), (4096, 4096), 25_165_824 + 4),
    # 0.76 a parameter: codes, and a scale for every 512.
    (
        COAP(state_dtype="int8"),
        (4096, 4096),
        3 * (4_194_304 + 4 * 8_192) + 4,
    ),
    (COAP(), (1024, 16, 64), 3 * 1024 * 256 * 4 + 4),
    (COAP(axis_groups="last_two"), (1024, 16, 64), 8 * 1024 * 1024),
    (
        COAP(),
        (3, 3, 512, 512),
        4 * (2 * 9 * 256 * 256 + 2 * 512 * 256) + 4,
    ),
    (COAP(), (1, 1, 256, 128), 4 * (2 * 256 * 32 + 128 * 32) + 4),
    (COAP(), (3, 3, 32, 32), 8 * 9 * 32 * 32),
    (COAP(), (1024,), 8_192),
]


def golden(arguments, hyper):
    """COAP, with the noise of the trace in place of its own."""
    omega = arguments.pop("omega")

    class Given(COAP):
        def refresh(self, g, x, state, step):
            return super().refresh(g, x, state, GivenNoise(**vars(step)))

    class GivenNoise(type(step_at(1, 0.0))):
        def normal(self, shape, salt=0):
            return np.asarray(omega, "float32")

    if "clip_threshold" in arguments:
        arguments["variant"] = "adafactor"
    return Given(rank=2, **arguments)
