"""The part of `forward_reverse` that learns the hyperparameters in real time."""

import functools
import time
from typing import Any

import jax
import numpy as np

import hgrad_jax as hg
from experiments.forward_reverse.problem import (
    PIECE,
    Data,
    Problem,
    initial_hparams,
    initial_params,
    loss,
    make_model,
    validation_error,
)
from hgrad_jax.data import minibatches
from hgrad_jax.models import classification_metrics

LARGEST_MOMENTUM = 0.99


def real_time(
    problem: Problem, data: Data, *, num_steps: int, every: int, meta_learning_rate: float
) -> dict[str, Any]:
    """Returns the record of a training that learns all hyperparameters, beside one that does not.

    RTHO of Franceschi et al. (2017), with the same rule, start and Adam as the hypergradients after
    whole trainings; a batch of validation images each time. The validation error on the way is that
    of the first thousand images.
    """
    model = make_model(problem)
    hparams, params = initial_hparams(problem, data), initial_params(problem, data, 0)
    error, rule = validation_error(model), hg.heavy_ball(loss(model))
    batch_fn = minibatches(problem.batch_size)
    learning = hg.online.rtho(
        rule,
        lambda params, hparams, batch, key: error(params, hparams, batch),
        learned=tuple(hparams),
        make_tx=lambda hparams: hg.nonnegative_adam(meta_learning_rate),
        every=every,
        bounds={"momentum": (0.0, LARGEST_MOMENTUM)},
    )

    def on_the_way(params: Any, valid: Any) -> jax.Array:
        return error(params, None, jax.tree.map(lambda x: x[:PIECE], valid))

    def path(state: Any, pair: Any) -> dict[str, Any]:
        return {
            "hparams": state.hparams,
            "hypergradient": state.hypergradient,
            "validation_error": on_the_way(state.inner.params, pair[1]),
        }

    runs = {
        "learned": hg.Run(
            learning,
            num_steps=num_steps,
            batch_fn=hg.online.paired(batch_fn, minibatches(min(PIECE, len(data.valid.labels)))),
            record=path,
        ),
        "kept": hg.Run(
            rule,
            num_steps=num_steps,
            batch_fn=lambda pair, t, key: batch_fn(pair[0], t, key),
            record=lambda state, pair: {"validation_error": on_the_way(state.params, pair[1])},
        ),
    }
    measure = jax.jit(classification_metrics(model))
    record: dict[str, Any] = {"mode": "real time"}
    args = (params, hparams, (data.train, data.valid))
    for name, run in runs.items():
        program = jax.jit(functools.partial(hg.unroll, run)).lower(*args).compile()
        begun, cpu_begun = time.perf_counter(), time.process_time()
        out = jax.block_until_ready(program(*args))
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
        hg.check(out)
        memory = program.memory_analysis()
        measured = {part: measure(out.params, getattr(data, part)) for part in data._fields}
        record[name] = {
            "accuracy": {part: float(each["accuracy"]) for part, each in measured.items()},
            "validation_error": float(measured["valid"]["loss"]),
            "path": jax.tree.map(np.asarray, out.trace),
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "temp_bytes": None if memory is None else memory.temp_size_in_bytes,
        }
    record["num_params"] = sum(x.size for x in jax.tree.leaves(params))
    return record
