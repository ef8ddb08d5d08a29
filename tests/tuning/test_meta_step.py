"""`meta_step`: one step of a tuning as a pure function."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
import pytest

import hgrad_jax as hg
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


class TestMetaStep:
    @staticmethod
    def step(**changes):
        hparams, optimizer = {"learning_rate": jnp.float32(0.1)}, hg.sign_descent(0.1)
        settings: Any = {"optimizer": optimizer, "opt_state": optimizer.init(hparams)} | changes
        rule = hg.sgd(lambda params, hparams, batch, key: jnp.sum(params**2))
        return hg.meta_step(
            lambda params, hparams, valid: jnp.sum(params),
            hg.Run(rule, num_steps=2),
            settings.pop("params", jnp.ones(2)),
            hparams,
            None,
            **settings,
        )

    def test_what_it_found_can_be_checked(self):
        step = self.step()
        with pytest.raises(TypeError, match=r"info is a MetaStep; .*: hg.check\(step.found\)"):
            hg.check(cast(Any, step))
        assert hg.check(step.found) is step.found

    def test_hyperparameters_of_a_run_that_are_none(self):
        with pytest.raises(ValueError, match="returned None; it must return the hyperparameters"):
            self.step(run_hparams=lambda hparams, num_steps: None)
        with pytest.raises(TypeError, match=r"run_hparams is 3, but is called as"):
            self.step(run_hparams=3)

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"optimizer": 0.1}, TypeError, "optimizer is 0.1; it must be an optax transformation"),
            ({"opt_state": None}, ValueError, r"opt_state is not of this .* optimizer.init\(hpar"),
            ({"optimizer": optax.adam(0.1)}, ValueError, "opt_state is not of this optimizer and"),
            ({"num_runs": 0}, ValueError, "num_runs is 0; it must be a positive int"),
            ({"key": 0}, TypeError, "key is 0, not one PRNG key"),
            (
                {"params": lambda key: float(jax.random.key_data(key)[0]), "key": KEY},
                TypeError,
                "params asks a traced array for its value",
            ),
        ],
        ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
    )
    def test_bad_input(self, settings, error, message):
        with pytest.raises(error, match=message):
            jax.jit(lambda: self.step(**settings).hparams)()

    def test_it_can_be_mapped_over_settings(self):
        of_loop = ("num_meta_steps", "progress")
        settings: dict[str, Any] = {name: x for name, x in SETTINGS.items() if name not in of_loop}
        optimizer = settings["optimizer"] = optax.adam(0.1)
        run, rest = run_and_rest(RULE, settings)

        def step(hparams):
            opt_state = optimizer.init(hparams)
            arrays = (init_params, hparams, TRAIN, VALID)
            return hg.meta_step(objective, run, *arrays, opt_state=opt_state, **rest)

        many = jax.tree.map(lambda x: jnp.stack([x, x - 0.5]), HPARAMS)
        found = jax.jit(jax.vmap(step))(many)
        for i in range(2):
            one = functools.partial(jax.tree.map, lambda x, i=i: x[i])
            alone = jax.jit(step)(one(many))
            assert_close(one(found.gradient), alone.gradient)
            assert_close(one(found.hparams), alone.hparams)

    def test_without_a_key(self):
        optimizer = optax.sgd(1.0)
        given = {"optimizer": optimizer, "opt_state": optimizer.init(HPARAMS)}
        run, arrays = hg.Run(RULE, num_steps=2), (init_params, HPARAMS, TRAIN, VALID)
        with pytest.raises(ValueError, match="key is None, but several runs or random"):
            hg.meta_step(objective, run, *arrays, **given)
