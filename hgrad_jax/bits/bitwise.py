"""Evaluating floating-point code so that two compiled loops get the same bits.

XLA compiles the same expression differently in different surroundings: it fuses and contracts
multiplications with additions into fused multiply-adds where it sees fit (jax#8702, jax#22244,
xla#41579). The forward scan and the backward scan of a trajectory are different surroundings, and a
gradient that differs in its last bit between them makes exact reversal go wrong in every weight.
`jax.lax.optimization_barrier` does not help: it is gone before code is generated.

What does help is a conditional whose predicate the compiler cannot know: its branch is compiled as
a function of its own, in both loops alike. On a CPU it costs microseconds; it is not a guarantee,
which is why a reversed run always compares where it ends with where it should.

JAX itself must not split that branch. Where a training is in a `lax.scan` that is differentiated,
JAX takes what no carry changes out of the scan's body, and from a conditional with a known
predicate it takes such parts of a branch (the loss's cotangent, the data's share): what is left is
another program than the one of the way back. A predicate that hangs on all that the branch reads is
unknown to it where anything of that is, and the conditional stays whole.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from hgrad_jax.bits.integers import Array, in_64_bits


def isolate(function: Callable[..., Any], step: Array) -> Callable[..., Any]:
    """Returns `function` compiled apart from its surroundings.

    Args:
      function: pure function from pytrees of arrays to a pytree of arrays.
      step: int32 scalar, traced, not batched by `vmap` and below 2**30: a scan's counter.
    """

    def isolated(*args):
        shapes = jax.eval_shape(function, *args)

        @in_64_bits
        def never(*_):
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        tied = _tied(step, jax.lax.stop_gradient(args))
        return jax.lax.cond(tied < 2**30, function, never, *args)

    return isolated


@custom_vmap
def _tied(step: Array, args: Any) -> Array:
    """Returns `step`, as a function of `args` to JAX, which costs nothing when it is compiled."""
    del args
    return step


@_tied.def_vmap
def _tied_in_batches(axis_size: int, in_batched: Any, step: Array, args: Any) -> tuple[Array, bool]:
    # The step of all of a batch is one, so that the conditional remains one.
    del axis_size
    is_stepped, are_batched = in_batched
    one = jax.tree.map(lambda x, is_batched: x[0] if is_batched else x, args, are_batched)
    return _tied(step, one), is_stepped
