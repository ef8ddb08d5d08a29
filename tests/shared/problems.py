"""Small classifiers and their data, which several test modules train."""

# JAX arrays and flax modules pass where pyright sees narrower types.
# pyright: reportArgumentType=false, reportCallIssue=false

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from hgrad_jax.models import cross_entropy

KEY = jax.random.key(0)
NUM_EXAMPLES = 160


class Problem(NamedTuple):
    """A classifier's loss, initial parameters and data."""

    loss: Callable[..., jax.Array]
    params: Any
    data: tuple[jax.Array, jax.Array]


def classifier(model: nn.Module, shape: tuple[int, ...] = (8, 8, 1)) -> Problem:
    """Random inputs, labelled by a random linear map; the loss takes a dropout key."""
    inputs = jax.random.normal(jax.random.key(1), (NUM_EXAMPLES, *shape))
    flat = inputs.reshape(NUM_EXAMPLES, -1)
    labels = jnp.argmax(flat @ jax.random.normal(jax.random.key(2), (flat.shape[1], 10)), 1)
    init = jax.jit(lambda key: model.init(key, inputs[:2], train=False)["params"])

    def loss(params, hparams, batch, key):
        del hparams
        logits = model.apply({"params": params}, batch[0], train=True, rngs={"dropout": key})
        return cross_entropy(logits, batch[1])

    return Problem(loss, init(KEY), (inputs, labels))


def slices(size: int) -> Callable[..., Any]:
    """Batches in order, a window that moves on by its size: compiles faster than shuffling."""

    def batch_fn(data, t, key):
        del key
        start = (t * size) % (NUM_EXAMPLES - size + 1)
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), data)

    return batch_fn
