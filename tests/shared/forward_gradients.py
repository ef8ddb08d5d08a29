"""Models on which forward gradients are drawn, and the statistics of their errors."""

# JAX arrays and flax modules pass where pyright sees narrower types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.flatten_util import ravel_pytree

import hgrad_jax as hg
from hgrad_jax.models import (
    CNN,
    MLP,
    SoftmaxRegression,
    classification_loss,
)

KEY = jax.random.key(0)
NUM_DRAWS = 1500
KINDS = [hg.Gaussian(), hg.Rademacher(), hg.Standardized(), hg.Orthogonal()]
MODELS = {
    "softmax": (SoftmaxRegression(4), (9,)),
    "mlp": (MLP((6, 5, 4), dropout_rate=0.2), (9,)),
    "mlp with batch norm": (MLP((6, 4), activation=nn.tanh, batch_norm=True), (9,)),
    "cnn": (CNN(4, channels=(2, 3), hidden=(5,), halves=(False, True)), (6, 6, 1)),
}


def problem(model, shape, num_examples=8):
    """Returns parameters and a batch, both random."""
    inputs = jax.random.normal(jax.random.key(1), (num_examples, *shape))
    labels = jnp.arange(num_examples) % 4
    params = model.init(KEY, inputs[:2], train=False)["params"]
    start = jax.random.split(jax.random.key(2), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(start))
    moved = jax.tree.map(lambda p, k: p + 0.3 * jax.random.normal(k, p.shape), params, keys)
    return moved, (inputs, labels)


def probes(tree):
    """Returns vectors `[P, d]` that see what a wrong estimate would get wrong.

    The mean of each tensor, and random combinations of everything.
    """
    leaves = jax.tree.leaves(tree)
    blocks = np.repeat(np.arange(len(leaves)), [leaf.size for leaf in leaves])
    means = np.eye(len(leaves))[blocks].T
    return np.concatenate([means, np.random.default_rng(0).normal(size=(4, means.shape[1]))])


def sampled(model, shape, estimators, settings=None):
    """Returns for each estimator its errors against the gradient: seen by probes, and squared.

    Every draw has its own dropout mask, which estimate and gradient share.

    Args:
      model, shape: what is differentiated.
      estimators: `estimators(setting) -> providers`.
      settings: one for each draw.
    """
    params, batch = problem(model, shape)
    seen_by = jnp.asarray(probes(params), jnp.float32)
    loss = classification_loss(model)
    settings = jnp.zeros(NUM_DRAWS) if settings is None else settings

    def once(given):
        key, setting = given
        tree = hg.backpropagation(loss)(params, {}, batch, key)
        true, found = ravel_pytree(tree)[0], []
        for provider in estimators(setting):
            error = ravel_pytree(provider(loss)(params, {}, batch, key))[0] - true
            found.append((seen_by @ error, true @ error, error @ error))
        return found, [jnp.sum(g**2) for g in jax.tree.leaves(tree)]

    # One after another: what one compiled step gives, and compiled soon.
    keys = jax.random.split(jax.random.key(3), len(settings))
    found, squares = jax.jit(lambda xs: jax.lax.map(once, xs))((keys, settings))
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    return found, [np.asarray(s) for s in squares], sizes


def assert_zero_mean(draws):
    """Within four standard errors."""
    draws = np.asarray(draws, np.float64)
    error = np.std(draws, axis=0, ddof=1) / np.sqrt(len(draws))
    np.testing.assert_array_less(np.abs(np.mean(draws, axis=0)), 4 * error + 1e-7)


NET = MLP((3, 4), activation=nn.tanh, dropout_rate=0.2)
