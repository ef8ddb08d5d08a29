"""A value and its directional derivative in one pass, with products of the same operand merged.

`jax.jvp` multiplies a layer's input x with its weights w and with their tangent w' in two products;
XLA leaves them apart on a CPU, where small products, convolutions above all, cost more to set up
than to do. Here both are one product x [w | w'] of the same number of operations; where a
convolution has few channels, the third product x' w joins them. Everything else is left to
`jax.jvp`, equation by equation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, Var, jaxpr_as_fun

from hgrad_jax.tools.while_loops import LOSS, marked_jaxpr
from hgrad_jax.types import Array, Params

FEW_CHANNELS = 8
"""Up to as many, merged convolutions are faster: so measured on a CPU, for 3x3 kernels."""


def value_and_slope(
    function: Callable[[Params], Array], params: Params, direction: Params
) -> tuple[Array, Array]:
    """Returns `function(params)` and its derivative along `direction`.

    The same as `jax.jvp(function, (params,), (direction,))`, but for rounding.

    Args:
      function: from a pytree of floating-point arrays to an array.
      params: where.
      direction: like params.

    >>> import jax.numpy as jnp
    >>> value_and_slope(lambda w: jnp.sum(w**2), jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0]))
    (Array(5., dtype=float32), Array(2., dtype=float32))
    """
    closed = marked_jaxpr(jax.make_jaxpr(function)(params), LOSS)
    primals, tangents = _evaluate(
        closed.jaxpr, closed.consts, jax.tree.leaves(params), jax.tree.leaves(direction)
    )
    (value,), (slope,) = primals, tangents
    return value, jnp.zeros_like(value) if slope is None else slope


def _evaluate(jaxpr: Any, consts: Any, primals: list, tangents: list) -> tuple[list, list]:
    """Returns the outputs of a trace and their tangents; None is a tangent of zero."""
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, primals, strict=True))
    slopes = dict(zip(jaxpr.invars, tangents, strict=True))

    def value(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    def slope(atom):
        return None if isinstance(atom, Literal) else slopes.get(atom)

    for equation in jaxpr.eqns:
        x, x_dot = list(map(value, equation.invars)), list(map(slope, equation.invars))
        y, y_dot = _step(jaxpr, equation, x, x_dot)
        values |= dict(zip(equation.outvars, y, strict=True))
        slopes |= dict(zip(equation.outvars, y_dot, strict=True))
    return list(map(value, jaxpr.outvars)), list(map(slope, jaxpr.outvars))


def _step(jaxpr: Any, equation: Any, x: list, x_dot: list) -> tuple[list, list]:
    """Returns the outputs of one equation and their tangents."""
    primitive, settings = equation.primitive, equation.params
    if all(t is None for t in x_dot):
        y = _alone(jaxpr, equation)(*x)
        return y, [None] * len(y)
    if primitive.name in ("jit", "pjit"):
        return _evaluate(settings["jaxpr"].jaxpr, settings["jaxpr"].consts, x, x_dot)
    if _is_merged(primitive, settings, x, x_dot):
        y, y_dot = _merged(primitive, settings, x, x_dot)
        return [y], [y_dot]

    moving = [i for i, t in enumerate(x_dot) if t is not None]

    def of_moving(*given):
        full = list(x)
        for i, g in zip(moving, given, strict=True):
            full[i] = g
        return _alone(jaxpr, equation)(*full)

    y, y_dot = jax.jvp(of_moving, [x[i] for i in moving], [x_dot[i] for i in moving])
    has_tangent = [jnp.issubdtype(jnp.result_type(out), jnp.inexact) for out in y]
    return y, [t if has else None for t, has in zip(y_dot, has_tangent, strict=True)]


def _alone(jaxpr: Any, equation: Any) -> Callable[..., list]:
    """Returns one equation as a function of its operands."""
    operands = [Var(atom.aval) for atom in equation.invars]
    alone = equation.replace(invars=operands)
    part = jaxpr.replace(constvars=[], invars=operands, outvars=equation.outvars, eqns=[alone])
    return jaxpr_as_fun(ClosedJaxpr(part, []))


def _is_merged(primitive: Any, settings: Any, x: list, x_dot: list) -> bool:
    """Returns whether an equation is a product that is worth merging with its tangents."""
    if primitive not in (lax.dot_general_p, lax.conv_general_dilated_p) or x_dot[1] is None:
        return False
    if primitive is lax.dot_general_p:
        return bool(_free(settings, x[1]))
    channels = x[1].shape[settings["dimension_numbers"].rhs_spec[1]]
    groups = settings["feature_group_count"] * settings["batch_group_count"]
    return groups == 1 and channels <= FEW_CHANNELS


def _free(settings: Any, w: Array) -> list[int]:
    """Returns the axes of a matrix product's second operand that stand in the result, last."""
    (_, summed), (_, batch) = settings["dimension_numbers"]
    return [axis for axis in range(w.ndim) if axis not in (*summed, *batch)]


def _merged(primitive: Any, settings: Any, operands: list, tangents: list) -> tuple[Array, Array]:
    """Returns x w, and x w' + x' w (without the last where there is no x')."""

    def product(x, w):
        return primitive.bind(x, w, **settings)

    (x, w), (x_dot, w_dot) = operands, tangents
    if primitive is lax.dot_general_p:
        both = jnp.concatenate([w, w_dot], _free(settings, w)[-1])
        y, y_dot = jnp.split(product(x, both), 2, -1)
        return y, y_dot if x_dot is None else y_dot + product(x_dot, w)

    dimensions = settings["dimension_numbers"]
    to, of = dimensions.rhs_spec[:2]
    both = jnp.concatenate([w, w_dot], to)
    if x_dot is not None:
        # (x, x') [[w, w'], [0, w]]: a quarter is zeros, but a second convolution takes longer.
        both = jnp.concatenate([both, jnp.concatenate([jnp.zeros_like(w), w], to)], of)
        x = jnp.concatenate([x, x_dot], dimensions.lhs_spec[1])
    y, y_dot = jnp.split(product(x, both), 2, dimensions.out_spec[1])
    return y, y_dot
