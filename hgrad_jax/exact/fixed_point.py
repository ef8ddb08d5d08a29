"""Fixed point: real numbers as two-word integers, so that adding an increment can be undone exactly.

A number x is stored as the integer x * 2**fraction_bits. With 64 bits and the default 44 fraction bits the range
is +-2**16 (65,536) and the resolution 5.7e-14, wide enough for weights, velocities and averages of any
sane training run, so that nobody has to choose. Floating-point training under `Reversible()` is replaced by this;
float32's own resolution at 1.0 is 6e-8. Under float64 the words double: 128 bits, 88 of them fraction.

Integers only ever change by `+ increment` and by the exact decay, so there is one place where a number can be
lost: leaving the range. `encode` therefore maps what is too large, infinite or NaN to values so large that the sum
with anything in range is recognisable, and `damage` reads that off the integers, with one integer reduction.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.exact.words import Array, Wide, float_dtype, negate, signed, word_bits

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


def word_dtype(dtype) -> type:
    """Returns the unsigned word for a floating-point dtype: uint64 for float64, else uint32."""
    return jnp.uint64 if jnp.dtype(dtype) == jnp.float64 else jnp.uint32


def high_fraction_bits(word: Array, fraction_bits: int) -> int:
    """Returns the power of two of one unit of the high word: word bits less fraction bits."""
    scale = word_bits(word) // 32
    return word_bits(word) - scale * fraction_bits


def largest(fraction_bits: int = DEFAULT_FRACTION_BITS, dtype=jnp.float32) -> float:
    """Returns the bound that numbers must stay under: an eighth of what the integer could hold.

    >>> largest()
    65536.0
    """
    bits = 64 if jnp.dtype(dtype) == jnp.float64 else 32
    return 2.0 ** (bits - 4 + bits - bits // 32 * fraction_bits)


def encode(x: Array, fraction_bits: int = DEFAULT_FRACTION_BITS) -> Wide:
    """Returns x as fixed point, rounded towards zero; exact where x is a multiple of 2**-fraction_bits.

    Args:
      x: float32 or float64 `[*shape]`.
      fraction_bits: static; counts for 64-bit numbers and is doubled for 128.

    Returns:
      Words `[*shape]`. What is out of range becomes a number that `damage` recognises after any one addition.
    """
    word = word_dtype(x.dtype)
    bits = jnp.iinfo(word).bits
    unit = high_fraction_bits(jnp.zeros((), word), fraction_bits)
    # Every operation on the magnitude is exact: scaling by powers of two, floor, and the difference to it.
    magnitude = jnp.abs(x) * x.dtype.type(2.0**-unit)
    in_range = magnitude < x.dtype.type(2.0 ** (bits - 4))
    safe = jnp.where(in_range, magnitude, 0)
    whole = jnp.floor(safe)
    low = ((safe - whole) * x.dtype.type(2.0**bits)).astype(word)
    # In units of 2**(bits - 4): numbers below 1, so sums with a mark end in 3..5 or in 5..7, never past 8.
    mark = jnp.where(jnp.isfinite(x), word(4 << (bits - 4)), word(6 << (bits - 4)))
    high = jnp.where(in_range, whole.astype(word), mark)
    value = Wide(high, low)
    negative = negate(value)
    is_negative = jnp.logical_and(x < 0, in_range)
    return Wide(jnp.where(is_negative, negative.high, high), jnp.where(is_negative, negative.low, low))


def decode(value: Wide, fraction_bits: int = DEFAULT_FRACTION_BITS) -> Array:
    """Returns fixed-point numbers as float32 (32-bit words) or float64 (64-bit words), correct to an ulp.

    Deterministic whatever it is compiled with: the only operation that rounds beyond the two conversions is one
    addition whose operands are exact.

    >>> import jax.numpy as jnp
    >>> float(decode(encode(jnp.float32(-0.75))))
    -0.75
    """
    dtype = float_dtype(value.high).type
    unit = high_fraction_bits(value.high, fraction_bits)
    is_negative = signed(value.high) < 0
    # The magnitude first: a small negative number has a high word of -1 and would cancel.
    opposite = negate(value)
    high = jnp.where(is_negative, opposite.high, value.high)
    low = jnp.where(is_negative, opposite.low, value.low)
    magnitude = signed(high).astype(dtype) * dtype(2.0**unit) + low.astype(dtype) * dtype(
        2.0 ** (unit - word_bits(low))
    )
    return jnp.where(is_negative, -magnitude, magnitude)


def damage(value: Wide) -> Damage:
    """Says whether numbers left the range or took in a non-finite increment (one integer reduction).

    Args:
      value: words `[*shape]` just after an addition, never empty.
    """
    bits = word_bits(value.high)
    magnitude = jax.lax.bitcast_convert_type(jnp.abs(signed(value.high)), value.high.dtype)
    worst = jnp.max(magnitude)
    word = value.high.dtype.type
    nonfinite = worst >= word(5 << (bits - 4))
    return Damage(jnp.logical_and(worst >= word(1 << (bits - 4)), ~nonfinite), nonfinite)
