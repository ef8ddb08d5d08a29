"""Tunes the weights of training examples: meta-steps, each of which ends in the box or the ball.

A tuning's records and checkpoints are a folder named by a digest of the configuration, from which
the same tuning goes on.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import hgrad_jax as hg
from experiments.hyper_cleaning.config import Config
from experiments.hyper_cleaning.problem import (
    Data,
    initial_params,
    make_model,
    validation_loss,
    weighted_loss,
)
from hgrad_jax.data import shuffled
from hgrad_jax.hypergradient import Objective

EXACT = "Reversible"


def adjoints(config: Config) -> Mapping[str, hg.Adjoint]:
    """Returns by what the weights are tuned, the one that all else is compared with first."""
    exact = {EXACT: hg.Reversible(smallest_decay=config.momentum)}
    if not config.compare:
        return exact
    window = max(1, config.num_steps // 10)
    return exact | {
        "Direct": hg.Direct(),
        f"Truncated({window})": hg.Truncated(window),
        "DrMAD": hg.DrMAD(),
    }


def problem(config: Config, seed: int, adjoint: hg.Adjoint) -> tuple[Objective, hg.Run]:
    """Returns the validation loss, and the training on weighted examples."""
    model = make_model(config)
    rule = hg.momentum(
        functools.partial(weighted_loss, model),
        learning_rate=config.learning_rate,
        momentum=config.momentum,
    )
    batch_fn = shuffled(config.batch_size, seed=seed)
    run = hg.Run(rule, num_steps=config.num_steps, batch_fn=batch_fn, adjoint=adjoint)
    return functools.partial(validation_loss, model), run


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns Adam, each of whose steps ends in the box or the ball."""

    def project(hparams: dict[str, Array]) -> dict[str, Array]:
        return {"weights": onto_box_and_ball(hparams["weights"], config.l1_radius)}

    return hg.projected(optax.adam(config.meta_learning_rate), project)


def first_weights(config: Config) -> dict[str, Array]:
    """Returns the hyperparameters that the tuning starts from: ones, or less where R is less."""
    num_train = config.sizes[0]
    return {"weights": onto_box_and_ball(jnp.ones(num_train), config.l1_radius)}


class Cleaning(NamedTuple):
    """A tuning that is done.

    Attributes:
      weights: float32 [K + 1, N], before every meta-step and after the last.
      hypergradient: float32 [N], at the first weights.
      valid_loss: float [K], before every meta-step.
      seconds_per_meta_step: the median; compilation not counted.
      temp_bytes: the compiled meta-step's temporaries; None where the backend does not tell.
      is_restored: whether every run was restored bit for bit; None where none is run backwards.
    """

    weights: np.ndarray
    hypergradient: np.ndarray
    valid_loss: np.ndarray
    seconds_per_meta_step: float
    temp_bytes: int | None
    is_restored: bool | None


def clean(config: Config, data: Data, seed: int, name: str) -> Cleaning:
    """Tunes the weights by one of the `adjoints`, or goes on with that."""
    folder = records_folder(config, seed) / name
    tuned = hg.tune(
        *problem(config, seed, adjoints(config)[name]),
        functools.partial(initial_params, make_model(config), data.train.inputs),
        first_weights(config),
        data.train,
        data.valid,
        num_meta_steps=config.num_meta_steps,
        optimizer=make_optimizer(config),
        key=jax.random.key(seed),
        records=hg.Records(folder, every=5, figures_every=None, is_whole=True),
    )
    lines = [json.loads(x) for x in (folder / "meta_steps.jsonl").read_text().splitlines()]
    path = [line["hparams"]["weights"] for line in lines]
    restored = [line["is_restored"] for line in lines]
    return Cleaning(
        np.asarray([*path, np.asarray(tuned.hparams["weights"])], np.float32),
        np.asarray(lines[0]["hypergradient"]["weights"], np.float32),
        tuned.history.value[:, 0],
        float(np.median(tuned.history.seconds)),
        lines[-1]["bytes"],
        None if None in restored else all(restored),
    )


def records_folder(config: Config, seed: int) -> Path:
    """Returns the folder of one seed's tunings, another one for another configuration."""
    told = {"out": "", "seeds": (seed,), "compare": True, "threshold": 0.5, "num_final_steps": 1}
    choices = repr(dataclasses.replace(config, **told))
    return Path(config.out) / hashlib.sha256(choices.encode()).hexdigest()[:8]


def onto_box_and_ball(x: Array, radius: float | None) -> Array:
    """Returns the nearest point with 0 <= x <= 1 and sum x <= radius, which is then the L1 norm.

    That is clip(x - tau, 0, 1) with the least tau >= 0 that makes the sum small enough, found by
    halving.

    Args:
      x: floats [N].
      radius: positive; None for no bound of the sum.

    >>> onto_box_and_ball(jnp.array([2.0, 0.5, 0.25, -1.0]), 1.25).round(4)
    Array([1.  , 0.25, 0.  , 0.  ], dtype=float32)
    """

    def at(tau: Array) -> Array:
        return jnp.clip(x - tau, 0, 1)

    if radius is None:
        return at(jnp.zeros_like(x[0]))

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        is_enough = jnp.sum(at(middle)) <= radius
        return jnp.where(is_enough, low, middle), jnp.where(is_enough, middle, high)

    zero = jnp.zeros_like(x[0])
    _, tau = jax.lax.fori_loop(0, 60, halve, (zero, jnp.maximum(jnp.max(x), 0)))
    return jnp.where(jnp.sum(at(zero)) <= radius, at(zero), at(tau))
