"""`check`: turns the flags of a run into an exception on the host, with cause and remedy."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.core import Tracer

from hgrad_jax.hypergradient import Hypergradient
from hgrad_jax.types import BackwardInfo, RunInfo, Unrolled

Info = TypeVar("Info")
Result = TypeVar("Result", bound=type)


class HypergradientError(RuntimeError):
    """A run or its hypergradient is not what it should be; the message says why and what to do."""


def _nothing(result: Any) -> None:
    """What `info` says is all."""


_checkable: dict[type, Callable[[Any], None]] = {Unrolled: _nothing, Hypergradient: _nothing}


def checkable(also: Callable[[Any], None] = _nothing) -> Callable[[Result], Result]:
    """Returns a decorator of classes with an `info`, which `check` takes then.

    Args:
      also: `also(result)` raises HypergradientError for what `info` does not say.
    """

    def register(result: Result) -> Result:
        _checkable[result] = also
        return result

    return register


def check(info: Info) -> Info:
    """Returns `info` if everything in it is in order, and raises if not. Call it outside `jit`.

    Args:
      info: a RunInfo, a BackwardInfo, an Unrolled, a Hypergradient, a Fit, or MetaSteps; under
        `vmap` with leading axes, all of which are checked.

    Raises:
      HypergradientError: a flag is raised; the message names the first run concerned if there are
        several.
      TypeError: `info` is traced, or none of these.
    """
    also = _checkable.get(type(info))
    found = info if also is None else cast(Any, info).info
    if not isinstance(found, RunInfo | BackwardInfo):
        if isinstance(getattr(info, "found", None), Hypergradient):
            raise TypeError("info is a MetaStep; pass what its runs found: hg.check(step.found).")
        raise TypeError(
            f"info is a {type(info).__name__}; pass what unroll, fit or "
            "value_and_hypergradient return, or the info that the pullback of vjp returns."
        )
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(info)):
        raise TypeError(
            "check reads values and cannot run inside jit, grad or vmap; return the info and check "
            "it there."
        )
    back = found if isinstance(found, BackwardInfo) else None
    run = found.run if isinstance(found, BackwardInfo) else found
    first = _first(run.damaged_at, run.overflow | run.nonfinite)
    when = f"at step {first}" if first >= 0 else "somewhere on the way"
    refuse(
        run.nonfinite,
        f"the training became infinite or NaN {when}",
        "lower the learning rate, or look for the loss that does not stay finite, or for "
        "params and hparams that are not",
    )
    refuse(
        run.overflow,
        f"a number left the fixed-point range {when}",
        "lower the learning rate if training diverges; numbers that must be that large need fewer "
        "fraction_bits, in the Slot that kick_drift and adam take, or another adjoint",
    )
    refuse(
        run.decay_out_of_range,
        "a decay was outside [2**-7, 1]",
        "keep it inside (a logistic map does), or use Direct() or Checkpointed()",
    )
    if back is not None:
        refuse(
            run.store_overflow,
            "the bit store was too small to run backwards: the run's decays have a geometric mean "
            f"of {_least_decay(run):.4g}",
            "pass Reversible(smallest_decay=...) at most that",
        )
        if back.mismatches is not None:
            refuse(
                np.asarray(back.mismatches) > 0,
                "the run backwards did not restore the start: "
                f"{int(np.max(back.mismatches))} numbers differ",
                "make sure that loss and batch_fn give the same result for the same arguments, and "
                "on a GPU set XLA_FLAGS=--xla_gpu_deterministic_ops=true",
            )
        if back.solve is not None:
            _check_solve(back.solve)
        refuse(
            ~np.asarray(back.is_finite),
            "the hypergradient is infinite or NaN although the run is finite",
            "either the outer loss is not differentiable where the run ends, or the rule is not: "
            "optax's radam takes the root of a negative number in a branch that is not taken (use "
            "ForwardMode(), which passes it by), and its adam one of zero (give it eps and "
            "eps_root, or use hg.adam); or the run amplifies perturbations beyond the "
            "floating-point range: shorten it or lower the learning rate",
        )
    if also is not None:
        also(info)
    return info


def _check_solve(solve: Any) -> None:
    """Raises if the linear system of an implicit hypergradient was not solved, or not the one."""
    refuse(
        solve.is_trace_dropped,
        "a cotangent of the trace was given, which Implicit() does not differentiate",
        "leave trace_bar out, or use Direct() or Checkpointed()",
    )
    # First of the three, since what is not a minimum is often not stationary either, and no solver
    # converges there.
    refuse(
        solve.is_indefinite,
        "the loss has negative curvature where the training ended, which is no minimum then: "
        f"{np.min(solve.curvature):.2g}",
        "train longer, or pass ConjugateGradient(damping=...) with more than its absolute value",
    )
    # A residual that is NaN is a cotangent that was not finite, which is_finite says better.
    is_sound = ~np.isnan(solve.residual)
    refuse(
        ~np.asarray(solve.is_converged) & is_sound,
        "the linear solver did not reach its tolerance: relative residual "
        f"{_largest(solve.residual):.2g} after {np.max(solve.num_steps)} steps",
        "raise its max_steps, choose another step_size if it is Neumann(), or raise its tolerance "
        "if rounding is what limits it",
    )
    refuse(
        ~np.asarray(solve.is_stationary) & is_sound,
        "the training did not end where the condition of Implicit() holds: the parameters are off "
        f"by about {_largest(solve.stationarity):.2g} of their norm",
        "train longer, make sure that the condition is the one that this rule comes to rest at, or "
        "pass a larger stationarity_tolerance and compare with an adjoint that unrolls",
    )


def _least_decay(run: RunInfo) -> float:
    """Returns the geometric mean of the decays that take most of a store, of runs without room."""
    is_full = np.asarray(run.store_overflow)
    bits = [np.max(np.asarray(x)[is_full], initial=0.0) for x in run.entropy_per_step.values()]
    return float(2.0 ** -max(bits, default=0.0))


def _largest(values: Any) -> float:
    return float(np.fmax.reduce(np.ravel(values)))  # NaN only if all are


def refuse(is_wrong: Any, what: str, remedy: str) -> None:
    """Raises a HypergradientError if a flag is raised, of one run or of several."""
    flags = np.asarray(is_wrong)
    if flags.any():
        where = (
            f" (run {tuple(int(i) for i in np.argwhere(flags)[0])} of {flags.shape})"
            if flags.ndim
            else ""
        )
        raise HypergradientError(f"{what}{where}; {remedy}.")


def _first(steps: Any, flags: Any) -> int:
    return int(np.asarray(steps)[np.asarray(flags)].min(initial=np.iinfo(np.int32).max))
