"""Hypergradients on eight devices, of one process or of two; `test_devices` compares them.

Run as `python -m tests.shared.devices_child FOLDER`, or for one of several processes as
`python -m tests.shared.devices_child FOLDER ADDRESS NUM_PROCESSES PROCESS`. Writes
FOLDER/results_PROCESS.npz.
"""

import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg
from hgrad_jax.data import minibatches

NUM_DEVICES = 8
NUM_STEPS = 12


def problem():
    """Data [40, 4] and [40], five rates, five keys."""
    x = jax.random.normal(jax.random.key(3), (40, 4))
    data = (x, jnp.tanh(x) @ jnp.arange(4.0))
    return data, jnp.linspace(0.02, 0.06, 5), jax.random.split(jax.random.key(0), 5)


def loss(params, hparams, batch, key):
    error = jnp.mean((jnp.tanh(batch[0] @ params["a"]) @ params["b"] - batch[1]) ** 2)
    return error + jnp.exp(hparams["log_l2"]) * jnp.sum(params["a"] ** 2)


REVERSIBLE = hg.Reversible()


def run(rate, key, data, make_rule=lambda: hg.heavy_ball(loss), adjoint=REVERSIBLE):
    """One run's hypergradients, and how many numbers were not restored."""
    one, two = jax.random.split(key)
    params = {"a": jax.random.normal(one, (4, 4)), "b": jax.random.normal(two, (4,))}
    hparams = {"learning_rate": rate, "momentum": 0.9, "log_l2": -3.0, "clip": 1.0}
    found = hg.value_and_hypergradient(
        lambda params, hparams, data: loss(params, hparams, data, None),
        hg.Run(make_rule(), num_steps=NUM_STEPS, batch_fn=minibatches(16), adjoint=adjoint),
        params,
        jax.tree.map(jnp.asarray, hparams),
        data,
        data,
        key=key,
    )
    bars = {"hparams": found.hparams}
    if found.params is not None:
        bars["params"] = found.params
    mismatches = 0 if found.info.mismatches is None else found.info.mismatches
    return {"value": found.value, "bars": bars, "mismatches": jnp.asarray(mismatches)}


def parallel(rate, key, data):
    return run(rate, key, data, lambda: hg.heavy_ball(hg.data_parallel(loss)))


def swept(hparams, key, data):
    return hparams * jnp.mean(data[1]) + jax.random.uniform(key)


def hypergradients() -> dict[str, Any]:
    """Five runs, three whose batches are shared by four devices each, and a sweep."""
    data, rates, keys = problem()
    shared = hg.over_devices(parallel, (0, 0, None), batch_parts=4)
    return {
        "seeds": hg.over_devices(run, (0, 0, None))(rates, keys, data),
        "parts": shared(rates[:3], keys[:3], data),
        "again": shared(rates[:3], keys[:3], data),
        "sweep": hg.sweep(swept, [0.02, 0.05], data, keys=keys[:3]).results,
    }


def tuned(folder: Path) -> dict[str, Any]:
    from tests.shared import (
        tune_child,  # whose arrays may not be there before the processes have met
    )

    tune = functools.partial(
        tune_child.tune, num_runs=6, metrics=tune_child.metrics, test=tune_child.TEST
    )
    records = hg.Records(folder / "tuning", figures_every=None)
    assert tune(num_meta_steps=2, records=records).resumed_at is None
    out = tune(num_meta_steps=4, records=records)
    assert out.resumed_at == 2
    assert all(x.is_fully_addressable for x in jax.tree.leaves((out.hparams, out.opt_state)))
    with pytest.raises(hg.CheckpointError, match="differs in hparams"):
        tune(hparams=jax.tree.map(lambda x: x - 1, tune_child.HPARAMS), records=records)
    return {"tune": tune_child.bits(out), "not resumed": tune_child.bits(tune(num_meta_steps=4))}


def fitted(folder: Path) -> dict[str, Any]:
    from tests.shared import tune_child

    def fit(num_epochs):
        return hg.fit(
            tune_child.RULE,
            jnp.zeros(3),
            {"learning_rate": 0.05, "log_l2": -3.0},
            tune_child.TRAIN,
            num_epochs=num_epochs,
            steps_per_epoch=3,
            checkpoints=hg.Checkpoints(folder / "fit"),
            progress=False,
        )

    fit(1)
    out = fit(3)
    assert out.resumed_at == 1
    return {"fit": out.params}


def refuse_different_processes(folder: Path, process: int) -> None:
    message = "differ between the processes, but all of them must make the same"
    with pytest.raises(ValueError, match="the arguments " + message):
        hg.over_devices(jnp.sin)(jnp.arange(8.0) + process)
    from tests.shared import tune_child

    with pytest.raises(ValueError, match="num_runs, .*" + message):
        tune_child.tune(num_runs=2 + process)
    with pytest.raises(ValueError, match="hparams " + message):
        hg.fit(
            tune_child.RULE,
            jnp.zeros(3),
            {"learning_rate": 0.05 + process, "log_l2": -3.0},
            tune_child.TRAIN,
            num_epochs=1,
            checkpoints=hg.Checkpoints(folder / "other"),
        )
    own = hg.over_devices(jnp.sin, devices=jax.local_devices())(jnp.arange(8.0) + process)
    np.testing.assert_allclose(own, np.sin(np.arange(8.0) + process), rtol=1e-6)


def adam(loss):
    return hg.adam(loss)


def clipped(loss):
    """A gradient of no loss, which Reversible() too pulls back in reverse mode."""
    return hg.heavy_ball(loss, gradient=hg.modified(hg.backpropagation, hg.clip_by_norm()))


def check_values(make: Any, adjoint: Any) -> None:
    """Asserts, in float64, that a batch shared by eight devices gives one device's numbers."""
    data, rates, keys = problem()
    shared = functools.partial(run, make_rule=lambda: make(hg.data_parallel(loss)), adjoint=adjoint)
    plain = functools.partial(run, make_rule=lambda: make(loss), adjoint=adjoint)
    found = hg.over_devices(shared, None)(rates[0], keys[0], data)
    want = jax.jit(plain)(rates[0], keys[0], data)
    assert not found["mismatches"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found, want)


def check_outside() -> None:
    """Asserts that what shares runs and batches can be differentiated, mapped and jitted itself."""
    data, rates, keys = problem()

    def value(make_loss, adjoint, rate, key, data):
        out = hg.unroll(
            hg.Run(hg.heavy_ball(make_loss(loss)), num_steps=5, adjoint=adjoint),
            {"a": jax.random.normal(key, (4, 4)), "b": jnp.ones(4)},
            {"learning_rate": rate, "momentum": 0.9, "log_l2": -3.0},
            data,
        )
        return loss(out.params, {"log_l2": -3.0}, data, None)

    plain = functools.partial(value, lambda loss: loss, hg.Direct())
    over = hg.over_devices(
        functools.partial(value, hg.data_parallel, hg.Reversible()), (None, 0, None), batch_parts=4
    )

    def ours(rate):
        return jnp.sum(over(rate, keys[:3], data) ** 2)

    def theirs(rate):
        return jnp.sum(jax.vmap(plain, (None, 0, None))(rate, keys[:3], data) ** 2)

    want = jax.jit(jax.vmap(jax.value_and_grad(theirs)))(rates[:2])
    found = jax.jit(jax.vmap(jax.value_and_grad(ours)))(rates[:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, want)


def check_tune() -> None:
    """Asserts that tuning with shared batches is tuning on one device, and compiles as often."""
    from tests.shared import tune_child

    def counted(lengths, hparams, num_steps):
        lengths.append(num_steps)
        return tune_child.run_hparams(hparams, num_steps)

    found = []
    where: list[tuple[Any, dict[str, Any]]] = [
        (lambda loss: loss, {"devices": jax.devices()[:1]}),
        (hg.data_parallel, {"batch_parts": 4}),
    ]
    for make, settings in where:
        lengths: list[int] = []
        out = hg.tune(
            tune_child.objective,
            hg.Run(
                hg.sgd(make(tune_child.loss)),
                num_steps=2,
                batch_fn=minibatches(4),
                hparams_axes=tune_child.AXES,
            ),
            tune_child.init_params,
            tune_child.HPARAMS,
            tune_child.TRAIN,
            tune_child.VALID,
            num_meta_steps=3,
            optimizer=hg.sign_descent(0.1),
            key=tune_child.KEY,
            num_runs=3,
            lengths=lambda meta_step: (2, 3, 2)[meta_step],
            run_hparams=functools.partial(counted, lengths),
            **settings,
            fresh_splits=True,
            progress=False,
        )
        found.append((out.hparams, out.history.value, out.history.norm, out.history.spread))
        # Once for the check before anything runs, and once for the program.
        assert sorted(lengths) == [2, 2, 3, 3], lengths
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *found)


def check_float64() -> None:
    """What `test_devices` runs in a child with jax_enable_x64."""
    check_values(adam, hg.Direct())
    check_values(clipped, hg.Reversible())
    check_tune()


def main() -> None:
    folder, process = Path(sys.argv[1]), 0
    if len(sys.argv) > 2:
        address, num_processes, process = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
        jax.distributed.initialize(address, num_processes, process)
    assert len(jax.devices()) == NUM_DEVICES
    found = hypergradients() | tuned(folder) | fitted(folder)
    if jax.process_count() > 1:
        refuse_different_processes(folder, process)
    else:
        check_outside()
    leaves = jax.tree_util.tree_leaves_with_path(found)
    arrays: Any = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    np.savez(folder / f"results_{process}.npz", **arrays)


if __name__ == "__main__":
    main()
