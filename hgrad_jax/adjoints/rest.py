"""Where a run comes to rest, and the means over its last batches: what `Implicit` evaluates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.runs.trajectory import Inputs, Trajectory, batch_and_key, hparams_of
from hgrad_jax.solvers.linear_solvers import norm
from hgrad_jax.tools.trees import is_like, shown
from hgrad_jax.types import Array, Batch, Data, Hparams, Params, State


class Rest(NamedTuple):
    """Where a run came to rest: what the condition is evaluated at.

    Attributes:
      params: as `Transition.params` reads them.
      hparams: those of the last step.
      data: as given.
      key: as given.
      start: norm of the initial parameters.
    """

    params: Params
    hparams: Hparams
    data: Data
    key: Array | None
    start: Array


def rest_of(trajectory: Trajectory, end: State, params: Params, inputs: Inputs) -> Rest:
    """Returns where a run that ended in the state `end` is evaluated."""
    slices = jax.tree.map(lambda rows: rows[-1], inputs.schedules)
    return Rest(
        trajectory.transition.params(end),
        hparams_of(trajectory, inputs.constants, slices),
        inputs.data,
        inputs.key,
        norm(params),
    )


def last_batch(
    batches: int | None, trajectory: Trajectory, rest: Rest
) -> tuple[Batch, Array | None]:
    """Returns the last step's batch and loss key; the data whole where `batches` is None."""
    return _batch(batches, trajectory, rest, jnp.int32(trajectory.num_steps - 1))


def mean(
    batches: int | None,
    trajectory: Trajectory,
    rest: Rest,
    function: Callable[[Batch, Array | None], Any],
) -> Any:
    """Returns the mean of a function over the last batches; of one batch, whatever it returns."""
    if batches is None or batches == 1:
        return function(*last_batch(batches, trajectory, rest))

    def add(total, t):
        value = function(*_batch(batches, trajectory, rest, t))
        return jax.tree.map(jnp.add, total, value), None

    last = trajectory.num_steps
    shapes = jax.eval_shape(lambda: function(*last_batch(batches, trajectory, rest)))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, jnp.arange(last - batches, last, dtype=jnp.int32))
    return jax.tree.map(lambda x: x / batches, total)


def require_like_data(trajectory: Trajectory, inputs: Inputs) -> None:
    """Raises a ValueError if batches cannot be smaller pieces of the data."""

    def shapes(tree):
        return shown(tree, lambda x: f"{x.dtype}{list(x.shape)}")

    batch, data = jax.eval_shape(
        lambda data, key: (batch_and_key(trajectory, None, data, key, jnp.int32(0))[0], data),
        inputs.data,
        inputs.key,
    )
    if not is_like(batch, data, lambda x: (x.dtype, x.ndim, x.shape[1:])):
        raise ValueError(
            f"batches is None, for the data whole as one batch, but the data are {shapes(data)} "
            f"and batch_fn makes {shapes(batch)} of them; pass Implicit(batches=k) for the mean "
            "over the last k batches."
        )


def _batch(
    batches: int | None, trajectory: Trajectory, rest: Rest, t: Array
) -> tuple[Batch, Array | None]:
    source = trajectory._replace(batch_fn=None) if batches is None else trajectory
    return batch_and_key(source, rest.hparams, rest.data, rest.key, t)
