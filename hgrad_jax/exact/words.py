"""Integers of two machine words, so that 64 bits need no 64-bit mode (and 128 bits come with it).

A `Wide` is `high * 2**w + low` in two's complement, where `w` is the number of bits of a word: 32
for float32 training, 64 for float64. The accelerators that train networks have no integer of twice
the word, so products are assembled from half words and quotients from an estimate in floating point
that an exact remainder corrects. Every function is elementwise, exact, and broadcasts.

Measured (2-core CPU): XLA's CPU backend computes each output array of a loop on its own, so a
function that returns two words pays for a shared intermediate twice. That is why remainders are
recomputed by one wrapping product (`low - quotient * divisor`) and not carried along.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Wide(NamedTuple):
    """Integers `high * 2**w + low` in two's complement.

    Attributes:
      high: unsigned words, uint32 or uint64 `[*shape]`; the top bit is the sign.
      low: unsigned words of the same dtype and shape.
    """

    high: Array
    low: Array


def word_bits(word: Array) -> int:
    """Returns the number of bits of an unsigned word array: 32 or 64."""
    return word.dtype.itemsize * 8


def digit_bits(word: Array) -> int:
    """Returns how many bits a multiplier or divisor may have: 3/4 of a word, 24 or 48."""
    return 3 * word_bits(word) // 4


def float_dtype(word: Array) -> np.dtype:
    """Returns the floating-point dtype that holds a multiplier exactly: float32 or float64."""
    return np.dtype(np.float32 if word_bits(word) == 32 else np.float64)


def signed(word: Array) -> Array:
    """Reads unsigned words as two's complement integers of the same width."""
    return jax.lax.bitcast_convert_type(word, jnp.int32 if word_bits(word) == 32 else jnp.int64)


def add(a: Wide, b: Wide) -> Wide:
    """Returns a + b modulo 2**(2w)."""
    low = a.low + b.low
    return Wide(a.high + b.high + (low < a.low).astype(low.dtype), low)


def negate(a: Wide) -> Wide:
    """Returns -a modulo 2**(2w)."""
    low = ~a.low + a.low.dtype.type(1)
    return Wide(~a.high + (a.low == 0).astype(low.dtype), low)


def subtract(a: Wide, b: Wide) -> Wide:
    """Returns a - b modulo 2**(2w)."""
    borrow = (a.low < b.low).astype(a.low.dtype)
    return Wide(a.high - b.high - borrow, a.low - b.low)


def high_product(a: Array, b: Array) -> Array:
    """Returns the high word of the product of a word and a digit: a * b // 2**w.

    Args:
      a: unsigned words.
      b: unsigned words below `2**digit_bits`.
    """
    half = word_bits(a) // 2
    mask = a.dtype.type((1 << half) - 1)
    a_low, a_high, b_low, b_high = a & mask, a >> half, b & mask, b >> half
    middle = a_high * b_low + ((a_low * b_low) >> half)
    # b_high has a quarter word, so neither sum below can pass 2**w.
    carry = (a_low * b_high + (middle & mask)) >> half
    return a_high * b_high + (middle >> half) + carry


def reciprocal(divisor: Array) -> Array:
    """Returns 1 / divisor in floating point."""
    dtype = float_dtype(divisor)
    return 1.0 / divisor.astype(dtype)


def divide_digit(
    remainder: Array, limb: Array, bits: int, divisor: Array, inverse: Array
) -> tuple[Array, Array]:
    """One digit of a long division: divides remainder * 2**bits + limb by divisor.

    The dividend itself may pass a word: only its floating-point estimate and its value modulo 2**w
    are used. They determine the quotient, since the estimate, rounded to the nearest integer, is
    right or one too large.

    Args:
      remainder: unsigned words below `divisor`.
      limb: unsigned words below `2**bits`.
      bits: width of the limb, at most half a word.
      divisor: unsigned words, `1 <= divisor <= 2**digit_bits`.
      inverse: `reciprocal(divisor)`.

    Returns:
      Quotient below `2**bits`, and the new remainder below `divisor`.
    """
    dtype = inverse.dtype
    dividend = signed(remainder).astype(dtype) * dtype.type(2.0**bits) + signed(limb).astype(dtype)
    return _settle(dividend * inverse, (remainder << bits) | limb, divisor)


def divide_signed(word: Array, divisor: Array, inverse: Array) -> tuple[Array, Array]:
    """Returns floor(word / divisor) as two's complement and the remainder, for a signed word.

    Args:
      word: unsigned words read as two's complement.
      divisor: unsigned words, `2**(w / 2) < divisor <= 2**digit_bits`.
      inverse: `reciprocal(divisor)`.
    """
    return _settle(signed(word).astype(inverse.dtype) * inverse, word, divisor)


def _settle(estimate: Array, dividend: Array, divisor: Array) -> tuple[Array, Array]:
    """Returns the exact quotient and remainder from an estimate of the former within half."""
    # Adding 1.5 * 2**(mantissa bits) leaves the nearest integer in the low bits: much cheaper than
    # XLA's conversion, which also handles NaN and saturates.
    dtype = estimate.dtype
    magic = dtype.type(1.5 * 2.0 ** np.finfo(dtype).nmant)
    bits = jax.lax.bitcast_convert_type(estimate + magic, dividend.dtype)
    quotient = bits - magic.view(dividend.dtype)
    rest = dividend - quotient * divisor
    # All ones where the quotient is one too large and the remainder negative.
    is_over = (signed(rest) >> (word_bits(rest) - 1)).astype(rest.dtype)
    return quotient + is_over, rest + (divisor & is_over)


def low_bits(word: Array, bits: int) -> Array:
    """Returns word modulo 2**bits."""
    return word & word.dtype.type((1 << bits) - 1)
