"""Whether the derivatives in a function are those of functions, by who wrote them and measured."""

from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters import ad

from hgrad_jax.tools.jaxprs import equations, parts
from hgrad_jax.tools.measured_rules import is_untrue

TRUSTED = ("jax", "jaxlib", "flax", "functools")
"""Packages whose differentiation rules are the derivatives of their functions."""
TRANSPOSED_AS_TOLD = ("custom_linear_solve", "linear_call", "custom_transpose_call")
"""Primitives whose transposes are what their caller says."""
RULES_OF_PRIMITIVES: tuple[Any, ...] = (ad.primitive_jvps, ad.primitive_transposes)
"""Where JAX looks up how a primitive is differentiated."""


def has_foreign_rule(function: Callable[..., Any], *args: Any) -> bool:
    """Returns whether a derivative in a function may not be the function's, at any depth.

    A `custom_vjp` may clip, scale or reverse a gradient, and so may a `custom_jvp`, or the rule of
    a primitive, that a user wrote. Then what `jax.grad` returns need not be the gradient of a
    function, nor its Jacobian symmetric: so it is of `jax.lax.custom_root` and
    `custom_linear_solve` with another solver for the derivative ("phantom gradients"). JAX's and
    flax's own rules are true derivatives (relu, softmax, logsumexp); a rule is theirs if its
    function and every function that it closes over are. That of a `custom_jvp` is measured too.

    Args:
      function: of pytrees of arrays.
      *args: what it is traced with.

    >>> import jax.numpy as jnp
    >>> has_foreign_rule(jnp.sin, 1.0), has_foreign_rule(jax.nn.relu, 1.0)
    (False, False)
    >>> @jax.custom_jvp
    ... def reverse_gradient(x):
    ...     return x
    >>> reverse_gradient.defjvps(lambda dot, out, x: -dot)
    >>> has_foreign_rule(jax.jit(reverse_gradient), 1.0)
    True
    """
    return any(_is_foreign(equation) for equation in equations(jax.make_jaxpr(function)(*args)))


def _is_foreign(equation: Any) -> bool:
    name = equation.primitive.name
    if name.startswith("custom_vjp"):
        return True
    if name.startswith("custom_jvp"):
        rule, body = equation.params["jvp_jaxpr_fun"], equation.params["call_jaxpr"].jaxpr
        are_known = _is_in_jax(body.debug_info) and _is_in_jax(rule.debug_info)
        return not are_known or _is_written(rule) or is_untrue(equation)
    if name in TRANSPOSED_AS_TOLD:
        return any(map(_is_written, jax.tree.leaves(list(equation.params.values()))))
    if not _is_trusted(type(equation.primitive)):
        return True
    rules = [table.get(equation.primitive) for table in RULES_OF_PRIMITIVES]
    objects = [value for value in equation.params.values() if hasattr(value, "vjp_fwd")]
    return any(map(_is_written, [*rules, *objects]))


def _is_in_jax(debug_info: Any) -> bool:
    """Returns whether a traced function is written in JAX or flax; False where nobody knows."""
    where = getattr(debug_info, "func_src_info", None) or ""
    return any(f"site-packages/{name}/" in where.replace("\\", "/") for name in TRUSTED)


def _is_written(rule: Any) -> bool:
    """Returns whether a rule, or a function that it closes over, is not of a trusted package."""
    return any(
        not _is_in_jax(part.debug_info) if hasattr(part, "eqns") else not _is_trusted(part)
        for part in parts(rule)
    )


def _is_trusted(function_or_class: Any) -> bool:
    module = getattr(function_or_class, "__module__", None) or ""
    return module.partition(".")[0] in TRUSTED
