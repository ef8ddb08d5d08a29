"""Parameters kept in a box: every step ends with a projection."""

from typing import Any

import jax.numpy as jnp

from hgrad_jax.inputs.arguments import taken
from hgrad_jax.inputs.transitions import require_transition
from hgrad_jax.rules.arithmetic import elementwise
from hgrad_jax.rules.average import AVERAGE, AverageState
from hgrad_jax.rules.source import Source, read
from hgrad_jax.types import Array, Batch, Hparams, Params, State, Transition


def project_to_box(transition: Transition, *, lower: Source, upper: Source) -> Transition:
    """Returns the rule whose parameters are projected to lower <= x <= upper after every step.

    x'' = min(max(x', lower), upper): projected gradient descent (Goldstein 1964; Levitin and Polyak
    1966) around `sgd`. Slots are left as they are. Differentiable in the bounds, where they are
    active. Not reversible: what lay outside of the box is forgotten.

    Args:
      transition: a rule of this library, or any whose state is a NamedTuple with `params`. Average
        after projecting, not before.
      lower: a number or a function of hparams; its value is a tree prefix of params; -inf for none.
      upper: likewise, at least `lower` (else the result is `upper`); inf for none.

    Raises:
      ValueError: the rule is an average already; when it is traced, its state has no `params`.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.sgd(lambda params, hparams, batch, key: jnp.sum(params), learning_rate=1.0)
      >>> rule = hg.project_to_box(rule, lower=0.0, upper=1.0)
      >>> hg.unroll(hg.Run(rule, num_steps=1), jnp.array([0.5, 1.75]), {}, None).params
      Array([0.  , 0.75], dtype=float32)
    """
    require_transition(transition)
    lower, upper = taken(lower=lower, upper=upper)
    if transition.exact is not None and AVERAGE in transition.exact.slots:
        raise ValueError(AVERAGED)

    def project(params: Params, hparams: Hparams) -> Params:
        def limit(x: Array, lower: Array, upper: Array) -> Array:
            above = jnp.where(x < lower, lower, x)
            return jnp.where(above > upper, upper, above)

        return elementwise(
            limit, params, lower=read(lower, hparams, "lower"), upper=read(upper, hparams, "upper")
        )

    def step(state: State, hparams: Hparams, batch: Batch, key: Array | None) -> State:
        state = transition.step(state, hparams, batch, key)
        if isinstance(state, AverageState):
            raise ValueError(AVERAGED)
        if not hasattr(state, "_replace") or not hasattr(state, "params"):
            raise ValueError(
                "project_to_box needs a state that is a NamedTuple with the field params: this "
                f"transition's is {type(state).__name__}; project inside its step."
            )
        return state._replace(params=project(state.params, hparams))

    def update(
        params: Params, gradient: Params, slots: Any, hparams: Hparams, count: int = 0
    ) -> tuple[Params, Any]:
        params, slots = transition.update(params, gradient, slots, hparams, count)
        return project(params, hparams), slots

    return Transition(
        transition.init,
        step,
        transition.params,
        why_not="a projection forgets how far outside of the box the parameters were",
        update=update,
    )


AVERAGED = "transition is an average already; project first: hg.average(hg.project_to_box(rule))."
