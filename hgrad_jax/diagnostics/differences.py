"""Central differences of eighth order, with estimates of their own error.

Of a function f, in float64 and with h the step,

    f'(x) ~ sum_k w_k (f(x + k h) - f(x - k h)) / h,    w = 4/5, -1/5, 4/105, -1/280,

whose error is about h**8 f^(9)(x) / 630. How far to trust it is read off the same nine values: from
the difference of sixth order, and from the even part of f, which extrapolates to the jump of f' at
x and so shows a kink. Where a difference cannot decide, smaller steps are tried. One grid cannot
see what repeats with it, nor a jump between its points: `second_opinion` takes another.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.types import Array

OFFSETS = np.arange(-4.0, 5.0)
EIGHTH_ORDER = np.array([4 / 5, -1 / 5, 4 / 105, -1 / 280])
SIXTH_ORDER = np.array([3 / 4, -3 / 20, 1 / 60, 0])
# Of (f(x + k h) + f(x - k h) - 2 f(x)) / (k h): what is left at h = 0 is the jump of f' at x.
JUMPS = np.array([[14 / 5, -14 / 5, 6 / 5, -1 / 5], [5 / 2, -2, 1 / 2, 0]])
# For one kink, anywhere in the stencil, the error is at most 2.4 times the sum of the three parts.
CAUTION = 3.0
SHRINK = (1.0, 1e-1, 1e-2, 1e-3)
CHUNK = 16
SECOND_STEP = 0.0137


class Differences(NamedTuple):
    """Derivatives by differences, float64 `[K]` each.

    Attributes:
      derivative: the central difference; NaN where a step leaves the function's domain.
      uncertainty: estimate of its error, NaN where that is.
      rounding: the part of it that rounding makes.
      step: h.
    """

    derivative: np.ndarray
    uncertainty: np.ndarray
    rounding: np.ndarray
    step: np.ndarray


def central_differences(
    values: np.ndarray, step: np.ndarray, epsilon: float = 2.0**-52
) -> Differences:
    """Returns the differences and how uncertain they are.

    Args:
      values: float64 `[K, 9]`, the function at x - 4 h, ..., x + 4 h.
      step: h, float64 `[K]`, positive.
      epsilon: of the type that the function computes in.

    >>> found = central_differences(np.exp(0.1 * OFFSETS)[None], np.array([0.1]))
    >>> print(f"{found.derivative[0]:.9f} +- {found.uncertainty[0]:.0e}")
    1.000000000 +- 5e-06
    """
    ahead, behind, here = values[:, 5:], values[:, 3::-1], values[:, 4:5]
    with np.errstate(all="ignore"):  # infinite or NaN where a step leaves the domain
        odd = (ahead - behind) / step[:, None]
        even = (ahead + behind - 2 * here) / (np.arange(1, 5) * step[:, None])
        derivative = odd @ EIGHTH_ORDER
        parts = [derivative - odd @ SIXTH_ORDER, *(even @ JUMPS.T).T]
        rounding = 10 * epsilon * np.max(np.abs(values), 1) / step
        uncertainty = CAUTION * sum(np.abs(part) for part in parts) + rounding
    return Differences(derivative, uncertainty, rounding, step)


def best_differences(
    function: Callable[[Array, Any], Array],
    x: np.ndarray,
    rest: Any,
    numbers: np.ndarray,
    *,
    step: float,
    epsilon: float,
    is_enough: Callable[[Differences], np.ndarray],
) -> Differences:
    """Returns derivatives by some entries of x, each at the step that leaves it least uncertain.

    Run it in float64, under `jax.enable_x64(True)`.

    Args:
      function: `function(x, rest) -> scalar`.
      x: where, float64 `[N]`.
      rest: arrays that are not differentiated.
      numbers: which entries of x, int `[K]`.
      step: h for entries of size up to 1, relative for larger ones. A tenth, a hundredth and a
        thousandth of it are tried for those that are not certain enough.
      epsilon: of the type that the function computes in.
      is_enough: which of all K are certain enough, bool `[K]`.
    """
    tried_at = _stencils(function, x, rest, min(CHUNK, len(numbers)), epsilon)
    best = Differences(*np.full((4, len(numbers)), np.nan))
    pending = np.arange(len(numbers))
    for shrink in SHRINK:
        at = numbers[pending]
        tried = tried_at(at, shrink * step * np.maximum(1, np.abs(x[at])))
        is_better = ~(tried.uncertainty >= best.uncertainty[pending])
        for kept, new in zip(best, tried, strict=True):
            kept[pending[is_better]] = new[is_better]
        pending = np.flatnonzero(~is_enough(best))
        if not pending.size:
            break
    return best


def second_opinion(
    function: Callable[[Array, Any], Array],
    x: np.ndarray,
    rest: Any,
    numbers: np.ndarray,
    found: Differences,
    *,
    step: float,
    epsilon: float,
) -> Differences:
    """Returns differences that are at least as uncertain as they differ from those on another grid.

    Its step is no simple fraction of the first one's, and not relative.

    Args:
      function: as in `best_differences`.
      x: as in `best_differences`.
      rest: as in `best_differences`.
      numbers: which entries, int `[K]`.
      found: their differences.
      step: as in `best_differences`.
      epsilon: as in `best_differences`.
    """
    tried_at = _stencils(function, x, rest, min(CHUNK, len(numbers)), epsilon)
    other = tried_at(numbers, np.full(len(numbers), SECOND_STEP * step))
    apart = np.abs(found.derivative - other.derivative)
    is_doubtful = ~(apart <= found.uncertainty + other.uncertainty)
    return found._replace(uncertainty=np.where(is_doubtful, np.inf, found.uncertainty))


def _stencils(
    function: Callable[[Array, Any], Array], x: np.ndarray, rest: Any, size: int, epsilon: float
) -> Callable[[np.ndarray, np.ndarray], Differences]:
    """Returns `(numbers, steps) -> Differences`, in chunks of one size, which compile once."""

    @jax.jit
    def stencils(x, numbers, steps, rest):
        def around(number_and_step):
            number, h = number_and_step
            entry = jnp.asarray(x).at[number]  # under `jax.disable_jit`, x is numpy's
            offsets = jnp.asarray(OFFSETS)
            return jax.vmap(lambda offset: function(entry.add(offset * h), rest))(offsets)

        return jax.lax.map(around, (numbers, steps))

    def tried_at(numbers, steps):
        # The last chunk is filled up with repetitions.
        shape = (-(-len(numbers) // size), size)
        chunks = zip(np.resize(numbers, shape), np.resize(steps, shape), strict=True)
        values = [np.asarray(stencils(x, *chunk, rest), np.float64) for chunk in chunks]
        return central_differences(np.concatenate(values)[: len(numbers)], steps, epsilon)

    return tried_at


def precision(function: Callable[[Array, Any], Array], x: Array, rest: Any) -> float:
    """Returns the epsilon of the narrowest floats that the function computes from x."""
    jaxpr = jax.make_jaxpr(function)(x, rest).jaxpr
    return _coarsest(jaxpr, {jaxpr.invars[0]})


def _coarsest(jaxpr: Any, dependent: set[Any]) -> float:
    epsilon = float(np.finfo(np.float64).eps)
    dependent = set(dependent)
    for equation in jaxpr.eqns:
        is_dependent = [v in dependent for v in equation.invars if not hasattr(v, "val")]
        if not any(is_dependent):
            continue
        dependent.update(equation.outvars)
        for leaf in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(leaf, "jaxpr", leaf)
            if hasattr(inner, "eqns"):
                # Which of its inputs depend on x is not followed into a call: any may.
                epsilon = max(epsilon, _coarsest(inner, set(inner.invars)))
        for v in equation.outvars:
            if jnp.issubdtype(v.aval.dtype, jnp.floating):
                epsilon = max(epsilon, float(jnp.finfo(v.aval.dtype).eps))
    return epsilon
