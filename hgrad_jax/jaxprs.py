"""What a function is made of, read off its trace."""

from collections.abc import Callable, Iterator
from typing import Any

import jax


def has_custom_vjp(function: Callable[..., Any], *args: Any) -> bool:
    """Returns whether a derivative in a function may not be the function's, at any depth.

    A `custom_vjp` counts, and so does a `custom_jvp` that is not JAX's or flax's own, which are
    true derivatives. Then the gradient need not be that of a function, nor its Jacobian symmetric:
    such rules clip, scale and reverse gradients.

    >>> import jax.numpy as jnp
    >>> has_custom_vjp(jnp.sin, 1.0)
    False
    """
    return any(_is_custom(equation) for equation in _equations(jax.make_jaxpr(function)(*args)))


def _is_custom(equation: Any) -> bool:
    name = equation.primitive.name
    if name.startswith("custom_vjp"):
        return True
    if not name.startswith("custom_jvp"):
        return False
    rule, function = equation.params["jvp_jaxpr_fun"], equation.params["call_jaxpr"].jaxpr
    return not (_is_of_jax(rule.debug_info) and _is_of_jax(function.debug_info))


def _is_of_jax(debug_info: Any) -> bool:
    """Returns whether a traced function is written in JAX or flax; False where nobody knows."""
    where = getattr(debug_info, "func_src_info", None) or ""
    return any(f"site-packages/{name}/" in where.replace("\\", "/") for name in ("jax", "flax"))


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Yields all equations of a jaxpr, nested ones included."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for leaf in jax.tree.leaves(list(equation.params.values())):
            if hasattr(getattr(leaf, "jaxpr", leaf), "eqns"):
                yield from _equations(leaf)
