"""Loops without a fixed length, which reverse mode cannot go through, and what can be done.

JAX says so in its own words, and from within `jax.grad`, where nobody can add a word. So the loops
of a function are marked: what comes out of one passes an identity that says, when it is transposed,
how such a loss is trained and differentiated.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive, Var, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from hgrad_jax.tools.guard import is_float

LOSS = (
    "the loss has a lax.while_loop (a lax.fori_loop of traced length is one), which reverse mode "
    "cannot go through; train with gradient=hg.forward_gradient() and differentiate with "
    "adjoint=hg.ForwardMode(), or give the loop a fixed length, with lax.scan."
)
"""What to do about a loop in the loss."""

OPTAX = (
    "the optax transformation has a lax.while_loop, as line searches do, which reverse mode cannot "
    "go through; differentiate with adjoint=hg.ForwardMode()."
)
"""What to do about a loop in an optax transformation."""


def is_refusal(error: BaseException) -> bool:
    """Returns whether an error is JAX's that reverse mode does not go through a loop."""
    return isinstance(error, ValueError) and (
        "Reverse-mode differentiation does not work for lax.while_loop" in str(error)
    )


def marked(function: Callable[..., Any], message: str) -> Callable[..., Any]:
    """Returns the function, in which loops raise a ValueError with this message in reverse mode.

    It is traced once when it is called, and what was traced is evaluated.

    >>> import jax
    >>> def halved(x):
    ...     return jax.lax.while_loop(lambda y: y > 1, lambda y: y / 2, x)
    >>> print(jax.jvp(marked(halved, LOSS), (3.0,), (1.0,)))
    (Array(0.75, dtype=float32, weak_type=True), Array(0.25, dtype=float32, weak_type=True))
    >>> try:
    ...     jax.grad(marked(halved, LOSS))(3.0)
    ... except ValueError as error:  # to which JAX adds a note, that older doctests compare
    ...     print(error)
    the loss has a lax.while_loop (a lax.fori_loop of traced length is one), ...
    """

    def evaluate(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        leaves = jaxpr_as_fun(marked_jaxpr(closed, message))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return evaluate


def marked_jaxpr(closed: ClosedJaxpr, message: str) -> ClosedJaxpr:
    """Returns a trace whose loops raise a ValueError in reverse mode; itself if it has none."""
    inner = _marked_jaxpr(closed.jaxpr, message)
    return closed if inner is closed.jaxpr else closed.replace(jaxpr=inner)


def _marked_jaxpr(jaxpr: Jaxpr, message: str) -> Jaxpr:
    equations, is_changed = [], False
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "while":
            equations += _marked_loop(equation, message)
            is_changed = True
        elif name.startswith("custom_"):  # whose derivative is another function
            equations.append(equation)
        else:
            equations.append(_marked_inside(equation, message))
            is_changed |= equations[-1] is not equation
    return jaxpr.replace(eqns=equations) if is_changed else jaxpr


def _marked_inside(equation: Any, message: str) -> Any:
    """Returns an equation whose branches and bodies are marked; itself if none has a loop."""

    def mark(x):
        if isinstance(x, ClosedJaxpr):
            return marked_jaxpr(x, message)
        return _marked_jaxpr(x, message) if isinstance(x, Jaxpr) else x

    found = {}
    for name, setting in equation.params.items():
        leaves, treedef = jax.tree.flatten(setting, is_leaf=_is_jaxpr)
        new = [mark(x) for x in leaves]
        if any(a is not b for a, b in zip(new, leaves, strict=True)):
            found[name] = jax.tree.unflatten(treedef, new)
    return equation.replace(params=equation.params | found) if found else equation


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, ClosedJaxpr | Jaxpr)


def _marked_loop(equation: Any, message: str) -> list[Any]:
    """Returns a loop, and the marks that its floating-point results pass."""
    inside = [Var(x.aval) if is_float(x.aval) else x for x in equation.outvars]
    marks = [
        equation.replace(
            primitive=_loop_result,
            params={"message": message},
            invars=[x],
            outvars=[out],
            effects=set(),
        )
        for x, out in zip(inside, equation.outvars, strict=True)
        if x is not out
    ]
    return [equation.replace(outvars=inside), *marks]


def _refuse(cotangent: Any, x: Any, *, message: str) -> Any:
    del cotangent, x
    raise ValueError(message)


_loop_result = Primitive("loop_result")
_loop_result.def_impl(lambda x, message: x)
_loop_result.def_abstract_eval(lambda x, message: x)
ad.deflinear2(_loop_result, _refuse)
batching.defvectorized(_loop_result)
mlir.register_lowering(_loop_result, lambda _, x, message: [x])
