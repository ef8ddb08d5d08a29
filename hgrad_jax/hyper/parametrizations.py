"""Maps from the whole line to where a hyperparameter may be, so that any outer step stays inside.

A parametrization has the value of a hyperparameter, `to_value(u)`, and the number u that has a
given value, `from_value(x)`, which starts a tuning where the user wants. Both work on pytrees.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hgrad_jax.inputs.functions import is_real
from hgrad_jax.tools.dtypes import common
from hgrad_jax.types import Array


class Parametrization(NamedTuple):
    """A bijection between the real line and an interval.

    Attributes:
      to_value: `to_value(u) -> x`, increasing or decreasing, differentiable; pytrees of floats.
      from_value: `from_value(x) -> u`, its inverse. It raises ValueError for numbers outside of the
        interval, rounded to its ends, or so close to one that to_value is flat, and TypeError for
        what is no number; traced numbers outside of it become NaN.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> u = hg.hyper.log10.from_value({"rate": 0.01})
      >>> print(f"{u['rate']:.3f} {hg.hyper.log10.to_value(u)['rate']:.3f}")
      -2.000 0.010
    """

    to_value: Callable[[Any], Any]
    from_value: Callable[[Any], Any]


def _made(
    name: str,
    to_value: Callable[[Array], Array],
    from_value: Callable[[Array], Array],
    low: float,
    high: float,
) -> Parametrization:
    def checked(path: Any, x: Any) -> Array:
        where = "x" + jax.tree_util.keystr(path) if path else "the value"
        if not is_real(x):
            raise TypeError(f"{where} is {x!r}, no real number, of which {name} could be taken.")
        dtype = common(float, x)
        if not isinstance(x, Tracer):
            given = np.asarray(x)
            with np.errstate(over="ignore", under="ignore"):
                numbers = given.astype(dtype)
                # XLA takes subnormal numbers for zero.
                numbers[np.abs(numbers) < jnp.finfo(dtype).tiny] = 0
            is_outside = ~((numbers > low) & (numbers < high))
            if is_outside.any():
                first, rounded = given[is_outside].flat[0].item(), numbers[is_outside].flat[0]
                inside = low < first < high
                as_what = f", which is {rounded} in {dtype}" if inside else ""
                raise ValueError(
                    f"{where} is {first!r}{as_what}, but {name} has values in ({low}, {high}) "
                    "only; pass a number inside, or another parametrization."
                )
            _require_slope(where, name, to_value, from_value, given, numbers)
            x = numbers
        array = jnp.asarray(x, dtype)
        return jnp.where((array > low) & (array < high), from_value(array), jnp.nan)

    def valued(path: Any, u: Any) -> Array:
        if not is_real(u):
            where = "u" + jax.tree_util.keystr(path)
            raise TypeError(f"{where} is {u!r}, no real number, which {name} could be the map of.")
        return to_value(jnp.asarray(u, common(float, u)))

    return Parametrization(
        lambda u: jax.tree_util.tree_map_with_path(valued, u, is_leaf=lambda _: u is None),
        # None in a tree is a place without a leaf; alone it is a value that somebody forgot.
        lambda x: jax.tree_util.tree_map_with_path(checked, x, is_leaf=lambda _: x is None),
    )


def _require_slope(
    where: str,
    name: str,
    to_value: Callable[[Array], Array],
    from_value: Callable[[Array], Array],
    given: np.ndarray,
    numbers: np.ndarray,
) -> None:
    """Raises if a number lies so close to an end of the range that u has no derivative there."""
    with jax.ensure_compile_time_eval():  # under jit too
        u = from_value(jnp.asarray(numbers))
        slope = jax.jvp(to_value, (u,), (jnp.ones_like(u),))[1]
        is_flat = ~(np.asarray(slope) != 0)
    if is_flat.any():
        raise ValueError(
            f"{where} is {given[is_flat].flat[0]!r}, so near to an end of {name} that its slope is "
            f"0 in {numbers.dtype}, and it could not be tuned; start farther inside."
        )


log: Parametrization = _made("log", jnp.exp, jnp.log, 0.0, np.inf)
"""x = exp(u), positive: the natural logarithm of a rate or coefficient."""

log10: Parametrization = _made("log10", lambda u: jnp.exp(np.log(10.0) * u), jnp.log10, 0.0, np.inf)
"""x = 10**u, positive."""

logit: Parametrization = _made("logit", jax.nn.sigmoid, jax.scipy.special.logit, 0.0, 1.0)
"""x = 1 / (1 + exp(-u)), in (0, 1): a decay, a probability, a weight."""

softplus: Parametrization = _made(
    "softplus", jax.nn.softplus, lambda x: x + jnp.log(-jnp.expm1(-x)), 0.0, np.inf
)
"""x = log(1 + exp(u)), positive, and about linear where it is large."""

one_minus_exp: Parametrization = _made(
    "one_minus_exp", lambda u: -jnp.expm1(u), lambda x: jnp.log1p(-x), -np.inf, 1.0
)
"""x = 1 - exp(u), below 1, and above 0 while u < 0: a decay by the logarithm of what it forgets."""
