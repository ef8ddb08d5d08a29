"""The hypergradient of a condition: one linear system, and how far it can be believed."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.adjoints.implicit.conditions import Condition
from hgrad_jax.adjoints.implicit.rest import Rest
from hgrad_jax.runs.trajectory import Inputs
from hgrad_jax.solvers.system import LinearSolver, SolveInfo
from hgrad_jax.solvers.vectors import norm
from hgrad_jax.types import Array, Params


class ImplicitInfo(NamedTuple):
    """How far an implicit hypergradient can be believed. `hg.check` reads it.

    Attributes:
      stationarity: float32 scalar, about how far the parameters are from the point where the
        condition holds, relative to their size; see `Implicit`.
      is_stationary: bool scalar, that is within the tolerance.
      residual: float32 scalar, |b - A u| / |b| of the linear system; NaN where b is not finite.
      is_converged: bool scalar, that is within the solver's tolerance.
      is_indefinite: bool scalar, the condition is symmetric and the solver met a direction in which
        its matrix, damping included, has zero or negative curvature.
      num_steps: int32 scalar, steps of the solver.
      curvature: float32 scalar, the least curvature that the solver met, without damping.
      is_trace_dropped: bool scalar, the pullback of `hg.vjp` was given a cotangent of the trace
        that is not zero.
    """

    stationarity: Array
    is_stationary: Array
    residual: Array
    is_converged: Array
    is_indefinite: Array
    num_steps: Array
    curvature: Array
    is_trace_dropped: Array


def solved(
    condition: Condition, solver: LinearSolver, rest: Rest, params_bar: Params
) -> tuple[Params, SolveInfo]:
    """Returns u with (dc/dparams)^T u = params_bar, and how well that holds."""
    return solver.solve(_product(condition, rest), params_bar)


def info_of(
    condition: Condition,
    solve: SolveInfo,
    rest: Rest,
    direction: Params,
    params_bar: Params,
    tolerance: float,
    is_trace_dropped: Array,
) -> ImplicitInfo:
    """Returns how far the hypergradient of a solution can be believed.

    Args:
      condition: what holds at rest.
      solve: how the system was solved.
      rest: where the run came to rest.
      direction: u, the solution, a tree like params.
      params_bar: the system's right-hand side.
      tolerance: of the stationarity.
      is_trace_dropped: bool scalar.
    """
    residual = rest.mean(
        lambda batch, key: condition.residual(rest.params, rest.hparams, batch, key)
    )
    gain = _ratio(norm(direction), norm(params_bar))
    size = norm(rest.params) + rest.start
    stationarity = gain * _ratio(norm(residual), size)
    return ImplicitInfo(
        stationarity.astype(jnp.float32),
        stationarity <= tolerance,
        solve.residual,
        solve.is_converged,
        solve.is_indefinite & condition.is_symmetric,
        solve.num_steps,
        solve.curvature,
        is_trace_dropped,
    )


def bars_of(
    condition: Condition,
    rest: Rest,
    direction: Params,
    params: Params,
    inputs: Inputs,
    is_good: Array,
) -> tuple[Params, Inputs]:
    """Returns the cotangents of the initial parameters and of the inputs; NaN if not `is_good`."""

    def kept(x):
        return jnp.where(is_good, x, jnp.nan)

    hparams_bar = rest.mean(
        lambda batch, key: condition.hparams_product(
            rest.params, rest.hparams, batch, key, direction
        )
    )
    bars = [-leaf for leaf in jax.tree.leaves(hparams_bar)]
    constants = tuple(
        kept(bar) if rows is None else None
        for bar, rows in zip(bars, inputs.schedules, strict=True)
    )
    schedules = tuple(
        None if rows is None else kept(jnp.zeros_like(rows).at[-1].set(bar))
        for bar, rows in zip(bars, inputs.schedules, strict=True)
    )
    start_bar = jax.tree.map(lambda x: kept(jnp.zeros_like(x)), params)
    return start_bar, Inputs(constants, schedules, None, None)


def _product(condition: Condition, rest: Rest) -> Callable[[Params], Params]:
    """Returns the function u -> (dc/dparams)^T u, of the condition's mean over the batches."""

    def at(batch, key):
        return condition.product(rest.params, rest.hparams, batch, key)

    if rest.batches in (None, 1):
        # What does not depend on u is evaluated here, once for all steps of the solver.
        return rest.mean(at)
    return lambda u: rest.mean(lambda b, key: at(b, key)(u))


def _ratio(x: Array, y: Array) -> Array:
    """Returns x / y, and 0 where x is 0."""
    return jnp.where(x == 0, 0, x / jnp.where(x == 0, 1, y))
