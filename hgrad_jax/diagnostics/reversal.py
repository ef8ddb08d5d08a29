"""`reversal_errors`: a run undone in floating point beside the exact reversal.

Figure 3.6 of St. Jules (2017) and the text around it: where do they part? Dividing by a decay
brings back as many wrong bits as the multiplication lost, and what is wrong grows on the way back
as the training would shrink it.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.adjoints.along_polyline import undoing_budget
from hgrad_jax.check import check
from hgrad_jax.diagnostics.path import Path, norm, path_of, reversible_of
from hgrad_jax.inputs.functions import is_number
from hgrad_jax.rules.form import PARAMS
from hgrad_jax.rules.undo import undo
from hgrad_jax.run import Run, require_run
from hgrad_jax.runs.trajectory import batch_and_key, hparams_of, steps
from hgrad_jax.runs.validate import floating
from hgrad_jax.show.figures import new_axes, positive
from hgrad_jax.types import Array, Data, Hparams, Params, State
from hgrad_jax.unroll import vjp


class ReversalErrors(NamedTuple):
    """How well a run is undone.

    Attributes:
      steps: before which steps the states are compared, int `[K]`, from 0 to T.
      errors: by variable `[K]`, float64: |x~_t - x_t| / |x_t| with x_t on the way forward and x~_t
        undone in floating point from x_T. Where x_t = 0, as velocities are at the start, relative
        to the variable's largest norm. Infinite or NaN where the way back has overflowed.
      exact_mismatches: how many numbers of the start `Reversible()` did not restore bit for bit.
      parting_step: the first of `steps` on the way back, hence the last in time, at which an error
        exceeds the tolerance; None if none does.
      tolerance: as given.
      budget: how many steps before T floating point is predicted to undo, by
        `hgrad_jax.adjoints.along_polyline.undoing_budget`.
    """

    steps: np.ndarray
    errors: dict[str, np.ndarray]
    exact_mismatches: int
    parting_step: int | None
    tolerance: float
    budget: int

    @property
    def num_undone(self) -> int:
        """How many steps were undone when the errors passed the tolerance; T if they never did."""
        return int(self.steps[-1]) - (0 if self.parting_step is None else self.parting_step)

    def plot(self, axes: Any = None) -> Any:
        """Draws the errors on a log scale against the step, and returns the matplotlib figure.

        Vertical lines: where the tolerance is passed, and where the budget predicts it.

        Args:
          axes: a matplotlib axis to draw on; None for a new figure.
        """
        ax = new_axes() if axes is None else axes
        for name, values in self.errors.items():
            ax.plot(self.steps, positive(values), label=f"{name}, floating point", linewidth=1)
        label = f"tolerance {self.tolerance:g}"
        ax.axhline(self.tolerance, color="grey", linewidth=0.5, label=label)
        if self.parting_step is not None:
            label = f"parted at step {self.parting_step}, {self.num_undone} undone"
            ax.axvline(self.parting_step, color="black", linestyle="--", label=label)
        predicted = int(self.steps[-1]) - self.budget
        label = f"budget: {self.budget} steps undone"
        ax.axvline(predicted, color="black", linestyle=":", label=label)
        ax.set(
            yscale="log",
            xlabel="step t (the way back runs to the left)",
            ylabel="relative error of the undone state",
            title=f"Exact reversal: {self.exact_mismatches} numbers of the start differ",
        )
        ax.legend()
        return ax.figure


def reversal_errors(
    run: Run,
    params: Params,
    hparams: Hparams,
    data: Data,
    *,
    key: Array | None = None,
    every: int = 1,
    tolerance: float = 0.125,
) -> ReversalErrors:
    """Returns how far a run undone in floating point strays, and whether exact reversal does.

    Memory: T / every states. Time: the run forward, undone, and once forward and back exactly, each
    compiled anew. Reads values, so call it outside `jit`.

    Args:
      run: as `unroll`, of a rule that can be run backwards. Where its adjoint is no Reversible,
        `Reversible()` is taken in its place.
      params: as `unroll`.
      hparams: as `unroll`.
      data: as `unroll`.
      key: as `unroll`.
      every: at how many steps' distance states are compared, 1 to T; all steps are undone.
      tolerance: relative error at which the paths have parted, a positive float; 1/8 leaves the
        three bits that the budget leaves.

    Raises:
      HypergradientError: the run was damaged, or the bit store is too small.
      ValueError: the rule cannot be run backwards, `every` or `tolerance` is out of range; else as
        `unroll`.
      TypeError: as `unroll`.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.heavy_ball(
      ...     lambda params, hparams, batch, key: jnp.sum(jnp.cosh(params)),
      ...     learning_rate=0.02, momentum=0.5,
      ... )
      >>> run = hg.Run(rule, num_steps=60)
      >>> found = hg.reversal_errors(run, jnp.linspace(-1.0, 1.0, 5), {}, None)
      >>> found.exact_mismatches, found.budget < found.num_undone < 60
      (0, True)
      >>> figure = found.plot()
    """
    require_run(run)
    undone = dataclasses.replace(run, adjoint=reversible_of(run))
    if not is_number(tolerance) or not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance!r}; it must be a positive float.")
    path = path_of(run, params, hparams, data, key=key, every=every)

    @jax.jit
    def exact(params, hparams, data, key):
        out, pullback = vjp(undone, params, hparams, data, key=key)
        return pullback(jax.tree.map(jnp.ones_like, out.params))[1]

    info = exact(floating(params, "params"), floating(hparams, "hparams"), data, key)
    check(info._replace(is_finite=jnp.ones((), bool), mismatches=None))

    distances, sizes = jax.tree.map(
        lambda x: np.asarray(x, np.float64), _distances_and_sizes(path, path.states)
    )
    errors = {}
    for name, size in sizes.items():
        errors[name] = distances[name] / np.where(size > 0, size, max(size.max(), 1e-300))
    worst = np.max(np.stack(list(errors.values())), axis=0)
    has_parted = ~(worst <= tolerance)  # NaN has
    parting_step = int(path.steps[has_parted].max()) if has_parted.any() else None
    budget = undoing_budget(
        path.trajectory, path.inputs, jax.tree.map(lambda x: x[0], path.states.params)
    )
    return ReversalErrors(
        path.steps, errors, int(info.mismatches), parting_step, float(tolerance), int(budget)
    )


def _distances_and_sizes(path: Path, states: State) -> tuple[dict[str, Array], dict[str, Array]]:
    """Undoes the run from its last state; |x~_t - x_t| and |x_t| by variable, both `[K]`."""
    trajectory, at = path.trajectory, jnp.asarray(path.steps, jnp.int32)
    rule = trajectory.transition.exact

    def row(states, i):
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, False), states)

    @jax.jit
    def undo_all(states, given):
        def step(carry, t_and_slices):
            state, i, distances = carry
            t, slices = t_and_slices
            hparams = hparams_of(trajectory, given.constants, slices)
            batch, loss_key = batch_and_key(trajectory, hparams, given.data, given.key, t)
            state = undo(rule, state, hparams, batch, loss_key)
            # Written at every step, and over until step at[i] is reached.
            apart = jax.tree.map(jnp.subtract, _variables(state), _variables(row(states, i)))
            distances = {name: d.at[i].set(norm(apart[name])) for name, d in distances.items()}
            return (state, i - (at[i] == t).astype(i.dtype), distances), None

        last = at.size - 1
        sizes = {name: jax.vmap(norm)(tree) for name, tree in _variables(states).items()}
        distances = jax.tree.map(jnp.zeros_like, sizes)
        carry = (row(states, last), jnp.int32(last - 1), distances)
        xs = (steps(trajectory), given.schedules)
        (_, _, distances), _ = jax.lax.scan(step, carry, xs, reverse=True)
        return distances, sizes

    return undo_all(states, path.inputs)


def _variables(state: State) -> dict[str, Params]:
    return {PARAMS: state.params, **state.slots}
