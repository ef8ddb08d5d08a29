"""Whether an example's loss depends on the activities of others, tried out on made-up numbers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hgrad_jax.types import Array

LEAST_SHARE = 1e-4
"""Derivatives below this share of the largest are rounding."""


def is_mixing(losses: Callable[[Callable[[Array], Array], Any], Array], inputs: Any) -> bool:
    """Returns whether the losses of one half of the examples have derivatives in the other's.

    Activities of one half are moved, and the other half's losses looked at, then the other way
    round. To be called while tracing: the inputs' values are not needed, and the answer is computed
    at once. False also where nothing can be told, because the derivatives are not finite for
    made-up numbers, or because `losses` closes over values that are being traced.

    Args:
      losses: `losses(move, inputs) -> [B]`, which applies `move` to activities [B, *shape].
      inputs: pytree of arrays or tracers; their shapes and dtypes are used.

    >>> def losses(move, x):
    ...     z = move(x)
    ...     return (z - jnp.mean(z)) ** 2
    >>> is_mixing(losses, jnp.ones(3)), is_mixing(lambda move, x: move(x) ** 2, jnp.ones(3))
    (True, False)
    """

    def slopes(inputs, is_first):
        def moved(step):
            def move(z):
                is_moved = jnp.arange(z.shape[0]) < (z.shape[0] + 1) // 2
                is_moved = (is_moved == is_first).reshape(-1, *[1] * (z.ndim - 1))
                return z + step.astype(z.dtype) * jnp.where(is_moved, _made_up(z), 0)

            return losses(move, inputs)

        slope = jax.jvp(moved, (jnp.float32(0),), (jnp.float32(1),))[1]
        is_moved = (jnp.arange(slope.size) < (slope.size + 1) // 2) == is_first
        return jnp.max(jnp.where(is_moved, 0, jnp.abs(slope)), initial=0), jnp.max(jnp.abs(slope))

    try:
        with jax.ensure_compile_time_eval(), jax.debug_nans(False):
            made_up = jax.tree.map(_made_up, inputs)
            found = [jax.jit(slopes)(made_up, is_first) for is_first in (True, False)]
    except jax.errors.UnexpectedTracerError:
        return False
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(found)):
        return False
    others, largest = np.max(np.asarray(found, np.float64), axis=0)
    return bool(np.isfinite(largest) and others > LEAST_SHARE * largest)


def _made_up(x: Any) -> Array:
    """Returns numbers like another array's: floats in [0.5, 1.5), integers 0, 1, 0, ..., True."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0, impl=jax.random.key_impl(x)), x.shape)
    count = np.arange(int(np.prod(x.shape))).reshape(x.shape)
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.asarray(0.5 + (count * 0.6180339887) % 1, x.dtype)
    return jnp.asarray(count % 2 if x.dtype != bool else count >= 0, x.dtype)
