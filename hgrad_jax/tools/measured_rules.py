"""Whether the rule of a `custom_jvp` is the derivative of its function, measured."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from hgrad_jax.tools.jaxprs import parts
from hgrad_jax.types import Array

TOLERANCE = 0.02
"""Of an output's derivative, and twice the step more, by which differences may miss a true one."""
SHARE = 0.1
"""Of the outputs, and the step more, which may be near a kink, at two draws."""
MOST = 2**22
"""Numbers of an input or output, above which nothing is measured."""
SCALES = (1.0, 10.0)
"""Of the numbers drawn: a rule may be wrong far from zero alone."""
FLOATS = ("bfloat16", "float16", "float32", "float64")
KNOWN = (*FLOATS, "bool", "int32", "int64", "uint32")

_found: dict[Any, bool] = {}


def is_untrue(equation: Any) -> bool:
    """Returns whether a rule is, at random inputs, not the derivative of its function.

    The function is moved along a random direction, both ways, and what it moves by is compared with
    what its rule says; they must not differ in more than a tenth of the outputs. That is done once
    for a rule in a process, at the shapes it is first met with, and takes some tenths of a second.
    False where it cannot be measured: functions that are not elementwise (those of matrices take
    seconds), of no floats, of sharded types, with constants closed over, of more than four million
    numbers, or mostly not finite at such inputs. It is tried anew then at the next meeting.

    Args:
      equation: a `custom_jvp_call` of a jaxpr.

    >>> straight_through = jax.custom_jvp(jnp.rint)
    >>> straight_through.defjvps(lambda dot, out, x: dot)
    >>> [is_untrue(equation) for equation in jax.make_jaxpr(straight_through)(1.0).eqns]
    [True]
    """
    function, rule = equation.params["call_jaxpr"].jaxpr, equation.params["jvp_jaxpr_fun"]
    inputs = list(dict.fromkeys(v for v in equation.invars if not isinstance(v, Literal)))
    outputs = [v for v in equation.outvars if type(v).__name__ != "DropVar"]
    name = (
        function.debug_info.func_src_info,
        tuple(getattr(part, "__code__", type(part)) for part in parts(rule)),
        tuple(v.aval.dtype for v in (*inputs, *outputs)),
        tuple(inner.primitive.name for inner in function.eqns),
    )
    if name not in _found and _is_measurable(equation, inputs, outputs):
        shares = _shares(equation, inputs, outputs)
        if shares:
            _found[name] = min(shares) > SHARE + _step(v.aval for v in (*inputs, *outputs))
    return _found.get(name, False)


def _is_measurable(equation: Any, inputs: list[Any], outputs: list[Any]) -> bool:
    avals = [v.aval for v in (*inputs, *outputs)]
    if equation.params["num_consts"] or not inputs or not outputs:
        return False
    if any(str(aval.dtype) not in KNOWN or not 0 < aval.size <= MOST for aval in avals):
        return False
    shape = outputs[0].aval.shape
    is_elementwise = all(v.aval.shape == shape for v in outputs) and all(
        v.aval.shape in (shape, ()) for v in inputs
    )
    are_floats = any(str(v.aval.dtype) in FLOATS for v in inputs)
    return is_elementwise and are_floats


def _shares(equation: Any, inputs: list[Any], outputs: list[Any]) -> tuple[float, ...]:
    """Returns the shares of the outputs where rule and differences differ; none if unknown."""
    about = equation.params["call_jaxpr"].jaxpr.debug_info
    about = about._replace(arg_names=None, result_paths=None)
    alone = Jaxpr((), inputs, outputs, [equation], debug_info=about)
    function = jaxpr_as_fun(ClosedJaxpr(alone, ()))
    measured = jax.jit(lambda args, tangents: _errors(function, args, tangents))
    shares = []
    for seed in range(2):
        draw = np.random.default_rng(seed)
        args, tangents = ([_drawn(draw, v.aval, scale) for v in inputs] for scale in (SCALES, (1,)))
        try:
            with _apart():
                errors, allowed = jax.device_get(measured(*jax.device_put((args, tangents))))
        except Exception:  # Inside `shard_map`, say: whatever a rule may need that is not here.
            return ()
        is_finite = np.isfinite(errors) & np.isfinite(allowed)
        if is_finite.mean() < 0.5:
            return ()
        shares.append(float(np.mean(errors[is_finite] > allowed[is_finite])))
    return tuple(shares)


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


def _drawn(draw: np.random.Generator, aval: Any, scales: Sequence[float]) -> np.ndarray:
    if str(aval.dtype) not in FLOATS:
        return np.asarray(draw.integers(0, 2, aval.shape), aval.dtype)
    return np.asarray(
        draw.choice(scales, aval.shape) * draw.standard_normal(aval.shape), aval.dtype
    )


def _errors(
    function: Callable[..., Sequence[Array]], args: list[Array], tangents: list[Array]
) -> tuple[Array, Array]:
    """Returns by how much rule and differences differ, and may differ, in each output."""
    moved = [i for i, arg in enumerate(args) if str(arg.dtype) in FLOATS]

    def floats(*moves: Array) -> list[Array]:
        """Returns the floats of the outputs, with those of the inputs moved."""
        at = list(args)
        for i, move in zip(moved, moves, strict=True):
            at[i] = args[i] + move
        return [y for y in function(*at) if str(y.dtype) in FLOATS]

    tangents = [tangents[i] for i in moved]
    out, told = jax.jvp(floats, [0 * t for t in tangents], tangents)
    step = _step((*tangents, *out))
    ahead, behind = (
        floats(*[(sign * step * t).astype(t.dtype) for t in tangents]) for sign in (1, -1)
    )
    errors, allowed = [], []
    for y, slope, far, near in zip(
        *(map(_wide, x) for x in (out, told, ahead, behind)), strict=True
    ):
        moved_by = (far - near) / (2 * step)
        size = jnp.maximum(jnp.abs(slope), jnp.abs(moved_by))
        errors.append(jnp.ravel(jnp.abs(slope - moved_by)))
        allowed.append(jnp.ravel((TOLERANCE + 2 * step) * size + 8 * step**2 * jnp.abs(y)))
    return jnp.concatenate(errors), jnp.concatenate(allowed)


def _step(floats: Iterable[Any]) -> float:
    """Returns the step of central differences: the third root of the coarsest rounding."""
    dtypes = [x.dtype for x in floats if str(x.dtype) in FLOATS]
    return max(float(jnp.finfo(dtype).eps) for dtype in dtypes) ** (1 / 3)


def _wide(x: Array) -> Array:
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)
