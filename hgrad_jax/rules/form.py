"""A rule in kick-and-drift form: what its pieces are, and its state."""

from collections.abc import Callable
from typing import Any, NamedTuple

from hgrad_jax.rules.gradients import (
    GradientFn,
)
from hgrad_jax.types import Array, Hparams, Loss, Params, Slot

PARAMS = "params"
"""The name under which the positions stand among the variables of a rule."""


class KickDrift(NamedTuple):
    """A rule in kick-and-drift form; what `Transition.exact` holds.

    Attributes:
      gradient: `gradient(params, hparams, batch, key) -> tree like params`.
      loss: the loss whose exact gradient that is, else None (an estimator, whose Jacobian need not
        be symmetric).
      kick: `kick(gradient, hparams, count) -> {slot: increment}`.
      couple: `couple(gradient, kicked slots, hparams, count) -> {slot: increment}`.
      drift: `drift(slots, hparams, count) -> increment of the parameters`.
      trail: `trail(params, hparams, count) -> {slot: increment}`, from the new parameters.
      decays: `decays(hparams, count) -> {variable: tree prefix of params}`; a variable that is not
        named is not decayed.
      slots: how each variable is kept, the parameters under "params".
      kicked, coupled, trailing: names of the slots that `kick`, `couple` and `trail` return.
      is_elementwise: whether kick, couple, drift and trail treat each number by itself, but for
        factors spread over tensors.
    """

    gradient: GradientFn
    loss: Loss | None
    kick: Callable[[Params, Hparams, Array], dict[str, Params]]
    couple: Callable[[Params, dict[str, Params], Hparams, Array], dict[str, Params]]
    drift: Callable[[dict[str, Params], Hparams, Array], Params]
    trail: Callable[[Params, Hparams, Array], dict[str, Params]]
    decays: Callable[[Hparams, Array], dict[str, Any]]
    slots: dict[str, Slot]
    kicked: tuple[str, ...]
    coupled: tuple[str, ...] = ()
    trailing: tuple[str, ...] = ()
    is_elementwise: bool = False

    @property
    def driving(self) -> tuple[str, ...]:
        """Names of the slots that the drift reads."""
        return self.kicked + self.coupled


class KickDriftState(NamedTuple):
    """State of a kick-and-drift rule.

    Attributes:
      params: positions, a pytree of floating-point arrays.
      slots: one tree like params per slot.
      count: int32 scalar, steps taken.
    """

    params: Params
    slots: dict[str, Params]
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
