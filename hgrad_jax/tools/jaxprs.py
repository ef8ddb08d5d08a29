"""What a function is made of, read off its trace."""

import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

import jax


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yields all equations of a jaxpr, nested ones included."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for leaf in jax.tree.leaves(list(equation.params.values())):
            if hasattr(getattr(leaf, "jaxpr", leaf), "eqns"):
                yield from equations(leaf)


def primitives(jaxpr: Any) -> set[str]:
    """Returns the names of all primitives of a jaxpr, at any depth.

    >>> sorted(primitives(jax.make_jaxpr(jax.jit(lambda x: x * x + 1))(1.0)))
    ['add', 'jit', 'mul']
    """
    return {equation.primitive.name for equation in equations(jaxpr)}


def parts(value: Any) -> Iterator[Any]:
    """Yields the functions, classes of callable objects and jaxprs that a callable is made of."""
    seen, left = set(), [value]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        jaxpr = getattr(value, "jaxpr", value)
        if hasattr(jaxpr, "eqns"):
            yield jaxpr
        elif isinstance(value, types.FunctionType):
            yield value
            # An empty cell belongs to a function that is not finished.
            left += [cell.cell_contents for cell in value.__closure__ or () if _is_full(cell)]
            left += value.__defaults__ or ()
        elif isinstance(value, types.MethodType):
            left += [value.__func__, value.__self__]
        elif isinstance(value, functools.partial):
            left += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, tuple | list):
            left += value
        elif isinstance(value, jax.custom_jvp):
            left += [value.fun, value.jvp]
        elif hasattr(value, "f") and hasattr(value, "transforms"):  # JAX's wrapped function
            left += [value.f, *value.transforms]
        elif hasattr(value, "val"):  # what JAX holds a static argument in
            left.append(value.val)
        elif hasattr(value, "__wrapped__"):  # jitted, say
            left.append(value.__wrapped__)
        elif hasattr(value, "vjp_fwd"):  # a high-level primitive, with what it was made from
            yield type(value)
            left += vars(value).values()
        elif _is_called_by_python(value):
            yield type(value)


def _is_called_by_python(value: Any) -> bool:
    call = inspect.getattr_static(type(value), "__call__", None)
    return isinstance(call, types.FunctionType)


def _is_full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
