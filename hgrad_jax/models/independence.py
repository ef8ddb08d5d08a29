"""Whether the loss of an example depends on the activities of others, found out by a NaN."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hgrad_jax.types import Array


def is_mixing(losses: Callable[[Callable[[Array], Array], Any], Array], inputs: Any) -> bool:
    """Returns whether other losses feel what happens to the first example, for made-up numbers.

    Its activities are replaced by NaN, which arithmetic cannot undo. To be called while tracing:
    the inputs' values are not needed, and the answer is computed at once. False also where nothing
    can be told, because the losses of made-up numbers are not finite, or because `losses` closes
    over values that are being traced.

    Args:
      losses: `losses(spoil, inputs) -> [B]`, which applies `spoil` to activities [B, *shape].
      inputs: pytree of arrays or tracers; their shapes and dtypes are used.

    >>> def losses(spoil, x):
    ...     z = spoil(x)
    ...     return (z - jnp.mean(z)) ** 2
    >>> is_mixing(losses, jnp.ones(3)), is_mixing(lambda spoil, x: spoil(x) ** 2, jnp.ones(3))
    (True, False)
    """

    @jax.jit
    def both(inputs):
        return losses(lambda z: z, inputs), losses(lambda z: z.at[0].set(jnp.nan), inputs)

    try:
        with jax.ensure_compile_time_eval():
            found = both(jax.tree.map(_made_up, inputs))
    except jax.errors.UnexpectedTracerError:
        return False
    if any(isinstance(x, Tracer) for x in found):
        return False
    plain, spoiled = map(np.asarray, found)
    return bool(np.isfinite(plain).all() and not np.isfinite(spoiled[1:]).all())


def _made_up(x: Any) -> Array:
    """Returns numbers like another array's: floats in [0.5, 1.5), the integer 0, True."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0, impl=jax.random.key_impl(x)), x.shape)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.full(x.shape, x.dtype == bool, x.dtype)
    numbers = 0.5 + (np.arange(int(np.prod(x.shape))) * 0.6180339887) % 1
    return jnp.asarray(numbers.reshape(x.shape), x.dtype)
