"""`plan`: what each adjoint would cost for a training, which apply, and which to take.

Bytes are those of the hypergradient's own program, compiled for all T steps and not run. They count
what is held besides the inputs and the result. Evaluations of the loss's gradient are the adjoint's
own `work`. Seconds are extrapolated from two short runs, in proportion to the evaluations
(`hgrad_jax.diagnostics.plan_measure`): read them as an order of cost.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from hgrad_jax.adjoints.checkpointed import Checkpointed
from hgrad_jax.adjoints.direct import Direct
from hgrad_jax.adjoints.forward_mode import ForwardMode
from hgrad_jax.adjoints.reversible import Reversible
from hgrad_jax.adjoints.waypoints import Waypoints
from hgrad_jax.diagnostics.plan_measure import Problem, estimated_seconds, temp_bytes
from hgrad_jax.hypergradient import Objective
from hgrad_jax.inputs.arguments import prng_key, taken
from hgrad_jax.run import Run, require_run
from hgrad_jax.runs import validate
from hgrad_jax.runs.adjoint import Adjoint, Work
from hgrad_jax.show.text_table import aligned, in_bytes, name_of
from hgrad_jax.types import Array, Data, Hparams, Params, Transition

ADJOINTS = (Direct(), Checkpointed(), Checkpointed(branching=2), Reversible())
# Beyond, a step of forward mode takes longer than it is worth to find that out.
FEW_HPARAMS = 32


class Row(NamedTuple):
    """What one adjoint would cost.

    Attributes:
      adjoint: the adjoint.
      work: its evaluations; None where it does not apply. Those of `ForwardMode` are with all
        tangents carried at once: where its memory makes it carry them in groups, each repeats the
        gradients, and how many groups there are is not known here.
      temp_bytes: temporary memory of the compiled hypergradient; None where it does not apply, or
        the compiler does not say.
      seconds: estimate of one hypergradient's time; None where it was not timed.
      why_not: why it does not apply or does not fit; None where it does both.
      note: what else is to be known of it, or None.
    """

    adjoint: Adjoint
    work: Work | None
    temp_bytes: int | None
    seconds: float | None
    why_not: str | None
    note: str | None = None


class Plan(NamedTuple):
    """The costs of all adjoints. Prints as a table.

    Attributes:
      rows: one per adjoint, in the order asked.
      num_steps: T.
      memory: the budget in bytes.
      recommended: the fastest exact adjoint within the budget; None if there is none.
      advice: the recommendation, or what comes nearest, in a sentence.
    """

    rows: tuple[Row, ...]
    num_steps: int
    memory: float
    recommended: Adjoint | None
    advice: str

    def __str__(self) -> str:
        lines = [["adjoint", "exact", "memory", "gradients", "products", "seconds", ""]]
        for row in self.rows:
            work = row.work or Work(None, None, None)
            exact = {True: "yes", False: "no", None: "?"}[work.is_exact]
            shown = [
                "-" if x is None else form(x)
                for x, form in (
                    (row.temp_bytes, in_bytes),
                    (work.gradients, "{:,}".format),
                    (work.products, "{:,}".format),
                    (row.seconds, "{:.2g}".format),
                )
            ]
            remark = row.why_not or row.note or ""
            lines.append([name_of(row.adjoint), exact if row.work else "-", *shown, remark])
        title = f"{self.num_steps:,} steps within {in_bytes(self.memory)}"
        return "\n".join([title, *aligned(lines, left=(0, -1)), self.advice])


def plan(
    objective: Objective,
    run: Run,
    params: Params,
    hparams: Hparams,
    data: Data,
    outer_data: Data = None,
    *,
    memory: float,
    key: Array | None = None,
    adjoints: Sequence[Adjoint] | None = None,
    is_timed: bool = True,
) -> Plan:
    """Returns what one hypergradient would cost with each adjoint, and which to take.

    Compiles each three times, which takes some seconds each, and runs some 24 steps of it (more
    where its settings need them, such as many waypoints), nothing that needs more than the budget.
    Approximations are shown and never recommended.

    Args:
      objective: as `value_and_hypergradient`, as are all arguments not explained here.
      run: what the training is; `adjoints` are taken in place of its own.
      params: initial parameters.
      hparams: hyperparameters.
      data: what batches are made from.
      outer_data: for the objective.
      memory: bytes that may be held besides inputs and result.
      key: PRNG key.
      adjoints: what to choose from; None for `usual_adjoints`.
      is_timed: whether to run anything; without, the number of evaluations ranks the adjoints.

    Returns:
      The Plan; print it.

    Raises:
      ValueError, TypeError: as `value_and_hypergradient` with `Direct()`; or `memory` is not
        positive, or `adjoints` holds something else.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.sgd(lambda params, hparams, batch, key: jnp.sum(jnp.cosh(params)))
      >>> found = hg.plan(
      ...     lambda params, hparams, _: jnp.sum(params**2),
      ...     hg.Run(rule, num_steps=400),
      ...     jnp.ones(1000),
      ...     {"learning_rate": 0.1},
      ...     None,
      ...     memory=1e6,
      ...     adjoints=(hg.Direct(), hg.Checkpointed(), hg.Reversible()),
      ...     is_timed=False,
      ... )
      >>> found.recommended
      Checkpointed(branching=None)
      >>> [row.why_not is None for row in found.rows]
      [False, True, False]
    """
    require_run(run)
    _require(memory, adjoints, is_timed)
    _require_values((params, hparams, data, outer_data, key))
    params, hparams = validate.floating(params, "params"), validate.floating(hparams, "hparams")
    data, outer_data = validate.arrays(data=data, outer_data=outer_data)
    problem = Problem(objective, run, params, hparams, data, outer_data, prng_key("key", key))
    # What is wrong with the user's own functions is raised here and is no adjoint's fault.
    jax.eval_shape(problem.program(Direct()), *problem.arguments)
    if adjoints is None:
        adjoints = usual_adjoints(run.transition, run.num_steps, problem.num_hparams)
    rows = tuple(_row(problem, adjoint, memory, is_timed) for adjoint in adjoints)
    return Plan(rows, run.num_steps, memory, *_recommend(rows, memory))


def usual_adjoints(transition: Transition, num_steps: int, num_hparams: int) -> tuple[Adjoint, ...]:
    """Returns what there is to choose from: the exact adjoints, and one approximation.

    `ForwardMode()` is left out where there are more than 32 numbers in `hparams`; `Waypoints`, some
    sqrt(T) of them with steps undone between, where the rule cannot be undone.

    >>> import hgrad_jax as hg
    >>> momentum = hg.momentum(lambda params, hparams, batch, key: params**2)
    >>> usual_adjoints(momentum, 100, 1000)[4:]
    (Waypoints(count=11, undone_steps=None, placement=EvenSteps(), clip=None),)
    """
    forward = () if num_hparams > FEW_HPARAMS else (ForwardMode(),)
    count = math.isqrt(num_steps - 1) + 2
    waypoints = () if transition.exact is None else (Waypoints(count, undone_steps=None),)
    return (*ADJOINTS, *forward, *waypoints)


def _row(problem: Problem, adjoint: Adjoint, memory: float, is_timed: bool) -> Row:
    """Returns what one adjoint costs, or why it does not apply."""
    try:
        problem.require(adjoint)
        lowered = problem.program(adjoint).lower(*problem.arguments)
        size, why_not = temp_bytes(lowered.compile()), None
    except (ValueError, TypeError, RuntimeError) as error:  # of the adjoint's: Direct() is traced
        return Row(adjoint, None, None, None, str(error).splitlines()[0])
    if size is None:
        why_not = "the compiler does not say how much memory it takes"
    elif size > memory:
        why_not = f"{in_bytes(size - memory)} too many"
    note = "no gradient of params" if lowered.out_info[2] is None else None
    work = adjoint.work(problem.run.num_steps, problem.num_hparams)
    seconds = estimated_seconds(problem, adjoint, memory) if is_timed else None
    return Row(adjoint, work, size, seconds, why_not, note)


def _recommend(rows: Sequence[Row], memory: float) -> tuple[Adjoint | None, str]:
    """Returns the fastest exact adjoint that fits, and a sentence on it or on the nearest."""
    exact = [
        (row.temp_bytes, row)
        for row in rows
        if row.work and row.work.is_exact and row.temp_bytes is not None
    ]
    if not exact:
        return None, "none of these adjoints is known to be exact and applies; add Checkpointed()."
    fitting = [(size, row) for size, row in exact if row.why_not is None]
    if not fitting:
        size, nearest = min(exact, key=lambda pair: pair[0])
        return None, (
            f"no exact adjoint fits; {name_of(nearest.adjoint)} comes nearest with "
            f"{in_bytes(size)}, {in_bytes(size - memory)} too many."
        )
    is_timed = all(row.seconds is not None for _, row in fitting)

    def cost(pair):
        size, row = pair
        return (row.seconds if is_timed else row.work.total or np.inf, size)

    _, best = min(fitting, key=cost)
    by = "by these estimates" if is_timed else "by the number of evaluations"
    but = f" ({best.note})" if best.note else ""
    return (
        best.adjoint,
        f"recommended: {name_of(best.adjoint)}, {by} the fastest that is exact{but}.",
    )


def _require(memory: Any, adjoints: Any, is_timed: Any) -> None:
    taken(is_timed=is_timed)
    is_number = isinstance(memory, int | float | np.number) and not isinstance(memory, bool)
    if not is_number or not memory > 0:
        raise ValueError(f"memory is {memory!r}; it must be a positive number of bytes.")
    if adjoints is None:
        return
    is_sequence = isinstance(adjoints, Sequence) and len(adjoints) > 0
    if not is_sequence or not all(isinstance(adjoint, Adjoint) for adjoint in adjoints):
        raise TypeError(
            f"adjoints is {adjoints!r}; it must be a tuple of objects such as (Direct(), "
            "Reversible())."
        )


def _require_values(tree: Any) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        raise TypeError(
            "plan compiles and runs programs of its own and cannot run inside jit, grad or vmap; "
            "call it outside."
        )
