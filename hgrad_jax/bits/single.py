"""64-bit numbers: one machine word each, decays n / 2**24, stores below 2**48."""

from typing import Any

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

DIGIT_BITS, ROW_BITS = 24, 8


@in_64_bits
def encode(x: Array, fraction_bits: int) -> Array:
    """As `Kind.encode`."""
    return unsigned((x.astype(jnp.float64) * 2.0**fraction_bits).astype(jnp.int64))


@in_64_bits
def decode(value: Array, fraction_bits: int, dtype: Any) -> Array:
    """As `Kind.decode`."""
    number = signed(value)
    magnitude = jnp.abs(number)
    x = (number.astype(jnp.float64) * 2.0**-fraction_bits).astype(dtype)
    lost = jnp.where(
        magnitude < np.int64(5 << RANGE_BITS), dtype.type(jnp.inf), dtype.type(jnp.nan)
    )
    return jnp.where(magnitude < np.int64(1 << RANGE_BITS), x, lost)


@in_64_bits
def damage(value: Array) -> Damage:
    """As `Kind.damage`."""
    return damage_of(value)


@in_64_bits
def add(a: Array, b: Array) -> Array:
    """As `Kind.add`."""
    return a + b


@in_64_bits
def subtract(a: Array, b: Array) -> Array:
    """As `Kind.subtract`."""
    return a - b


@in_64_bits
def scale(value: Array, integer: Array, n: Array) -> tuple[Array, Array]:
    """As `Kind.scale`."""
    rest = floor_divide(integer, n, inverse(n))
    after = (rest << DIGIT_BITS) | low_bits((value - rest) * n + integer, DIGIT_BITS)
    digit = low_bits(after - value * n, DIGIT_BITS)
    lower = low_bits(value, 32) * n + digit
    upper = unsigned((signed(value) >> 32) * signed(n)) + (lower >> 32)
    return (upper << (32 - DIGIT_BITS)) + (low_bits(lower, 32) >> DIGIT_BITS), after


@in_64_bits
def unscale(product: Array, integer: Array, n: Array) -> tuple[Array, Array]:
    """As `Kind.unscale`."""
    reciprocal = inverse(n)
    # A long division in two digits, of which the first need not be exact: what it leaves over, up
    # to n / 2 of either sign, the second divides.
    upper = nearest(signed(product).astype(jnp.float64) * reciprocal)
    word = ((product - upper * n) << DIGIT_BITS) + low_bits(integer, DIGIT_BITS)
    value = (upper << DIGIT_BITS) + floor_divide(word, n, reciprocal)
    return value, (integer >> DIGIT_BITS) * n + low_bits(integer - value * n, DIGIT_BITS)


def floor_divide(word: Array, n: Array, reciprocal: Array) -> Array:
    """Returns floor(word / n) for two's complement words below 2**53 in size."""
    quotient = nearest(signed(word).astype(jnp.float64) * reciprocal)
    # One too large if the remainder is negative: then its sign bit is all ones.
    return quotient + unsigned(signed(word - quotient * n) >> 63)


@in_64_bits
def spill(integer: Array, shift: Array) -> Array:
    """As `Kind.spill`."""
    return integer >> shift.astype(jnp.uint64)


@in_64_bits
def unspill(integer: Array, row: Array, shift: Array) -> Array:
    """As `Kind.unspill`."""
    return (integer << shift.astype(jnp.uint64)) | row.astype(jnp.uint64)


@in_64_bits
def row(integer: Array) -> Array:
    """As `Kind.row`."""
    return integer.astype(jnp.uint8)


@in_64_bits
def start(size: int) -> Array:
    """As `Kind.start`."""
    bits = DIGIT_BITS + 2 * ROW_BITS
    return low_bits(scramble(size)[0], bits) | np.uint64(1 << (bits - 1))


@in_64_bits
def log2(integer: Array) -> Array:
    """As `Kind.log2`."""
    return jnp.log2(jnp.maximum(signed(integer).astype(jnp.float32), 1))


@in_64_bits
def differ(a: Array, b: Array) -> Array:
    """As `Kind.differ`."""
    return a != b


SINGLE = Kind(
    number_bits=64,
    digit_bits=DIGIT_BITS,
    row_bits=ROW_BITS,
    row_dtype=jnp.uint8,
    fraction_factor=1,
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
