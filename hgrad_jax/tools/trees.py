"""Pytrees as flat vectors, and values broadcast along a tree prefix."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.inputs.arguments import narrow
from hgrad_jax.inputs.functions import is_array
from hgrad_jax.tools.dtypes import common
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


def strong(tree: Any) -> Any:
    """Returns the tree without Python numbers' types, which no compiled step would take again."""
    return jax.tree.map(
        lambda x: jax.lax.convert_element_type(jnp.asarray(x), jnp.result_type(x)), tree
    )


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
