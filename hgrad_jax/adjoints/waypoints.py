"""A path remembered by a few of its states, and what lies between them guessed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.adjoints.along_polyline import (
    AlongPolyline,
    require_clip,
    require_count,
    require_exact,
    undoing_budget,
)
from hgrad_jax.adjoints.polyline import Clip
from hgrad_jax.inputs.functions import as_int
from hgrad_jax.runs.adjoint import Work
from hgrad_jax.runs.trajectory import Inputs, Trajectory, float_step, steps
from hgrad_jax.solvers.vectors import norm
from hgrad_jax.types import Array, Params, State, Transition


@dataclasses.dataclass(frozen=True)
class EvenSteps:
    """Places waypoints after equal numbers of steps."""

    def place(self, trajectory: Trajectory, state: State, inputs: Inputs, count: int) -> Array:
        """Returns before which steps the waypoints are: int32 `[count]`, from 0 to T."""
        del state, inputs
        return jnp.asarray(_evenly(trajectory.num_steps, count), jnp.int32)


@dataclasses.dataclass(frozen=True)
class EqualArcLength:
    """Places waypoints after equal lengths of the path, at the price of one run forward more.

    Attributes:
      order: 1 for the length of the parameters' path; 2 for the sum of the square roots of its
        second differences, which spreads the error of straight lines evenly (it is their squared
        spacing times the second difference).
    """

    order: int = 1

    def __post_init__(self) -> None:
        if as_int(self.order) not in (1, 2):
            raise ValueError(f"order is {self.order!r}; it must be 1 (length) or 2 (bending).")

    def place(self, trajectory: Trajectory, state: State, inputs: Inputs, count: int) -> Array:
        """Returns before which steps the waypoints are: int32 `[count]`, from 0 to T."""
        read = trajectory.transition.params

        def step(carry, t_and_slices):
            state, last = carry
            t, slices = t_and_slices
            after = float_step(
                trajectory, state, inputs.constants, slices, inputs.data, inputs.key, t
            )
            move = jax.tree.map(jnp.subtract, read(after), read(state))
            bend = jax.tree.map(jnp.subtract, move, last)
            return (after, move), norm(move) if self.order == 1 else jnp.sqrt(norm(bend))

        still = jax.tree.map(jnp.zeros_like, read(state))
        _, lengths = jax.lax.scan(step, (state, still), (steps(trajectory), inputs.schedules))
        # One step in a thousand by number, so that a path at rest has waypoints as well.
        lengths = lengths + 1e-3 * jnp.mean(lengths) + jnp.finfo(lengths.dtype).tiny
        gone = jnp.cumsum(lengths)
        goals = jnp.linspace(0, 1, count, dtype=gone.dtype) * gone[-1]
        at = 1 + jnp.searchsorted(gone, goals)
        # Increasing from 0 to T, whatever the lengths are.
        row = jnp.arange(count, dtype=at.dtype)
        at = jax.lax.cummax(at - row) + row
        at = jnp.minimum(at, trajectory.num_steps - (count - 1 - row))
        # The ends are the ends, however long sums are rounded, and even if the path is not finite.
        at = jnp.where(row == 0, 0, at)
        return jnp.where(row == count - 1, trajectory.num_steps, at).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Waypoints(AlongPolyline):
    """Keeps some states of the path, undoes steps from each of them, and draws lines between.

    The generalization of DrMAD: with two waypoints and nothing undone it is DrMAD, with two and the
    last steps undone DrMAD2, and with a waypoint at every step, or with as many as undoing can
    bridge, the exact hypergradient. Memory for `count` states; time for a run forward, and for a
    gradient with its Hessian-vector products per step back, with one more gradient where steps are
    undone.

    A state whose counters start over (`optax.MultiSteps`) is not served: they are interpolated.

    Straight lines need many corners: in the README's study (MNIST, an MLP, momentum 0.95, a scale
    for every weight, 2,000 steps) 20, 50, 100 and 200 of them gave cosines of 0.906, 0.979, 0.994
    and 0.9996 with the exact hypergradient; `EqualArcLength` hardly differed. With steps undone, 6
    and 12 gave 0.36 and 0.90, and 24, which leave no line, the hypergradient to 4e-6. So undo where
    the rule allows it, with more than T / `undoing_budget` waypoints; that takes more memory than
    `Reversible()` (14 MB against 7.5, 86 against 15 after 20,000 steps), and nothing checks that no
    line is left. Not for a number to believe with fewer. After 20,000 steps 200, 1,000 and 2,000
    corners gave 0.89, 0.98 and 0.996; with steps undone 112 gave 0.63, and 224 the hypergradient to
    1.5e-5.

    Attributes:
      count: how many states are kept, the first and the last included, 2 to T + 1.
      undone_steps: how many steps before each waypoint are undone in floating point; 0 for none,
        which serves every transition; None for as many as the precision allows
        (`undoing_budget`).
      placement: where the waypoints are, `EvenSteps()` or `EqualArcLength()`.
      clip: bounds, or None.

    Raises:
      ValueError: `count` is below 2 or `undone_steps` below 0; when it is traced, `count` is above
        T + 1, or steps are undone of a rule that cannot be.

    Example:
      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return jnp.cosh(params)
      >>> rule = hg.momentum(loss, learning_rate=lambda hparams: hparams, momentum=0.9)
      >>> def end(rate, adjoint):
      ...     return hg.unroll(hg.Run(rule, num_steps=100, adjoint=adjoint), 1.0, rate, None).params
      >>> for adjoint in (hg.Waypoints(2), hg.Waypoints(5), hg.Waypoints(5, undone_steps=None)):
      ...     print(f"{jax.grad(end)(0.1, adjoint) / jax.grad(end)(0.1, hg.Direct()):.4f}")
      0.1173
      0.8645
      1.0000
    """

    count: int
    undone_steps: int | None = 0
    placement: EvenSteps | EqualArcLength = EvenSteps()
    clip: Clip | None = None

    def __post_init__(self) -> None:
        require_clip(self.clip)
        require_count("count", self.count, 2)
        if not isinstance(self.placement, EvenSteps | EqualArcLength):
            raise TypeError(
                f"placement is {self.placement!r}; write EvenSteps() or EqualArcLength()."
            )
        if self.undone_steps is not None:
            require_count("undone_steps", self.undone_steps, 0)

    def require(self, transition: Transition) -> None:
        """Raises a ValueError if steps are undone of a rule that cannot be."""
        if self.undone_steps != 0:
            require_exact(self, transition)

    def require_inputs(self, trajectory: Trajectory, params: Params, inputs: Inputs) -> None:
        """Raises a ValueError if there are more waypoints than states."""
        del params, inputs
        if self.count > trajectory.num_steps + 1:
            raise ValueError(
                f"count is {self.count}, but a run of num_steps={trajectory.num_steps} has "
                f"{trajectory.num_steps + 1} states; pass fewer waypoints, or use Direct()."
            )

    def corners(self, trajectory: Trajectory, state: State, inputs: Inputs) -> Array:
        """Returns before which steps the waypoints are: int32 `[count]`."""
        return self.placement.place(trajectory, state, inputs, self.count)

    def num_undone(self, trajectory: Trajectory, inputs: Inputs, like: Params) -> Array | None:
        """Returns how many steps before each waypoint are undone: int32 scalar, or None."""
        if self.undone_steps is None:
            return undoing_budget(trajectory, inputs, like)
        return jnp.int32(self.undone_steps) if self.undone_steps else None

    def work(self, num_steps: int, num_hparams: int) -> Work:
        """Returns a gradient and a product per step, and one more gradient per step undone.

        `EqualArcLength` takes another gradient per step, for a run of its own. How many steps are
        undone is unknown where the precision or the path's length decides.

        >>> Waypoints(5).work(100, 3), Waypoints(5, undone_steps=10).work(100, 3).gradients
        (Work(is_exact=False, gradients=100, products=100), 140)
        """
        del num_hparams
        is_even = isinstance(self.placement, EvenSteps)
        if self.undone_steps is None or (self.undone_steps and not is_even):
            return Work(False, None, num_steps)
        lengths = np.diff(_evenly(num_steps, self.count))
        undone = int(np.minimum(lengths, self.undone_steps).sum())
        return Work(False, (2 - is_even) * num_steps + undone, num_steps)


def _evenly(num_steps: int, count: int) -> np.ndarray:
    return np.round(np.linspace(0, num_steps, count)).astype(int)
