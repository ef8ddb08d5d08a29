"""The compiled meta-step of `tune`: one program a length of the runs, and what is kept of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.runs.trajectory import all_finite
from hgrad_jax.training.sweep_table import by_name
from hgrad_jax.tuning.meta_step import MetaStep
from hgrad_jax.types import Array, BackwardInfo, Hparams, Params


class Outcome(NamedTuple):
    """What leaves the device after a meta-step.

    Attributes:
      hparams: after it.
      opt_state: after it.
      is_finite: bool scalar, whether the hyperparameters are, and the optimizer's state where it
        was before: some begin with an infinite best value.
      gradient: the mean hypergradient.
      value: `[R]`, the objective of each run.
      params: the trained parameters of each run; None where nobody measures them.
      info: of each run.
      numbers: scalars by name, as `history.Rows` names them; no "spread" of one run.
    """

    hparams: Hparams
    opt_state: Any
    is_finite: Array
    gradient: Hparams
    value: Array
    params: Params | None
    info: BackwardInfo
    numbers: dict[str, Array]


def outcome(step: MetaStep, hparams: Hparams, opt_state: Any, *, has_params: bool) -> Outcome:
    """Returns what is kept of a meta-step.

    Args:
      step: the meta-step.
      hparams: before it.
      opt_state: before it.
      has_params: whether the trained parameters are.
    """
    found = step.found
    numbers = {"norm": _norm(jax.tree.leaves(step.gradient))}
    if len(found.value) > 1:
        numbers["spread"] = _spread(jax.tree.leaves(found.hparams))
    for name, x in by_name(hparams).items():
        numbers |= {
            f"mean/{name}": jnp.mean(x),
            f"std/{name}": jnp.std(x),
            f"min/{name}": jnp.min(x),
            f"max/{name}": jnp.max(x),
        }
    for name, g in by_name(step.gradient).items():
        numbers[f"norm/{name}"] = _norm([g])
    return Outcome(
        step.hparams,
        step.opt_state,
        all_finite(step.hparams) & _stays_finite(opt_state, step.opt_state),
        step.gradient,
        found.value,
        found.unrolled.params if has_params else None,
        found.info,
        numbers,
    )


class Program(NamedTuple):
    """A compiled meta-step.

    Attributes:
      run: `run(hparams, opt_state, params, train, valid, key) -> Outcome`.
      num_bytes: the compiled program's temporaries; None where the backend does not tell.
    """

    run: Callable[..., Outcome]
    num_bytes: int | None


def compiled(lowered: Any) -> Program:
    """Returns the program."""
    run = lowered.compile()
    memory = run.memory_analysis()
    return Program(run, None if memory is None else memory.temp_size_in_bytes)


def _stays_finite(before: Any, after: Any) -> Array:
    """Returns whether every floating-point number that was finite before is so after: bool."""

    def change(old: Any, new: Any) -> Array:
        is_float = jnp.issubdtype(jnp.result_type(new), jnp.inexact)
        return jnp.where(jnp.isfinite(old), new, 0) if is_float else jnp.asarray(new)

    return all_finite(jax.tree.map(change, before, after))


def _norm(leaves: list[Array]) -> Array:
    return jnp.sqrt(sum((jnp.sum(jnp.square(x)).astype(float) for x in leaves), jnp.zeros(())))


def _spread(leaves: list[Array]) -> Array:
    return jnp.sqrt(
        sum((jnp.sum(jnp.var(x, axis=0, ddof=1)).astype(float) for x in leaves), jnp.zeros(()))
    )
