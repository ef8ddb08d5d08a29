"""Every k-th state of a run in floating point, which the diagnostics of its path read."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.adjoints.direct import Direct
from hgrad_jax.adjoints.polyline import remember
from hgrad_jax.runs import validate
from hgrad_jax.runs.trajectory import Inputs, Trajectory, first_state, inputs
from hgrad_jax.tools.trees import layout, ravel
from hgrad_jax.types import Array, BatchFn, Data, Hparams, Params, State, Transition


class Path(NamedTuple):
    """What is kept of a run.

    Attributes:
      trajectory: its fixed part.
      inputs: its hyperparameters, data and key.
      steps: before which steps the states were, int `[K]`, from 0 to T.
      states: those states, each leaf with a leading axis `[K]`.
    """

    trajectory: Trajectory
    inputs: Inputs
    steps: np.ndarray
    states: State


def path_of(
    transition: Transition,
    params: Params,
    hparams: Hparams,
    data: Data,
    *,
    num_steps: int,
    every: int,
    key: Array | None,
    batch_fn: BatchFn | None,
    hparams_axes: Any,
) -> Path:
    """Trains as `unroll` does and returns the states before steps 0, every, 2 every, ..., and T.

    Compiles one program and runs it. Holds T / every states, velocities and moments included.

    Args:
      transition: as `unroll`.
      params: as `unroll`.
      hparams: as `unroll`.
      data: as `unroll`.
      num_steps: as `unroll`.
      every: 1 to T.
      key: as `unroll`.
      batch_fn: as `unroll`.
      hparams_axes: as `unroll`.

    Raises:
      ValueError: `every` is out of range; else as `unroll`.
      TypeError: as `unroll`.
    """
    validate.adjoint_serves(Direct(), transition)
    validate.run_functions(batch_fn, key, None)
    is_schedule = validate.schedules(hparams, hparams_axes, num_steps)
    require_count("every", every, 1, num_steps, "num_steps")
    trajectory = Trajectory(
        transition, num_steps, batch_fn, is_schedule, jax.tree.structure(hparams), None
    )
    params = validate.floating(params, "params")
    given = inputs(trajectory, validate.floating(hparams, "hparams"), data, key)
    validate.step(trajectory, params, given)
    at = np.append(np.arange(0, num_steps, every), num_steps)

    @jax.jit
    def run(params, given):
        start = first_state(trajectory, params, given)
        _, _, polyline = remember(trajectory, start, given, jnp.asarray(at, jnp.int32))
        return polyline.corners

    return Path(trajectory, given, at, run(params, given))


def norm(tree: Any) -> Array:
    """Returns the Euclidean norm of a pytree, finite wherever it can be written: scalar."""
    vector = ravel(tree, layout(tree))
    largest = jnp.max(jnp.abs(vector), initial=0)
    # Scaled first: a path that has parted grows until its squares overflow.
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return scale * jnp.linalg.norm(vector / scale)


def require_count(name: str, value: Any, least: int, most: int, what: str) -> None:
    """Raises a ValueError unless a setting is an int from `least` to `most`, which is `what`."""
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_int or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; it must be an int from {least} to {most} ({what}).")
