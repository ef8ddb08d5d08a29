"""A system of norm 1, how it was solved, and what a solver is."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.functions import is_number
from hgrad_jax.solvers.vectors import Vector, add, norm, widened
from hgrad_jax.types import Array

Matvec = Callable[[Vector], Vector]
"""`matvec(x) -> A x`, linear, a tree like x in and out."""


class SolveInfo(NamedTuple):
    """How well a linear system was solved.

    Attributes:
      residual: float32 scalar, |b - A x| / |b| of the returned x; 0 where b is 0, infinite where
        it overflowed, NaN where b is not finite.
      num_steps: int32 scalar, steps taken, each with one product.
      curvature: float32 scalar, the least p^T A p / p^T p over the directions p that the solver
        met, without damping; infinite if it met none. Never below the least eigenvalue of a
        symmetric A. Of a matrix that is not symmetric it says nothing.
      is_indefinite: bool scalar, the curvature of the system that was solved, damping included, was
        zero or negative. The directions met are not all there are: False proves nothing.
      is_converged: bool scalar, the residual is within the tolerance.
    """

    residual: Array
    num_steps: Array
    curvature: Array
    is_indefinite: Array
    is_converged: Array


class LinearSolver:
    """How a linear system is solved. Subclasses are frozen dataclasses and define `solve`.

    Attributes:
      needs_symmetry: whether the matrix must be symmetric.
    """

    needs_symmetry: ClassVar[bool] = False

    def solve(self, matvec: Matvec, b: Vector) -> tuple[Vector, SolveInfo]:
        """Returns x with A x = b, and how well that holds."""
        raise NotImplementedError


class System(NamedTuple):
    """A system with a right-hand side of norm 1, in float32 or wider."""

    apply: Matvec
    b: Vector
    size: Array
    like: Vector


def system_of(matvec: Matvec, b: Vector, damping: float = 0.0) -> System:
    """Returns the system (A + damping I) x = b in the scale of b."""
    size = norm(b)
    # The norm is squared on the way, and a hypergradient's right-hand side may be of any size.
    scale = jnp.where(size > 0, size, 1)
    unit = jax.tree.map(lambda leaf: (widened(leaf) / scale).astype(widened(leaf).dtype), b)

    def apply(x):
        narrow = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), x, b)
        return add(jax.tree.map(widened, matvec(narrow)), damping, x)

    return System(apply, unit, size, b)


def ended(
    system: System,
    x: Vector,
    num_steps: Array,
    curvature: Array,
    is_indefinite: Array,
    tolerance: float,
) -> tuple[Vector, SolveInfo]:
    """Returns x in the scale and the dtypes of the right-hand side, and its info."""
    residual = norm(add(system.b, -1, system.apply(x)))
    # NaN is kept for a right-hand side that was not finite: what overflows is not its fault.
    residual = jnp.where(jnp.isnan(residual), jnp.inf, residual)
    residual = jnp.where(jnp.isfinite(system.size), residual, jnp.nan)
    found = jax.tree.map(lambda leaf, like: (system.size * leaf).astype(like.dtype), x, system.like)
    return found, SolveInfo(
        residual.astype(jnp.float32),
        num_steps,
        curvature.astype(jnp.float32),
        is_indefinite,
        residual <= tolerance,
    )


def no_steps(dtype: Any) -> tuple[Array, Array]:
    """Returns the number of steps and the least curvature before the first one."""
    return jnp.int32(0), jnp.asarray(jnp.inf, dtype)


def require_positive(name: str, value: Any) -> None:
    """Raises a ValueError if a setting is no positive number."""
    if not is_number(value) or not value > 0:
        raise ValueError(f"{name} is {value!r}; it must be a positive float.")


def require_tolerance(value: Any) -> None:
    """Raises a ValueError if a tolerance is not between 0 and 1."""
    if not is_number(value) or not 0 < value < 1:
        raise ValueError(
            f"tolerance is {value!r}; it must be between 0 and 1: the residual relative to the "
            "right hand side, which zero has already at 1."
        )
