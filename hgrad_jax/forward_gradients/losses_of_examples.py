"""A classifier's loss for each example by itself."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from hgrad_jax.models.losses import cross_entropy
from hgrad_jax.models.settings import pair, require_model


def example_losses(model: nn.Module) -> Callable[..., Array]:
    """Returns the losses that `classification_loss(model)` is the mean of.

    Args:
      model: its `__call__(inputs, train=...)` returns logits, and `params` is all it trains.

    Returns:
      `losses(params, hparams, batch, key) -> [B]` in nats; see `classification_loss`.

    >>> from hgrad_jax.models import SoftmaxRegression
    >>> model, x, y = SoftmaxRegression(num_classes=4), jnp.ones((3, 2)), jnp.array([0, 1, 3])
    >>> params = model.init(jax.random.key(0), x)["params"]
    >>> example_losses(model)(params, {}, (x, y), None)
    Array([1.3862944, 1.3862944, 1.3862944], dtype=float32)
    """
    require_model(model)

    def losses(params: Any, hparams: Any, batch: Any, key: Array | None) -> Array:
        del hparams
        inputs, labels = pair(batch)
        rngs = {} if key is None else {"dropout": key}
        logits = model.apply({"params": params}, inputs, train=True, rngs=rngs)
        return jax.vmap(cross_entropy)(jnp.asarray(logits), jnp.asarray(labels))

    return losses
