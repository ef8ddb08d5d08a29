"""`meta_steps`: a whole tuning as a pure function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg
from tests.shared import tune_child
from tests.shared.runs import run_and_rest
from tests.shared.tune_child import (
    HPARAMS,
    KEY,
    RULE,
    SETTINGS,
    TRAIN,
    VALID,
    init_params,
    objective,
)
from tests.shared.tunings import assert_close

PURE = {name: value for name, value in SETTINGS.items() if name != "progress"}


def pure(init=init_params, hparams=HPARAMS, transition=RULE, **settings):
    run, rest = run_and_rest(transition, PURE | settings)
    return hg.meta_steps(objective, run, init, hparams, TRAIN, VALID, **rest)


def one(tree, *index):
    return jax.tree.map(lambda x: x[index], tree)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_runs": 2, "fresh_seeds": False},
        {"optimizer": optax.adam(0.1), "num_runs": 2, "fresh_splits": True},
        {"key": None, "init": jnp.ones(3), "batch_fn": None},
    ],
)
def test_it_is_what_tune_does(settings):
    found = jax.jit(functools.partial(pure, **settings))()
    want = tune_child.tune(**settings)
    assert_close(found.hparams, want.hparams)
    assert_close(found.opt_state, want.opt_state)
    assert_close(found.value, want.history.value)
    for name, mean in want.history.hparams.items():
        assert_close(np.mean(found.path[name].reshape(3, -1), axis=1), mean["mean"])
    norms = np.sqrt(sum((np.reshape(g, (3, -1)) ** 2).sum(1) for g in found.gradient.values()))
    assert_close(norms, want.history.norm)


def tuning(rate, start, key):
    """A tuning whose optimizer's rate, start and seeds are mapped."""
    hparams = HPARAMS | {"log_rate": HPARAMS["log_rate"] + start}
    optimizer = optax.chain(optax.zero_nans(), optax.adam(rate))
    return pure(hparams=hparams, optimizer=optimizer, key=key, num_runs=2)


RATES, STARTS = jnp.array([0.1, 0.2, 0.1]), jnp.array([0.0, -0.5, 60.0])
many_tunings = functools.cache(
    lambda: jax.jit(jax.vmap(jax.vmap(tuning, (None, None, 0)), (0, 0, None)))(
        RATES, STARTS, jax.random.split(KEY, 2)
    )
)


def test_tunings_side_by_side_are_each_by_itself():
    found = many_tunings()
    alone = jax.jit(tuning)
    for setting in range(2):
        for seed in range(2):
            want = alone(RATES[setting], STARTS[setting], jax.random.split(KEY, 2)[seed])
            assert_close(one(found, setting, seed), want)


def test_a_tuning_that_fails_is_nan_and_flagged_and_alone_is():
    found = many_tunings()
    is_finite = np.asarray(found.info.is_finite)  # [settings, seeds, meta-steps, runs]
    assert is_finite[:2].all()
    assert not is_finite[2].any()
    for end in jax.tree.leaves(found.hparams):
        assert np.isfinite(end[:2]).all()
        assert np.isnan(end[2]).all()
    assert np.isfinite(one(found.path, 2, slice(None), 0)["log_rate"]).all()
    assert np.isnan(one(found.path, 2, slice(None), slice(1, None))["log_rate"]).all()
    with pytest.raises(hg.HypergradientError, match=r"infinite or NaN .*run \(2, 0, 0, 0\)"):
        hg.check(found.info)


def test_a_last_update_that_is_infinite_is_refused():
    found = pure(optimizer=optax.scale(np.inf), num_meta_steps=1)
    assert hg.check(found.info).is_finite.all()
    with pytest.raises(hg.HypergradientError, match="optimizer made hyperparameters infinite"):
        hg.check(found)


def test_all_runs_of_all_tunings_are_restored():
    def run_hparams(hparams, num_steps):
        return tune_child.run_hparams(hparams, num_steps) | {"momentum": jnp.float32(0.5)}

    def reversible(start):
        hparams = HPARAMS | {"log_rate": HPARAMS["log_rate"] + start}
        return pure(
            hparams=hparams,
            transition=hg.momentum(tune_child.loss),
            run_hparams=run_hparams,
            hparams_axes=tune_child.AXES | {"momentum": None},
            adjoint=hg.Reversible(smallest_decay=0.5),
        )

    found = jax.jit(jax.vmap(reversible))(STARTS[:2])
    assert hg.check(found.info).is_restored.shape == (2, 3, 1)
    assert found.info.is_restored.all()


def test_it_is_a_run_for_sweep():
    def run(hparams, key, data):
        del data
        out = tuning(hparams["rate"], hparams["start"], key)
        return {"value": out.value[-1].mean()}

    settings = hg.grid({"rate": [0.1], "start": [0.0, 60.0]})
    found = hg.sweep(run, settings, keys=jax.random.split(KEY, 2))
    np.testing.assert_allclose(
        found.results["value"][0], many_tunings().value[0, :, -1].mean(-1), rtol=2e-5
    )
    assert np.isnan(found.results["value"][1]).all()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_meta_steps": 0}, ValueError, "num_meta_steps is 0; it must be a positive int"),
        ({"num_runs": 0}, ValueError, "num_runs is 0; it must be a positive int"),
        ({"optimizer": 0.1}, TypeError, "optimizer is 0.1; it must be an optax transformation"),
        ({"key": None}, ValueError, "key is None, but several runs, fresh splits and random"),
        ({"hparams": {}}, ValueError, "hparams is an empty tree; there is nothing to tune"),
        ({"num_steps": lambda k: 4}, TypeError, "num_steps is a function, .* lengths="),
        ({"num_steps": 0}, ValueError, "num_steps is 0"),
    ],
)
def test_bad_input_before_any_step(settings, error, message):
    with pytest.raises(error, match=message):
        pure(**settings)
