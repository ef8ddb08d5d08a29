"""Meta-steps of the study of DrMAD: three hypergradients each, and a step along one's signs."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hgrad_jax as hg
from experiments.drmad_study.config import Config
from experiments.drmad_study.problem import Start, adjoints, make_model, problem
from experiments.drmad_study.records import journal
from experiments.rescaled_mlp import Images
from hgrad_jax.data import Dataset
from hgrad_jax.diagnostics.compare import cosine
from hgrad_jax.hypergradient import Objective
from hgrad_jax.models import MLP, classification_metrics
from hgrad_jax.run import trajectory_of
from hgrad_jax.runs.trajectory import first_state, inputs


class Programs(NamedTuple):
    """What is compiled once for all seeds and meta-steps of one length of training.

    Attributes:
      hypergradients: `run(params, scales, train, valid) -> outputs`, by the adjoint's name.
      temp_bytes: their temporaries; None where the backend does not tell.
      metrics: `metrics(trained params, scales, images) -> {name: scalar}`.
    """

    hypergradients: dict[str, Callable[..., Any]]
    temp_bytes: dict[str, int | None]
    metrics: Callable[..., Any]


def programs(config: Config, num_steps: int, first: Start) -> Programs:
    """Compiles a hypergradient by each adjoint."""
    objective, run = problem(config, num_steps, first.scales)
    args = (first.params, first.scales, *first.images[:2])
    compiled, temp_bytes = {}, {}
    for name, adjoint in adjoints(config).items():
        by_adjoint = dataclasses.replace(run, adjoint=adjoint)
        one = functools.partial(_hypergradient, objective, by_adjoint)
        compiled[name] = jax.jit(one).lower(*args).compile()
        memory = compiled[name].memory_analysis()
        temp_bytes[name] = None if memory is None else memory.temp_size_in_bytes
    # The test part is an argument of this one alone.
    return Programs(compiled, temp_bytes, jax.jit(functools.partial(_metrics, make_model(config))))


def meta_step(
    config: Config,
    compiled: Programs,
    given: Start,
    follow: str,
) -> tuple[dict[str, Any], Any]:
    """Returns what is recorded at some scales, and the scales after a step along signs.

    Raises:
      HypergradientError: the exact hypergradient or the one that is followed is not to be had.
    """
    found, seconds = {}, {}
    for name, run in compiled.hypergradients.items():
        begun = time.perf_counter()
        args = (given.params, given.scales, *given.images[:2])
        found[name] = jax.block_until_ready(run(*args))
        seconds[name] = time.perf_counter() - begun
    exact = found["exact"]
    for name in {"exact", follow}:
        hg.check(found[name]["info"])
    flat = {name: flattened(each["hypergradient"]) for name, each in found.items()}
    others = [name for name in flat if name != "exact"]
    signs = {name: np.sign(each) for name, each in flat.items()}
    optimizer = hg.sign_descent(config.meta_step_size)
    update, _ = optimizer.update(found[follow]["hypergradient"], optimizer.init(given.scales))
    record = {
        "value": exact["value"],
        **compiled.metrics(exact["params"], given.scales, given.images),
        "norm": {name: np.linalg.norm(each) for name, each in flat.items()},
        "cosine": {name: cosine(flat[name], flat["exact"]) for name in others},
        "sign_cosine": {name: cosine(signs[name], signs["exact"]) for name in others},
        "reverse_steps": {name: found[name]["reverse_steps"] for name in others},
        "is_restored": exact["info"].is_restored,
        "bits_per_step": exact["info"].run.bits_per_step["velocity"],
        "seconds": seconds,
        "temp_bytes": compiled.temp_bytes,
    }
    return record, optax.apply_updates(given.scales, update)


def tune(
    config: Config, num_steps: int, follow: str, seed: int, compiled: Any, given: Start, say: Any
) -> None:
    """Takes the meta-steps that are not recorded yet.

    Args:
      config: the settings.
      num_steps: of each training.
      follow: whose signs.
      seed: of `given`.
      compiled: `compiled() -> programs`, called if there is anything to do.
      given: what the seed determines.
      say: called with a line after each meta-step.

    Raises:
      HypergradientError: a hypergradient is not to be had.
      ValueError: the records are of another tuning.
    """
    book = journal(config, num_steps, follow, seed)
    for k in range(len(book.records), config.num_meta_steps):
        scales = scales_before(given, book.records, k)
        record, after = meta_step(config, compiled(), given._replace(scales=scales), follow)
        book.add({**record, "scales_after": flattened(after)})
        last = book.records[-1]
        say(
            f"{num_steps} steps, seed {seed}, following {follow}, meta-step {k}: validation loss "
            f"{last['value']:.4f}, test error {last['test_error']:.2%}, cosine of DrMAD "
            f"{_shown(last['cosine']['DrMAD'])}, of DrMAD2 {_shown(last['cosine']['DrMAD2'])}"
        )


def scales_before(given: Start, records: list[dict[str, Any]], meta_step: int) -> Any:
    """Returns the scales that a meta-step starts with, from the records of those before it."""
    if meta_step == 0:
        return given.scales
    values = np.asarray(records[meta_step - 1]["scales_after"], np.float32)
    leaves, treedef = jax.tree.flatten(given.scales)
    parts = np.split(values, np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [jnp.asarray(x.reshape(leaf.shape)) for x, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(treedef, shaped)


def flattened(tree: Any) -> np.ndarray:
    """Returns a pytree's numbers as one vector, float64."""
    return np.concatenate([np.asarray(x, np.float64).reshape(-1) for x in jax.tree.leaves(tree)])


def _hypergradient(
    objective: Objective, run: hg.Run, params: Any, scales: Any, train: Dataset, valid: Dataset
) -> dict[str, Any]:
    """Returns one hypergradient and what is recorded with it; pure."""
    found = hg.value_and_hypergradient(objective, run, params, scales, train, valid)
    outputs = {"value": found.value, "hypergradient": found.hparams, "info": found.info}
    if isinstance(run.adjoint, hg.DrMAD | hg.DrMAD2):
        path = trajectory_of(run, scales)
        given = inputs(path, scales, train, None)
        ends = (first_state(path, params, given), found.unrolled.state)
        return outputs | {"reverse_steps": run.adjoint.num_visited(path, *ends, given)}
    return outputs | {"params": found.unrolled.params}


def _metrics(model: MLP, params: Any, scales: Any, images: Images) -> dict[str, jax.Array]:
    """Returns losses and error rates after a training; pure."""
    weights, judge = hg.hyper.weights_of(params, scales), classification_metrics(model)
    metrics = {}
    for name, part in images._asdict().items():
        measured = judge(weights, part)
        metrics[f"{name}_loss"] = measured["loss"]
        metrics[f"{name}_error"] = 1 - measured["accuracy"]
    return metrics


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
