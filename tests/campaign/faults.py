"""Faults that are planted into trainings, and what a planted fault comes to.

A fault is silent if a hypergradient comes back that is wrong and not flagged. All others are
`REFUSED` by an exception, `FLAGGED` by `hg.check` with NaN for every number, or harmless: the
number is `RIGHT`.
"""

import itertools
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import hgrad_jax as hg
from tests.campaign.campaign_figures import FLAGGED, REFUSED, RIGHT, SILENT
from tests.shared.runs import run_with

T = 24
X = jax.random.normal(jax.random.key(1), (5, 3))
Y = jnp.tanh(X @ jnp.array([1.0, -1.0, 0.5]))
PARAMS = {"w": jnp.array([0.1, 0.2, -0.3]), "b": jnp.float32(0.4)}
HPARAMS = {"rate": jnp.float32(0.02), "decay": jnp.float32(0.6), "l2": jnp.float32(0.1)}


def loss(params, hparams, batch, key):
    x, y = batch
    error = jnp.tanh(x @ params["w"] + params["b"]) - y
    return jnp.mean(error**2) + hparams["l2"] * jnp.sum(params["w"] ** 2)


def adam(loss, *, learning_rate, momentum, **settings):
    return hg.adam(loss, learning_rate=learning_rate, b1=momentum, b2=0.95, eps=1e-2, **settings)


def adamw(loss, *, learning_rate, momentum, **settings):
    settings |= {"b1": momentum, "b2": 0.95, "eps": 1e-2, "weight_decay": 0.3}
    return hg.adamw(loss, learning_rate=learning_rate, **settings)


def rmsprop_momentum(loss, **settings):
    return hg.rmsprop_momentum(loss, eps=0.1, decay=0.9, **settings)


def average(loss, **settings):
    return hg.average(hg.heavy_ball(loss, **settings), decay=0.9)


RULES = {
    "heavy_ball": hg.heavy_ball,
    "momentum": hg.momentum,
    "classical_momentum": hg.classical_momentum,
    "adam": adam,
    "adamw": adamw,
    "rmsprop_momentum": rmsprop_momentum,
    "average": average,
}
SOURCES = {"learning_rate": hg.field("rate"), "momentum": hg.field("decay")}


class Found(NamedTuple):
    """A run's numbers: what was trained, the cotangents of its hyperparameters, and the info."""

    params: Any
    hparams_bar: Any
    info: Any


def run(rule: hg.Transition, adjoint: hg.Adjoint, hparams: Any = HPARAMS, **settings: Any) -> Found:
    """Trains, and pulls back ones."""
    settings = {"num_steps": T, "key": jax.random.key(3), "adjoint": adjoint} | settings
    params = settings.pop("params", PARAMS)
    data = settings.pop("data", (X, Y))
    out, pullback = run_with(hg.vjp, rule, params, hparams, data, **settings)
    trace_bar = None if out.trace is None else jax.tree.map(jnp.ones_like, out.trace)
    bars, info = pullback(jax.tree.map(jnp.ones_like, out.params), trace_bar)
    return Found(out.params, bars.hparams, info)


def norms(tree: Any) -> list[float]:
    """Returns the norm of every leaf."""
    return [float(jnp.linalg.norm(jnp.ravel(x))) for x in jax.tree.leaves(tree)]


def is_close(got: Any, want: Any, rtol: float, sizes: list[float] | None = None) -> bool:
    """Whether every leaf is, relative to its norm, or to a size of its own where that is larger."""
    own = norms(want)
    sizes = own if sizes is None else list(map(max, own, sizes))
    errors = norms(jax.tree.map(jnp.subtract, got, want))
    return all(e <= rtol * size + 1e-9 for e, size in zip(errors, sizes, strict=True))


def outcome(
    attempt: Callable[[], Found], is_right: Callable[[Found], bool] = lambda found: False
) -> str:
    """Returns what a fault came to.

    Args:
      attempt: trains with the fault.
      is_right: whether what came back, unflagged, is the right number nevertheless.
    """
    try:
        found = jax.block_until_ready(attempt())
    except Exception:  # whatever it is, no number came back
        return REFUSED
    leaves = jax.tree.leaves(found.hparams_bar)
    try:
        hg.check(found.info)
    except hg.HypergradientError:
        return FLAGGED if all(bool(jnp.all(jnp.isnan(leaf))) for leaf in leaves) else SILENT
    return RIGHT if is_right(found) else SILENT


def units(kind: str) -> Callable[[], float]:
    """Returns a function whose results in [0, 1) differ from call to call, in one of the ways."""
    count = itertools.count(1)
    generator = np.random.default_rng(5)
    memory: list[int] = []

    def grown():
        memory.append(0)
        return (len(memory) * 0.37) % 1

    return {
        "numpy": np.random.random,
        "generator": generator.random,
        "random": random.random,
        "counter": lambda: (next(count) * 0.23) % 1,
        "clock": lambda: (time.perf_counter_ns() % 1009) / 1009,
        "iterator": iter(generator.random(1000)).__next__,
        "closure": grown,
        "toggle": lambda: float(next(count) % 2) * 0.9,
    }[kind]


UNITS = ("numpy", "generator", "random", "counter", "clock", "iterator", "closure", "toggle")
