"""A value and its directional derivative in one pass, with products of the same operand merged.

`jax.jvp` multiplies a layer's input x with its weights W and with their tangent W' in two products;
XLA leaves them apart on a CPU, where small products, convolutions above all, cost more to set up
than to do. Here both are one product x [W | W'] of the same number of operations. Everything else
is left to `jax.jvp`, equation by equation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, Var, jaxpr_as_fun

from hgrad_jax.types import Array, Params


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
    closed = jax.make_jaxpr(function)(params)
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
    axes = _free_axes(primitive, settings, x)
    if axes is not None and x_dot[1] is not None:
        y, y_dot = _merged(primitive, settings, x, x_dot, *axes)
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


def _free_axes(primitive: Any, settings: Any, x: list) -> tuple[int, int] | None:
    """Returns an axis of the second operand that is not summed over, and where it comes out."""
    if primitive is lax.dot_general_p:
        (_, summed), (_, batch) = settings["dimension_numbers"]
        free = [axis for axis in range(x[1].ndim) if axis not in (*summed, *batch)]
        return (free[-1], -1) if free else None
    is_convolution = primitive is lax.conv_general_dilated_p
    if is_convolution and settings["feature_group_count"] == settings["batch_group_count"] == 1:
        dimensions = settings["dimension_numbers"]
        return dimensions.rhs_spec[0], dimensions.out_spec[1]
    return None


def _merged(
    primitive: Any, settings: Any, x: list, x_dot: list, axis: int, out_axis: int
) -> tuple[Array, Array]:
    """Returns x w, and x w' + x' w, from one product x [w | w'] and, if x' is there, another."""
    pair = primitive.bind(x[0], jnp.concatenate([x[1], x_dot[1]], axis), **settings)
    y, y_dot = jnp.split(pair, 2, out_axis)
    if x_dot[0] is not None:
        y_dot += primitive.bind(x_dot[0], x[1], **settings)
    return y, y_dot
