"""What a function is made of, read off its trace."""

from collections.abc import Callable
from typing import Any

import jax


def has_custom_vjp(function: Callable[..., Any], *args: Any) -> bool:
    """Returns whether a `custom_vjp` occurs in a function, at any depth.

    Then the gradient need not be that of a function, nor its Jacobian symmetric: such rules clip,
    scale and reverse gradients. And `jvp` meets what it cannot differentiate.

    >>> import jax.numpy as jnp
    >>> has_custom_vjp(jnp.sin, 1.0)
    False
    """
    names = _primitives(jax.make_jaxpr(function)(*args).jaxpr)
    return any(name.startswith("custom_vjp") for name in names)


def _primitives(jaxpr: Any) -> set[str]:
    """Returns the names of all primitives in a jaxpr, nested ones included."""
    names = {equation.primitive.name for equation in jaxpr.eqns}
    for equation in jaxpr.eqns:
        for leaf in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(leaf, "jaxpr", leaf)
            if hasattr(inner, "eqns"):
                names |= _primitives(inner)
    return names
