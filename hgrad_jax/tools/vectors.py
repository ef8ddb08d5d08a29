"""Pytrees as flat vectors."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.types import Array


class Layout(NamedTuple):
    """How a pytree of floating-point arrays lies in one vector.

    Attributes:
      treedef: its structure.
      shapes: shape of each leaf.
      dtypes: dtype of each leaf.
      dtype: dtype of the vector: float64 if any leaf is, else float32.
      is_flat: whether `ravel` and `unravel` leave the vector as it is: a view in which elementwise
        functions of trees work on the vector itself, a tree of one leaf.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]
    dtype: np.dtype
    is_flat: bool = False

    @property
    def size(self) -> int:
        """Length of the vector."""
        return sum(int(np.prod(shape)) for shape in self.shapes)


def layout(tree: Any) -> Layout:
    """Returns the layout of a pytree of arrays (or of their shapes and dtypes)."""
    leaves, treedef = jax.tree.flatten(tree)
    dtypes = tuple(np.dtype(jnp.result_type(leaf)) for leaf in leaves)
    dtype = np.dtype(np.float64 if np.dtype(np.float64) in dtypes else np.float32)
    return Layout(treedef, tuple(jnp.shape(leaf) for leaf in leaves), dtypes, dtype)


def ravel(tree: Any, like: Layout) -> Array:
    """Returns the leaves one after another, `[like.size]` of `like.dtype`."""
    if like.is_flat:
        return tree
    return jnp.concatenate([jnp.ravel(leaf).astype(like.dtype) for leaf in jax.tree.leaves(tree)])


def write_into(vector: Array, tree: Any, like: Layout) -> Array:
    """Returns what `ravel` does, each leaf written into its place; not to be differentiated.

    XLA fuses a concatenation with what its operands are computed from, and for several CPU cores
    compiles that to a loop that decides anew for every number where it comes from: 16 ns a
    number and more in profiles, most where other processes take turns on the cores. It does not
    fuse updates of slices; and a vector that a loop carries need not even be cleared first.

    Args:
      vector: `[like.size]`, whose numbers do not matter: its memory is used.
      tree: pytree of arrays.
      like: its layout.
    """
    if like.is_flat:
        return tree
    parts = [jnp.ravel(leaf).astype(like.dtype) for leaf in jax.tree.leaves(tree)]
    return _write(0)(vector, parts)


@functools.cache
def _write(batch_axes: int) -> Callable[[Array, list[Array]], Array]:
    """Returns a function that writes vectors `[*batch, n]` one after another into `[*batch, N]`."""

    @jax.custom_batching.custom_vmap
    def write(vector: Array, parts: list[Array]) -> Array:
        place = 0
        for part in parts:
            vector = jax.lax.dynamic_update_slice(vector, part, (*(0,) * batch_axes, place))
            place += part.shape[-1]
        return vector

    @write.def_vmap
    def _(axis_size, is_batched, vector, parts):  # pyright: ignore[reportUnusedFunction]
        # JAX's own rule makes a scatter of it.
        def batched(x, is_b):
            return x if is_b else jnp.broadcast_to(x, (axis_size, *x.shape))

        parts = [batched(part, is_b) for part, is_b in zip(parts, is_batched[1], strict=True)]
        return _write(batch_axes + 1)(batched(vector, is_batched[0]), parts), True

    return write


def unravel(vector: Array, like: Layout) -> Any:
    """Returns the pytree whose leaves lie in `vector`: the inverse of `ravel`."""
    if like.is_flat:
        return vector
    ends = np.cumsum([int(np.prod(shape)) for shape in like.shapes])
    parts = jnp.split(vector, ends[:-1])
    leaves = [
        part.reshape(shape).astype(dtype)
        for part, shape, dtype in zip(parts, like.shapes, like.dtypes, strict=True)
    ]
    return jax.tree.unflatten(like.treedef, leaves)
