"""One epoch of training: a part of a trajectory, with the losses of its batches."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.adjoints.direct import run_from
from hgrad_jax.inputs.arguments import shown
from hgrad_jax.inputs.functions import is_array, traced
from hgrad_jax.rules.gradients import scalar
from hgrad_jax.runs.trajectory import Inputs, Trajectory, all_finite, first_state
from hgrad_jax.types import Array, Batch, Hparams, Loss, Params, State, Transition

EpochHparams = Callable[[Hparams, Array], Hparams]
"""`epoch_hparams(hparams, epoch) -> hparams`: what a step uses, from what was given for it."""


class Recorded(NamedTuple):
    """A state, and the loss of the batch that led to it.

    Attributes:
      state: the rule's own state.
      loss: scalar, at the parameters before the step; zero before the first.
    """

    state: State
    loss: Array


class EpochEnd(NamedTuple):
    """What an epoch leaves.

    Attributes:
      state: after its last step.
      step_loss: the loss of each batch before its step, `[steps]`; None where none is recorded.
      is_finite: bool scalar, whether all of that is finite.
    """

    state: State
    step_loss: Array | None
    is_finite: Array


def recording(transition: Transition, loss: Loss) -> Transition:
    """Returns the transition with the loss of every batch in its state, a `Recorded`.

    The loss has the arguments that the rule's gradient is computed with, so that the compiler
    computes once what both need: no matrix product more for an MLP. Of a model with dropout it does
    not see that both masks are one, and what lies behind the first mask is computed again.
    """
    loss = scalar(loss)

    def init(params: Params, hparams: Hparams) -> Recorded:
        return Recorded(transition.init(params, hparams), jnp.zeros(()))

    def step(state: Recorded, hparams: Hparams, batch: Batch, key: Array | None) -> Recorded:
        value = loss(transition.params(state.state), hparams, batch, key)
        after = transition.step(state.state, hparams, batch, key)
        return Recorded(after, value.astype(jnp.result_type(float)))

    def params(state: Recorded) -> Params:
        return transition.params(state.state)

    return Transition(init, step, params)


def in_epoch(
    trajectory: Trajectory, epoch_hparams: EpochHparams | None, epoch: Array
) -> Trajectory:
    """Returns the trajectory with the hyperparameters of an epoch."""
    if epoch_hparams is None:
        return trajectory
    init, step = trajectory.transition.init, trajectory.transition.step

    def now(hparams: Hparams) -> Hparams:
        with traced("epoch_hparams"):
            changed = epoch_hparams(hparams, epoch)
        if changed is None or not all(map(is_array, jax.tree.leaves(changed))):
            raise ValueError(
                f"epoch_hparams returned {shown(changed)}; it must return the hyperparameters of "
                "the epoch."
            )
        return changed

    return trajectory._replace(
        transition=trajectory.transition._replace(
            init=lambda params, hparams: init(params, now(hparams)),
            step=lambda state, hparams, batch, key: step(state, now(hparams), batch, key),
        )
    )


def start(trajectory: Trajectory, params: Params, given: Inputs) -> State:
    """Returns the state before step 0, with the very types that steps keep."""
    state = first_state(trajectory, params, given)
    # Of a Python number's type ("weak") no program compiled for the next epoch would take it.
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), state)


def run_epoch(
    trajectory: Trajectory,
    epoch_hparams: EpochHparams | None,
    state: State,
    given: Inputs,
    epoch: Array,
) -> EpochEnd:
    """Runs the steps of one epoch.

    Args:
      trajectory: whose number of steps is an epoch's.
      epoch_hparams: changes the hyperparameters from epoch to epoch; None for no change.
      state: before the epoch.
      given: of the whole run: the schedules are `[T, ...]`.
      epoch: int32 scalar, counted from 0.
    """
    length = trajectory.num_steps
    first = epoch * length
    schedules = jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, first, length), given.schedules
    )
    state, _, step_loss = run_from(
        in_epoch(trajectory, epoch_hparams, epoch),
        state,
        given._replace(schedules=schedules),
        first,
    )
    return EpochEnd(state, step_loss, all_finite((state, step_loss)))
