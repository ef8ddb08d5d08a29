"""Averages of the parameters along a run: what is evaluated is smoother than what is trained.

An average follows the parameters and drives nothing, so that a reversible rule stays reversible: it
is the last stage of the step and the first to be undone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from hgrad_jax.inputs.arguments import taken
from hgrad_jax.inputs.transitions import require_transition
from hgrad_jax.rules.arithmetic import elementwise
from hgrad_jax.rules.form import KickDrift, KickDriftState
from hgrad_jax.rules.source import Source, field, read
from hgrad_jax.rules.stepping import from_exact
from hgrad_jax.types import Array, Batch, Hparams, Params, Slot, State, Transition

AVERAGE = "average"
"""The name of the slot of a reversible rule that holds the average."""

TWICE = "transition has an average of its parameters already; average it once."

DecayAt = Callable[[Hparams, Array], Any]


class AverageState(NamedTuple):
    """State of a rule that cannot be reversed, with an average of its parameters.

    Attributes:
      inner: the rule's own state.
      average: a tree like params.
      count: int32 scalar, steps taken.
    """

    inner: State
    average: Params
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]


def average(
    transition: Transition,
    *,
    decay: Source = field("average_decay"),
    slot: Slot = Slot(smallest_decay=0.9),
) -> Transition:
    """Adds an exponential moving average: avg' = d avg + (1 - d) x', from avg = x at the start.

    `Transition.params` reads the average; the trained parameters are in the state. Not corrected
    for its start: that weighs d**t after t steps. Reversible if the rule is, at log2(1 / d) bits
    more per number and step.

    Args:
      transition: any rule that is not already averaged.
      decay: d, a number or a function of hparams; its value is a tree prefix of params: a scalar,
        one per tensor, or one per number. For `Reversible()` in [2**-7, 1].
      slot: fixed point and capacity of the average for `Reversible()`.

    Returns:
      A Transition with the same state and one slot more, "average", where the rule is reversible,
      and else with an AverageState. The slots
      of its `update` are then the pair of the rule's own and the average.

    Raises:
      ValueError: the rule has an average already.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return jnp.sum(params**2) / 2
      >>> rule = hg.sgd(loss, learning_rate=0.5)
      >>> out = hg.unroll(hg.Run(hg.average(rule, decay=0.75), num_steps=2), jnp.ones(1), {}, None)
      >>> out.params, out.state.inner.params
      (Array([0.71875], dtype=float32), Array([0.25], dtype=float32))
    """
    decay, slot = taken(decay=decay, slot=slot)
    return _averaged(transition, lambda hparams, count: read(decay, hparams, "decay"), slot)


def polyak_average(transition: Transition, *, slot: Slot = Slot(smallest_decay=0.9)) -> Transition:
    """Adds the mean of all parameters so far: avg_t = (x_0 + ... + x_t) / (t + 1).

    Polyak and Juditsky (1992). It is `average` with the decay (t + 1) / (t + 2) at step t, and
    costs log2(T + 1) bits per number in a whole run of T steps. The default slot has room for any
    T; of a long run, `Slot(smallest_decay=(T + 1) ** (-1 / T))` wastes less.

    Args:
      transition: any rule that is not already averaged.
      slot: fixed point and capacity of the average for `Reversible()`.

    Returns:
      As `average`.

    Raises:
      ValueError: the rule has an average already.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return jnp.sum(params**2) / 2
      >>> rule = hg.sgd(loss, learning_rate=0.5)
      >>> out = hg.unroll(hg.Run(hg.polyak_average(rule), num_steps=2), jnp.float32(1), {}, None)
      >>> print(f"{out.params:.4f}")  # (1 + 1/2 + 1/4) / 3
      0.5833
    """
    (slot,) = taken(slot=slot)

    def decay(hparams: Hparams, count: Array) -> Array:
        return (count + 1) / (count + 2)

    return _averaged(transition, decay, slot)


def _averaged(transition: Transition, decay_at: DecayAt, slot: Slot) -> Transition:
    require_transition(transition)
    if transition.exact is None:
        return _averaged_forward(transition, decay_at)
    inner: KickDrift = transition.exact
    if AVERAGE in inner.slots:
        raise ValueError(TWICE)

    def decays(hparams: Hparams, count: Array) -> dict[str, Any]:
        return inner.decays(hparams, count) | {AVERAGE: decay_at(hparams, count)}

    def trail(params: Params, hparams: Hparams, count: Array) -> dict[str, Params]:
        follow = elementwise(_share, params, decay=decay_at(hparams, count))
        return inner.trail(params, hparams, count) | {AVERAGE: follow}

    def init(params: Params, hparams: Hparams) -> KickDriftState:
        state = transition.init(params, hparams)
        return state._replace(slots=state.slots | {AVERAGE: state.params})

    exact = inner._replace(
        trail=trail,
        decays=decays,
        slots=inner.slots | {AVERAGE: slot},
        trailing=(*inner.trailing, AVERAGE),
    )
    return from_exact(exact, init)._replace(params=lambda state: state.slots[AVERAGE])


def _averaged_forward(transition: Transition, decay_at: DecayAt) -> Transition:
    def init(params: Params, hparams: Hparams) -> AverageState:
        inner = transition.init(params, hparams)
        if isinstance(inner, AverageState):
            raise ValueError(TWICE)
        return AverageState(inner, transition.params(inner), jnp.int32(0))

    def follow(params: Params, average: Params, hparams: Hparams, count: Array) -> Params:
        return elementwise(
            lambda x, y, decay: decay * y + _share(x, decay),
            params,
            average,
            decay=decay_at(hparams, count),
        )

    def step(
        state: AverageState, hparams: Hparams, batch: Batch, key: Array | None
    ) -> AverageState:
        inner = transition.step(state.inner, hparams, batch, key)
        new = follow(transition.params(inner), state.average, hparams, state.count)
        return AverageState(inner, new, state.count + 1)

    def update(
        params: Params, gradient: Params, slots: Any, hparams: Hparams, count: int = 0
    ) -> tuple[Params, Any]:
        inner, average = (None, params) if slots is None else slots
        params, inner = transition.update(params, gradient, inner, hparams, count)
        return params, (inner, follow(params, average, hparams, jnp.int32(count)))

    def params(state: AverageState) -> Params:
        return state.average

    return Transition(init, step, params, why_not=transition.why_not, update=update)


def _share(x: Array, decay: Array) -> Array:
    # One less the decay as rounded, so that the average of a constant is that constant.
    return (1 - decay) * x
