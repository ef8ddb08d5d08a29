"""Values broadcast along a tree prefix."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.inputs.arguments import narrow
from hgrad_jax.inputs.functions import is_array
from hgrad_jax.tools.dtypes import common
from hgrad_jax.tools.vectors import Layout, ravel
from hgrad_jax.types import Array


def spread(prefix: Any, tree: Any, name: str) -> Any:
    """Returns `prefix` repeated to the structure of `tree`, its leaves unchanged.

    But for integers that int32 cannot hold, which become floats.

    Args:
      prefix: a tree prefix of `tree`: one value for everything, one per tensor, or one per number,
        each of a shape that broadcasts to the tensor's.
      tree: pytree of arrays.
      name: what the error message calls it.

    Raises:
      TypeError: `prefix` holds something other than numbers and arrays, or PRNG keys.
      ValueError: `prefix` is no prefix of `tree`, or a shape does not broadcast.
    """
    for path, value in jax.tree_util.tree_leaves_with_path(prefix):
        is_key = is_array(value) and jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended)
        if not is_array(value) or is_key:
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} is {value!r}; it must be a number or an array."
            )
    try:
        full = jax.tree.map(
            lambda value, sub: jax.tree.map(lambda _: narrow(value), sub), prefix, tree
        )
    except ValueError as error:
        where = where_no_prefix(prefix, tree, "params")
        raise ValueError(
            f"{name} is not a prefix of the parameters' tree: {where}; give one value, or one "
            "value per tensor in the same containers."
        ) from error
    for value, leaf in zip(jax.tree.leaves(full), jax.tree.leaves(tree), strict=True):
        shape, target = jnp.shape(value), jnp.shape(leaf)
        if not _broadcasts(shape, target):
            raise ValueError(
                f"{name} has shape {shape} where a parameter has shape {target}; give a scalar, or "
                "a shape that broadcasts to the parameter's; a schedule, one value per step, needs "
                "its axis named in hparams_axes."
            )
    return full


def where_no_prefix(prefix: Any, tree: Any, name: str) -> str:
    """Returns in words the first place where a tree is no prefix of another, if there is one.

    Args:
      prefix: the first tree.
      tree: the other one.
      name: what the words call it.

    >>> where_no_prefix({"a": 0}, {"a": 1.0, "b": 2.0}, "hparams")
    "it has no entry for hparams['b']"
    >>> where_no_prefix({"a": [0, 1]}, {"a": (2.0, 3.0)}, "hparams")
    "it has a list where hparams['a'] is a tuple"
    """
    ours, theirs = _children(prefix), _children(tree)
    if () in ours:
        return ""
    if type(prefix) is not type(tree):
        what = "None" if prefix is None else f"a {type(prefix).__name__}"
        other = "one array" if () in theirs else f"a {type(tree).__name__}"
        return f"it has {what} where {name} is {other}"
    for path in (*theirs, *ours):
        place = name + jax.tree_util.keystr(path)
        if path not in ours:
            return f"it has no entry for {place}"
        if path not in theirs:
            return f"it has an entry for {place}, which does not exist"
    # None last, which in hparams_axes is a leaf.
    for path, child in sorted(ours.items(), key=lambda item: item[1] is None):
        if found := where_no_prefix(child, theirs[path], name + jax.tree_util.keystr(path)):
            return found
    return ""


def _children(tree: Any) -> dict[Any, Any]:
    """Returns what a container holds, by its path; a leaf by the empty one."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    return dict(pairs)


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def ravel_spread(prefix: Any, like: Layout, name: str) -> Array:
    """Returns the prefix value of every number of the vector: `[like.size]`, or one scalar."""
    leaves = jax.tree.leaves(prefix)
    if (
        len(leaves) == 1
        and jnp.ndim(leaves[0]) == 0
        and jax.tree.structure(prefix) == jax.tree.structure(0)
    ):
        return jnp.asarray(leaves[0], like.dtype)
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in zip(like.shapes, like.dtypes, strict=True)
    ]
    template = jax.tree.unflatten(like.treedef, shapes)
    full = spread(prefix, template, name)
    return ravel(
        jax.tree.map(lambda v, s: jnp.broadcast_to(jnp.asarray(v), s.shape), full, template), like
    )


def multiply(prefix: Any, tree: Any, name: str) -> Any:
    """Returns prefix * tree, the prefix spread over the tree, in the tree's dtypes."""

    def at_leaf(a: Any, x: Array) -> Array:
        dtype = common(a, x)
        return (jnp.asarray(a, dtype) * x.astype(dtype)).astype(x.dtype)

    return jax.tree.map(at_leaf, spread(prefix, tree, name), tree)
