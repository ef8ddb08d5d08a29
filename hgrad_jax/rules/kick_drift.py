"""Update rules as kicks and drifts: the form in which training can be run backwards bit for bit.

One step of such a rule, with positions x (the parameters) and slots s (velocities, second moments):

    kick    s_i' = a_i * s_i + k_i(gradient at x, hparams, t)
    couple  r_i' = b_i * r_i + c_i(gradient at x, s', hparams, t)   (slots that need others, if any)
    drift   x'   = a_x * x   + f(s', r', hparams, t)
    trail   y'   = a_y * y   + h(x', hparams, t)                    (averages of x, if any)

Every line adds to a variable something that does not depend on it, so the lines can be undone in
reverse order: subtract h(x'), then f(s', r'), recompute the gradient at x, subtract c and k, and
divide by the decays, which `hgrad_jax.bits.decay` does exactly. Plain SGD, RMSProp without
momentum and Nesterov's method are not of this form: their drift needs the gradient at the previous
position, which is what a run backwards does not have yet.

The user writes k, f and the decays in ordinary floating point; `kick_drift` builds both the
floating-point step and what `Reversible()` needs.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hgrad_jax.inputs import arguments
from hgrad_jax.inputs.functions import require_function
from hgrad_jax.rules.form import PARAMS, KickDrift, KickDriftState
from hgrad_jax.rules.gradients import (
    GradientProvider,
    backpropagation,
    gradient_from,
)
from hgrad_jax.rules.stepping import from_exact, named, require_like
from hgrad_jax.types import Array, Hparams, Loss, Params, Slot, Transition


def kick_drift(
    loss: Loss,
    *,
    kick: Callable[[Params, Hparams, Array], dict[str, Params]],
    drift: Callable[[dict[str, Params], Hparams, Array], Params],
    decays: Callable[[Hparams, Array], dict[str, Any]],
    slots: Mapping[str, Slot],
    couple: Callable[[Params, dict[str, Params], Hparams, Array], dict[str, Params]] | None = None,
    coupled: tuple[str, ...] = (),
    init: Callable[[Params, Hparams], dict[str, Params]] | None = None,
    gradient: GradientProvider = backpropagation,
    params: Slot = Slot(),
    is_elementwise: bool = False,
) -> Transition:
    """Builds a transition from kicks and a drift, for every adjoint, `Reversible()` included.

    Args:
      loss: `loss(params, hparams, batch, key) -> scalar`.
      kick: `kick(gradient, hparams, count) -> {slot: increment}`, trees like params; elementwise or
        not, but of the gradient only.
      drift: `drift(slots, hparams, count) -> increment`, a tree like params; of the new slots only.
      decays: `decays(hparams, count) -> {name: decay}` in [2**-7, 1], each a tree prefix of params:
        a scalar, one per tensor, or one per number. "params" names the positions (decoupled weight
        decay).
      slots: `{name: Slot(...)}` for every slot.
      couple: `couple(gradient, slots, hparams, count) -> {slot: increment}` for the slots named in
        `coupled`, whose kick needs the other slots just kicked (RMSProp's momentum).
      coupled: names of those slots.
      init: `init(params, hparams) -> {slot: start}`; zeros by default.
      gradient: where the gradient comes from: `gradient(loss)(params, hparams, batch, key)`.
      params: how the positions are kept.
      is_elementwise: a promise that kick, couple and drift treat each number by itself (no norms
        over a tensor); where all factors are scalars too, `Reversible()` then hands them one long
        vector instead of many tensors, which is faster. Nothing checks it: broken, the numbers are
        wrong.

    Returns:
      A Transition whose state is a KickDriftState.

    Example:
      Momentum whose velocity is also clipped before it moves the parameters:

      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.kick_drift(
      ...     lambda params, hparams, batch, key: jnp.sum(params**2),
      ...     kick=lambda gradient, hparams, count: {"velocity": -gradient},
      ...     drift=lambda slots, hparams, count: (
      ...         hparams["rate"] * jnp.clip(slots["velocity"], -1, 1)
      ...     ),
      ...     decays=lambda hparams, count: {"velocity": 0.9},
      ...     slots={"velocity": hg.Slot()},
      ... )
      >>> run = hg.Run(rule, num_steps=3, adjoint=hg.Reversible())
      >>> def end(rate):
      ...     return jnp.sum(hg.unroll(run, jnp.ones(2), {"rate": rate}, None).params)
      >>> print(f"{jax.grad(end)(jnp.float32(0.01)):.4f}")
      -6.0000
    """
    _require_pieces(slots, coupled, kick=kick, drift=drift, decays=decays, couple=couple, init=init)
    if not set(coupled) <= set(slots):
        raise ValueError(f"coupled is {coupled!r}, but slots has {list(slots)}; name some of them.")
    coupled = tuple(coupled)
    is_elementwise = arguments.flag("is_elementwise", is_elementwise)
    params = arguments.slot("params", params)
    slots = {name: arguments.slot(name, each) for name, each in slots.items()}
    if PARAMS in slots:
        raise ValueError(
            f"slots has {PARAMS!r}, the name of the positions; call the slot otherwise."
        )
    exact = KickDrift(
        gradient=gradient_from(gradient, loss),
        loss=loss if gradient is backpropagation else None,
        kick=kick,
        couple=couple or (lambda gradient, slots, hparams, count: {}),
        drift=drift,
        trail=lambda params, hparams, count: {},
        decays=decays,
        slots={PARAMS: params, **slots},
        kicked=tuple(name for name in slots if name not in coupled),
        coupled=coupled,
        is_elementwise=is_elementwise,
    )

    def start(params, hparams):
        given = {name: jax.tree.map(jnp.zeros_like, params) for name in slots}
        if init is not None:
            given = named("init", init(params, hparams), tuple(slots))
            for name, slot in given.items():
                require_like(slot, params, f"what init returned for {name!r}")
        return KickDriftState(params, given, jnp.int32(0))

    return from_exact(exact, start)


def _require_pieces(
    slots: Any, coupled: Any, *, kick: Any, drift: Any, decays: Any, couple: Any, init: Any
) -> None:
    """Raises a TypeError if a piece of a rule is not of the kind it must be."""
    require_function(kick, "kick(gradient, hparams, count)", "a function that returns a dict")
    require_function(drift, "drift(slots, hparams, count)", "a function")
    require_function(decays, "decays(hparams, count)", "a function that returns a dict")
    if couple is not None:
        call = "couple(gradient, slots, hparams, count)"
        require_function(couple, call, "a function that returns a dict, or None")
    if init is not None:
        require_function(init, "init(params, hparams)", "a function that returns a dict, or None")
    is_names = isinstance(coupled, tuple | list) and all(isinstance(x, str) for x in coupled)
    if not is_names:
        raise TypeError(f"coupled is {coupled!r}; it must be a tuple of names of slots.")
    wrong = [repr(slots)]
    if isinstance(slots, Mapping):
        wrong = [f"{x!r} for {name!r}" for name, x in slots.items() if not isinstance(x, Slot)]
    if wrong:
        raise TypeError(
            f"slots has {wrong[0]}; it must be a dict of names and hg.Slot(), such as "
            '{"velocity": hg.Slot()}.'
        )
