"""Training and hypergradients by forward gradients; the pass that takes value and slope."""

# JAX arrays and flax modules pass where pyright sees narrower types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hgrad_jax as hg
from hgrad_jax.forward_gradients import activity_forward_gradient, example_losses
from hgrad_jax.forward_gradients.dual import value_and_slope
from hgrad_jax.models import classification_loss
from tests.shared import regression
from tests.shared.forward_gradients import KEY, MODELS, NET, problem

RULES = {
    "sgd": hg.sgd,
    "momentum": functools.partial(hg.momentum, momentum=0.5),
    "nesterov": functools.partial(hg.nesterov, momentum=0.5),
    "adam": hg.adam,
    "rmsprop_momentum": functools.partial(hg.rmsprop_momentum, decay=0.8, momentum=0.5),
    "average": lambda loss, gradient: hg.average(hg.sgd(loss, gradient=gradient), decay=0.8),
    "from_optax": lambda loss, gradient: hg.from_optax(
        lambda hparams: optax.sgd(hparams["learning_rate"]), loss, gradient=gradient
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_takes_it(rule):
    """With as many orthogonal directions as numbers, it trains as backpropagation does."""

    def loss(params, hparams, batch, key):
        return jnp.sum(jnp.cosh(params - jnp.arange(1.0, 4.0)))

    def end(gradient):
        transition = RULES[rule](loss, gradient=gradient)
        run = hg.Run(transition, num_steps=3)
        return hg.unroll(run, jnp.zeros(3), {"learning_rate": 0.1}, None, key=KEY).params

    got = end(hg.forward_gradient(hg.Orthogonal(), num_directions=3))
    np.testing.assert_allclose(got, end(hg.backpropagation), rtol=1e-4, atol=1e-5)


NUM_STEPS = 6


def penalty(params, hparams):
    return hparams["l2"] * sum(jnp.sum(x**2) for x in jax.tree.leaves(params))


def net_loss(params, hparams, batch, key):
    return classification_loss(NET)(params, hparams, batch, key) + penalty(params, hparams)


PROVIDERS = {
    "a direction": hg.forward_gradient(),
    "orthogonal ones": hg.forward_gradient(hg.Orthogonal(), num_directions=3),
    "a tensor each": hg.forward_gradient(hg.Gaussian(), is_joint=False),
    "pre-activations": activity_forward_gradient(example_losses(NET), penalty=penalty),
}


@pytest.mark.parametrize("name", regression.each(PROVIDERS, ["orthogonal ones", "a tensor each"]))
def test_hypergradients_agree_with_each_other_and_with_differences(name):
    with jax.enable_x64(True):
        params, batch = problem(NET, (4,))
        params, batch = jax.tree.map(
            lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            (params, batch),
        )
        hparams = {
            "learning_rate": jnp.linspace(0.02, 0.01, NUM_STEPS),
            "momentum": jnp.float64(0.8),
            "l2": jnp.float64(0.1),
        }
        flat, unravel = ravel_pytree((params, hparams))
        rule = hg.momentum(net_loss, gradient=PROVIDERS[name])

        def value(x, adjoint):
            params, hparams = unravel(x)
            out = hg.unroll(
                hg.Run(
                    rule,
                    num_steps=NUM_STEPS,
                    hparams_axes={"learning_rate": 0, "momentum": None, "l2": None},
                    adjoint=adjoint,
                ),
                params,
                hparams,
                batch,
                key=KEY,
            )
            return classification_loss(NET)(out.params, {}, batch, KEY)

        direct = jax.jit(functools.partial(value, adjoint=hg.Direct()))
        direction = jnp.cos(jnp.arange(flat.size, dtype=flat.dtype))
        h = 1e-3
        weights = {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}
        want = sum(
            w / h * (direct(flat + k * h * direction) - direct(flat - k * h * direction))
            for k, w in weights.items()
        )
        adjoints = [hg.Reversible()]
        if name == "a direction":
            adjoints += [hg.Direct()]
            along = jax.jit(
                lambda x, v: jax.jvp(functools.partial(value, adjoint=hg.Direct()), (x,), (v,))[1]
            )
            np.testing.assert_allclose(along(flat, direction), want, rtol=1e-9)
        for adjoint in adjoints:
            # NaN if a step on the way back had other directions than on the way there.
            found = jax.jit(jax.grad(functools.partial(value, adjoint=adjoint)))(flat)
            np.testing.assert_allclose(found @ direction, want, rtol=1e-9)


@pytest.mark.compiled
def test_float32_runs_are_restored_bit_for_bit():
    params, batch = problem(NET, (4,))
    rule = hg.heavy_ball(net_loss, gradient=hg.forward_gradient())
    hparams = {"learning_rate": 0.01, "momentum": 0.9, "l2": 0.1}
    run = hg.Run(rule, num_steps=30, adjoint=hg.Reversible())

    @jax.jit
    def back(params, hparams):
        out, pullback = hg.vjp(run, params, hparams, batch, key=KEY)
        return pullback(out.params)[1]

    assert hg.check(back(params, hparams)).is_restored


class TestValueAndSlope:
    """The pass that both are taken in, against `jax.jvp`."""

    @staticmethod
    def awkward(params):
        """What is merged, what is not, and what is not differentiable."""
        x = jnp.cos(jnp.arange(12.0)).reshape(4, 3)
        inner = jax.jit(lambda h, w: jax.nn.relu(h @ w))
        h = inner(x, params["w"])
        h, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ params["w"]), None), h, None, length=2)
        h = jnp.einsum("bi,bij->bj", h, jnp.stack([params["w"]] * 4)) + params["w"][0] @ h.T @ x
        image = jax.lax.conv_general_dilated(
            h.reshape(1, 4, 3, 1), params["k"], (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        image = jax.lax.conv_general_dilated(
            image, jnp.tile(params["k"], (1, 1, 1, 2)), (2, 1), "VALID",
            dimension_numbers=("NHWC", "HWIO", "NCHW"), feature_group_count=2,
        )  # fmt: skip
        index = jnp.argmax(h[0])
        kept = jax.checkpoint(lambda h: jnp.sum(h**2))(h)
        return kept + jnp.sum(jnp.sort(h[:, 0])) + jax.nn.softmax(h)[0, index] + jnp.sum(image**3)

    def test_equals_jvp_and_so_do_its_derivatives(self):
        with jax.enable_x64(True):
            params = {
                "w": jnp.sin(jnp.arange(9.0)).reshape(3, 3),
                "k": jnp.sin(jnp.arange(8.0)).reshape(2, 2, 1, 2),
            }
            v = jax.tree.map(lambda x: jnp.cos(3 * x), params)
            want = jax.jvp(self.awkward, (params,), (v,))
            np.testing.assert_allclose(value_and_slope(self.awkward, params, v), want, rtol=1e-12)
            got = jax.grad(lambda p: value_and_slope(self.awkward, p, v)[1])(params)
            want = jax.grad(lambda p: jax.jvp(self.awkward, (p,), (v,))[1])(params)
            for name in params:
                np.testing.assert_allclose(got[name], want[name], rtol=1e-11)

    def test_a_loss_that_ignores_its_parameters_has_slope_zero(self):
        assert value_and_slope(lambda p: jnp.float32(2.0), jnp.ones(3), jnp.ones(3)) == (2.0, 0.0)

    def test_a_convolutional_layer_is_one_convolution(self):
        model, shape = MODELS["cnn"]
        params, batch = problem(model, shape)
        loss = functools.partial(classification_loss(model), hparams={}, batch=batch, key=None)

        def count(function):
            text = str(jax.make_jaxpr(function)(params, params))
            return text.count("conv_general_dilated[")

        assert count(lambda p, v: value_and_slope(loss, p, v)) == 2
        assert count(lambda p, v: jax.jvp(loss, (p,), (v,))) == 5
