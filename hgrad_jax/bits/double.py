"""128-bit numbers: two machine words each, decays n / 2**48, stores below 2**96.

For training in float64, and for variables whose smallest values matter (second moments).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from hgrad_jax.bits.integers import (
    Array,
    in_64_bits,
    inverse,
    low_bits,
    nearest,
    scramble,
    signed,
    unsigned,
)
from hgrad_jax.bits.kinds import RANGE_BITS, Damage, Kind, damage_of

DIGIT_BITS, ROW_BITS = 48, 16


class Wide(NamedTuple):
    """Integers `high * 2**64 + low` in two's complement.

    Attributes:
      high: uint64 `[*shape]`; the top bit is the sign.
      low: uint64 `[*shape]`.
    """

    high: Array
    low: Array


@in_64_bits
def encode(x: Array, fraction_bits: int) -> Wide:
    """As `Kind.encode`."""
    # Scaling by powers of two and the difference to the nearest integer are exact, so no compiler
    # can alter them.
    scaled = x.astype(jnp.float64) * 2.0 ** (fraction_bits - 64)
    whole = jnp.round(scaled)
    low = ((scaled - whole) * 2.0**64).astype(jnp.int64)
    return Wide(unsigned(whole.astype(jnp.int64) + (low >> 63)), unsigned(low))


@in_64_bits
def decode(value: Wide, fraction_bits: int, dtype: Any) -> Array:
    """As `Kind.decode`."""
    # The low word is read as signed and the high word rounded to match: small negative numbers do
    # not cancel. Both products are exact, so only the conversions and the sum round.
    low = signed(value.low)
    high = signed(value.high) - (low >> 63)
    x = high.astype(jnp.float64) * 2.0 ** (64 - fraction_bits)
    x = (x + low.astype(jnp.float64) * 2.0**-fraction_bits).astype(dtype)
    magnitude = jnp.abs(high)
    lost = jnp.where(
        magnitude < np.int64(5 << RANGE_BITS), dtype.type(jnp.inf), dtype.type(jnp.nan)
    )
    return jnp.where(magnitude < np.int64(1 << RANGE_BITS), x, lost)


@in_64_bits
def damage(value: Wide) -> Damage:
    """As `Kind.damage`."""
    return damage_of(value.high)


@in_64_bits
def add(a: Wide, b: Wide) -> Wide:
    """As `Kind.add`."""
    low = a.low + b.low
    return Wide(a.high + b.high + (low < a.low).astype(jnp.uint64), low)


@in_64_bits
def subtract(a: Wide, b: Wide) -> Wide:
    """As `Kind.subtract`."""
    borrow = (a.low < b.low).astype(jnp.uint64)
    return Wide(a.high - b.high - borrow, a.low - b.low)


@in_64_bits
def scale(value: Wide, integer: Wide, n: Array) -> tuple[Wide, Wide]:
    """As `Kind.scale`."""
    rest = _quotient(integer, n)
    shift = 64 - DIGIT_BITS
    last = low_bits((value.low - rest) * n + integer.low, DIGIT_BITS)
    after = Wide(rest >> shift, (rest << DIGIT_BITS) | last)
    digit = low_bits(after.low - value.low * n, DIGIT_BITS)
    low = value.low * n + digit
    middle_carry = high_product(value.low, n) + (low < digit).astype(jnp.uint64)
    middle = value.high * n + middle_carry
    correction = jnp.where(signed(value.high) < 0, n, np.uint64(0))
    high = high_product(value.high, n) - correction + (middle < middle_carry).astype(jnp.uint64)
    product = Wide(
        (high << shift) | (middle >> DIGIT_BITS), (middle << shift) | (low >> DIGIT_BITS)
    )
    return product, after


def _quotient(integer: Wide, n: Array) -> Array:
    reciprocal = inverse(n)
    # The high word has 32 bits, below every n: it is the first remainder.
    upper, rest = divide_digit(integer.high, integer.low >> 32, 32, n, reciprocal)
    lower, _ = divide_digit(rest, low_bits(integer.low, 32), 32, n, reciprocal)
    return (upper << 32) | lower


@in_64_bits
def unscale(product: Wide, integer: Wide, n: Array) -> tuple[Wide, Wide]:
    """As `Kind.unscale`."""
    rest = (integer.low >> DIGIT_BITS) | (integer.high << (64 - DIGIT_BITS))
    high = _high(product, n)
    reciprocal = inverse(n)
    # What is left over, by one wrapping product: it is below n, so the word holds it.
    word = (product.high << DIGIT_BITS) | (product.low >> (64 - DIGIT_BITS))
    remainder = word - high * n
    word = (product.low << DIGIT_BITS) | low_bits(integer.low, DIGIT_BITS)
    upper, remainder = divide_digit(remainder, word >> 32, 32, n, reciprocal)
    lower, _ = divide_digit(remainder, low_bits(word, 32), 32, n, reciprocal)
    value = Wide(high, (upper << 32) | lower)
    digit = low_bits(integer.low - value.low * n, DIGIT_BITS)
    low = rest * n + digit
    return value, Wide(high_product(rest, n) + (low < digit).astype(jnp.uint64), low)


def _high(product: Wide, n: Array) -> Array:
    """Returns the high word of product * d // n."""
    reciprocal = inverse(n)
    estimate = signed(product.high).astype(jnp.float64) * reciprocal
    top, remainder = divide(estimate, product.high, n)
    upper, remainder = divide_digit(remainder, product.low >> 32, 32, n, reciprocal)
    middle = low_bits(product.low >> (64 - DIGIT_BITS), DIGIT_BITS - 32)
    lower, _ = divide_digit(remainder, middle, DIGIT_BITS - 32, n, reciprocal)
    return (top << DIGIT_BITS) | (upper << (DIGIT_BITS - 32)) | lower


def divide_digit(
    remainder: Array, limb: Array, bits: int, divisor: Array, reciprocal: Array
) -> tuple[Array, Array]:
    """One digit of a long division: divides remainder * 2**bits + limb by divisor.

    The dividend itself may pass a word: only its floating-point estimate and its value modulo 2**64
    are used, and they determine the quotient.

    Args:
      remainder: uint64 below `divisor`.
      limb: uint64 below `2**bits`.
      bits: width of the limb, at most 32.
      divisor: uint64, `1 <= divisor <= 2**48`.
      reciprocal: `inverse(divisor)`.

    Returns:
      Quotient below `2**bits`, and the new remainder below `divisor`.
    """
    dividend = signed(remainder).astype(jnp.float64) * 2.0**bits
    dividend = dividend + signed(limb).astype(jnp.float64)
    return divide(dividend * reciprocal, (remainder << bits) | limb, divisor)


def divide(estimate: Array, dividend: Array, divisor: Array) -> tuple[Array, Array]:
    """Returns floor(dividend / divisor), as two's complement, and the remainder.

    Args:
      estimate: of the quotient, float64 within half, below 2**51 in size.
      dividend: uint64, its value modulo 2**64 (the true one may be larger, or negative).
      divisor: uint64 below 2**63.
    """
    # The integer nearest to the estimate is the quotient or one more, the remainder then negative.
    quotient = nearest(estimate)
    rest = dividend - quotient * divisor
    is_over = unsigned(signed(rest) >> 63)
    return quotient + is_over, rest + (divisor & is_over)


def high_product(a: Array, b: Array) -> Array:
    """Returns a * b // 2**64 for uint64 a and b < 2**48."""
    a_low, a_high, b_low, b_high = low_bits(a, 32), a >> 32, low_bits(b, 32), b >> 32
    middle = a_high * b_low + ((a_low * b_low) >> 32)
    # b_high has 16 bits, so neither sum below can pass 2**64.
    carry = (a_low * b_high + low_bits(middle, 32)) >> 32
    return a_high * b_high + (middle >> 32) + carry


@in_64_bits
def spill(integer: Wide, shift: Array) -> Wide:
    """As `Kind.spill`."""
    shift = shift.astype(jnp.uint64)
    # The upper half in two shifts: one by 64 is undefined.
    carried = (integer.high << (63 - shift)) << np.uint64(1)
    return Wide(integer.high >> shift, (integer.low >> shift) | carried)


@in_64_bits
def unspill(integer: Wide, row: Array, shift: Array) -> Wide:
    """As `Kind.unspill`."""
    shift = shift.astype(jnp.uint64)
    carried = (integer.low >> (63 - shift)) >> np.uint64(1)
    low = (integer.low << shift) | row.astype(jnp.uint64)
    return Wide((integer.high << shift) | carried, low)


@in_64_bits
def row(integer: Wide) -> Array:
    """As `Kind.row`."""
    return integer.low.astype(jnp.uint16)


@in_64_bits
def start(size: int) -> Wide:
    """As `Kind.start`."""
    first, second = scramble(size)
    bits = DIGIT_BITS + 2 * ROW_BITS - 64
    return Wide(low_bits(second, bits) | np.uint64(1 << (bits - 1)), first)


@in_64_bits
def log2(integer: Wide) -> Array:
    """As `Kind.log2`."""
    high = integer.high.astype(jnp.float32) * 2.0**64
    return jnp.log2(jnp.maximum(high + integer.low.astype(jnp.float32), 1))


@in_64_bits
def differ(a: Wide, b: Wide) -> Array:
    """As `Kind.differ`."""
    return (a.high != b.high) | (a.low != b.low)


DOUBLE = Kind(
    number_bits=128,
    digit_bits=DIGIT_BITS,
    row_bits=ROW_BITS,
    row_dtype=jnp.uint16,
    fraction_factor=2,
    encode=encode,
    decode=decode,
    damage=damage,
    add=add,
    subtract=subtract,
    scale=scale,
    unscale=unscale,
    spill=spill,
    unspill=unspill,
    row=row,
    start=start,
    log2=log2,
    differ=differ,
)
