"""What the parameters are in a state, and their cotangent in that of the state."""

from typing import Any

import jax
import jax.numpy as jnp

from hgrad_jax.types import Params, State, Transition

SymbolicZero = jax.custom_derivatives.SymbolicZero


def read_at(transition: Transition, state: State) -> list[int]:
    """Returns which leaves of the state the parameters are.

    Raises:
      ValueError: they are none, but computed from some.
    """
    jaxpr = jax.make_jaxpr(transition.params)(state).jaxpr
    positions = {id(variable): i for i, variable in enumerate(jaxpr.invars)}
    if any(id(variable) not in positions for variable in jaxpr.outvars):
        raise ValueError(
            "transition.params computes the parameters from the state, but Implicit() needs them "
            "read from it as they are; keep what it returns in the state, and let it return that."
        )
    return [positions[id(variable)] for variable in jaxpr.outvars]


def params_bar(
    transition: Transition, end: State, state_bar: State, *, is_read_only: bool = False
) -> Params:
    """Returns the cotangent of the parameters out of that of the state.

    Args:
      transition: what reads the parameters.
      end: the last state.
      state_bar: its cotangent, with a SymbolicZero where nothing depends on a leaf.
      is_read_only: whether it is known that nothing but the parameters is differentiated.

    Raises:
      ValueError: another leaf of the state is differentiated.
    """
    bars, read = leaves(state_bar), read_at(transition, end)
    others = [bar for i, bar in enumerate(bars) if i not in read]
    if not is_read_only and not all(isinstance(bar, SymbolicZero) for bar in others):
        raise ValueError(
            "a part of Unrolled.state is differentiated that is not the parameters, but Implicit() "
            "differentiates Unrolled.params only; use Direct() or Checkpointed()."
        )
    picked = [
        jnp.zeros(bars[i].shape, bars[i].dtype) if isinstance(bars[i], SymbolicZero) else bars[i]
        for i in read
    ]
    return jax.tree.unflatten(jax.tree.structure(transition.params(end)), picked)


def leaves(bars: Any) -> list[Any]:
    """Returns the leaves of a tree of cotangents, symbolic zeros among them."""
    return jax.tree.leaves(bars, is_leaf=lambda bar: isinstance(bar, SymbolicZero))
