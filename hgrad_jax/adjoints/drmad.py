"""DrMAD: the way back is a straight line (Fu, Luo, Feng, Low and Chua 2016)."""

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
from hgrad_jax.inputs.arguments import narrow
from hgrad_jax.inputs.functions import is_number
from hgrad_jax.runs.adjoint import Work
from hgrad_jax.runs.trajectory import Inputs, Trajectory, float_step, steps
from hgrad_jax.solvers.vectors import norm
from hgrad_jax.types import Array, Params, State, Transition


@dataclasses.dataclass(frozen=True)
class EarlyDisplacement:
    """Chooses the number of reverse steps from how fast the run sets out.

    St. Jules (2017, section 3.1): the parameters' displacement per early step, as a fraction of the
    whole, beta = |w_t - w_0| / (t |w_T - w_0|), is the inverse of the number of steps that the line
    should have. Averaged over t = 1 ... `num_steps` with weights that fall linearly to zero.

    Attributes:
      factor: what beta is multiplied by; 10 takes a tenth of the reverse steps.
      num_steps: how many early steps, at least 1.

    Raises:
      ValueError: `factor` is not positive, or `num_steps` below 1.
    """

    factor: float = 1.0
    num_steps: int = 20

    def __post_init__(self) -> None:
        if not is_number(self.factor) or not 0 < self.factor < np.inf:
            raise ValueError(f"factor is {self.factor!r}; it must be a positive number.")
        object.__setattr__(self, "factor", narrow(self.factor))
        require_count("num_steps", self.num_steps, 1)

    def reverse_steps(
        self, trajectory: Trajectory, start: State, end: State, inputs: Inputs
    ) -> Array:
        """Returns the number of reverse steps: int32 scalar, 1 to T."""
        num_steps = min(self.num_steps, trajectory.num_steps)
        read = trajectory.transition.params

        def step(state, t_and_slices):
            t, slices = t_and_slices
            state = float_step(
                trajectory, state, inputs.constants, slices, inputs.data, inputs.key, t
            )
            distance = _distance(read(state), read(start))
            return state, distance / (t + 1).astype(distance.dtype)

        xs = jax.tree.map(lambda x: x[:num_steps], (steps(trajectory), inputs.schedules))
        _, speeds = jax.lax.scan(step, start, xs)
        weights = jnp.arange(num_steps, 0, -1, dtype=speeds.dtype)
        beta = weights @ speeds / jnp.sum(weights) / _distance(read(end), read(start))
        # A run that does not move, or back to where it was, has no speed: then all its steps.
        count = jnp.nan_to_num(1 / (self.factor * beta), nan=jnp.inf, posinf=jnp.inf)
        return jnp.round(jnp.clip(count, 1, trajectory.num_steps)).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class DrMAD(AlongPolyline):
    """Replaces the path by a straight line from the first state to the last.

    Fu, Luo, Feng, Low and Chua (2016), algorithm 2. Memory for two states, time for a gradient with
    its Hessian-vector products per reverse step, any transition. With fewer reverse steps than
    steps, those differentiated are spread evenly over the run, and each takes the batch, the rates
    and the decays of its own step; nothing makes up for the others, and a trace's cotangents at the
    others count as zero. A state whose counters start over (`optax.MultiSteps`) is not served.

    Exact where the path is a straight line, walked evenly; elsewhere nothing bounds the error. In
    the README's study (MNIST, an MLP, momentum 0.95, a scale for every weight) its cosine with the
    exact hypergradient was 0.78 after 200 steps, 0.02 after 2,000, with a norm 4e17 times too
    large, and NaN after 20,000; with `EarlyDisplacement(10)` 0.80, 0.32 and 0.11. Not for a number
    to believe: `Waypoints` is the better use of any memory, and `Reversible()` is exact for little
    more.

    Attributes:
      reverse_steps: how many, 1 to T; an `EarlyDisplacement` chooses them from the run; None for T.
      clip: bounds, or None.

    Raises:
      ValueError: `reverse_steps` is below 1, or when it is traced above T.
    """

    reverse_steps: int | EarlyDisplacement | None = None
    clip: Clip | None = None

    def __post_init__(self) -> None:
        require_clip(self.clip)
        if not isinstance(self.reverse_steps, EarlyDisplacement | None):
            require_count("reverse_steps", self.reverse_steps, 1)

    def require_inputs(self, trajectory: Trajectory, params: Params, inputs: Inputs) -> None:
        """Raises a ValueError if there are more reverse steps than steps."""
        del params, inputs
        _require_at_most(self.reverse_steps, trajectory.num_steps)

    def num_visited(
        self, trajectory: Trajectory, start: State, end: State, inputs: Inputs
    ) -> Array:
        """Returns the number of reverse steps: int32 scalar."""
        return _reverse_steps(self.reverse_steps, trajectory, start, end, inputs)

    def work(self, num_steps: int, num_hparams: int) -> Work:
        """Returns a gradient per step and a product per reverse step.

        An `EarlyDisplacement` takes its early steps twice, and what it chooses is unknown.
        """
        del num_hparams
        return _work(num_steps, self.reverse_steps, 0)


@dataclasses.dataclass(frozen=True)
class DrMAD2(AlongPolyline):
    """Undoes the last steps in floating point, then follows a straight line to the first state.

    St. Jules (2017, section 3.1). The end of a run shapes the hypergradient most, and there the
    path is the true one, as long as the digits last. Memory for two states, time for a gradient
    with its Hessian-vector products per reverse step and one more gradient per step undone. Only
    for rules that can be undone, and only as good as the line before: in the README's study its
    cosine with the exact hypergradient was 0.97 after 200 steps, 0.10 after 2,000 and NaN after
    20,000. Not for runs much longer than what is undone.

    Attributes:
      undone_steps: how many last steps, at least 1; None for as many as the precision allows, 20 /
        (3 log2(1 / decay)) in float32 (`undoing_budget`).
      reverse_steps: as `DrMAD`; how many steps are differentiated, the undone ones included.
      clip: bounds, or None.

    Raises:
      ValueError: a count is below 1; when it is traced, `reverse_steps` is above T or the rule
        cannot be undone.
    """

    undone_steps: int | None = None
    reverse_steps: int | EarlyDisplacement | None = None
    clip: Clip | None = None

    def __post_init__(self) -> None:
        require_clip(self.clip)
        if self.undone_steps is not None:
            require_count("undone_steps", self.undone_steps, 1)
        if not isinstance(self.reverse_steps, EarlyDisplacement | None):
            require_count("reverse_steps", self.reverse_steps, 1)

    def require(self, transition: Transition) -> None:
        """Raises a ValueError if the rule cannot be undone."""
        require_exact(self, transition)

    def require_inputs(self, trajectory: Trajectory, params: Params, inputs: Inputs) -> None:
        """Raises a ValueError if there are more reverse steps than steps."""
        del params, inputs
        _require_at_most(self.reverse_steps, trajectory.num_steps)

    def num_visited(
        self, trajectory: Trajectory, start: State, end: State, inputs: Inputs
    ) -> Array:
        """Returns the number of reverse steps: int32 scalar."""
        return _reverse_steps(self.reverse_steps, trajectory, start, end, inputs)

    def num_undone(self, trajectory: Trajectory, inputs: Inputs, like: Params) -> Array:
        """Returns how many last steps are undone: int32 scalar."""
        if self.undone_steps is None:
            return undoing_budget(trajectory, inputs, like)
        return jnp.int32(self.undone_steps)

    def work(self, num_steps: int, num_hparams: int) -> Work:
        """Returns what `DrMAD` takes, with one more gradient per step undone.

        How many are undone is unknown where the precision decides.
        """
        del num_hparams
        return _work(num_steps, self.reverse_steps, self.undone_steps)


def _work(
    num_steps: int, reverse_steps: int | EarlyDisplacement | None, undone_steps: int | None
) -> Work:
    early, visited = 0, reverse_steps or num_steps
    if isinstance(visited, EarlyDisplacement):
        early, visited = min(visited.num_steps, num_steps), None
    if undone_steps is None or (visited is None and undone_steps > 0):
        return Work(False, None, visited)
    # No more are undone than are visited.
    return Work(False, num_steps + early + min(undone_steps, visited or 0), visited)


def _reverse_steps(
    reverse_steps: int | EarlyDisplacement | None,
    trajectory: Trajectory,
    start: State,
    end: State,
    inputs: Inputs,
) -> Array:
    if isinstance(reverse_steps, EarlyDisplacement):
        return reverse_steps.reverse_steps(trajectory, start, end, inputs)
    return jnp.int32(trajectory.num_steps if reverse_steps is None else reverse_steps)


def _require_at_most(reverse_steps: int | EarlyDisplacement | None, num_steps: int) -> None:
    if isinstance(reverse_steps, int | np.integer) and reverse_steps > num_steps:
        raise ValueError(
            f"reverse_steps is {reverse_steps}, but num_steps is {num_steps}; a run has no more "
            "steps to differentiate: pass at most that, or None for all."
        )


def _distance(a: Params, b: Params) -> Array:
    return norm(jax.tree.map(jnp.subtract, a, b))
