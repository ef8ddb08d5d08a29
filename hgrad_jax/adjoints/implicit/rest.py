"""Where a run comes to rest, and the means over its last batches: what `Implicit` evaluates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.runs.trajectory import Inputs, Trajectory, batch_and_key, hparams_of
from hgrad_jax.solvers.vectors import norm
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
      trajectory: the run.
      batches: how many of the last batches the condition is the mean over; None for the data whole.
    """

    params: Params
    hparams: Hparams
    data: Data
    key: Array | None
    start: Array
    trajectory: Trajectory
    batches: int | None

    def last_batch(self) -> tuple[Batch, Array | None]:
        """Returns the last step's batch and loss key; the data whole where `batches` is None."""
        return self._batch(jnp.int32(self.trajectory.num_steps - 1))

    def mean(self, function: Callable[[Batch, Array | None], Any]) -> Any:
        """Returns the mean of a function over the last batches; of one, whatever it returns."""
        if self.batches is None or self.batches == 1:
            return function(*self.last_batch())

        def add(total, t):
            return jax.tree.map(jnp.add, total, function(*self._batch(t))), None

        batches, end = self.batches, self.trajectory.num_steps
        shapes = jax.eval_shape(lambda: function(*self.last_batch()))
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, jnp.arange(end - batches, end, dtype=jnp.int32))
        return jax.tree.map(lambda x: x / batches, total)

    def _batch(self, t: Array) -> tuple[Batch, Array | None]:
        trajectory = self.trajectory
        source = trajectory._replace(batch_fn=None) if self.batches is None else trajectory
        return batch_and_key(source, self.hparams, self.data, self.key, t)


def rest_of(
    trajectory: Trajectory, end: State, params: Params, inputs: Inputs, batches: int | None
) -> Rest:
    """Returns where a run that began at `params` and ended in the state `end` is evaluated."""
    slices = jax.tree.map(lambda rows: rows[-1], inputs.schedules)
    return Rest(
        trajectory.transition.params(end),
        hparams_of(trajectory, inputs.constants, slices),
        inputs.data,
        inputs.key,
        norm(params),
        trajectory,
        batches,
    )


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
