"""The first step of a run, traced once before anything is computed, and why it failed.

What a user's functions raise there is often not about what is wrong: a loss that draws without a
key, a schedule that nobody named. Each known cause is tried out, by tracing the step without it:
if that goes well, it was the cause.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.functions import is_array, traced
from hgrad_jax.runs.trajectory import (
    Inputs,
    Trajectory,
    batch_and_key,
    first_state,
    float_step,
    inputs,
    recorded,
)
from hgrad_jax.tools import while_loops
from hgrad_jax.tools.guard import LOSS_WITHOUT_FORWARD_MODE, has_no_forward_mode
from hgrad_jax.tools.jaxprs import primitives
from hgrad_jax.types import Params, State

GRADIENT_IN_FORWARD_MODE = f"{LOSS_WITHOUT_FORWARD_MODE} train with gradient=hg.backpropagation."


def first_step(trajectory: Trajectory, params: Params, given: Inputs) -> tuple[State, State, Any]:
    """Returns shapes and dtypes of the state before step 0, after it, and of the trace.

    Raises:
      TypeError: a function asks a traced array for its value.
      Exception: whatever else a function of the user raises.
    """
    with traced("a step (loss, batch_fn, record, or a function of hparams)"):
        return jax.eval_shape(functools.partial(_first, trajectory), params, given)


def _first(trajectory: Trajectory, params: Params, given: Inputs) -> tuple[State, State, Any]:
    state = first_state(trajectory, params, given)
    if not all(map(is_array, jax.tree.leaves(state))):
        raise TypeError(f"transition.init returned {state!r}; a state must be a pytree of arrays.")
    slices = jax.tree.map(lambda x: x[0], given.schedules)
    after = float_step(
        trajectory, state, given.constants, slices, given.data, given.key, jnp.int32(0)
    )
    return state, after, recorded(trajectory, after, given.data)


def explain(error: Exception, trajectory: Trajectory, params: Params, given: Inputs) -> None:
    """Raises a ValueError or a TypeError if the cause is known; returns if it is not.

    Args:
      error: what `first_step` raised.
      trajectory: of the whole run.
      params: as `first_step` got them.
      given: likewise.
    """
    if while_loops.is_refusal(error):
        raise ValueError(while_loops.LOSS) from error
    if has_no_forward_mode(error):
        raise TypeError(GRADIENT_IN_FORWARD_MODE) from error
    if given.key is None and not str(error).startswith("key is None"):
        with_key = given._replace(key=jax.random.key(0))
        if _goes_well(trajectory, params, with_key):
            raise ValueError(
                f"key is None, but {_who_draws(trajectory, given)} draws random numbers by it: "
                "pass key=jax.random.key(0)."
            ) from error
    _explain_schedules(error, trajectory, params, given)


@contextlib.contextmanager
def forward_mode_explained(
    refusal: str, trajectory: Trajectory, params: Params, given: Inputs
) -> Iterator[None]:
    """Says whose `custom_vjp` it is, where JAX says that one has no derivative in forward mode.

    Args:
      refusal: what to say if it is not the training that takes gradients in forward mode.
      trajectory: the run.
      params: its initial parameters.
      given: its other inputs.
    """
    try:
        yield
    except TypeError as error:
        if not has_no_forward_mode(error):
            raise
        jaxpr = jax.make_jaxpr(functools.partial(_first, trajectory))(params, given)
        if "custom_lin" in primitives(jaxpr):  # the tangent of a custom_vjp
            refusal = GRADIENT_IN_FORWARD_MODE
        raise TypeError(refusal) from error


def _explain_schedules(
    error: Exception, trajectory: Trajectory, params: Params, given: Inputs
) -> None:
    """Raises if the step goes well with what has a row for each step as a schedule."""
    leaves: Any = [
        c if s is None else s for c, s in zip(given.constants, given.schedules, strict=True)
    ]
    hparams = jax.tree.unflatten(trajectory.treedef, leaves)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(hparams)]
    num_steps = trajectory.num_steps
    is_long = [
        not is_s and jnp.shape(x)[:1] == (num_steps,)
        for is_s, x in zip(trajectory.is_schedule, leaves, strict=True)
    ]
    is_schedule = tuple(a or b for a, b in zip(is_long, trajectory.is_schedule, strict=True))
    other = trajectory._replace(is_schedule=is_schedule)
    sorted_anew = inputs(other, hparams, given.data, given.key)
    if not any(is_long) or not _goes_well(other, params, sorted_anew):
        return
    axes = jax.tree.unflatten(trajectory.treedef, [0 if s else None for s in is_schedule])
    names = " and ".join(f"hparams{path}" for path, i in zip(paths, is_long, strict=True) if i)
    raise ValueError(
        f"hparams_axes does not name {names}, which has a row for each of the {num_steps} steps "
        f"and serves as a schedule only; pass hparams_axes={axes}."
    ) from error


def _goes_well(trajectory: Trajectory, params: Params, given: Inputs) -> bool:
    try:
        first_step(trajectory, params, given)
    except Exception:  # whatever a function of the user raises, that was not the only cause
        return False
    return True


def _who_draws(trajectory: Trajectory, given: Inputs) -> str:
    """Returns which function fails without a key: that of the batches, else the loss."""
    try:
        jax.eval_shape(lambda g: batch_and_key(trajectory, None, g.data, None, jnp.int32(0)), given)
    except Exception:  # as above
        return "batch_fn"
    return "the loss"
