"""One step of a kick-and-drift rule in exact integers, forward and backward, with its adjoint.

The rule's stages (kick, couple, drift, trail; see `hgrad_jax.rules.kick_drift`) all have one
shape: *some variables are multiplied by a decay and take an increment that depends on other
variables*. So there is one function to do a stage, one to undo it and one for its adjoint, and the
step is their sequence.

All tensors of a variable lie in one vector: the integer arithmetic is then one loop whatever the
number of tensors, compiled once. The price is one schedule of spills for all tensors, that of the
smallest decay.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.bits import decay
from hgrad_jax.bits.bit_store import BitStore, Spill
from hgrad_jax.bits.bitwise import isolate
from hgrad_jax.bits.kinds import Integer
from hgrad_jax.exact.encoding import bounded, encode, kind_of
from hgrad_jax.exact.stages import Stage
from hgrad_jax.rules.form import KickDrift
from hgrad_jax.tools.prefixes import ravel_spread
from hgrad_jax.tools.vectors import Layout, ravel
from hgrad_jax.types import Array, Hparams, Params


class Exact(NamedTuple):
    """The integer state of a rule.

    Attributes:
      values: fixed-point numbers `[N]` of each variable.
      stores: bit store of each variable that decays.
    """

    values: dict[str, Integer]
    stores: dict[str, BitStore]


Updates = tuple[dict[str, Array], dict[str, Array]]
"""Increments `[N]` of a stage's variables, and numerators of those that decay."""


def decays_of(rule: KickDrift, hparams: Hparams, count: Array, like: Layout) -> dict[str, Array]:
    """Returns the decays in floating point: a scalar or `[N]` for each variable that decays."""
    return {
        name: ravel_spread(a, like, f"the decay of {name!r}")
        for name, a in rule.decays(hparams, count).items()
    }


def isolated_stage(
    rule: KickDrift, stage: Stage, source: Any, hparams: Hparams, t: Array, like: Layout
) -> Updates:
    """Evaluates a stage's increments and decay numerators, to the same bits in both directions."""

    def evaluate(source, hparams, t):
        increments = stage.increments(source, hparams, t)
        decays = decays_of(rule, hparams, t, like)
        numerators = {
            name: decay.numerator(decays[name], kind_of(rule, name, like))
            for name in stage.names
            if name in decays
        }
        vectors = {name: ravel(increments[name], like) for name in stage.names}
        return {name: bounded(rule, name, x, like) for name, x in vectors.items()}, numerators

    return isolate(evaluate, t)(source, hparams, t)


def do_stage(
    rule: KickDrift,
    stage: Stage,
    exact: Exact,
    updates: Updates,
    spills: dict[str, Spill],
    like: Layout,
) -> Exact:
    """Decays and increments a stage's variables."""
    increments, numerators = updates
    values, stores = dict(exact.values), dict(exact.stores)
    for name in stage.names:
        kind, value = kind_of(rule, name, like), values[name]
        if name in numerators:
            value, stores[name] = decay.scale(
                kind, value, stores[name], numerators[name], spills[name]
            )
        values[name] = kind.add(value, encode(rule, name, increments[name], like))
    return Exact(values, stores)


def undo_stage(
    rule: KickDrift,
    stage: Stage,
    exact: Exact,
    updates: Updates,
    spills: dict[str, Spill],
    like: Layout,
) -> Exact:
    """Inverse of `do_stage`, bit for bit, given the same updates."""
    increments, numerators = updates
    values, stores = dict(exact.values), dict(exact.stores)
    for name in stage.names:
        kind = kind_of(rule, name, like)
        value = kind.subtract(values[name], encode(rule, name, increments[name], like))
        if name in numerators:
            value, stores[name] = decay.unscale(
                kind, value, stores[name], numerators[name], spills[name]
            )
        values[name] = value
    return Exact(values, stores)


def pull_stage(
    rule: KickDrift,
    stage: Stage,
    source: Any,
    hparams: Hparams,
    t: Array,
    like: Layout,
    before: dict[str, Array],
    bars: dict[str, Array],
    numerators: dict[str, Array],
) -> tuple[Any, Hparams, dict[str, Array]]:
    """Adjoint of a stage: cotangents of its source, the hyperparameters and its variables before.

    With y' = a y + k(source, hparams): source_bar = (dk/dsource)^T y'_bar, a_bar = y y'_bar with y
    *before* the stage (Maclaurin et al. 2015, algorithm 2, line 9), y_bar = a y'_bar.

    Args:
      rule: the rule.
      stage: one of its stages.
      source: what the stage's increments are made from.
      hparams: hyperparameters of this step.
      t: int32 scalar, the step.
      like: how the stages see the variables.
      before: floating-point vectors `[N]` of the stage's variables before it.
      bars: cotangents `[N]` of the variables after it.
      numerators: as `isolated_stage` returned them.
    """

    def evaluate(source, hparams):
        increments = stage.increments(source, hparams, t)
        decays = decays_of(rule, hparams, t, like)
        used = {name: jnp.broadcast_to(decays[name], (like.size,)) for name in numerators}
        return {name: ravel(increments[name], like) for name in stage.names}, used

    _, pull = jax.vjp(evaluate, source, hparams)
    increment_bars = {name: bars[name] for name in stage.names}
    decay_bars = {name: bars[name] * before[name] for name in numerators}
    source_bar, hparams_bar = pull((increment_bars, decay_bars))
    bars = dict(bars)
    for name, n in numerators.items():
        bars[name] *= decay.fraction(n, kind_of(rule, name, like), like.dtype)
    return source_bar, hparams_bar, bars


def gradient_pullback(
    rule: KickDrift, slots: dict[str, Params], hparams: Hparams, t: Array, like: Layout
) -> Callable[[Params, dict[str, Array]], Params]:
    """Returns `(gradient, bars) -> gradient_bar`: the adjoint of kick and couple in the gradient.

    Args:
      rule: the rule.
      slots: the kicked slots after the kick.
      hparams: hyperparameters of this step.
      t: int32 scalar, the step.
      like: how the stages see the variables.
    """

    def pull(gradient, bars):
        def couple(gradient, slots):
            increments = rule.couple(gradient, slots, hparams, t)
            return {name: ravel(increments[name], like) for name in rule.coupled}

        def kick(gradient):
            increments = rule.kick(gradient, hparams, t)
            return {name: ravel(increments[name], like) for name in rule.kicked}

        direct_bar, slots_bar = jax.vjp(couple, gradient, slots)[1](
            {name: bars[name] for name in rule.coupled}
        )
        totals = {name: bars[name] + ravel(slots_bar[name], like) for name in rule.kicked}
        (kick_bar,) = jax.vjp(kick, gradient)[1](totals)
        return jax.tree.map(jnp.add, kick_bar, direct_bar)

    return pull


def ignores_first(function: Callable, *args: Any) -> bool:
    """Returns whether no output of `function` depends on its first argument, read off its trace.

    An adjoint that ignores the point it was taken at belongs to a linear (or affine) function.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    needed = set(map(id, jaxpr.outvars))
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            needed.update(map(id, equation.invars))
    first = jaxpr.invars[: len(jax.tree.leaves(args[0]))]
    return not any(id(variable) in needed for variable in first)
