"""Evaluating floating-point code so that two compiled loops get the same bits.

XLA compiles the same expression differently in different surroundings: it fuses and contracts
multiplications with additions into fused multiply-adds where it sees fit (jax#8702, jax#22244,
xla#41579). The forward scan and the backward scan of a trajectory are different surroundings, and a
gradient that differs in its last bit between them makes exact reversal go wrong in every weight.
`jax.lax.optimization_barrier` does not help: it is gone before code is generated.

What does help is a conditional whose predicate the compiler cannot know: its branch is compiled as
a function of its own, in both loops alike. On a CPU it costs microseconds; it is not a guarantee,
which is why a reversed run always compares where it ends with where it should.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hgrad_jax.exact.integers import Array, in_64_bits


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

        return jax.lax.cond(step < 2**30, function, never, *args)

    return isolated
