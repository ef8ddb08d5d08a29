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
import numpy as np

from hgrad_jax.bits import decay, fixed_point
from hgrad_jax.bits.bit_store import BitStore, Spill
from hgrad_jax.bits.bitwise import isolate
from hgrad_jax.bits.kinds import Integer, Kind
from hgrad_jax.rules.form import PARAMS, KickDrift, KickDriftState
from hgrad_jax.tools.trees import Layout, ravel, ravel_spread
from hgrad_jax.types import Array, Hparams, Params


class Exact(NamedTuple):
    """The integer state of a rule.

    Attributes:
      values: fixed-point numbers `[N]` of each variable.
      stores: bit store of each variable that decays.
    """

    values: dict[str, Integer]
    stores: dict[str, BitStore]


class Stage(NamedTuple):
    """A stage's inputs bound to its function.

    Attributes:
      increments: `increments(source, hparams, count) -> {name: tree}`.
      names: the variables it changes.
    """

    increments: Callable[[Any, Hparams, Array], dict[str, Params]]
    names: tuple[str, ...]


Updates = tuple[dict[str, Array], dict[str, Array]]
"""Increments `[N]` of a stage's variables, and numerators of those that decay."""


class Stages(NamedTuple):
    """The stages of a rule, in the order of the way forward."""

    kick: Stage
    couple: Stage
    drift: Stage
    trail: Stage


def stages(rule: KickDrift) -> Stages:
    """Returns the stages of a rule; `couple` and `trail` may change no variable."""

    def couple(source, hparams, count):
        gradient, slots = source
        return rule.couple(gradient, slots, hparams, count)

    return Stages(
        Stage(rule.kick, rule.kicked),
        Stage(couple, rule.coupled),
        Stage(lambda slots, hparams, count: {PARAMS: rule.drift(slots, hparams, count)}, (PARAMS,)),
        Stage(rule.trail, rule.trailing),
    )


def stage_view(rule: KickDrift, hparams: Hparams, like: Layout) -> Layout:
    """Returns how the stages see the variables: as one vector if the rule allows it, else as trees.

    Slicing a vector into tensors, only to scale each and join them again, costs more than the
    scaling.
    """
    flat = like._replace(is_flat=True)
    if not rule.is_elementwise or any(dtype != like.dtype for dtype in like.dtypes):
        return like
    vector = jax.ShapeDtypeStruct((like.size,), like.dtype)
    slots = {name: vector for name in rule.slots if name != PARAMS}

    def every_stage(gradient, slots, params, hparams):
        count = jnp.int32(0)
        kicked = {name: slots[name] for name in rule.kicked}
        driving = {name: slots[name] for name in rule.driving}
        return (
            rule.kick(gradient, hparams, count),
            rule.couple(gradient, kicked, hparams, count),
            rule.drift(driving, hparams, count),
            rule.trail(params, hparams, count),
        ), rule.decays(hparams, count)

    try:
        increments, decays = jax.eval_shape(every_stage, vector, slots, vector, hparams)
    except ValueError:  # A factor per tensor or per number does not spread over a vector.
        return like
    is_vector = all(x.shape == vector.shape for x in jax.tree.leaves(increments))
    is_scalar = all(getattr(a, "shape", None) == () for a in decays.values())
    return flat if is_vector and is_scalar else like


def kind_of(rule: KickDrift, name: str, like: Layout) -> Kind:
    """Returns the kind of number in which a variable is kept."""
    return fixed_point.kind_of(like.dtype, is_double=rule.slots[name].is_double)


def bounded(rule: KickDrift, name: str, x: Array, like: Layout) -> Array:
    """Returns floating-point numbers with marks in place of what a variable cannot hold."""
    return fixed_point.bounded(x, rule.slots[name].fraction_bits, kind_of(rule, name, like))


def encode(rule: KickDrift, name: str, x: Array, like: Layout) -> Integer:
    """Returns floating-point numbers `[N]`, from `bounded`, in the fixed point of a variable."""
    kind = kind_of(rule, name, like)
    return kind.encode(x, kind.fraction_factor * rule.slots[name].fraction_bits)


def encode_state(rule: KickDrift, state: KickDriftState, like: Layout) -> dict[str, Integer]:
    """Returns the variables of a state as fixed point."""
    trees = {PARAMS: state.params, **state.slots}
    vectors = {name: bounded(rule, name, ravel(trees[name], like), like) for name in rule.slots}
    return {name: encode(rule, name, vector, like) for name, vector in vectors.items()}


def read(rule: KickDrift, values: dict[str, Integer], name: str, like: Layout) -> Array:
    """Returns one variable as a floating-point vector `[N]`."""
    kind = kind_of(rule, name, like)
    fraction_bits = kind.fraction_factor * rule.slots[name].fraction_bits
    return kind.decode(values[name], fraction_bits, like.dtype)


def read_tree(rule: KickDrift, values: dict[str, Integer], name: str, like: Layout) -> Params:
    """Returns one variable as the layout has it: a tree like params, or a vector."""
    if like.is_flat:
        return read(rule, values, name, like)
    # Sliced before it is decoded: the compiler makes one loop of both.
    words, treedef = jax.tree.flatten(values[name])
    ends = np.cumsum([int(np.prod(shape)) for shape in like.shapes])
    parts = zip(*(jnp.split(word, ends[:-1]) for word in words), strict=True)
    leaves = [
        read(rule, {name: jax.tree.unflatten(treedef, part)}, name, like)
        .reshape(shape)
        .astype(dtype)
        for part, shape, dtype in zip(parts, like.shapes, like.dtypes, strict=True)
    ]
    return jax.tree.unflatten(like.treedef, leaves)


def decode_state(
    rule: KickDrift, values: dict[str, Integer], like: Layout, count: Array
) -> KickDriftState:
    """Returns the floating-point state."""
    trees = {name: read_tree(rule, values, name, like) for name in rule.slots}
    params = trees.pop(PARAMS)
    return KickDriftState(params, trees, count)


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
