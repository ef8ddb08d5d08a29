"""Tunes a linear model with records; `test_tune` kills it and runs it again.

Run as `python -m tests.shared.tune_child FOLDER RESULT`: records in FOLDER, bits to RESULT.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hgrad_jax as hg
from hgrad_jax.data import minibatches
from tests.shared.runs import run_and_rest

NUM_META_STEPS = 20
KEY = jax.random.key(0)


def linear_data(num_examples, seed):
    draws = np.random.RandomState(seed)
    x = draws.standard_normal((num_examples, 3)).astype(np.float32)
    return x, x @ np.array([1.0, 2.0, 3.0], np.float32) + np.float32(
        draws.standard_normal(num_examples)
    )


TRAIN, VALID, TEST = (linear_data(n, seed) for seed, n in enumerate((12, 6, 5)))
HPARAMS = {"log_rate": jnp.log(jnp.array([0.05, 0.1])), "log_l2": jnp.float32(-3.0)}
AXES = {"learning_rate": 0, "log_l2": None}


def loss(params, hparams, batch, key):
    x, y = batch
    return jnp.mean((x @ params - y) ** 2) + jnp.exp(hparams["log_l2"]) * jnp.sum(params**2)


def objective(params, hparams, valid):
    return jnp.mean((valid[0] @ params - valid[1]) ** 2)


def run_hparams(hparams, num_steps):
    rate = hg.hyper.over_windows(jnp.exp(hparams["log_rate"]), num_steps)
    return {"learning_rate": rate, "log_l2": hparams["log_l2"]}


def init_params(key):
    """Random, from the key's bits: normal numbers take longer to compile than the rest."""
    return jax.random.key_data(key)[0].astype(jnp.float32) / 2.0**32 * jnp.ones(3)


def metrics(params, data):
    return {"error": jnp.mean(jnp.abs(data[0] @ params - data[1]))}


RULE = hg.sgd(loss)
SETTINGS: dict[str, Any] = {
    "num_steps": 4,
    "num_meta_steps": 3,
    "optimizer": hg.sign_descent(0.1),
    "key": KEY,
    "batch_fn": minibatches(5),
    "hparams_axes": AXES,
    "run_hparams": run_hparams,
    "progress": False,
}


def tune(init=init_params, hparams=HPARAMS, train=TRAIN, valid=VALID, test=None, **settings):
    goal = settings.pop("objective", objective)
    run, rest = run_and_rest(RULE, SETTINGS | settings)
    return hg.tune(goal, run, init, hparams, train, valid, test, **rest)


def tune_at_length(folder):
    """Returns the Tuned of the run that is killed: everything that it may go on with."""
    return tune(
        test=TEST,
        lengths=lambda meta_step: 4 if meta_step < 3 else 6,
        num_meta_steps=NUM_META_STEPS,
        optimizer=optax.adam(0.1),
        num_runs=2,
        fresh_splits=True,
        metrics=metrics,
        early_stopping=hg.EarlyStopping("valid_error", patience=None),
        records=None if folder is None else hg.Records(folder, figures_every=4),
    )


def bits(out):
    """Returns every number of a Tuned that does not tell the time."""
    trees = (out.hparams, out.opt_state, out.best, out.history._replace(seconds=None))
    return {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(trees))}


def main():
    folder, result = sys.argv[1:]
    arrays: Any = bits(tune_at_length(folder))
    np.savez(result, **arrays)


if __name__ == "__main__":
    main()
