"""Update rules that cannot be run backwards: their step needs the gradient at the parameters that
it replaces.

Same state as a kick-and-drift rule, no exact form. Every adjoint but `Reversible()` serves them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hgrad_jax.rules.form import KickDriftState
from hgrad_jax.rules.gradients import GradientProvider, gradient_from
from hgrad_jax.rules.stepping import from_update
from hgrad_jax.types import Array, Hparams, Loss, Params, Transition

Slots = dict[str, Params]
Increment = Callable[[Params, Slots, Hparams], tuple[Slots, Params]]


def forward_only(
    loss: Loss,
    *,
    increment: Increment,
    slots: tuple[str, ...] = (),
    gradient: GradientProvider,
    why_not: str,
) -> Transition:
    """Builds a transition from what a step adds to the parameters.

    Args:
      loss: `loss(params, hparams, batch, key) -> scalar`.
      increment: `increment(gradient, slots, hparams) -> new slots, increment of the parameters`.
      slots: names of the slots, trees like params that start at zero.
      gradient: where the gradient comes from.
      why_not: see `Transition`.

    Returns:
      A Transition whose state is a KickDriftState.
    """

    def init(params: Params, hparams: Hparams) -> KickDriftState:
        zeros = {name: jax.tree.map(jnp.zeros_like, params) for name in slots}
        return KickDriftState(params, zeros, jnp.int32(0))

    def update(
        params: Params, gradient: Params, slots: Slots, hparams: Hparams, count: Array
    ) -> tuple[Params, Slots]:
        new_slots, added = increment(gradient, slots, hparams)
        return jax.tree.map(jnp.add, params, added), new_slots

    return from_update(init, update, gradient_from(gradient, loss))._replace(why_not=why_not)
