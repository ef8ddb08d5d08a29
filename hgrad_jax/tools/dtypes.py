"""The dtypes in which numbers of several meet, whatever JAX is set to promote by itself.

Under `jax_numpy_dtype_promotion="strict"` JAX refuses to mix dtypes, and `jnp.promote_types` to say
what they would become. Sums over tensors of several dtypes need that all the same.
"""

from typing import Any

import jax
import jax.numpy as jnp


def wide(dtype: Any) -> Any:
    """Returns float32, or a dtype of floats that is wider.

    >>> print(wide(jnp.bfloat16), wide(jnp.float32))
    float32 float32
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, jnp.float32)


def common(*values: Any) -> Any:
    """Returns the dtype of a sum of all values: arrays, dtypes, Python numbers.

    >>> print(common(1.0, jnp.bfloat16(2)), common(jnp.bfloat16(2), jnp.float32(1)))
    bfloat16 float32
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*values)
