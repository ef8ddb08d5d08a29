"""What an adjoint costs on a problem, measured: bytes of its program, seconds of short runs.

Training is a scan, so that a program compiles in seconds for all T steps: bytes need not be
extrapolated. Seconds are, in proportion to the work that the adjoint says it does
(`hgrad_jax.runs.adjoint.Work`). The memory's own cost (pages to touch, caches to miss) is not in
them.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from hgrad_jax.hypergradient import Objective, value_and_hypergradient
from hgrad_jax.run import Run, is_schedule, trajectory_of
from hgrad_jax.runs import validate
from hgrad_jax.runs.adjoint import Adjoint
from hgrad_jax.runs.trajectory import inputs
from hgrad_jax.types import Array, Data, Hparams, Params

SHORT_RUNS = (8, 24)
LEAST_REPEATS, MOST_REPEATS = 3, 20


class Problem(NamedTuple):
    """What `value_and_hypergradient` differentiates, the adjoint apart; the fields are as there."""

    objective: Objective
    run: Run
    params: Params
    hparams: Hparams
    data: Data
    outer_data: Data
    key: Array | None

    def cut(self, num_steps: int) -> "Problem":
        """Returns the problem of the first steps alone: schedules are cut as well."""
        schedules = is_schedule(self.run, self.hparams)
        leaves, treedef = jax.tree.flatten(validate.floating(self.hparams, "hparams"))
        short = [x[:num_steps] if s else x for x, s in zip(leaves, schedules, strict=True)]
        # Leaf by leaf, lest a constant be taken for a forgotten schedule of fewer steps.
        axes = jax.tree.unflatten(treedef, [0 if s else None for s in schedules])
        run = dataclasses.replace(self.run, num_steps=num_steps, hparams_axes=axes)
        return self._replace(run=run, hparams=jax.tree.unflatten(treedef, short))

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the programs are functions of."""
        return self.params, self.hparams, self.data, self.outer_data, self.key

    @property
    def num_hparams(self) -> int:
        """How many numbers the hypergradient has, steps of schedules counted apart."""
        return sum(x.size for x in jax.tree.leaves(validate.floating(self.hparams, "hparams")))

    def require(self, adjoint: Adjoint) -> None:
        """Raises a ValueError if the adjoint does not apply, as far as the values tell."""
        params, hparams = (
            validate.floating(tree, name)
            for tree, name in ((self.params, "params"), (self.hparams, "hparams"))
        )
        trajectory = trajectory_of(self.run, hparams)
        adjoint.require(self.run.transition)
        given = inputs(trajectory, hparams, self.data, self.key)
        adjoint.require_inputs(trajectory, params, given)

    def program(self, adjoint: Adjoint) -> Any:
        """Returns the hypergradient as a jitted function of `arguments`."""

        def hypergradient(params, hparams, data, outer_data, key):
            found = value_and_hypergradient(
                self.objective,
                dataclasses.replace(self.run, adjoint=adjoint),
                params,
                hparams,
                data,
                outer_data,
                key=key,
            )
            return found.value, found.hparams, found.params, found.info

        return jax.jit(hypergradient)


def temp_bytes(compiled: Any) -> int | None:
    """Returns what a compiled program holds besides inputs and outputs; None if it is not said."""
    analysis = compiled.memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes


def estimated_seconds(problem: Problem, adjoint: Adjoint, memory: float) -> float | None:
    """Returns about what one hypergradient takes; None if even a short run exceeds the memory.

    Args:
      problem: one that the adjoint applies to.
      adjoint: what is timed.
      memory: bytes that may be held besides inputs and result.
    """
    lengths = _short_runs(problem, adjoint)
    times = []
    for length in lengths:
        short = problem.cut(length)
        compiled = short.program(adjoint).lower(*short.arguments).compile()
        if (temp_bytes(compiled) or 0) > memory:
            return None
        times.append(_timed(compiled, short.arguments))
    whole = (*lengths, problem.run.num_steps)
    work = [adjoint.work(n, problem.cut(n).num_hparams).total for n in whole]
    known = [x for x in work if x is not None]
    *parts, total = known if len(known) == len(work) else whole
    return extrapolated(times, parts, total)


def extrapolated(seconds: Sequence[float], work: Sequence[int], whole: int) -> float:
    """Returns the seconds of the whole work, on a line through what one or two parts of it took.

    Where the larger part took no longer than the smaller, which noise can do, in proportion to it.

    >>> extrapolated([1.5, 2.5], [10, 30], 110)
    6.5
    """
    rate = seconds[-1] / work[-1]
    if len(work) > 1 and seconds[1] > seconds[0]:
        rate = (seconds[1] - seconds[0]) / (work[1] - work[0])
    return seconds[-1] + rate * (whole - work[-1])


def _short_runs(problem: Problem, adjoint: Adjoint) -> tuple[int, ...]:
    """Returns two lengths that the adjoint's settings fit, or all steps if there are not more."""
    short, long = SHORT_RUNS
    while long < problem.run.num_steps:
        try:
            problem.cut(short).require(adjoint)
        except ValueError:  # more waypoints than states, say
            short, long = 2 * short, 2 * long
        else:
            return short, long
    return (problem.run.num_steps,)


def _timed(compiled: Any, args: tuple[Any, ...]) -> float:
    """Returns the least time of some calls, after one to warm up."""
    jax.block_until_ready(compiled(*args))
    times = []
    while len(times) < LEAST_REPEATS or (sum(times) < 0.05 and len(times) < MOST_REPEATS):
        begun = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - begun)
    return min(times)
