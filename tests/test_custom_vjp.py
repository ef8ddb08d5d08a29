"""Losses whose gradient is not that of a function: a custom_vjp scales or clips it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg
from hgrad_jax.jaxprs import has_custom_vjp

X = jax.random.normal(jax.random.key(0), (30, 3))
Y = jnp.tanh(X @ jnp.array([1.0, -1.0, 0.5]))
START = {"a": jnp.array([0.1, 0.2, 0.3]), "b": jnp.float32(0.5)}


@jax.custom_vjp
def slow(x):
    """A layer that is trained at a tenth of the rate."""
    return x


slow.defvjp(lambda x: (x, None), lambda _, bar: (0.1 * bar,))


def loss(params, hparams, batch, key):
    error = jnp.tanh(X @ slow(params["a"])) * params["b"] - Y
    squares = jnp.sum(slow(params["a"]) ** 2) + params["b"] ** 2
    return jnp.mean(error**2) + jnp.exp(hparams["l2"]) * squares


@pytest.mark.parametrize("make_rule", [hg.heavy_ball, hg.adam])
def test_exact_adjoints_agree(make_rule):
    """The Jacobian of such a gradient is not symmetric, so it must be transposed."""
    settings = {"momentum": 0.9} if make_rule is hg.heavy_ball else {}
    rule = make_rule(loss, learning_rate=0.1, **settings)

    @jax.jit
    def found(l2):
        def end(l2, adjoint):
            out = hg.unroll(rule, START, {"l2": l2}, None, num_steps=40, adjoint=adjoint)
            return jnp.mean((jnp.tanh(X @ out.params["a"]) * out.params["b"] - Y) ** 2)

        adjoints = (hg.Direct(), hg.Reversible(), hg.Reversible(share_gradient=False))
        return [jax.grad(end)(l2, adjoint) for adjoint in adjoints]

    want, *others = found(jnp.float32(-3))
    assert abs(want) > 1e-3
    np.testing.assert_allclose(others, want, rtol=1e-4)


def test_implicit_derivatives_are_those_of_the_condition():
    """Products with what `jax.grad` returns, transposed: as `Root` takes them."""

    @jax.custom_vjp
    def halved(x):
        return x

    halved.defvjp(lambda x: (x, None), lambda _, bar: (bar / 2,))

    def distorted(params, hparams, batch, key):
        return jnp.sum((halved(params) - hparams["a"]) ** 2) + jnp.sum(params**2)

    def end(a, condition):
        rule = hg.heavy_ball(distorted, learning_rate=0.1, momentum=0.5)
        adjoint = hg.Implicit(condition, hg.GMRES())
        out = hg.unroll(rule, jnp.ones(2), {"a": a}, None, num_steps=200, adjoint=adjoint)
        return jnp.sum(out.params)

    a = jnp.array([1.0, 3.0])
    # At rest (w - a) + 2 w = 0, half the first term's gradient and all of the second's.
    for condition in (hg.Stationary(distorted), hg.Root(jax.grad(distorted))):
        np.testing.assert_allclose(jax.grad(end)(a, condition), 1 / 3, rtol=1e-4)


def test_a_custom_vjp_is_found_at_any_depth():
    def in_a_loop(x):
        return jax.lax.fori_loop(0, 3, lambda _, y: slow(y), x)

    assert has_custom_vjp(in_a_loop, 1.0)
    assert has_custom_vjp(jax.jit(lambda x: jax.vmap(slow)(x)), jnp.ones(2))
    assert not has_custom_vjp(jax.nn.relu, 1.0)


def test_a_custom_jvp_that_is_no_true_derivative():
    """It scales the gradient by a hyperparameter; 0.338868 by float64 differences."""

    @jax.custom_jvp
    def scale_gradient(x, s):
        return x

    @scale_gradient.defjvp
    def _(primals, tangents):  # pyright: ignore[reportUnusedFunction]
        return primals[0], primals[1] * tangents[0]

    def scaled(params, hparams, batch, key):
        return 0.5 * (scale_gradient(params, hparams["scale"]) - 1.0) ** 2

    def end(hparams, adjoint):
        rule = hg.heavy_ball(scaled)
        return hg.unroll(rule, jnp.float32(0), hparams, None, num_steps=10, adjoint=adjoint).params

    hparams = {"learning_rate": 0.1, "momentum": 0.5, "scale": 1.0}
    for adjoint in (hg.Direct(), hg.Reversible()):
        assert abs(jax.grad(end)(hparams, adjoint)["scale"] - 0.338868) < 1e-5
    assert not has_custom_vjp(jax.nn.relu, 1.0)
