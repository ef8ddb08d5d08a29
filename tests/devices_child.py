"""Hypergradients on many devices, of one process or of several; `test_devices` compares them.

Run as `python -m tests.devices_child FOLDER`, or, for one of several processes,
`python -m tests.devices_child FOLDER ADDRESS NUM_PROCESSES PROCESS`. Writes FOLDER/results_PROCESS.
"""

import functools
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import hgrad_jax as hg
from hgrad_jax.data import minibatches

NUM_DEVICES = 8


def problem():
    """Data [40, 4] and [40], rates [5], keys [5]; made after the devices are known."""
    x = jax.random.normal(jax.random.key(3), (40, 4))
    data = (x, jnp.tanh(x) @ jnp.arange(4.0))
    return data, jnp.linspace(0.02, 0.06, 5), jax.random.split(jax.random.key(0), 5)


def loss(params, hparams, batch, key):
    error = jnp.mean((jnp.tanh(batch[0] @ params["a"]) @ params["b"] - batch[1]) ** 2)
    return error + jnp.exp(hparams["log_l2"]) * jnp.sum(params["a"] ** 2)


def run(rate, key, data, loss_of_step=loss, adjoint=hg.Reversible()):
    """One run's hypergradients, and how many numbers were not restored."""
    one, two = jax.random.split(key)
    params = {"a": jax.random.normal(one, (4, 4)), "b": jax.random.normal(two, (4,))}
    hparams = {"learning_rate": rate, "momentum": jnp.float32(0.9), "log_l2": jnp.float32(-3)}
    found = hg.value_and_hypergradient(
        lambda params, hparams, data: loss(params, hparams, data, None),
        hg.heavy_ball(loss_of_step),
        params,
        hparams,
        data,
        data,
        num_steps=12,
        key=key,
        batch_fn=minibatches(16),
        adjoint=adjoint,
    )
    bars = {"params": found.params, "hparams": found.hparams}
    return {"value": found.value, "bars": bars, "mismatches": found.info.mismatches}


parallel = functools.partial(run, loss_of_step=hg.data_parallel(loss))


def results(folder: Path, devices: Any = None) -> dict[str, Any]:
    """Everything that is compared, as trees of arrays by name."""
    from tests import tune_child  # whose arrays need the devices

    data, rates, keys = problem()
    found: dict[str, Any] = {
        "seeds": hg.over_devices(run, (0, 0, None), devices=devices)(rates, keys, data),
        "one batch": hg.over_devices(parallel, None, devices=devices)(rates[0], keys[0], data),
    }
    if devices is None:
        half = hg.over_devices(parallel, (0, 0, None), batch_parts=4)
        found["half a batch"] = half(rates[:3], keys[:3], data)
        found["again"] = half(rates[:3], keys[:3], data)
        swept = hg.sweep(lambda h, key, data: run(h, key, data)["value"], [0.02, 0.05], data, keys=keys)
        found["sweep"] = swept.results
    tuned = functools.partial(tune_child.tune, num_runs=6, metrics=tune_child.metrics)
    records = hg.Records(folder / "tuning", figures_every=None)
    tuned(num_meta_steps=2, records=records, devices=devices, test=tune_child.TEST)
    out = tuned(num_meta_steps=4, records=records, devices=devices, test=tune_child.TEST)
    assert out.resumed_at == 2
    found["tune"] = tune_child.bits(out)
    return found


def write(path: Path, found: Any) -> None:
    named = {jax.tree_util.keystr(k): np.asarray(x) for k, x in jax.tree_util.tree_leaves_with_path(found)}
    np.savez(path, **named)


def main() -> None:
    folder, process = Path(sys.argv[1]), 0
    if len(sys.argv) > 2:
        address, num_processes, process = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
        jax.distributed.initialize(address, num_processes, process)
    assert len(jax.devices()) == NUM_DEVICES
    write(folder / f"results_{process}.npz", results(folder))


if __name__ == "__main__":
    main()
