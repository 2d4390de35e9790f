"""Exact traces of the family, made apart from this package and its oracles.

`family.json` has, for every case, hyperparameters, inputs, and the parameters
and state after every step.
"""

import json
import pathlib

GOLDEN = json.loads((pathlib.Path(__file__).parent / "family.json").read_text())
CASES = [(family, name) for family in GOLDEN for name in GOLDEN[family]]
NAMES = {
    "lr": "learning_rate",
    "b": "beta_1",
    "b1": "beta_1",
    "b2": "beta_2",
    "b3": "beta_3",
    "growth": "beta_1_growth",
    "decay": "beta_2_decay",
    "eps": "epsilon",
    "eps1": "epsilon_1",
    "eps2": "epsilon_2",
    "d": "clip_threshold",
    "clip": "clip_threshold",
    "wd": "weight_decay",
    "subset": "subsets",
    "correct_bias": "bias_correction",
    "gap": "refresh_every",
    "freq": "refresh_every",
    "Tu": "refresh_every",
    "lam": "recalibrate_every",
    "restore": "restore_state",
    "max_dim": "max_precondition_dim",
    "p": "fisher_exponent",
    "eps_mode": "epsilon_mode",
    "freeze": "freeze_after",
    "update": "keep_adapting",
    "mom": "momentum",
}
VALUES = {"heuristics": "heuristic", "v3": "paper_v3"}
# Of no meaning to the oracles, which have one value of each.
LEFT_OUT = ("reset", "scale_parameter", "block")


def golden_arguments(hyper):
    arguments = {
        NAMES.get(name, name): value
        for name, value in hyper.items()
        if name not in LEFT_OUT
    }
    for name, value in arguments.items():
        if isinstance(value, str):
            arguments[name] = VALUES.get(value, value)
    return arguments
