"""Multiplying fixed-point numbers by a decay in (0, 1] so that it can be undone to the last bit.

A decay is the fraction n / d with d = 2**24 (2**48 under float64): every float32 in [0.5, 1] is one
exactly, and the others are within 2**-25. Multiplying an integer v by it loses log2(d / n) bits;
they go to the store, by an exchange:

    forward:   u = pop(n),  w = v * n + u,  v' = w // d,  push(w mod d) in base d
    backward:  w = v' * d + pop(d),  v = w // n,  push(w mod n) in base n

Both directions are bijections of (v, store), each the other's inverse. This is the scheme of
Maclaurin, Duvenaud and Adams (2015), algorithm 3, without its noise: there the popped digit is
added after the division and perturbs the result by up to n units; here it joins before, w / d is
the exact product rounded by the stored bits, the error is under one unit of the last place, and the
cost is exactly log2(d / n) bits per number, which no lossless method can beat.
"""

import jax.numpy as jnp

from hgrad_jax.exact import bit_store
from hgrad_jax.exact.bit_store import LARGEST_GROWTH, BitStore, Spill
from hgrad_jax.exact.bitwise import once
from hgrad_jax.exact.words import (
    Array,
    Wide,
    digit_bits,
    divide_digit,
    divide_signed,
    float_dtype,
    high_product,
    low_bits,
    reciprocal,
    signed,
    word_bits,
)

SMALLEST_DECAY = 2.0**-LARGEST_GROWTH
"""The smallest decay that can be stored; smaller ones are flagged."""


def numerator(decay: Array, word: type) -> Array:
    """Returns n with n / d nearest to the decay, clipped to what can be stored.

    Args:
      decay: float32 or float64, any shape, meant to be in [2**-7, 1].
      word: the unsigned word type of the numbers to be multiplied.

    Returns:
      Unsigned words of the same shape, `2**17 <= n <= 2**24` (`2**41 <= n <= 2**48`).
    """
    bits = digit_bits(jnp.zeros((), word))
    dtype = float_dtype(jnp.zeros((), word))
    clipped = jnp.clip(jnp.nan_to_num(decay.astype(dtype)), SMALLEST_DECAY, 1.0)
    return jnp.round(clipped * dtype.type(2.0**bits)).astype(word)


def fraction(n: Array) -> Array:
    """Returns n / d as a floating-point number, exactly."""
    dtype = float_dtype(n).type
    return n.astype(dtype) * dtype(2.0 ** -digit_bits(n))


def growth(n: Array) -> Array:
    """Returns log2(d / n): the bits per number that multiplying by n / d costs, float32."""
    return -jnp.log2(fraction(n).astype(jnp.float32))


def is_storable(decay: Array) -> Array:
    """Returns whether every decay is in [2**-7, 1]: bool scalar."""
    return jnp.all(jnp.logical_and(decay >= SMALLEST_DECAY, decay <= 1.0))


def scale(value: Wide, store: BitStore, n: Array, spill: Spill, t: Array) -> tuple[Wide, BitStore]:
    """Multiplies by n / d: returns the product, and the store log2(d / n) bits longer.

    Args:
      value: words `[N]`, two's complement.
      store: the bit store.
      n: unsigned words, scalar or `[N]`, from `numerator`.
      spill: where the store spills next, and whether it does in this step.
      t: int32 scalar, the scan's counter.
    """
    rest = once(bit_store.quotient, t)(store.integer, n)
    digit = store.integer.low - rest * n
    bits = digit_bits(n)
    shift = word_bits(n) - bits
    low = value.low * n + digit
    middle_carry = high_product(value.low, n) + (low < digit).astype(low.dtype)
    middle = value.high * n + middle_carry
    correction = jnp.where(signed(value.high) < 0, n, n.dtype.type(0))
    high = high_product(value.high, n) - correction + (middle < middle_carry).astype(low.dtype)
    product = Wide((high << shift) | (middle >> bits), (middle << shift) | (low >> bits))
    return product, bit_store.push_full(store.rows, rest, low_bits(low, bits), spill)


def unscale(
    product: Wide, store: BitStore, n: Array, spill: Spill, t: Array
) -> tuple[Wide, BitStore]:
    """Divides by n / d: the inverse of `scale`, bit for bit."""
    high = once(_quotient_high, t)(product, n)
    rest, digit = bit_store.pop_full(store, spill)
    bits, half = digit_bits(n), word_bits(n) // 2
    inverse = reciprocal(n)
    # What is left over, by one wrapping product: it is below n, so the word holds it.
    remainder = ((product.high << bits) | (product.low >> (word_bits(n) - bits))) - high * n
    word = (product.low << bits) | digit
    upper, remainder = divide_digit(remainder, word >> half, half, n, inverse)
    lower, _ = divide_digit(remainder, low_bits(word, half), half, n, inverse)
    low = (upper << half) | lower
    integer = bit_store.push(rest, word - low * n, n)
    return Wide(high, low), store._replace(integer=integer)


def _quotient_high(product: Wide, n: Array) -> Array:
    """Returns the high word of product * d // n."""
    bits, half = digit_bits(n), word_bits(n) // 2
    shift = word_bits(n) - bits
    inverse = reciprocal(n)
    top, remainder = divide_signed(product.high, n, inverse)
    upper, remainder = divide_digit(remainder, product.low >> half, half, n, inverse)
    middle = low_bits(product.low >> shift, half - shift)
    lower, _ = divide_digit(remainder, middle, half - shift, n, inverse)
    return (top << bits) | (upper << (half - shift)) | lower
