"""`Run`: what a training is, but for the arrays that it is given.

Written once and taken by all that trains: `unroll` and `vjp`, the hypergradient, its checks and
diagnostics, the tuning. The arrays (parameters, hyperparameters, data, and the key, of which a
`vmap` over seeds needs many) are arguments of those, so that one Run serves under `jit`, `grad` and
`vmap` alike.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from hgrad_jax.adjoints.direct import Direct
from hgrad_jax.inputs.arguments import taken
from hgrad_jax.inputs.functions import as_int
from hgrad_jax.runs import validate
from hgrad_jax.runs.adjoint import Adjoint
from hgrad_jax.runs.trajectory import Trajectory
from hgrad_jax.types import BatchFn, Data, Hparams, State, Transition


@dataclasses.dataclass(frozen=True)
class Run:
    """What a training is: its update rule, its length, its batches, and how it is differentiated.

    Another is `dataclasses.replace(run, adjoint=hg.Reversible())`. Runs are compared by their
    fields and hashable: one may be a static argument of `jit`. A rule is equal to itself alone, so
    build it once, outside of loops.

    Attributes:
      transition: the elementary update, such as `hg.momentum(loss)`.
      num_steps: T, a positive int.
      batch_fn: `batch_fn(data, t, key) -> batch`, pure; None hands `data` to the loss.
      hparams_axes: tree prefix of `hparams` in the words of `jax.vmap`: 0 where the leading axis
        `[T, ...]` is the step, None where a value holds for all steps. None for the whole is
        refused where a leaf has T rows and would serve as a schedule too, lest one be forgotten.
      record: `record(state, data) -> pytree of float arrays`, evaluated after every step;
        differentiable. None for no trace.
      adjoint: how the trajectory is differentiated.

    Raises:
      TypeError: a field is not of its kind.
      ValueError: `num_steps` is not positive, `hparams_axes` has other leaves than 0 and None, or
        the rule has no exact map for `Reversible()`.

    Example:
      >>> import dataclasses, jax, jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.sgd(lambda params, hparams, batch, key: jnp.sum(params**2), learning_rate=0.25)
      >>> run = hg.Run(rule, num_steps=2)
      >>> train = jax.jit(hg.unroll, static_argnums=0)
      >>> train(run, jnp.ones(1), {}, None).params
      Array([0.25], dtype=float32)
      >>> train(dataclasses.replace(run, num_steps=3), jnp.ones(1), {}, None).params
      Array([0.125], dtype=float32)
    """

    # The two that may hold dicts are compared, but not hashed.
    transition: Transition = dataclasses.field(hash=False, repr=False)
    _: dataclasses.KW_ONLY
    num_steps: int
    batch_fn: BatchFn | None = None
    hparams_axes: Any = dataclasses.field(default=None, hash=False)
    record: Callable[[State, Data], Any] | None = None
    adjoint: Adjoint = Direct()

    def __post_init__(self) -> None:
        """Checks what can be known without the arrays."""
        validate.adjoint_serves(self.adjoint, self.transition)
        (num_steps,) = taken(num_steps=self.num_steps)
        object.__setattr__(self, "num_steps", num_steps)
        # Copied, lest the run change with a dict of the caller's.
        object.__setattr__(self, "hparams_axes", _axes(self.hparams_axes))
        validate.run_functions(self.batch_fn, self.record)


def _axes(axes: Any) -> Any:
    """Returns the tree in containers of its own.

    Raises:
      ValueError: a leaf is neither None nor an int.
    """

    def one(path: Any, axis: Any) -> int | None:
        found = None if axis is None else as_int(axis)
        if axis is not None and found is None:
            raise ValueError(
                f"hparams_axes has {axis!r} at {jax.tree_util.keystr(path) or 'its root'}; only 0 "
                "(a schedule) and None (a constant) exist."
            )
        return found

    return jax.tree_util.tree_map_with_path(one, axes, is_leaf=lambda x: x is None)


def require_run(run: Any) -> None:
    """Raises if what should be a Run is something else.

    Raises:
      TypeError: it is.
    """
    if isinstance(run, Run):
        return
    if isinstance(run, Transition):
        raise TypeError(
            "run is an update rule without its number of steps; pass hg.Run(rule, num_steps=100), "
            "with batch_fn, hparams_axes, record and adjoint where they are needed."
        )
    raise TypeError(f"run is {run!r}; it must be an hg.Run(rule, num_steps=100), say.")


def is_schedule(run: Run, hparams: Hparams) -> tuple[bool, ...]:
    """Returns for each leaf of the hyperparameters whether its leading axis is the step.

    Raises:
      ValueError: `hparams_axes` does not fit `hparams`, or a schedule has the wrong length.
    """
    return validate.schedules(hparams, run.hparams_axes, run.num_steps)


def trajectory_of(run: Run, hparams: Hparams) -> Trajectory:
    """Returns the fixed part of a run with these hyperparameters, as adjoints take it.

    Raises:
      ValueError: as `is_schedule`.
    """
    return Trajectory(
        run.transition,
        run.num_steps,
        run.batch_fn,
        is_schedule(run, hparams),
        jax.tree.structure(hparams),
        run.record,
    )
