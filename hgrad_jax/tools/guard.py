"""Values that must not be differentiated, and say so when they are."""

from typing import Any

import jax
import jax.numpy as jnp

from hgrad_jax.types import Array


def guarded(tree: Any, message: str) -> Any:
    """Returns a pytree, and raises a ValueError with this message when it is differentiated."""

    @jax.custom_jvp
    def guard(x: Array) -> Array:
        return x

    def refuse(primals, tangents):
        if not isinstance(tangents[0], jax.custom_derivatives.SymbolicZero):
            raise ValueError(message)
        return primals[0], tangents[0]

    guard.defjvp(refuse, symbolic_zeros=True)
    return jax.tree.map(lambda x: guard(x) if is_float(x) else x, tree)


def is_float(x: Any) -> bool:
    """Returns whether a value is of floating point."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def differentiated_once(tree: Any, adjoint: str, reason: str) -> Any:
    """Returns a pytree that only the rule of an adjoint may differentiate, by itself, once.

    Args:
      tree: what is guarded.
      adjoint: what the message calls the adjoint.
      reason: why there are no further derivatives.

    Raises:
      ValueError: something else differentiates through it.
    """
    return guarded(
        tree,
        f"adjoint is {adjoint}, {reason}: for second derivatives, or to differentiate what hg.vjp "
        "and hg.value_and_hypergradient return, use Direct() or Checkpointed(); for first "
        "derivatives take jax.grad of hg.unroll.",
    )


LOSS_WITHOUT_FORWARD_MODE = (
    "the loss has a custom_vjp, which has no derivative in forward mode: write its rule as a "
    "custom_jvp, or"
)


def has_no_forward_mode(error: BaseException) -> bool:
    """Returns whether an error is JAX's, that a `custom_vjp` has no derivative in forward mode."""
    return "can't apply forward-mode autodiff (jvp) to a custom_vjp" in str(error)
