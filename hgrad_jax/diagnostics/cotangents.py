"""`cotangent_norms`: how the hypergradient accumulates on the way back, step by step.

Figures 3.4 and 3.5 of St. Jules (2017): an exact hypergradient starts from zero at the last step
and collects one contribution a step; where its norm leaps is where a method that visits few steps,
or ends early, goes wrong.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.check import check
from hgrad_jax.diagnostics.path import reversible_of
from hgrad_jax.hypergradient import Objective, value_and_hypergradient
from hgrad_jax.inputs.arguments import prng_key
from hgrad_jax.inputs.functions import require_function
from hgrad_jax.run import Run, is_schedule, require_run
from hgrad_jax.runs import validate
from hgrad_jax.show.figures import new_axes, positive
from hgrad_jax.types import Array, BackwardInfo, Data, Hparams, Params

HPARAMS = "hparams"


class CotangentNorms(NamedTuple):
    """Euclidean norms of what the way back carries.

    Attributes:
      steps: 0 to T - 1, int `[T]`; the way back runs from right to left.
      norms: by name `[T]`, float64: the cotangents before each step of "params" and of each slot,
        and under "hparams" the hypergradient accumulated from that step to the end, schedules
        included. Infinite above 1.8e19 in float32 training, where squares overflow.
      info: the BackwardInfo, which has passed `hg.check`, but for cotangents that overflowed.
    """

    steps: np.ndarray
    norms: dict[str, np.ndarray]
    info: BackwardInfo

    def plot(self, axes: Any = None) -> Any:
        """Draws the norms on a log scale against the step, and returns the matplotlib figure.

        Args:
          axes: a matplotlib axis to draw on; None for a new figure.
        """
        ax = new_axes() if axes is None else axes
        for name, values in self.norms.items():
            ax.plot(self.steps, positive(values), label=name, linewidth=1)
        ax.set(
            yscale="log",
            xlabel="step t (the way back runs to the left)",
            ylabel="Euclidean norm of the cotangent before step t",
            title="What accumulates on the way back",
        )
        ax.legend()
        return ax.figure


def cotangent_norms(
    objective: Objective,
    run: Run,
    params: Params,
    hparams: Hparams,
    data: Data,
    outer_data: Data = None,
    *,
    key: Array | None = None,
) -> CotangentNorms:
    """Returns the norms of the accumulating cotangents before each step of a run.

    Only what comes through the steps is counted: neither the objective's direct dependence on the
    hyperparameters nor that of the initial state is. Compiles one reversible hypergradient and runs
    it; reads values, so call it outside `jit`.

    Args:
      objective: as `value_and_hypergradient`.
      run: as `unroll`, of a rule that can be run backwards. Its adjoint is taken with
        `trace_norms`, and where it is no Reversible, `Reversible()` in its place.
      params: as `unroll`.
      hparams: as `unroll`.
      data: as `unroll`.
      outer_data: as `value_and_hypergradient`.
      key: as `unroll`.

    Raises:
      HypergradientError: the run was damaged, or was not restored. Cotangents that overflow are no
        error here: the norms show where.
      ValueError, TypeError: as `value_and_hypergradient`.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.heavy_ball(lambda params, hparams, batch, key: jnp.sum(params**2) / 2)
      >>> hparams = {"learning_rate": 0.1, "momentum": 0.5}
      >>> run = hg.Run(rule, num_steps=30)
      >>> found = hg.cotangent_norms(
      ...     lambda params, hparams, _: jnp.sum(params), run, jnp.ones(4), hparams, None
      ... )
      >>> sorted(found.norms), found.steps.shape
      (['hparams', 'params', 'velocity'], (30,))
      >>> figure = found.plot()
    """
    require_run(run)
    require_function(
        objective, "objective(params, hparams, outer_data)", "a function that returns a scalar"
    )
    adjoint = dataclasses.replace(reversible_of(run), trace_norms=True)
    traced = dataclasses.replace(run, adjoint=adjoint)
    schedules = is_schedule(run, hparams)

    def through_training(params, hparams, outer_data):
        return objective(params, jax.lax.stop_gradient(hparams), outer_data)

    @jax.jit
    def hypergradient(params, hparams, data, outer_data, key):
        found = value_and_hypergradient(
            through_training, traced, params, hparams, data, outer_data, key=key
        )
        return found.hparams, found.info

    given = (validate.floating(params, "params"), validate.floating(hparams, HPARAMS))
    given += validate.arrays(data=data, outer_data=outer_data)
    bars, info = hypergradient(*given, prng_key("key", key))
    check(info._replace(is_finite=jnp.ones((), bool)))
    norms = {name: np.asarray(x, np.float64) for name, x in info.norms.items()}
    # The rows of schedules are each one step's own: those visited so far are added up here.
    rows = np.zeros(run.num_steps)
    for bar, is_one in zip(jax.tree.leaves(bars), schedules, strict=True):
        if is_one:
            rows += np.square(np.asarray(bar, np.float64).reshape(run.num_steps, -1)).sum(axis=1)
    norms[HPARAMS] = np.sqrt(norms[HPARAMS] ** 2 + np.cumsum(rows[::-1])[::-1])
    return CotangentNorms(np.arange(run.num_steps), norms, info)
