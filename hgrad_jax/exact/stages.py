"""The stages of a step: which variable each moves, and what it reads."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.rules.form import PARAMS, KickDrift
from hgrad_jax.tools.vectors import Layout
from hgrad_jax.types import Array, Hparams, Params


class Stage(NamedTuple):
    """A stage's inputs bound to its function.

    Attributes:
      increments: `increments(source, hparams, count) -> {name: tree}`.
      names: the variables it changes.
    """

    increments: Callable[[Any, Hparams, Array], dict[str, Params]]
    names: tuple[str, ...]


class Stages(NamedTuple):
    """The stages of a rule, in the order of the way forward."""

    kick: Stage
    couple: Stage
    drift: Stage
    trail: Stage


def stages_of(rule: KickDrift) -> Stages:
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
