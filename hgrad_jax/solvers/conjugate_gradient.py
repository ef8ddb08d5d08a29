"""Conjugate gradients (Hestenes and Stiefel 1952), stopped as in Steihaug (1983)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.inputs.arguments import take_fields
from hgrad_jax.inputs.functions import is_number, positive_int
from hgrad_jax.solvers.system import (
    LinearSolver,
    Matvec,
    SolveInfo,
    ended,
    no_steps,
    require_tolerance,
    system_of,
)
from hgrad_jax.solvers.vectors import Vector, add, dot, zeros


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

    def __post_init__(self) -> None:
        positive_int("max_steps", self.max_steps)
        require_tolerance(self.tolerance)
        if not is_number(self.damping) or not 0 <= self.damping < np.inf:
            raise ValueError(f"damping is {self.damping!r}; it must be a float of at least 0.")
        take_fields(self)

    def solve(self, matvec: Matvec, b: Vector) -> tuple[Vector, SolveInfo]:
        """Returns x like b with (A + damping I) x = b, and how well that holds.

        Args:
          matvec: `matvec(x) -> A x`, A symmetric.
          b: pytree of floating-point arrays.
        """
        system = system_of(matvec, b, self.damping)

        def body(found):
            x, r, p, rr, k, curvature, _ = found
            product = system.apply(p)
            p_a_p, pp = dot(p, product), dot(p, p)
            is_indefinite = p_a_p <= 0
            length = jnp.where(is_indefinite, 0, rr / p_a_p)
            x, r = add(x, length, p), add(r, -length, product)
            rr_next = dot(r, r)
            p = add(r, rr_next / rr, p)
            return x, r, p, rr_next, k + 1, jnp.minimum(curvature, p_a_p / pp), is_indefinite

        # The recursion's residual drifts from the true one, which is what must be in tolerance.
        enough = (self.tolerance / 2) ** 2

        def goes_on(found):
            _, _, _, rr, k, _, is_indefinite = found
            return (k < self.max_steps) & (rr > enough) & ~is_indefinite & jnp.isfinite(rr)

        rr = dot(system.b, system.b)
        x, _, _, _, k, curvature, is_indefinite = jax.lax.while_loop(
            goes_on,
            body,
            (zeros(system.b), system.b, system.b, rr, *no_steps(rr.dtype), jnp.zeros((), bool)),
        )
        curvature -= self.damping
        return ended(system, x, k, curvature, is_indefinite, self.tolerance)
