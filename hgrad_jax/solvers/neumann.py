"""The Neumann series, which is Richardson's iteration."""

import dataclasses

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.arguments import take_fields
from hgrad_jax.inputs.functions import positive_int
from hgrad_jax.solvers.system import (
    LinearSolver,
    Matvec,
    SolveInfo,
    ended,
    no_steps,
    require_positive,
    require_tolerance,
    system_of,
)
from hgrad_jax.solvers.vectors import Vector, add, dot, zeros


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

    def __post_init__(self) -> None:
        require_positive("step_size", self.step_size)
        positive_int("max_steps", self.max_steps)
        require_tolerance(self.tolerance)
        take_fields(self)

    def solve(self, matvec: Matvec, b: Vector) -> tuple[Vector, SolveInfo]:
        """Returns x like b with A x = b, and how well that holds.

        Args:
          matvec: `matvec(x) -> A x`.
          b: pytree of floating-point arrays.
        """
        system = system_of(matvec, b)

        def body(found):
            x, r, rr, k, curvature = found
            product = system.apply(r)
            curvature = jnp.minimum(curvature, dot(r, product) / rr)
            x, r = add(x, self.step_size, r), add(r, -self.step_size, product)
            return x, r, dot(r, r), k + 1, curvature

        enough = (self.tolerance / 2) ** 2

        def goes_on(found):
            _, _, rr, k, _ = found
            return (k < self.max_steps) & (rr > enough) & jnp.isfinite(rr)

        rr = dot(system.b, system.b)
        x, _, _, k, curvature = jax.lax.while_loop(
            goes_on, body, (zeros(system.b), system.b, rr, *no_steps(rr.dtype))
        )
        return ended(system, x, k, curvature, curvature <= 0, self.tolerance)
