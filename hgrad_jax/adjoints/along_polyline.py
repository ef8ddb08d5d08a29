"""What DrMAD and its successors share: differentiating along a remembered polyline."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.adjoints.direct import run_from
from hgrad_jax.adjoints.polyline import Clip, pull_back, remember
from hgrad_jax.inputs.functions import INT32_END
from hgrad_jax.runs.adjoint import Adjoint, Run
from hgrad_jax.runs.closures import entered, instantiated, opened, rejoined
from hgrad_jax.runs.trajectory import (
    Inputs,
    Trajectory,
    first_state,
    float_run_info,
    hparams_of,
    steps,
)
from hgrad_jax.tools.guard import differentiated_once
from hgrad_jax.types import Array, Params, State, Transition


class AlongPolyline(Adjoint):
    """Base of the adjoints that differentiate along a polyline; see `hgrad_jax.adjoints.polyline`.

    Attributes:
      clip: bounds on what is computed on the way back, or None.
    """

    is_reverse_only: ClassVar[bool] = True

    clip: Clip | None

    def corners(self, trajectory: Trajectory, state: State, inputs: Inputs) -> Array:
        """Returns before which steps the states are kept: int32 `[K]`, from 0 to T."""
        del state, inputs
        return jnp.asarray([0, trajectory.num_steps], jnp.int32)

    def num_visited(
        self, trajectory: Trajectory, start: State, end: State, inputs: Inputs
    ) -> Array:
        """Returns how many steps are differentiated: int32 scalar, 1 to T."""
        del start, end, inputs
        return jnp.int32(trajectory.num_steps)

    def num_undone(self, trajectory: Trajectory, inputs: Inputs, like: Params) -> Array | None:
        """Returns how many steps before each corner are undone in floating point; None for none."""
        del trajectory, inputs, like

    def run(self, trajectory: Trajectory, params: Params, inputs: Inputs) -> Run:
        """Returns the last state, the info, and the trace `[T]`."""
        state = first_state(trajectory, params, inputs)

        @jax.custom_vjp
        def unrolled(state, inputs):
            return run_from(opened(trajectory, inputs), state, inputs)

        def forward(state, inputs):
            name = f"{type(self).__name__}(...)"
            state, inputs = self._differentiated_once(entered(trajectory, state, inputs, name))
            run = opened(trajectory, inputs)
            at = self.corners(run, state, inputs)
            end, trace, polyline = remember(run, state, inputs, at)
            num_visited = self.num_visited(run, state, end, inputs)
            num_undone = self.num_undone(run, inputs, run.transition.params(end))
            residuals = (inputs, polyline, num_visited, num_undone)
            return (end, float_run_info(run, end), trace), residuals

        def backward(residuals, bars):
            inputs, polyline, num_visited, num_undone = residuals
            inputs = self._differentiated_once(inputs)
            state_bar, _, trace_bar = instantiated(bars)
            start_bar, inputs_bar = pull_back(
                opened(trajectory, inputs),
                inputs,
                polyline,
                self._differentiated_once(state_bar),
                self._differentiated_once(trace_bar),
                num_visited=num_visited,
                num_undone=num_undone,
                clip=self.clip or Clip(),
            )
            return start_bar, rejoined(inputs_bar, inputs)

        # Around the whole trajectory: inside a scan its residuals would be stacked T times.
        unrolled.defvjp(forward, backward, symbolic_zeros=True)
        return unrolled(state, inputs)

    def _differentiated_once(self, tree: Any) -> Any:
        name = type(self).__name__
        return differentiated_once(tree, f"{name}(...)", "whose path is no function of its inputs")


def undoing_budget(trajectory: Trajectory, inputs: Inputs, like: Params) -> Array:
    """Returns how many steps floating point undoes before its digits are gone: int32, 1 to T.

    The rule of St. Jules (2017, section 3.1): of the 23 bits of float32, 20 may be lost (49 of 52
    in float64), at 3 log2(1 / decay) a step: one for the division, two more guessed for the
    gradient at a wrong point. With several decays the smallest counts, on average over the run. 44
    steps at decay 0.9, 90 at 0.95.

    Args:
      trajectory: with an exact rule.
      inputs: hyperparameters, which the decays are made from.
      like: parameters, for their precision.
    """
    rule = trajectory.transition.exact

    def growth(t, slices):
        decays = rule.decays(hparams_of(trajectory, inputs.constants, slices), t)
        leaves = [jnp.asarray(a, float) for a in jax.tree.leaves(decays)]
        bits = [-jnp.log2(jnp.min(a)) for a in leaves]
        return jnp.max(jnp.stack(bits)) if bits else jnp.zeros(())

    bits = jnp.mean(jax.vmap(growth)(steps(trajectory), inputs.schedules))
    digits = min(jnp.finfo(x.dtype).nmant for x in jax.tree.leaves(like)) - 3
    return jnp.clip(digits / (3 * bits), 1, trajectory.num_steps).astype(jnp.int32)


def require_clip(clip: Any) -> None:
    """Raises a TypeError unless a setting is a `Clip` or None."""
    if not isinstance(clip, Clip | None):
        raise TypeError(f"clip is {clip!r}; write Clip(state={clip!r}), or None for no bounds.")


def require_exact(adjoint: Adjoint, transition: Transition) -> None:
    """Raises a ValueError if the transition cannot be undone, in floating point or otherwise."""
    if transition.exact is None:
        raise ValueError(
            f"adjoint={adjoint!r} undoes steps, and this update rule cannot be run backwards: "
            f"{transition.why_not}; use Waypoints(count) without undoing, DrMAD() or "
            "Checkpointed(), or a rule such as momentum, heavy_ball or adam."
        )


def require_count(name: str, value: Any, least: int) -> None:
    """Raises a ValueError unless a setting is an int of at least `least`."""
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_int or value < least:
        raise ValueError(f"{name} is {value!r}; it must be an int of at least {least}.")
    if value >= INT32_END:
        raise ValueError(f"{name} is {value}; steps are counted in int32, below 2**31.")
