"""Whether what is differentiated enters the condition at all."""

from collections.abc import Sequence

import jax
from jax.interpreters.partial_eval import dce_jaxpr

from hgrad_jax.adjoints.implicit.conditions import Condition
from hgrad_jax.adjoints.implicit.rest import rest_of
from hgrad_jax.runs.trajectory import Extended, Inputs, Trajectory, first_state
from hgrad_jax.types import Params


def refuse_absent(
    condition: Condition,
    batches: int | None,
    trajectory: Trajectory,
    params: Params,
    inputs: Inputs,
    is_differentiated: Sequence[bool],
) -> None:
    """Raises a ValueError if a differentiated hyperparameter does not enter the condition.

    Read off the trace: whether its entry of the product with dc/dhparams depends on u at all.

    Args:
      condition: what holds at rest.
      batches: how many of the last batches it is the mean over.
      trajectory: the run.
      params: initial parameters.
      inputs: of the run.
      is_differentiated: of each hyperparameter and value closed over.
    """
    if not any(is_differentiated):
        return

    def product(direction):
        state = first_state(trajectory, params, inputs)
        rest = rest_of(trajectory, state, params, inputs, batches)
        batch, key = rest.last_batch()
        return condition.hparams_product(rest.params, rest.hparams, batch, key, direction)

    jaxpr = jax.make_jaxpr(product)(params).jaxpr
    absent = []
    for i, (name, is_asked) in enumerate(_names(trajectory, is_differentiated)):
        only = [j == i for j in range(len(is_differentiated))]
        if is_asked and not any(dce_jaxpr(jaxpr, only)[1]):
            absent.append(name)
    if absent:
        raise ValueError(
            f"{', '.join(absent)}: differentiated, but not in the condition that Implicit() "
            "differentiates, so that the hypergradient would be a silent zero; pass a fixed "
            "number to the rule (hg.momentum(loss, learning_rate=0.1)), or use an adjoint that "
            "unrolls, such as Reversible() or Truncated()."
        )


def _names(trajectory: Trajectory, flags: Sequence[bool]) -> list[tuple[str, bool]]:
    """Returns what a message calls each constant or schedule, with its flag."""
    hparams = jax.tree.unflatten(trajectory.treedef, flags)
    closed = ()
    if isinstance(hparams, Extended):
        hparams, closed = hparams
    named = [
        ("hparams" + jax.tree_util.keystr(path), flag)
        for path, flag in jax.tree_util.tree_leaves_with_path(hparams)
    ]
    what = "a value that a function of the run closes over"
    return named + [(what, flag) for flag in closed if flag is not None]
