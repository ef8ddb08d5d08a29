"""Linear systems A x = b whose matrix is only known by its products, on pytrees.

Each solver is a choice of settings with one method, `solve(matvec, b) -> (x, SolveInfo)`, a pure
function that runs under `jit` and `vmap`. It reports what it reached: the residual of the x that is
returned, computed anew and not by the recursion that led there, and the least curvature it met.

Conjugate gradients (Hestenes and Stiefel 1952), stopped at negative curvature as in Steihaug
(1983); the Neumann series, which is Richardson's iteration; GMRES with restarts (Saad and Schultz
1986), on `jax.scipy.sparse.linalg.gmres`. No preconditioners. Not differentiable in reverse mode.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import gmres

from hgrad_jax.inputs.arguments import take_fields
from hgrad_jax.inputs.functions import is_number, positive_int
from hgrad_jax.tools.dtypes import common, wide
from hgrad_jax.types import Array

Vector = Any
"""A pytree of floating-point arrays, taken as one vector."""

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


@dataclasses.dataclass(frozen=True)
class ConjugateGradient(LinearSolver):
    """Solves (A + damping I) x = b by conjugate gradients, for a symmetric A.

    The fewest products of the three for a symmetric positive definite matrix: some
    sqrt(condition number) * log(2 / tolerance) / 2 of them, and in exact arithmetic at most as many
    as A has distinct eigenvalues. Four vectors of memory. Stops at a direction of zero or negative
    curvature, where the method is not defined, and raises a flag; damping above the negative of the
    least eigenvalue makes the system positive definite, and another one: x is then biased towards
    zero along directions of little curvature. Not for matrices that are not symmetric.

    In float32 the residual cannot be brought much below 6e-8 times the condition number.

    Attributes:
      max_steps: most steps, a positive int.
      tolerance: of the relative residual, a positive float.
      damping: added to the diagonal, at least 0.

    Raises:
      ValueError: a setting is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> x, info = ConjugateGradient().solve(lambda x: jnp.array([1.0, 2.0]) * x, jnp.ones(2))
      >>> print([f"{v:.3f}" for v in x], int(info.num_steps))
      ['1.000', '0.500'] 2
    """

    max_steps: int = 200
    tolerance: float = 1e-4
    damping: float = 0.0

    needs_symmetry: ClassVar[bool] = True

    def __post_init__(self):
        positive_int("max_steps", self.max_steps)
        _require_tolerance(self.tolerance)
        if not is_number(self.damping) or not 0 <= self.damping < np.inf:
            raise ValueError(f"damping is {self.damping!r}; it must be a float of at least 0.")
        take_fields(self)

    def solve(self, matvec: Matvec, b: Vector) -> tuple[Vector, SolveInfo]:
        """Returns x like b with (A + damping I) x = b, and how well that holds.

        Args:
          matvec: `matvec(x) -> A x`, A symmetric.
          b: pytree of floating-point arrays.
        """
        system = _system(matvec, b, self.damping)

        def body(found):
            x, r, p, rr, k, curvature, _ = found
            product = system.apply(p)
            p_a_p, pp = _dot(p, product), _dot(p, p)
            is_indefinite = p_a_p <= 0
            length = jnp.where(is_indefinite, 0, rr / p_a_p)
            x, r = _add(x, length, p), _add(r, -length, product)
            rr_next = _dot(r, r)
            p = _add(r, rr_next / rr, p)
            return x, r, p, rr_next, k + 1, jnp.minimum(curvature, p_a_p / pp), is_indefinite

        # The recursion's residual drifts from the true one, which is what must be in tolerance.
        enough = (self.tolerance / 2) ** 2

        def goes_on(found):
            _, _, _, rr, k, _, is_indefinite = found
            return (k < self.max_steps) & (rr > enough) & ~is_indefinite & jnp.isfinite(rr)

        rr = _dot(system.b, system.b)
        x, _, _, _, k, curvature, is_indefinite = jax.lax.while_loop(
            goes_on,
            body,
            (_zeros(system.b), system.b, system.b, rr, *_no_steps(rr.dtype), jnp.zeros((), bool)),
        )
        curvature -= self.damping
        return _end(system, x, k, curvature, is_indefinite, self.tolerance)


@dataclasses.dataclass(frozen=True)
class Neumann(LinearSolver):
    """Solves A x = b by the Neumann series, x = step_size * sum_j (I - step_size A)^j b.

    One product and two vectors. Converges if and only if every eigenvalue of I - step_size A is
    inside the unit circle: for a symmetric positive definite A if step_size is below 2 over its
    largest eigenvalue, then in some (condition number) * log(1 / tolerance) steps; with
    step_size = 1 for A = I - J where J contracts. Diverges where A has negative curvature, and
    says so by its residual. Slower than conjugate gradients wherever those apply.

    A series that is cut short on purpose (Lorraine, Vicol and Duvenaud 2020 take 20 terms) is not
    solved to a small residual: ask for one by `max_steps` together with a large `tolerance`.

    Attributes:
      step_size: a positive float.
      max_steps: most terms, a positive int.
      tolerance: of the relative residual, a positive float.

    Raises:
      ValueError: a setting is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> x, info = Neumann(0.5).solve(lambda x: jnp.array([1.0, 2.0]) * x, jnp.ones(2))
      >>> print([f"{v:.3f}" for v in x])
      ['1.000', '0.500']
    """

    step_size: float
    max_steps: int = 1000
    tolerance: float = 1e-4

    def __post_init__(self):
        _require_positive("step_size", self.step_size)
        positive_int("max_steps", self.max_steps)
        _require_tolerance(self.tolerance)
        take_fields(self)

    def solve(self, matvec: Matvec, b: Vector) -> tuple[Vector, SolveInfo]:
        """Returns x like b with A x = b, and how well that holds.

        Args:
          matvec: `matvec(x) -> A x`.
          b: pytree of floating-point arrays.
        """
        system = _system(matvec, b)

        def body(found):
            x, r, rr, k, curvature = found
            product = system.apply(r)
            curvature = jnp.minimum(curvature, _dot(r, product) / rr)
            x, r = _add(x, self.step_size, r), _add(r, -self.step_size, product)
            return x, r, _dot(r, r), k + 1, curvature

        enough = (self.tolerance / 2) ** 2

        def goes_on(found):
            _, _, rr, k, _ = found
            return (k < self.max_steps) & (rr > enough) & jnp.isfinite(rr)

        rr = _dot(system.b, system.b)
        x, _, _, k, curvature = jax.lax.while_loop(
            goes_on, body, (_zeros(system.b), system.b, rr, *_no_steps(rr.dtype))
        )
        return _end(system, x, k, curvature, curvature <= 0, self.tolerance)


@dataclasses.dataclass(frozen=True)
class GMRES(LinearSolver):
    """Solves A x = b by GMRES with restarts, for any regular A.

    The x of each cycle has the least residual in a space of `restart` products; memory for as many
    vectors. Long cycles converge where short ones stagnate. For a symmetric positive definite A
    conjugate gradients take fewer products and a fixed memory.

    Attributes:
      max_steps: most products, a positive int; the last cycle is finished.
      restart: products in a cycle, a positive int; never more than b has numbers.
      tolerance: of the relative residual, a positive float.

    Raises:
      ValueError: a setting is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> turn = jnp.array([[0.0, -1.0], [1.0, 0.0]])
      >>> x, info = GMRES().solve(lambda x: turn @ x, jnp.array([1.0, 0.0]))
      >>> print([f"{abs(v):.3f}" for v in x], bool(info.is_converged))
      ['0.000', '1.000'] True
    """

    max_steps: int = 200
    restart: int = 20
    tolerance: float = 1e-4

    def __post_init__(self):
        positive_int("max_steps", self.max_steps)
        positive_int("restart", self.restart)
        _require_tolerance(self.tolerance)

    def solve(self, matvec: Matvec, b: Vector) -> tuple[Vector, SolveInfo]:
        """Returns x like b with A x = b, and how well that holds.

        Args:
          matvec: `matvec(x) -> A x`.
          b: pytree of floating-point arrays.
        """
        system = _system(matvec, b)
        length = min(self.restart, sum(leaf.size for leaf in jax.tree.leaves(system.b)))

        def body(found):
            x, r, _, k, curvature = found
            step, _ = gmres(system.apply, r, tol=self.tolerance / 2, restart=length, maxiter=1)
            product = system.apply(step)
            curvature = jnp.minimum(curvature, _dot(step, product) / _dot(step, step))
            x, r = _add(x, 1, step), _add(r, -1, product)
            return x, r, norm(r), k + length, curvature

        def goes_on(found):
            _, _, residual, k, _ = found
            is_short = residual > self.tolerance / 2
            return (k < self.max_steps) & is_short & jnp.isfinite(residual)

        start = norm(system.b)
        x, _, _, k, curvature = jax.lax.while_loop(
            goes_on, body, (_zeros(system.b), system.b, start, *_no_steps(start.dtype))
        )
        return _end(system, x, k, curvature, curvature <= 0, self.tolerance)


def norm(tree: Vector) -> Array:
    """Returns the Euclidean norm of a pytree, a scalar of float32 or wider that cannot overflow.

    >>> import jax.numpy as jnp
    >>> print(f"{norm({'a': jnp.float32(3e-30), 'b': jnp.array([4e-30])}):.1e}")
    5.0e-30
    """
    leaves = [_wide(leaf) for leaf in jax.tree.leaves(tree) if leaf.size]
    dtype = common(jnp.float32, *leaves)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)).astype(dtype) for leaf in leaves]))
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return scale * jnp.sqrt(sum(jnp.sum((leaf.astype(dtype) / scale) ** 2) for leaf in leaves))


class _System(NamedTuple):
    """A system with a right-hand side of norm 1, in float32 or wider."""

    apply: Matvec
    b: Vector
    size: Array
    like: Vector


def _system(matvec: Matvec, b: Vector, damping: float = 0.0) -> _System:
    size = norm(b)
    # The norm is squared on the way, and a hypergradient's right-hand side may be of any size.
    scale = jnp.where(size > 0, size, 1)
    unit = jax.tree.map(lambda leaf: (_wide(leaf) / scale).astype(_wide(leaf).dtype), b)

    def apply(x):
        narrow = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), x, b)
        return _add(jax.tree.map(_wide, matvec(narrow)), damping, x)

    return _System(apply, unit, size, b)


def _end(
    system: _System,
    x: Vector,
    num_steps: Array,
    curvature: Array,
    is_indefinite: Array,
    tolerance: float,
) -> tuple[Vector, SolveInfo]:
    """Returns x in the scale and the dtypes of the right-hand side, and its info."""
    residual = norm(_add(system.b, -1, system.apply(x)))
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


def _no_steps(dtype: Any) -> tuple[Array, Array]:
    return jnp.int32(0), jnp.asarray(jnp.inf, dtype)


def _wide(x: Any) -> Array:
    return jnp.asarray(x).astype(wide(jnp.result_type(x)))


def _zeros(tree: Vector) -> Vector:
    return jax.tree.map(jnp.zeros_like, tree)


def _dot(x: Vector, y: Vector) -> Array:
    dots = [jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)]
    return sum(dots[1:], start=dots[0])


def _add(x: Vector, factor: Any, y: Vector) -> Vector:
    """Returns x + factor * y in the dtypes of x."""
    return jax.tree.map(lambda a, b: (a + factor * b).astype(a.dtype), x, y)


def _require_positive(name: str, value: Any) -> None:
    if not is_number(value) or not value > 0:
        raise ValueError(f"{name} is {value!r}; it must be a positive float.")


def _require_tolerance(value: Any) -> None:
    if not is_number(value) or not 0 < value < 1:
        raise ValueError(
            f"tolerance is {value!r}; it must be between 0 and 1: the residual relative to the "
            "right hand side, which zero has already at 1."
        )
