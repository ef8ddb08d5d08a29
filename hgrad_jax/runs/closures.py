"""What a user's functions close over, as inputs of an adjoint's own derivative rule.

    def end(l2):
        def loss(params, hparams, batch, key): ...l2...
        return unroll(heavy_ball(loss), ...).params

JAX differentiates `end` in l2 by itself where it sees into the run. A custom rule may read nothing
but its arguments, so there `Inputs.closed` brings such values in. Those that are being
differentiated then join the constant hyperparameters and have a cotangent like those; the others,
data sets among them, are bound to the functions as they are, and cost nothing.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from hgrad_jax.runs.traced_once import TracedOnce, bound
from hgrad_jax.runs.trajectory import Extended, Inputs, Trajectory
from hgrad_jax.tools.guard import is_float
from hgrad_jax.types import State


def separate(inputs: Inputs, is_differentiated: Sequence[bool]) -> Inputs:
    """Moves the closed-over values that are differentiated to the constant hyperparameters.

    Args:
      inputs: as given to the rule.
      is_differentiated: of each closed-over value.

    Returns:
      The inputs; None in the places of what has moved.
    """
    moved = tuple(x for x, is_it in zip(inputs.closed, is_differentiated, strict=True) if is_it)
    return inputs._replace(
        constants=(*inputs.constants, *moved),
        schedules=(*inputs.schedules, *(None for _ in moved)),
        closed=tuple(
            None if is_it else x for x, is_it in zip(inputs.closed, is_differentiated, strict=True)
        ),
    )


def opened(trajectory: Trajectory, inputs: Inputs) -> Trajectory:
    """Returns the trajectory of separated inputs: it reads what it closes over from them."""
    is_moved = [x is None for x in inputs.closed]
    trajectory = bound(trajectory, inputs.closed)
    if not any(is_moved):
        return trajectory
    count = len(trajectory.is_schedule)
    hparams = jax.tree.unflatten(trajectory.treedef, [0] * count)
    places: Any = tuple(0 if is_it else None for is_it in is_moved)
    extended = Extended(hparams, places)
    return trajectory._replace(
        is_schedule=(*trajectory.is_schedule, *(False for is_it in is_moved if is_it)),
        treedef=jax.tree.structure(extended),
    )


def rejoined(bars: Inputs, inputs: Inputs) -> Inputs:
    """Returns the cotangents of separated inputs as those of the inputs as they were given."""
    count = len(inputs.constants) - sum(x is None for x in inputs.closed)
    moved = iter(bars.constants[count:])
    closed = tuple(next(moved) if x is None else None for x in inputs.closed)
    return bars._replace(
        constants=bars.constants[:count], schedules=bars.schedules[:count], closed=closed
    )


def entered(
    trajectory: Trajectory, state: State, inputs: Inputs, adjoint: str
) -> tuple[State, Inputs]:
    """Returns state and separated inputs of what JAX hands to a rule with symbolic zeros.

    Args:
      trajectory: traced once.
      state: each leaf a value with whether it is differentiated.
      inputs: likewise.
      adjoint: what a message calls the rule's adjoint.

    Raises:
      ValueError: `record` closes over a value that is differentiated.
    """
    moved = is_differentiated(inputs.closed)
    state, inputs = primals((state, inputs))
    inputs = separate(inputs, moved)
    if _closes_over_moved(trajectory.record, inputs):
        raise ValueError(
            f"record closes over a value that is differentiated, which {adjoint} does not follow; "
            "record the state's part, and compute with that value from the trace, or use Direct() "
            "or Checkpointed()."
        )
    return state, inputs


def require_given_batches(trajectory: Trajectory, inputs: Inputs) -> None:
    """Raises a ValueError if `batch_fn` closes over a value that is differentiated.

    Args:
      trajectory: traced once.
      inputs: separated.
    """
    if _closes_over_moved(trajectory.batch_fn, inputs):
        raise ValueError(
            "batch_fn closes over a value that is differentiated, which Implicit() takes as given; "
            "read it in the loss instead, or use an adjoint that unrolls, such as Reversible()."
        )


def _closes_over_moved(function: Any, inputs: Inputs) -> bool:
    return isinstance(function, TracedOnce) and any(
        inputs.closed[i] is None for i in function.closes_over()
    )


def primals(tree: Any) -> Any:
    """Returns the values of what JAX hands to a rule with symbolic zeros."""
    return jax.tree.map(lambda leaf: leaf.value, tree)


def is_differentiated(leaves: Sequence[Any]) -> tuple[bool, ...]:
    """Returns of each such leaf whether it is differentiated."""
    return tuple(bool(leaf.perturbed) and is_float(leaf.value) for leaf in leaves)


def instantiated(bars: Any) -> Any:
    """Returns cotangents with numbers in place of symbolic zeros."""
    zero = jax.custom_derivatives.SymbolicZero

    def number(bar: Any) -> Any:
        if not isinstance(bar, zero):
            return bar
        aval: Any = bar
        return np.zeros(aval.shape, aval.dtype if is_float(aval) else jax.dtypes.float0)

    return jax.tree.map(number, bars, is_leaf=lambda bar: isinstance(bar, zero))
