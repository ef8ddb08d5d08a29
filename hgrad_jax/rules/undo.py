"""The step of a rule taken back in ordinary floating point."""

from typing import Any

import jax
import jax.numpy as jnp

from hgrad_jax.rules.form import PARAMS, KickDrift, KickDriftState
from hgrad_jax.tools.dtypes import wide
from hgrad_jax.tools.prefixes import spread
from hgrad_jax.types import Array, Hparams


def undo(
    exact: KickDrift, state: KickDriftState, hparams: Hparams, batch: Any, key: Array | None
) -> KickDriftState:
    """Returns the state before a step, in ordinary floating point: dividing by the decays.

    Each division returns as many wrong bits as the multiplication lost, log2(1 / decay), and they
    grow from step to step as the training amplifies them backwards. For a few dozens of steps, then
    (St. Jules 2017, section 3.1); `Reversible()` undoes all.

    Args:
      exact: the rule.
      state: after the step.
      hparams: hyperparameters of the step.
      batch: of the step.
      key: the loss's key of the step.
    """
    count = state.count - 1
    decays = exact.decays(hparams, count)

    def retreat(name, variable, increment):
        if name not in decays:
            return jax.tree.map(jnp.subtract, variable, increment)
        full = spread(decays[name], variable, f"the decay of {name!r}")

        def at_leaf(a, x, y):
            dtype = wide(x.dtype)  # as in `scale_and_add`
            return ((x - y).astype(dtype) / jnp.asarray(a, dtype)).astype(x.dtype)

        return jax.tree.map(at_leaf, full, variable, increment)

    slots = dict(state.slots)
    trails = exact.trail(state.params, hparams, count)
    driving = {name: slots[name] for name in exact.driving}
    params = retreat(PARAMS, state.params, exact.drift(driving, hparams, count))
    gradient = exact.gradient(params, hparams, batch, key)
    kicked = {name: slots[name] for name in exact.kicked}
    increments = {
        **trails,
        **exact.couple(gradient, kicked, hparams, count),
        **exact.kick(gradient, hparams, count),
    }
    before = {name: retreat(name, slots[name], increments[name]) for name in slots}
    return KickDriftState(params, before, count)
