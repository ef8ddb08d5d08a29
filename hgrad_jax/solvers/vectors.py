"""A pytree of floats, taken as one vector."""

from typing import Any

import jax
import jax.numpy as jnp

from hgrad_jax.tools.dtypes import common, wide
from hgrad_jax.types import Array

Vector = Any
"""A pytree of floating-point arrays, taken as one vector."""


def norm(tree: Vector) -> Array:
    """Returns the Euclidean norm of a pytree, a scalar of float32 or wider that cannot overflow.

    >>> import jax.numpy as jnp
    >>> print(f"{norm({'a': jnp.float32(3e-30), 'b': jnp.array([4e-30])}):.1e}")
    5.0e-30
    """
    leaves = [widened(leaf) for leaf in jax.tree.leaves(tree) if leaf.size]
    dtype = common(jnp.float32, *leaves)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)).astype(dtype) for leaf in leaves]))
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return scale * jnp.sqrt(sum(jnp.sum((leaf.astype(dtype) / scale) ** 2) for leaf in leaves))


def widened(x: Any) -> Array:
    """Returns an array in float32 or wider."""
    return jnp.asarray(x).astype(wide(jnp.result_type(x)))


def zeros(tree: Vector) -> Vector:
    """Returns the zero vector of the shapes and dtypes of another."""
    return jax.tree.map(jnp.zeros_like, tree)


def dot(x: Vector, y: Vector) -> Array:
    """Returns the inner product, a scalar."""
    dots = [jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)]
    return sum(dots[1:], start=dots[0])


def add(x: Vector, factor: Any, y: Vector) -> Vector:
    """Returns x + factor * y in the dtypes of x."""
    return jax.tree.map(lambda a, b: (a + factor * b).astype(a.dtype), x, y)
