"""Reverse mode through a plain scan: every state of the trajectory is stored."""

import dataclasses

import jax

from hgrad_jax.runs.adjoint import Adjoint, Run, Work
from hgrad_jax.runs.trajectory import (
    Inputs,
    Trajectory,
    first_state,
    float_run_info,
    float_step,
    recorded,
    steps,
)
from hgrad_jax.types import Array, Params, State


@dataclasses.dataclass(frozen=True)
class Direct(Adjoint):
    """Stores the whole trajectory and differentiates it as JAX does by itself.

    Reverse-HG of Franceschi et al. (2017). Exact up to rounding, for every transition, under every
    JAX transformation, forward mode included. Memory grows by all that a step's backward pass
    needs, activations included, times the number of steps: 1.9 MB a step for an MLP 784-50-50-50-10
    at batch 250. Not for long runs.
    """

    def run(self, trajectory: Trajectory, params: Params, inputs: Inputs) -> Run:
        """Returns the last state, the info, and the trace `[T]`."""
        return run_from(trajectory, first_state(trajectory, params, inputs), inputs)

    def work(self, num_steps: int, num_hparams: int) -> Work:
        """Returns a gradient and a product per step."""
        del num_hparams
        return Work(True, num_steps, num_steps)


def run_from(trajectory: Trajectory, state: State, inputs: Inputs, first: Array | int = 0) -> Run:
    """Runs all steps from a state in ordinary floating point: last state, info, trace `[T]`.

    Args:
      trajectory: what is run; of a part of a longer run, with the part's number of steps.
      state: before its first step.
      inputs: schedules `[T, ...]` of its own steps.
      first: the number of its first step, from which batches and keys are made.
    """

    def body(state, t_and_slices):
        t, slices = t_and_slices
        state = float_step(trajectory, state, inputs.constants, slices, inputs.data, inputs.key, t)
        return state, recorded(trajectory, state, inputs.data)

    state, trace = jax.lax.scan(body, state, (first + steps(trajectory), inputs.schedules))
    return state, float_run_info(trajectory, state), trace
