"""Second-order products against dense Hessians, the Jacobian of a run against its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hgrad_jax as hg
from tests.shared import regression


def loss(params, hparams, x):
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return jnp.mean(hidden**2) + jnp.sum(jnp.exp(hparams["log_l2"]) * params["w"] ** 2)


X = jax.random.normal(jax.random.key(0), (7, 3))
PARAMS = {"w": jax.random.normal(jax.random.key(1), (3, 2)), "b": jnp.array([0.3, -0.2])}
HPARAMS = {"log_l2": jax.random.normal(jax.random.key(2), (3, 1))}
DIRECTION = jax.tree.map(lambda p: jnp.cos(3 * p), PARAMS)


def test_products_equal_the_dense_ones():
    flat, unravel = ravel_pytree(PARAMS)
    u = ravel_pytree(DIRECTION)[0]
    hessian = jax.hessian(lambda p: loss(unravel(p), HPARAMS, X))(flat)
    got = hg.hvp(loss, PARAMS, DIRECTION, HPARAMS, X)
    np.testing.assert_allclose(ravel_pytree(got)[0], hessian @ u, rtol=1e-5, atol=1e-6)

    def gradient(h):
        return jax.grad(lambda p: loss(unravel(p), {"log_l2": h}, X))(flat)

    mixed = jax.jacrev(gradient)(HPARAMS["log_l2"])
    got = hg.mixed_product(loss, PARAMS, HPARAMS, DIRECTION, X)
    want = jnp.tensordot(u, mixed, 1)
    np.testing.assert_allclose(got["log_l2"], want, rtol=1e-5, atol=1e-6)


def test_the_jacobian_of_a_run_holds_its_gradients():
    """Contracted with a cotangent it is what reverse mode returns."""
    hparams, axes = regression.hparams_and_axes("per tensor")
    start, data, key = regression.start(), regression.data(), jnp.asarray(regression.KEY)
    run = hg.Run(
        hg.momentum(regression.loss),
        num_steps=regression.NUM_STEPS,
        batch_fn=regression.batch_fn,
        hparams_axes=axes,
        adjoint=hg.Checkpointed(),
    )

    @jax.jit
    def jacobian_of(hparams):
        return hg.jacobian_of_final_params(run, start, hparams, data, key=key)

    jacobian = jacobian_of(hparams)
    bar = jax.tree.map(jnp.cos, regression.start())
    _, pullback = hg.vjp(run, start, hparams, data, key=key)
    want = pullback(bar)[0].hparams
    is_hparams = lambda tree: jax.tree.structure(tree) == jax.tree.structure(hparams)  # noqa: E731
    rows = jax.tree.leaves(jacobian, is_leaf=is_hparams)
    got = jax.tree.map(
        lambda *parts: sum(
            jnp.tensordot(b, part, jnp.ndim(b))
            for b, part in zip(jax.tree.leaves(bar), parts, strict=True)
        ),
        *rows,
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * float(np.max(np.abs(b))))


def test_directions_of_another_dtype():
    half = jnp.ones(2, jnp.bfloat16)
    for product in (
        lambda: hg.hvp(lambda p: jnp.sum(p**2), jnp.ones(2), half),
        lambda: hg.mixed_product(lambda p, h: jnp.sum(h * p**2), jnp.ones(2), 1.0, half),
        lambda: hg.hvp(lambda p: jnp.sum(p**2), half, jnp.ones(2)),
    ):
        with pytest.raises(ValueError, match=r"direction has the dtypes .*must have those of par"):
            product()
