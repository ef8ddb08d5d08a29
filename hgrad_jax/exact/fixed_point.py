"""Fixed point: real numbers as two-word integers, so that adding can be undone exactly.

A number x is stored as the integer x * 2**fraction_bits. With 64 bits and the default 44 fraction
bits the range is +-2**16 (65,536) and the resolution 5.7e-14, wide enough for weights, velocities
and averages of any sane training run, so that nobody has to choose; float32's own resolution at 1.0
is 6e-8. Under float64 the words double: 128 bits, 88 of them fraction.

Integers only ever change by `+ increment` and by the exact decay, so there is one place where a
number can be lost: leaving the range. `encode` maps what is too large or infinite, and NaN, to two
marks so large that a sum of either with anything in range is recognisable; `decode` turns them into
infinity and NaN, so that damage travels on to the positions as it would in floating point; and
`damage` finds it there with one integer reduction.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.exact.words import Array, Wide, float_dtype, signed, word_bits

DEFAULT_FRACTION_BITS = 44
"""Fraction bits of a 64-bit number; a 128-bit number has twice as many."""


class Damage(NamedTuple):
    """What went wrong with fixed-point numbers, if anything.

    Attributes:
      overflow: bool scalar, some number left the range.
      nonfinite: bool scalar, some increment was infinite or NaN.
    """

    overflow: Array
    nonfinite: Array


def word_dtype(dtype: Any) -> type:
    """Returns the unsigned word for a floating-point dtype: uint64 for float64, else uint32."""
    return jnp.uint64 if jnp.dtype(dtype) == jnp.float64 else jnp.uint32


def high_fraction_bits(word: Array, fraction_bits: int) -> int:
    """Returns the power of two of one unit of the high word: word bits less fraction bits."""
    scale = word_bits(word) // 32
    return word_bits(word) - scale * fraction_bits


def largest(fraction_bits: int = DEFAULT_FRACTION_BITS, dtype: Any = jnp.float32) -> float:
    """Returns the bound that numbers must stay under: an eighth of what the integer could hold.

    >>> largest()
    65536.0
    """
    bits = 64 if jnp.dtype(dtype) == jnp.float64 else 32
    return 2.0 ** (bits - 4 + bits - bits // 32 * fraction_bits)


def encode(x: Array, fraction_bits: int = DEFAULT_FRACTION_BITS) -> Wide:
    """Returns x as fixed point, within a unit of the last place: 2**-fraction_bits.

    Args:
      x: float32 or float64 `[*shape]`.
      fraction_bits: static; counts for 64-bit numbers and is doubled for 128.

    Returns:
      Words `[*shape]`. What is out of range becomes a number that `damage` recognises after any one
      addition.
    """
    word = word_dtype(x.dtype)
    bits = jnp.iinfo(word).bits
    integer = jnp.int32 if bits == 32 else jnp.int64
    unit = high_fraction_bits(jnp.zeros((), word), fraction_bits)
    # Scaling by powers of two and the difference to the nearest integer are exact, so no compiler
    # can alter them.
    scaled = x * x.dtype.type(2.0**-unit)
    whole = jnp.round(scaled)
    low = ((scaled - whole) * x.dtype.type(2.0**bits)).astype(integer)
    high = whole.astype(integer) + (low >> (bits - 1))
    # In units of 2**(bits - 4): numbers below 1, so sums with a mark end in 3..5 or in 5..7, never
    # past 8.
    mark = jnp.where(jnp.isnan(x), integer(6 << (bits - 4)), integer(4 << (bits - 4)))
    high = jnp.where(jnp.abs(scaled) < x.dtype.type(2.0 ** (bits - 4)), high, mark)
    return Wide(jax.lax.bitcast_convert_type(high, word), jax.lax.bitcast_convert_type(low, word))


def decode(value: Wide, fraction_bits: int = DEFAULT_FRACTION_BITS) -> Array:
    """Returns fixed-point numbers as float32 (32-bit words) or float64 (64-bit words), to an ulp.

    Deterministic whatever it is compiled with: the only operation that rounds beyond the two
    conversions is one addition whose operands are exact. Numbers out of range come out infinite, or
    NaN where a NaN went in.

    >>> import jax.numpy as jnp
    >>> float(decode(encode(jnp.float32(-0.75))))
    -0.75
    """
    dtype = float_dtype(value.high).type
    bits = word_bits(value.low)
    unit = high_fraction_bits(value.high, fraction_bits)
    # The low word is read as signed and the high word rounded to match: small negative numbers do
    # not cancel.
    low = signed(value.low)
    high = signed(value.high) - (low >> (bits - 1))
    x = high.astype(dtype) * dtype(2.0**unit) + low.astype(dtype) * dtype(2.0 ** (unit - bits))
    magnitude = jnp.abs(high)
    lost = jnp.where(
        magnitude < magnitude.dtype.type(5 << (bits - 4)), dtype(jnp.inf), dtype(jnp.nan)
    )
    return jnp.where(magnitude < magnitude.dtype.type(1 << (bits - 4)), x, lost)


def damage(value: Wide) -> Damage:
    """Says whether numbers left the range or took in a non-finite increment: one integer reduction.

    Args:
      value: words `[*shape]` just after an addition, never empty.
    """
    magnitude = jnp.abs(signed(value.high))
    unit = magnitude.dtype.type(1 << (word_bits(value.high) - 4))
    is_damaged = jnp.any(magnitude >= unit)
    # The second reduction only when it is needed (under `vmap`, always).
    nonfinite = jax.lax.cond(
        is_damaged, lambda m: jnp.any(m >= 5 * unit), lambda m: jnp.zeros((), bool), magnitude
    )
    return Damage(is_damaged & ~nonfinite, nonfinite)
