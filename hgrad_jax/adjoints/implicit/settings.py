"""What the settings of `Implicit` may be."""

from typing import Any

import numpy as np

from hgrad_jax.adjoints.implicit.conditions import Condition
from hgrad_jax.solvers.system import LinearSolver


def require_settings(condition: Any, solver: Any, batches: Any) -> None:
    """Raises if a setting is not of its kind, or the solver not one for the condition.

    Raises:
      TypeError: `condition` or `solver` is none.
      ValueError: the solver needs symmetry, or `batches` is no positive int.
    """
    if condition is not None and not isinstance(condition, Condition):
        raise TypeError(
            f"condition is {condition!r}; pass Stationary(loss), Root(function), "
            "FixedPoint(function), or None for the stationary points of the rule's own loss."
        )
    if not isinstance(solver, LinearSolver):
        raise TypeError(
            f"solver is {solver!r}; it must be an object such as ConjugateGradient() or GMRES()."
        )
    is_symmetric = condition is None or condition.is_symmetric
    if solver.needs_symmetry and not is_symmetric:
        raise ValueError(
            f"solver is {solver!r}, which needs a symmetric condition, and "
            f"{type(condition).__name__} is not; pass GMRES() or Neumann(step_size), or "
            "Stationary(loss) if the condition is the gradient of a loss."
        )
    is_int = isinstance(batches, int | np.integer) and not isinstance(batches, bool)
    if batches is not None and (not is_int or batches < 1):
        raise ValueError(
            f"batches is {batches!r}; it must be a positive int, the number of last "
            "batches that the condition is the mean over, or None for the data whole."
        )
