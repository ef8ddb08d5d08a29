"""How many bytes a function holds at once, estimated from its trace."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, Var


def live_bytes(function: Callable[..., Any], *args: Any) -> int:
    """Returns the largest total size of floating-point values that are computed and still needed.

    Read off the trace, equation by equation: an upper bound on what a compiler needs, which fuses
    elementwise operations. The arguments themselves are not counted.

    Args:
      function: any function that JAX can trace.
      *args: its arguments, or their shapes and dtypes.

    >>> import jax.numpy as jnp
    >>> live_bytes(lambda x: jnp.sum(jnp.outer(x, x)), jnp.ones(100))  # float32
    40800
    """
    return _peak(jax.make_jaxpr(function)(*args).jaxpr)


def _peak(jaxpr: Any) -> int:
    outputs = [v for v in jaxpr.outvars if isinstance(v, Var)]
    last_use = {v: i for i, e in enumerate(jaxpr.eqns) for v in e.invars if isinstance(v, Var)}
    last_use |= dict.fromkeys(outputs, len(jaxpr.eqns))
    held, total, peak = {}, 0, 0
    for i, equation in enumerate(jaxpr.eqns):
        made = sum(_bytes(v) for v in equation.outvars)
        inside = max((_peak(inner) for inner in _inner(equation)), default=0)
        peak = max(peak, total + max(made, inside))
        for v in equation.outvars:
            if last_use.get(v, i) > i:
                held[v] = _bytes(v)
                total += held[v]
        for v in {v for v in equation.invars if not isinstance(v, Literal)}:
            if last_use[v] == i:
                total -= held.pop(v, 0)
    return peak


def _bytes(variable: Any) -> int:
    aval = variable.aval
    is_float = hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)
    return int(np.prod(aval.shape)) * aval.dtype.itemsize if is_float else 0


def _inner(equation: Any) -> list[Any]:
    """Returns the jaxprs that an equation calls."""
    leaves = jax.tree.leaves(list(equation.params.values()))
    candidates = [getattr(leaf, "jaxpr", leaf) for leaf in leaves]
    return [jaxpr for jaxpr in candidates if hasattr(jaxpr, "eqns")]
