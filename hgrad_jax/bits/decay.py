"""Multiplying fixed-point numbers by a decay in (0, 1] so that it can be undone to the last bit.

A decay is the fraction n / d with d = 2**24 (2**48 for 128-bit numbers): every float32 in [0.5, 1]
is one exactly, and the others are within 2**-25. Multiplying an integer v by it loses log2(d / n)
bits; they go to the store, by an exchange:

    forward:   u = pop(n),  w = v * n + u,  v' = w // d,  push(w mod d) in base d
    backward:  w = v' * d + pop(d),  v = w // n,  push(w mod n) in base n

Both directions are bijections of (v, store), each the other's inverse. In each, one of v and the
store is updated first and the other from it alone: since digits are below 2**24, the digit that
leaves is (w mod d - v * n) mod d forward, and (pop(d) - v * n) mod d backward. So nothing is
computed twice and every array is updated in place. This is the scheme of
Maclaurin, Duvenaud and Adams (2015), algorithm 3, without its noise: there the popped digit is
added after the division and perturbs the result by up to n units; here it joins before, w / d is
the exact product rounded by the stored bits, the error is under one unit of the last place, and the
cost is exactly log2(d / n) bits per number, which no lossless method can beat.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from hgrad_jax.bits import bit_store
from hgrad_jax.bits.bit_store import LARGEST_GROWTH, BitStore, Spill
from hgrad_jax.bits.integers import Array, in_64_bits
from hgrad_jax.bits.kinds import Integer, Kind

SMALLEST_DECAY = 2.0**-LARGEST_GROWTH
"""The smallest decay that can be stored; smaller ones are flagged."""


@in_64_bits
def numerator(decay: Array, kind: Kind) -> Array:
    """Returns n with n / d nearest to the decay, clipped to what can be stored.

    Args:
      decay: float32 or float64, any shape, meant to be in [2**-7, 1].
      kind: of the numbers to be multiplied.

    Returns:
      uint64 of the same shape, `2**17 <= n <= 2**24` (`2**41 <= n <= 2**48`).
    """
    clipped = jnp.clip(jnp.nan_to_num(decay.astype(jnp.float64)), SMALLEST_DECAY, 1.0)
    return jnp.round(clipped * 2.0**kind.digit_bits).astype(jnp.uint64)


@in_64_bits
def fraction(n: Array, kind: Kind, dtype: Any) -> Array:
    """Returns n / d as a floating-point number: exactly, but for 128-bit numbers in float32."""
    return (n.astype(jnp.float64) * 2.0**-kind.digit_bits).astype(dtype)


@in_64_bits
def growth(n: Array, kind: Kind) -> Array:
    """Returns log2(d / n): the bits per number that multiplying by n / d costs, float32."""
    return -jnp.log2(fraction(n, kind, np.float32))


@in_64_bits
def largest_growth(n: Array, kind: Kind) -> Array:
    """Returns the growth of the fullest number, float32 scalar, for the schedule of spills.

    Taken for one unit less: the loops evaluate the decay apart from the schedule and may round it
    to a neighbour.
    """
    least = jnp.min(n)
    return growth(least - (least < jnp.max(n) + np.uint64(1)).astype(jnp.uint64), kind)


def is_storable(decay: Array) -> Array:
    """Returns whether every decay is in [2**-7, 1]: bool scalar."""
    return jnp.all(jnp.logical_and(decay >= SMALLEST_DECAY, decay <= 1.0))


def scale(
    kind: Kind, value: Integer, store: BitStore, n: Array, spill: Spill
) -> tuple[Integer, BitStore]:
    """Multiplies by n / d: returns the product, and the store log2(d / n) bits longer.

    Args:
      kind: of the numbers.
      value: integers `[N]`.
      store: the bit store, which spills first if that is due.
      n: uint64, scalar or `[N]`, from `numerator`.
      spill: where the store spills next, and whether it does in this step.
    """
    store = bit_store.spill(kind, store, spill)
    product, integer = kind.scale(value, store.integer, n)
    return product, store._replace(integer=integer)


def unscale(
    kind: Kind, product: Integer, store: BitStore, n: Array, spill: Spill
) -> tuple[Integer, BitStore]:
    """Divides by n / d: the inverse of `scale`, bit for bit."""
    value, integer = kind.unscale(product, store.integer, n)
    return value, bit_store.unspill(kind, store._replace(integer=integer), spill)
