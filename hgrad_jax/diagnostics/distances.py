"""`distances_to`: how a run nears a given point, such as the end of another run.

Figure 2.3 of St. Jules (2017): the distance of the parameters from where they ended under the
hyperparameters before. Where a run passes by far from there, hyperparameters per weight mean
something else than they did.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.diagnostics.path import norm
from hgrad_jax.run import Run, require_run, trajectory_of
from hgrad_jax.runs.trajectory import first_state, inputs
from hgrad_jax.runs.validate import floating
from hgrad_jax.show.figures import new_axes
from hgrad_jax.tools.trees import require_like
from hgrad_jax.types import Array, Data, Hparams, Params
from hgrad_jax.unroll import unroll


class Distances(NamedTuple):
    """Distances of a run's parameters from a point.

    Attributes:
      steps: 0 to T, int `[T + 1]`.
      distances: Euclidean, before each step and after the last, `[T + 1]`.
    """

    steps: np.ndarray
    distances: np.ndarray

    def plot(self, axes: Any = None) -> Any:
        """Draws the distance against the step, and returns the matplotlib figure.

        Args:
          axes: a matplotlib axis to draw on; None for a new figure.
        """
        ax = new_axes() if axes is None else axes
        ax.plot(self.steps, self.distances, linewidth=1)
        ax.set(xlabel="step t", ylabel="Euclidean distance from the target")
        ax.set(title="Distance of the parameters from a given point")
        ax.set_ylim(bottom=0)
        return ax.figure


def distances_to(
    run: Run,
    params: Params,
    hparams: Hparams,
    data: Data,
    target_params: Params,
    *,
    key: Array | None = None,
) -> Distances:
    """Returns the Euclidean distance of the parameters from a point, at every step of a run.

    Memory: a number per step. Compiles the run and runs it; reads values, so call it outside `jit`.

    Args:
      run: as `unroll`; the distance is recorded in place of what it records.
      params: as `unroll`.
      hparams: as `unroll`.
      data: as `unroll`.
      target_params: the point, like params.
      key: as `unroll`.

    Raises:
      ValueError: `target_params` is unlike params; else as `unroll`.
      TypeError: as `unroll`.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.sgd(lambda params, hparams, batch, key: jnp.sum(params**2) / 2)
      >>> hparams = {"learning_rate": 0.5}
      >>> start = jnp.array([3.0, 4.0])
      >>> found = hg.distances_to(hg.Run(rule, num_steps=3), start, hparams, None, jnp.zeros(2))
      >>> found.distances.tolist()
      [5.0, 2.5, 1.25, 0.625]
      >>> figure = found.plot()
    """
    require_run(run)
    trajectory = trajectory_of(run, hparams)
    params, hparams = floating(params, "params"), floating(hparams, "hparams")
    target_params = floating(target_params, "target_params")
    require_like(target_params, params, "target_params", "params")

    @jax.jit
    def measured(target_params, params, hparams, data, key):
        def distance(state, data):
            return norm(jax.tree.map(jnp.subtract, run.transition.params(state), target_params))

        measuring = dataclasses.replace(run, record=distance)
        out = unroll(measuring, params, hparams, data, key=key)
        start = first_state(trajectory, params, inputs(trajectory, hparams, data, key))
        return jnp.append(distance(start, data), out.trace)

    distances = measured(target_params, params, hparams, data, key)
    return Distances(np.arange(run.num_steps + 1), np.asarray(distances))
