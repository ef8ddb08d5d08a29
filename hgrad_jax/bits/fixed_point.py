"""Fixed point: real numbers as integers, so that adding can be undone exactly.

A number x is stored as the integer x * 2**fraction_bits. With 64 bits and the default 44 fraction
bits the range is +-2**16 (65,536) and the resolution 5.7e-14, wide enough for weights, velocities
and averages of any sane training run, so that nobody has to choose; float32's own resolution at 1.0
is 6e-8. Under float64 there are 128 bits, 88 of them fraction.

Integers only ever change by `+ increment` and by the exact decay, so there is one place where a
number can be lost: leaving the range. `bounded` maps what is too large, and what is infinite or
NaN, to two marks so large that a sum of either with anything in range is recognisable;
`Kind.decode` turns them into infinity and NaN, so that damage travels on to the positions as it
would in floating point; and `Kind.damage` finds it there with one integer reduction.
"""

from typing import Any

import jax.numpy as jnp

from hgrad_jax.bits.double import DOUBLE
from hgrad_jax.bits.integers import Array
from hgrad_jax.bits.kinds import RANGE_BITS, Kind
from hgrad_jax.bits.single import SINGLE

DEFAULT_FRACTION_BITS = 44
"""Fraction bits of a 64-bit number; a 128-bit number has twice as many."""


def kind_of(dtype: Any, *, is_double: bool = False) -> Kind:
    """Returns the kind that keeps numbers of a dtype: 128 bits for float64 or if asked for."""
    return DOUBLE if is_double or jnp.dtype(dtype) == jnp.float64 else SINGLE


def largest(fraction_bits: int = DEFAULT_FRACTION_BITS, kind: Kind = SINGLE) -> float:
    """Returns the bound that numbers must stay under: an eighth of what the integer could hold.

    >>> largest()
    65536.0
    """
    return 2.0 ** (kind.number_bits - 64 + RANGE_BITS - kind.fraction_factor * fraction_bits)


def bounded(x: Array, fraction_bits: int, kind: Kind) -> Array:
    """Returns x with marks in place of what is out of range, and of what is infinite or NaN.

    In units of the range, numbers in range are below 1, so sums with a mark end in 3 to 5 (out of
    range) or in 5 to 7 (not finite), never past 8, where the integer would wrap.
    """
    unit = x.dtype.type(largest(fraction_bits, kind))
    size = jnp.abs(x)
    return jnp.where(size < unit, x, jnp.where(size < jnp.inf, 4 * unit, 6 * unit))
