"""Whether the rule of a `custom_jvp` is the derivative of its function, measured."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from hgrad_jax.tools.jaxprs import parts
from hgrad_jax.types import Array

STEP = 2.0**-7
"""Of the central differences, whose error is of its square."""
TOLERANCE = 0.1
"""Of an output's derivative, by which differences may miss a true one, in float32 too."""
SHARE = 0.1
"""Of the outputs, which may be near a kink, at two draws."""
MOST = 2**22
"""Numbers of an input or output, above which nothing is measured."""
MEASURED = ("float32", "float64")
KNOWN = (*MEASURED, "bool", "int32", "int64", "uint32")

_found: dict[Any, bool] = {}


def is_untrue(equation: Any) -> bool:
    """Returns whether a rule is, at random inputs, not the derivative of its function.

    The function is moved along a random direction, both ways, and what it moves by is compared with
    what its rule says; they must not differ in more than a tenth of the outputs. That is done once
    for a rule in a process, at the shapes it is first met with, in one to three tenths of a second.
    False where it cannot be measured: no floats, or of 16 bits, constants closed over, a function
    that is not finite at such inputs, or more than four million numbers.

    Args:
      equation: a `custom_jvp_call` of a jaxpr.

    >>> straight_through = jax.custom_jvp(jnp.rint)
    >>> straight_through.defjvps(lambda dot, out, x: dot)
    >>> [is_untrue(equation) for equation in jax.make_jaxpr(straight_through)(1.0).eqns]
    [True]
    """
    function, rule = equation.params["call_jaxpr"].jaxpr, equation.params["jvp_jaxpr_fun"]
    name = (
        function.debug_info.func_src_info,
        tuple(getattr(part, "__code__", type(part)) for part in parts(rule)),
        tuple((atom.aval.dtype, atom.aval.ndim) for atom in equation.invars),
        tuple(inner.primitive.name for inner in function.eqns),
    )
    if name not in _found:
        _found[name] = _measure(equation)
    return _found[name]


def _measure(equation: Any) -> bool:
    inputs = list(dict.fromkeys(v for v in equation.invars if not isinstance(v, Literal)))
    outputs = [v for v in equation.outvars if type(v).__name__ != "DropVar"]
    if equation.params["num_consts"] or not all(map(_is_known, (*inputs, *outputs))):
        return False
    about = equation.params["call_jaxpr"].jaxpr.debug_info
    about = about._replace(arg_names=None, result_paths=None)
    alone = Jaxpr((), inputs, outputs, [equation], debug_info=about)
    function = jaxpr_as_fun(ClosedJaxpr(alone, ()))
    measured = jax.jit(lambda args, tangents: _errors(function, args, tangents))

    def differs(seed: int) -> bool:
        draw = np.random.default_rng(seed)
        args = [_drawn(draw, v.aval) for v in inputs]
        tangents = [_drawn(draw, v.aval) for v in inputs if str(v.aval.dtype) in MEASURED]
        with _apart():
            args, tangents = jax.device_put((args, tangents))
            errors, allowed = jax.device_get(measured(args, tangents))
        return bool(np.sum(errors > allowed) > SHARE * errors.size)  # False where one is NaN

    return all(map(differs, range(2)))


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """What is measured is no part of what is traced, nor meant by the user's settings."""
    with (
        jax.ensure_compile_time_eval(),
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.transfer_guard("allow"),
    ):
        yield


def _is_known(variable: Any) -> bool:
    return str(variable.aval.dtype) in KNOWN and variable.aval.size <= MOST


def _drawn(draw: np.random.Generator, aval: Any) -> np.ndarray:
    is_float = str(aval.dtype) in MEASURED
    numbers = draw.standard_normal(aval.shape) if is_float else draw.integers(0, 2, aval.shape)
    return np.asarray(numbers, aval.dtype)


def _errors(
    function: Callable[..., Sequence[Array]], args: list[Array], tangents: list[Array]
) -> tuple[Array, Array]:
    """Returns by how much rule and differences differ, and may differ, in each output."""
    moved = [i for i, arg in enumerate(args) if str(arg.dtype) in MEASURED]

    def floats(*moves: Array) -> Array:
        """Returns the floats of the outputs as one vector, with those of the inputs moved."""
        at = list(args)
        for i, move in zip(moved, moves, strict=True):
            at[i] = args[i] + move
        out = [jnp.ravel(y) for y in function(*at) if str(y.dtype) in MEASURED]
        dtype = min((str(y.dtype) for y in out), default="float32")
        return jnp.concatenate([y.astype(dtype) for y in (*out, jnp.zeros(0, dtype))])

    out, told = jax.jvp(floats, [0 * t for t in tangents], tangents)
    ahead, behind = jax.vmap(lambda step: floats(*[step * t for t in tangents]))(
        jnp.asarray([STEP, -STEP], out.dtype)
    )
    differences = (ahead - behind) / (2 * STEP)
    rounding = 16 * jnp.finfo(out.dtype).eps * jnp.abs(out) / STEP
    size = jnp.maximum(jnp.abs(told), jnp.abs(differences))
    return jnp.abs(told - differences), TOLERANCE * size + rounding
