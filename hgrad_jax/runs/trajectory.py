"""A trajectory's fixed part, and what adjoints ask of it: a step's batch, keys, hyperparameters."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.types import (
    Array,
    Batch,
    BatchFn,
    Data,
    Hparams,
    Params,
    RunInfo,
    State,
    Transition,
)

BATCH_ROLE, LOSS_ROLE = 0, 1


class Trajectory(NamedTuple):
    """Everything about a run that is not an array.

    Attributes:
      transition: the elementary update.
      num_steps: T, a positive int.
      batch_fn: makes the batch of a step; None hands the data over whole.
      is_schedule: one bool per leaf of the hyperparameters: whether its leading axis is the step.
      treedef: structure of the hyperparameters.
      record: `record(state, data)`, evaluated after each step; None for no trace.
      closed: the traced values that these functions close over, as far as they have been traced
        (`hgrad_jax.runs.traced_once`).
      keep: makes of a function one that is traced once, its closed-over values among those.
    """

    transition: Transition
    num_steps: int
    batch_fn: BatchFn | None
    is_schedule: tuple[bool, ...]
    treedef: Any
    record: Callable[[State, Data], Any] | None
    closed: Sequence[Any] = ()
    keep: Callable[[Any], Any] = lambda function: function


class Extended(NamedTuple):
    """Hyperparameters with values that functions close over: what those are differentiated by.

    Attributes:
      hparams: as the user gave them.
      closed: a value for each that is closed over; None where it is not differentiated.
    """

    hparams: Hparams
    closed: tuple[Array | None, ...]


class Inputs(NamedTuple):
    """The arrays of a run besides its state.

    Attributes:
      constants: leaves of the hyperparameters that hold for every step, None in place of the
        others.
      schedules: leaves with a leading axis of steps `[T, ...]`, None in place of the others.
      data: what batches are made from.
      key: PRNG key, or None.
      closed: the traced values that the run's functions close over; of cotangents, None where there
        is none. See `hgrad_jax.runs.closures`.
    """

    constants: tuple[Array | None, ...]
    schedules: tuple[Array | None, ...]
    data: Data
    key: Array | None
    closed: tuple[Any, ...] = ()


def inputs(trajectory: Trajectory, hparams: Hparams, data: Data, key: Array | None) -> Inputs:
    """Sorts the hyperparameters into constants and schedules."""
    leaves = jax.tree.leaves(hparams)
    constants = tuple(
        None if s else leaf for leaf, s in zip(leaves, trajectory.is_schedule, strict=True)
    )
    schedules = tuple(
        leaf if s else None for leaf, s in zip(leaves, trajectory.is_schedule, strict=True)
    )
    return Inputs(constants, schedules, data, key)


def hparams_of(
    trajectory: Trajectory, constants: tuple[Any, ...], slices: tuple[Any, ...]
) -> Hparams:
    """Returns one step's hyperparameters from the constants and its slices of the schedules."""
    leaves = [
        s if is_s else c
        for c, s, is_s in zip(constants, slices, trajectory.is_schedule, strict=True)
    ]
    return jax.tree.unflatten(trajectory.treedef, leaves)


def first_state(trajectory: Trajectory, params: Params, inputs: Inputs) -> State:
    """Returns the state before step 0, made with the hyperparameters of step 0."""
    slices = jax.tree.map(lambda x: x[0], inputs.schedules)
    return trajectory.transition.init(params, hparams_of(trajectory, inputs.constants, slices))


def batch_and_key(
    trajectory: Trajectory, hparams: Hparams, data: Data, key: Array | None, t: Array
) -> tuple[Batch, Array | None]:
    """Returns the batch of step t and the key for the loss, both functions of t alone.

    Of the hyperparameters only what `batch_fn` closes over counts, if they are `Extended`.
    """
    keys = (None, None)
    if key is not None:
        step_key = jax.random.fold_in(key, t)
        keys = (jax.random.fold_in(step_key, BATCH_ROLE), jax.random.fold_in(step_key, LOSS_ROLE))
    batch_fn: Any = trajectory.batch_fn
    if batch_fn is None:
        return data, keys[1]
    if isinstance(hparams, Extended):
        batch_fn = batch_fn.extended(hparams)
    return batch_fn(data, t, keys[0]), keys[1]


def float_step(
    trajectory: Trajectory,
    state: State,
    constants: tuple[Any, ...],
    slices: tuple[Any, ...],
    data: Data,
    key: Array | None,
    t: Array,
) -> State:
    """Takes step t in ordinary floating point."""
    hparams = hparams_of(trajectory, constants, slices)
    batch, loss_key = batch_and_key(trajectory, hparams, data, key, t)
    return trajectory.transition.step(state, hparams, batch, loss_key)


def recorded(trajectory: Trajectory, state: State, data: Data) -> Any:
    """Returns what the user records of a state; None without `record`."""
    return None if trajectory.record is None else trajectory.record(state, data)


def steps(trajectory: Trajectory) -> Array:
    """Returns 0, 1, ..., T - 1 as int32 `[T]`."""
    return jnp.arange(trajectory.num_steps, dtype=jnp.int32)


def float_run_info(trajectory: Trajectory, state: State) -> RunInfo:
    """Returns the info of a run in ordinary floating point: only whether its end is finite."""
    nonfinite = jnp.logical_not(all_finite(state))
    no = jnp.zeros((), bool)
    damaged_at = jnp.where(nonfinite, -1, trajectory.num_steps).astype(jnp.int32)
    return RunInfo(no, nonfinite, damaged_at, no, no, {}, {})


def all_finite(tree: Any) -> Array:
    """Returns whether every floating-point number of a pytree is finite: bool scalar."""
    leaves = [
        jnp.all(jnp.isfinite(x))
        for x in jax.tree.leaves(tree)
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.ones((), bool)
