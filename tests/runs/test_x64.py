"""In float64 every adjoint agrees with central differences of the training itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hgrad_jax as hg
from tests.shared import regression

KINDS = {
    "momentum": "per number and step",
    "heavy_ball": "per step",
    "adam": "per step",
    "rmsprop_momentum": "per tensor",
    "adamw": "per step",
    "classical_momentum": "per step",
    "average": "per tensor",
    "polyak_average": "one",
    "sgd": "per number and step",
    "nesterov": "per step",
    "rmsprop": "per tensor",
    "from_optax": "per step",
}
ONE_OF_EACH = [hg.Direct(), hg.Checkpointed(), hg.ForwardMode(), hg.Reversible()]
STENCIL = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}  # 8 points, error of order step**8


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def central_differences(function, flat, step):
    """All partial derivatives of a function of a vector, to about 1e-12."""
    offsets = jnp.asarray([s * k * step for k in STENCIL for s in (1, -1)])
    weights = jnp.asarray([s * c / step for c in STENCIL.values() for s in (1, -1)])
    points = flat + jnp.eye(flat.size)[:, None] * offsets[:, None]
    values = jax.jit(jax.vmap(function))(points.reshape(-1, flat.size))
    return values.reshape(flat.size, -1) @ weights


def alone(value, points):
    return jax.grad(value)(points[0])[None]


def vmap_of_grad(value, points):
    return jax.vmap(jax.grad(value))(points)


def grad_of_vmap(value, points):
    return jax.grad(lambda points: jnp.sum(jax.vmap(value)(points)))(points)


def ways():
    """Each rule under each transformation; all three of them are fast only for momentum."""
    for rule in regression.ALL_RULES:
        for way in (alone, vmap_of_grad, grad_of_vmap):
            is_slow = way is not alone and rule != "momentum"
            yield pytest.param(rule, way, marks=[pytest.mark.slow] if is_slow else [])


@functools.cache
def value_with(rule, adjoint):
    hparams, axes = regression.hparams_and_axes(KINDS[rule])
    _, unravel = ravel_pytree((regression.start(), hparams))
    value = regression.objective(rule, adjoint, axes)
    return lambda x: value(*unravel(x))


@functools.cache
def points_and_derivatives(rule):
    flat, _ = ravel_pytree((regression.start(), regression.hparams_and_axes(KINDS[rule])[0]))
    points = jnp.stack([flat, 1.02 * flat])
    plain = value_with(rule, hg.Direct())
    return points, np.stack([central_differences(plain, x, 2e-3) for x in points])


@pytest.mark.compiled
@pytest.mark.parametrize(("rule", "way"), list(ways()))
def test_every_adjoint_agrees_with_central_differences(rule, way):
    """Every exact adjoint that serves the rule."""
    points, want = points_and_derivatives(rule)
    assert want.dtype == np.float64
    exact = regression.ALL_RULES[rule](regression.loss).exact
    # The other settings of an adjoint with one rule, for the time it takes to compile.
    several = regression.ADJOINTS if rule == "momentum" else ONE_OF_EACH
    served = [a for a in several if exact or not isinstance(a, hg.Reversible)]
    for adjoint in served:
        got = jax.jit(functools.partial(way, value_with(rule, adjoint)))(points)
        error = np.max(np.abs(got - want[: len(got)])) / np.max(np.abs(want))
        assert error < 1e-9, f"{adjoint}: {error:.1e}"


def test_reversible_restores_128_bit_numbers():
    hparams, axes = regression.hparams_and_axes("per step")
    out, pullback = hg.vjp(
        hg.Run(
            hg.adam(regression.loss, b1=hg.field("momentum")),
            num_steps=regression.NUM_STEPS,
            batch_fn=regression.batch_fn,
            hparams_axes=axes,
            adjoint=hg.Reversible(),
        ),
        regression.start(),
        hparams,
        regression.data(),
        key=jnp.asarray(regression.KEY),
    )
    assert bool(hg.check(pullback(out.params)[1]).is_restored)


def test_float32_parameters_stay_float32():
    rule = hg.momentum(lambda params, hparams, batch, key: jnp.sum(params**2))
    hparams = {"learning_rate": jnp.float32(0.1), "momentum": jnp.float32(0.9)}
    for adjoint in regression.ADJOINTS:
        start = jnp.ones(3, jnp.float32)
        out, pullback = hg.vjp(hg.Run(rule, num_steps=5, adjoint=adjoint), start, hparams, None)
        bars, info = pullback(out.params)
        hg.check(info)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((out.params, bars)))


def test_mixed_precision_keeps_each_dtype():
    rule = hg.momentum(
        lambda params, hparams, batch, key: jnp.sum(params["a"] ** 2) + jnp.sum(params["b"] ** 2)
    )
    start = {"a": jnp.ones(3, jnp.float32), "b": jnp.ones(2, jnp.float64)}
    hparams = {"learning_rate": jnp.float32(0.1), "momentum": jnp.float32(0.9)}
    ends = []
    for adjoint in regression.ADJOINTS:
        out, pullback = hg.vjp(hg.Run(rule, num_steps=5, adjoint=adjoint), start, hparams, None)
        bars, info = pullback(out.params)
        hg.check(info)
        for tree in (out.params, bars.params):
            if not (tree is None and isinstance(adjoint, hg.ForwardMode)):
                assert jax.tree.map(lambda x: x.dtype, tree) == jax.tree.map(
                    lambda x: x.dtype, start
                )
        ends.append(bars.hparams["learning_rate"])
    np.testing.assert_allclose(ends, ends[0], rtol=1e-6)
