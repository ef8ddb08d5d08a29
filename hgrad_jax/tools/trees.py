"""How pytrees are compared, and shown in messages."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.functions import is_array


def strong(tree: Any) -> Any:
    """Returns the tree without Python numbers' types, which no compiled step would take again."""
    return jax.tree.map(
        lambda x: jax.lax.convert_element_type(jnp.asarray(x), jnp.result_type(x)), tree
    )


def require_like(tree: Any, like: Any, name: str, like_name: str) -> None:
    """Raises if a tree has another structure or other shapes than another.

    Raises:
      ValueError: it has.

    >>> require_like({"a": 1.0}, {"a": jnp.ones(2)}, "direction", "params")
    Traceback (most recent call last):
    ValueError: direction has the shapes {'a': ()}; it must be like params, {'a': (2,)}.
    """
    is_of_arrays = all(map(is_array, jax.tree.leaves(tree)))
    if is_of_arrays and is_like(tree, like):
        return
    found = shown(tree) if is_of_arrays else tree
    raise ValueError(f"{name} has the shapes {found}; it must be like {like_name}, {shown(like)}.")


def is_like(tree: Any, other: Any, of: Callable[[Any], Any] = jnp.shape) -> bool:
    """Returns whether two trees have one structure, and leaves that are equal in something.

    Structures are compared, not trees: a class of parameters need not have an `__eq__`.

    Args:
      tree: a pytree.
      other: a pytree.
      of: `of(leaf) -> value`, what leaves are compared in: their shapes.

    >>> is_like({"a": 1.0}, {"a": 2.0}), is_like({"a": 1.0}, {"b": 1.0}), is_like([1], (1,))
    (True, False, False)
    """
    (leaves, treedef), (others, other_treedef) = map(jax.tree.flatten, (tree, other))
    return treedef == other_treedef and list(map(of, leaves)) == list(map(of, others))


def shown(tree: Any, of: Callable[[Any], Any] = jnp.shape) -> str:
    """Returns the text of a tree with something of each leaf in its place: the shapes.

    Where the containers print themselves as an address or on many lines, by path instead.

    >>> shown({"a": jnp.ones(2)})
    "{'a': (2,)}"
    """
    text = str(jax.tree.map(of, tree))
    if " object at 0x" not in text and "\n" not in text:
        return text
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return str({jax.tree_util.keystr(path): of(leaf) for path, leaf in pairs})
