"""Every k-th state of a run in floating point, which the diagnostics of its path read."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.adjoints.polyline import remember
from hgrad_jax.adjoints.reversible import Reversible
from hgrad_jax.inputs.arguments import prng_key
from hgrad_jax.run import Run, require_run, trajectory_of
from hgrad_jax.runs import validate
from hgrad_jax.runs.trajectory import Inputs, Trajectory, first_state, inputs
from hgrad_jax.tools.vectors import layout, ravel
from hgrad_jax.types import Array, Data, Hparams, Params, State


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
    run: Run, params: Params, hparams: Hparams, data: Data, *, key: Array | None, every: int
) -> Path:
    """Trains as `unroll` does and returns the states before steps 0, every, 2 every, ..., and T.

    Compiles one program and runs it. Holds T / every states, velocities and moments included.

    Args:
      run: as `unroll`.
      params: as `unroll`.
      hparams: as `unroll`.
      data: as `unroll`.
      key: as `unroll`.
      every: 1 to T.

    Raises:
      ValueError: `every` is out of range; else as `unroll`.
      TypeError: as `unroll`.
    """
    require_run(run)
    prng_key("key", key)
    require_count("every", every, 1, run.num_steps, "num_steps")
    trajectory = trajectory_of(run, hparams)
    params = validate.floating(params, "params")
    given = inputs(trajectory, validate.floating(hparams, "hparams"), data, key)
    validate.step(trajectory, params, given)
    at = np.append(np.arange(0, run.num_steps, every), run.num_steps)

    @jax.jit
    def visited(params, given):
        start = first_state(trajectory, params, given)
        _, _, polyline = remember(trajectory, start, given, jnp.asarray(at, jnp.int32))
        return polyline.corners

    return Path(trajectory, given, at, visited(params, given))


def reversible_of(run: Run) -> Reversible:
    """Returns the adjoint of a run if it undoes the steps, and else one that does."""
    return run.adjoint if isinstance(run.adjoint, Reversible) else Reversible()


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
