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

from hgrad_jax.adjoints.reversible import Reversible
from hgrad_jax.check import check
from hgrad_jax.hypergradient import Objective, value_and_hypergradient
from hgrad_jax.inputs.functions import require_function
from hgrad_jax.runs import validate
from hgrad_jax.show.figures import new_axes, positive
from hgrad_jax.types import Array, BackwardInfo, BatchFn, Data, Hparams, Params, Transition

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
    transition: Transition,
    params: Params,
    hparams: Hparams,
    data: Data,
    outer_data: Data = None,
    *,
    num_steps: int,
    key: Array | None = None,
    batch_fn: BatchFn | None = None,
    hparams_axes: Any = None,
    adjoint: Reversible | None = None,
) -> CotangentNorms:
    """Returns the norms of the accumulating cotangents before each step of a run.

    Only what comes through the steps is counted: neither the objective's direct dependence on the
    hyperparameters nor that of the initial state is. Compiles one reversible hypergradient and runs
    it; reads values, so call it outside `jit`.

    Args:
      objective: as `value_and_hypergradient`.
      transition: as `unroll`, of a rule that can be run backwards.
      params: as `unroll`.
      hparams: as `unroll`.
      data: as `unroll`.
      outer_data: as `value_and_hypergradient`.
      num_steps: as `unroll`.
      key: as `unroll`.
      batch_fn: as `unroll`.
      hparams_axes: as `unroll`.
      adjoint: with other settings of Reversible; None for `Reversible()`. Its `trace_norms` is set.

    Raises:
      HypergradientError: the run was damaged, or was not restored. Cotangents that overflow are no
        error here: the norms show where.
      ValueError, TypeError: as `value_and_hypergradient`.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.heavy_ball(lambda params, hparams, batch, key: jnp.sum(params**2) / 2)
      >>> hparams = {"learning_rate": 0.1, "momentum": 0.5}
      >>> found = hg.cotangent_norms(
      ...     lambda params, hparams, _: jnp.sum(params), rule, jnp.ones(4), hparams, None,
      ...     num_steps=30,
      ... )
      >>> sorted(found.norms), found.steps.shape
      (['hparams', 'params', 'velocity'], (30,))
      >>> figure = found.plot()
    """
    if not isinstance(adjoint, Reversible | None):
        raise TypeError(
            f"adjoint is {adjoint!r}; only Reversible(...) undoes the steps: pass it, or None."
        )
    require_function(
        objective, "objective(params, hparams, outer_data)", "a function that returns a scalar"
    )
    adjoint = dataclasses.replace(adjoint or Reversible(), trace_norms=True)
    is_schedule = validate.schedules(hparams, hparams_axes, num_steps)

    def through_training(params, hparams, outer_data):
        return objective(params, jax.lax.stop_gradient(hparams), outer_data)

    @jax.jit
    def run(params, hparams, data, outer_data, key):
        found = value_and_hypergradient(
            through_training,
            transition,
            params,
            hparams,
            data,
            outer_data,
            num_steps=num_steps,
            key=key,
            batch_fn=batch_fn,
            hparams_axes=hparams_axes,
            adjoint=adjoint,
        )
        return found.hparams, found.info

    given = (validate.floating(params, "params"), validate.floating(hparams, HPARAMS))
    bars, info = run(*given, data, outer_data, key)
    check(info._replace(is_finite=jnp.ones((), bool)))
    norms = {name: np.asarray(x, np.float64) for name, x in info.norms.items()}
    # The rows of schedules are each one step's own: those visited so far are added up here.
    rows = np.zeros(num_steps)
    for bar, is_one in zip(jax.tree.leaves(bars), is_schedule, strict=True):
        if is_one:
            rows += np.square(np.asarray(bar, np.float64).reshape(num_steps, -1)).sum(axis=1)
    norms[HPARAMS] = np.sqrt(norms[HPARAMS] ** 2 + np.cumsum(rows[::-1])[::-1])
    return CotangentNorms(np.arange(num_steps), norms, info)
