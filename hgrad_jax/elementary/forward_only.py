"""Update rules that cannot be run backwards: their step needs the gradient at the parameters that
it replaces.

Same state as a kick-and-drift rule, no exact form. Every adjoint but `Reversible()` serves them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hgrad_jax.elementary.kick_drift import GradientFn, KickDriftState, gradient_of
from hgrad_jax.types import Array, Batch, Hparams, Loss, Params, Transition

Slots = dict[str, Params]
Update = Callable[[Params, Slots, Hparams], tuple[Slots, Params]]


def forward_only(
    loss: Loss,
    *,
    update: Update,
    slots: tuple[str, ...] = (),
    gradient: GradientFn | None = None,
    why_not: str,
) -> Transition:
    """Builds a transition from what a step adds to the parameters.

    Args:
      loss: `loss(params, hparams, batch, key) -> scalar`.
      update: `update(gradient, slots, hparams) -> new slots, increment of the parameters`.
      slots: names of the slots, trees like params that start at zero.
      gradient: replaces `jax.grad(loss)`.
      why_not: see `Transition`.

    Returns:
      A Transition whose state is a KickDriftState.
    """
    gradient = gradient or gradient_of(loss)

    def init(params: Params, hparams: Hparams) -> KickDriftState:
        zeros = {name: jax.tree.map(jnp.zeros_like, params) for name in slots}
        return KickDriftState(params, zeros, jnp.int32(0))

    def step(
        state: KickDriftState, hparams: Hparams, batch: Batch, key: Array | None
    ) -> KickDriftState:
        grads = gradient(state.params, hparams, batch, key)
        new_slots, increment = update(grads, state.slots, hparams)
        params = jax.tree.map(jnp.add, state.params, increment)
        return KickDriftState(params, new_slots, state.count + 1)

    return Transition(init, step, lambda state: state.params, why_not=why_not)
