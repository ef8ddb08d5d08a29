"""GMRES with restarts (Saad and Schultz 1986), on `jax.scipy.sparse.linalg.gmres`."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import gmres

from hgrad_jax.inputs.functions import positive_int
from hgrad_jax.solvers.system import (
    LinearSolver,
    Matvec,
    SolveInfo,
    ended,
    no_steps,
    require_tolerance,
    system_of,
)
from hgrad_jax.solvers.vectors import Vector, add, dot, norm, zeros


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

    def __post_init__(self) -> None:
        positive_int("max_steps", self.max_steps)
        positive_int("restart", self.restart)
        require_tolerance(self.tolerance)

    def solve(self, matvec: Matvec, b: Vector) -> tuple[Vector, SolveInfo]:
        """Returns x like b with A x = b, and how well that holds.

        Args:
          matvec: `matvec(x) -> A x`.
          b: pytree of floating-point arrays.
        """
        system = system_of(matvec, b)
        length = min(self.restart, sum(leaf.size for leaf in jax.tree.leaves(system.b)))

        def body(found):
            x, r, _, k, curvature = found
            step, _ = gmres(system.apply, r, tol=self.tolerance / 2, restart=length, maxiter=1)
            product = system.apply(step)
            curvature = jnp.minimum(curvature, dot(step, product) / dot(step, step))
            x, r = add(x, 1, step), add(r, -1, product)
            return x, r, norm(r), k + length, curvature

        def goes_on(found):
            _, _, residual, k, _ = found
            is_short = residual > self.tolerance / 2
            return (k < self.max_steps) & is_short & jnp.isfinite(residual)

        start = norm(system.b)
        x, _, _, k, curvature = jax.lax.while_loop(
            goes_on, body, (zeros(system.b), system.b, start, *no_steps(start.dtype))
        )
        return ended(system, x, k, curvature, curvature <= 0, self.tolerance)
