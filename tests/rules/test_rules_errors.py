"""What update rules refuse, and why."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg
from tests.shared.rules import BALL, DATA, PARAMS, RULES, T, hparams_of, loss


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("sgd", "plain gradient descent keeps no velocity, so that undoing a step takes"),
            ("nesterov", "Nesterov's step adds the gradient at the old parameters"),
            (
                "rmsprop",
                r"without momentum moves .* \(rmsprop_momentum can be reversed\); use Chec",
            ),
            ("average_of_sgd", "plain gradient descent keeps no velocity"),
            ("from_optax", "an optax transformation does not say how its update is undone"),
        ],
    )
    def test_irreversible_rules_say_why(self, name, reason):
        hparams, axes = hparams_of(name)
        with pytest.raises(ValueError, match=f"this one cannot: .*{reason}"):
            hg.unroll(
                hg.Run(RULES[name][0], num_steps=T, hparams_axes=axes, adjoint=hg.Reversible()),
                PARAMS,
                hparams,
                DATA,
            )

    @pytest.mark.parametrize(
        ("name", "missing"),
        [
            ("sgd", "learning_rate"),
            ("nesterov", "momentum"),
            ("rmsprop", "learning_rate"),
            ("rmsprop_momentum", "momentum"),
            ("adam", "learning_rate"),
            ("adamw", "weight_decay"),
        ],
    )
    def test_a_missing_hyperparameter(self, name, missing):
        h = {"penalty": 0.1, "learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.1}
        del h[missing]
        with pytest.raises(ValueError, match=rf"hparams has no '{missing}' .* pass {missing}= to"):
            hg.unroll(hg.Run(getattr(hg, name)(loss), num_steps=1), PARAMS, h, DATA)

    def test_a_missing_decay_of_an_average(self):
        with pytest.raises(ValueError, match="hparams has no 'average_decay'"):
            hg.unroll(hg.Run(hg.average(BALL), num_steps=1), PARAMS, hparams_of("sgd")[0], DATA)

    @pytest.mark.parametrize(
        "name", ["sgd", "nesterov", "rmsprop", "rmsprop_momentum", "adam", "adamw"]
    )
    def test_wrong_structures_and_shapes(self, name):
        h = {"penalty": 0.1, "learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.1}
        rule = getattr(hg, name)(loss)
        with pytest.raises(ValueError, match=r"learning_rate .*not a prefix of"):
            hg.unroll(hg.Run(rule, num_steps=1), PARAMS, h | {"learning_rate": {"w": 0.1}}, DATA)
        wrong = {"w": jnp.ones((2, 2)), "b": 0.1}
        with pytest.raises(ValueError, match=r"learning_rate has shape \(2, 2\) where a parameter"):
            hg.unroll(hg.Run(rule, num_steps=1), PARAMS, h | {"learning_rate": wrong}, DATA)

    def test_weight_decay_that_is_not_reversible(self):
        h = {"penalty": 0.1, "learning_rate": 0.5, "weight_decay": 2.0}
        with pytest.raises(ValueError, match="the decay of 'params' is 0; Reversible"):
            hg.unroll(hg.Run(hg.adamw(loss), num_steps=1, adjoint=hg.Reversible()), PARAMS, h, DATA)

    def test_a_number_is_a_value_under_jit(self):
        @functools.partial(jax.jit, static_argnames="decay")
        def end(x, decay):
            rule = hg.heavy_ball(
                lambda p, h, b, k: jnp.sum(p**2), learning_rate=0.1, momentum=decay
            )
            return hg.unroll(hg.Run(rule, num_steps=1, adjoint=hg.Reversible()), x, {}, None).params

        np.testing.assert_allclose(end(jnp.ones(2), 0.5), [0.8, 0.8], rtol=1e-6)
        with pytest.raises(ValueError, match=r"the decay of 'velocity' is 1.5; Reversible"):
            end(jnp.ones(2), 1.5)

    def test_a_decay_that_closes_over_a_traced_value_is_left_to_run_time(self):
        def end(x, decay):
            rule = hg.heavy_ball(
                lambda p, h, b, k: jnp.sum(p**2), learning_rate=0.1, momentum=lambda h: decay
            )
            return hg.unroll(hg.Run(rule, num_steps=1, adjoint=hg.Reversible()), x, {}, None).params

        np.testing.assert_allclose(jax.jit(end)(jnp.ones(2), 0.5), [0.8, 0.8], rtol=1e-6)
