"""Update formulas written for one number and applied to whole trees."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hgrad_jax.tools.dtypes import wide
from hgrad_jax.tools.prefixes import spread
from hgrad_jax.types import Array, Params


def elementwise(formula: Callable[..., Array], *trees: Params, **prefixes: Any) -> Params:
    """Returns `formula(*numbers, **hyperparameters)` for every number of the trees.

    Computed in float32 at least, and returned in the dtypes of the first tree: 0.999 is 1 in
    bfloat16. A Python number is rounded first, like an array: 1 - b is then exactly what the decay
    b leaves.

    Args:
      formula: a function of arrays that broadcast, keyword arguments by the names of `prefixes`.
      trees: pytrees of arrays, all of one structure and shapes.
      prefixes: hyperparameters by name, each a tree prefix of the trees.

    Raises:
      ValueError: a prefix is none, or its shape does not broadcast.

    >>> params = {"w": jnp.ones(2), "b": jnp.ones(1)}
    >>> elementwise(lambda x, rate: x * rate, params, rate={"w": 2, "b": 3})
    {'b': Array([3.], dtype=float32), 'w': Array([2., 2.], dtype=float32)}
    """
    full = [spread(prefix, trees[0], name) for name, prefix in prefixes.items()]

    def at_leaf(*leaves: Array) -> Array:
        dtype = leaves[0].dtype
        numbers = [jnp.asarray(x, wide(dtype)) for x in leaves]
        given = dict(zip(prefixes, numbers[len(trees) :], strict=True))
        return formula(*numbers[: len(trees)], **given).astype(dtype)

    return jax.tree.map(at_leaf, *trees, *full)


def merge(formula: Callable[[Any, Any], Any], **prefixes: Any) -> Any:
    """Returns `formula(a, b)` of two tree prefixes of one tree, in the structure of the finer one.

    Args:
      formula: a function of two arrays or numbers that broadcast.
      prefixes: two tree prefixes, by the names that the error message calls them.

    Raises:
      ValueError: neither is a prefix of the other.

    >>> merge(lambda a, b: a * b, a=2.0, b={"w": 3.0, "b": 4.0})
    {'b': 8.0, 'w': 6.0}
    >>> merge(lambda a, b: a - b, a={"w": 3.0, "b": 4.0}, b=1.0)
    {'b': 3.0, 'w': 2.0}
    """
    (name, first), (other_name, second) = prefixes.items()
    structure, other = jax.tree.structure(first), jax.tree.structure(second)
    if _is_prefix(first, second):
        return jax.tree.map(
            lambda a, sub: jax.tree.map(lambda b: formula(a, b), sub), first, second
        )
    if _is_prefix(second, first):
        return jax.tree.map(
            lambda b, sub: jax.tree.map(lambda a: formula(a, b), sub), second, first
        )
    raise ValueError(
        f"{name} has the structure {structure} and {other_name} {other}, neither a prefix of the "
        "other; give one of them as a single number, or both in the same containers."
    )


def root(x: Array) -> Array:
    """Returns sqrt(x) for x >= 0, with the derivative 0 instead of infinity at 0.

    There Adam and RMSProp need it: the square of a gradient g = 0 has the derivative 2 g = 0, and
    infinity times zero is NaN, while g / (|g| + eps) has the derivative 1 / eps, which comes out.

    >>> jax.value_and_grad(root)(0.0)
    (Array(0., dtype=float32, weak_type=True), Array(0., dtype=float32, weak_type=True))
    """
    is_positive = x > 0
    # Both branches of a `where` are differentiated: the inner one keeps the root away from zero.
    return jnp.where(is_positive, jnp.sqrt(jnp.where(is_positive, x, 1)), 0)


def _is_prefix(prefix: Any, tree: Any) -> bool:
    try:
        jax.tree.structure(prefix).flatten_up_to(tree)
    except ValueError:
        return False
    return True
