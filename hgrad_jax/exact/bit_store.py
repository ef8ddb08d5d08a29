"""A store of digits in mixed bases, one per weight, from which they come back in reverse order.

Every element of a `BitStore` is one large non-negative integer s: `push(digit, base)` makes it s * base + digit and
`pop(base)` returns s mod base and leaves s // base, as in Maclaurin, Duvenaud and Adams (2015), section 3.1. What is pushed
costs log2(base) bits and what is popped gives them back, so a digit in base d stored in exchange for one in base
n < d costs log2(d / n): an arithmetic coder, without its tables.

The integer has 64 bits in fast memory (two words). Before it would overflow, its low byte is *spilled*: written to a row
of an array `[rows, N]` that only ever grows, one row for all elements together. When to spill depends on the
bases alone (`spill_schedule`), so it is known before the trajectory starts, is the same for all elements, and needs no
host. Right after a spill the integer still has 56 bits, of which a base takes 24, so that rounding s // n
wastes less than 2**-31 of it.

The store starts at a fixed pseudo-random integer of 48 bits and not at zero: the first digits popped are then as good
random numbers for stochastic rounding as the later ones, and a run backwards must end at these very integers, which
checks the whole store.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.exact.words import (
    Array,
    Wide,
    digit_bits,
    divide_digit,
    high_product,
    low_bits,
    reciprocal,
    word_bits,
)

LARGEST_GROWTH = 7
"""Most bits that one exchange may add to the store; with it, a decay is at least 2**-7."""

_UNIT_BITS = 20  # Entropy is counted in units of 2**-20 bits.


class BitStore(NamedTuple):
    """One integer per element: `integer` in fast memory, above the bytes spilled to `rows`.

    Attributes:
      integer: `Wide` unsigned, words `[N]`.
      rows: uint8 (uint16 under float64) `[rows, N]`, in the order in which they were spilled.
    """

    integer: Wide
    rows: Array


def create(size: int, rows: int, word) -> BitStore:
    """Returns a store of `size` elements, holding its fixed starting integers, with room for `rows` spills."""
    index = jax.lax.iota(word, size) + word(1)
    bits = jnp.iinfo(word).bits
    # Two rounds of multiply and shift (Steele, Lea and Flood 2014) with 32-bit odd constants.
    mixed = (index ^ (index >> (bits // 2))) * word(0x9E3779B1)
    low = (mixed ^ (mixed >> (bits // 2))) * word(0x85EBCA6B)
    high = (low ^ (low >> (bits // 2))) * word(0xC2B2AE35)
    high = low_bits(high, bits // 2 - 1) | word(1 << (bits // 2 - 1))
    return BitStore(Wide(high, low), jnp.zeros((rows, size), _row_dtype(word)))


def _row_dtype(word) -> type:
    return jnp.uint8 if jnp.iinfo(word).bits == 32 else jnp.uint16


def _row_bits(word: Array) -> int:
    return word_bits(word) // 4


def pop(integer: Wide, base: Array) -> tuple[Wide, Array]:
    """Removes the last digit: returns s // base and s mod base. Undone by `push`.

    Args:
      integer: s, unsigned words `[N]`.
      base: unsigned words, scalar or `[N]`, `2**(digit_bits - 7) <= base <= 2**digit_bits`.
    """
    half = word_bits(base) // 2
    inverse = reciprocal(base)
    # The top half word is below every base, so it is the first remainder.
    high, _ = divide_digit(integer.high >> half, low_bits(integer.high, half), half, base, inverse)
    rest = integer.high - high * base
    upper, rest = divide_digit(rest, integer.low >> half, half, base, inverse)
    lower, rest = divide_digit(rest, low_bits(integer.low, half), half, base, inverse)
    return Wide(high, (upper << half) | lower), rest


def push(integer: Wide, digit: Array, base: Array) -> Wide:
    """Appends a digit: returns s * base + digit. Undone by `pop`.

    Args:
      integer: s, unsigned words `[N]`, below 2**(2w) / base.
      digit: unsigned words `[N]`, below base.
      base: unsigned words, scalar or `[N]`, at most `2**digit_bits`.
    """
    low = integer.low * base + digit
    carry = (low < digit).astype(low.dtype)
    return Wide(integer.high * base + high_product(integer.low, base) + carry, low)


def pop_full(integer: Wide) -> tuple[Wide, Array]:
    """Removes a digit in base d = 2**digit_bits, by shifts: returns s // d and s mod d."""
    bits = digit_bits(integer.low)
    rest = word_bits(integer.low) - bits
    low = (integer.low >> bits) | (integer.high << rest)
    return Wide(integer.high >> bits, low), low_bits(integer.low, bits)


def push_full(integer: Wide, digit: Array) -> Wide:
    """Appends a digit in base d = 2**digit_bits, by shifts: returns s * d + digit."""
    bits = digit_bits(integer.low)
    rest = word_bits(integer.low) - bits
    return Wide((integer.high << bits) | (integer.low >> rest), (integer.low << bits) | digit)


def spill(store: BitStore, row: Array, is_due: Array) -> BitStore:
    """Moves the low byte of every integer to `rows[row]` if due.

    The row is written in any case, and counts only if it is due: under `vmap` a conditional write would copy the
    whole store.

    Args:
      store: the store.
      row: int32 scalar, where the next spill goes; clipped to the last row.
      is_due: bool scalar.
    """
    bits = _row_bits(store.integer.low)
    byte = low_bits(store.integer.low, bits).astype(store.rows.dtype)
    rows = jax.lax.dynamic_update_index_in_dim(store.rows, byte, row, 0) if store.rows.shape[0] else store.rows
    rest = word_bits(store.integer.low) - bits
    low = (store.integer.low >> bits) | (store.integer.high << rest)
    integer = Wide(
        jnp.where(is_due, store.integer.high >> bits, store.integer.high), jnp.where(is_due, low, store.integer.low)
    )
    return BitStore(integer, rows)


def unspill(store: BitStore, row: Array, is_due: Array) -> BitStore:
    """Takes `rows[row]` back into the integers if due: the inverse of `spill`."""
    if not store.rows.shape[0]:
        return store
    bits = _row_bits(store.integer.low)
    byte = jax.lax.dynamic_index_in_dim(store.rows, row, 0, keepdims=False).astype(store.integer.low.dtype)
    rest = word_bits(store.integer.low) - bits
    high = (store.integer.high << bits) | (store.integer.low >> rest)
    low = (store.integer.low << bits) | byte
    integer = Wide(jnp.where(is_due, high, store.integer.high), jnp.where(is_due, low, store.integer.low))
    return store._replace(integer=integer)


def spill_schedule(growth: Array, word) -> Array:
    """Returns how many rows have been spilled before each step: int32 `[T + 1]`, rising by 0 or 1.

    A bound on log2(s) is followed in integers, so the schedule is a function of the decays alone; the integer before step t
    plus that step's growth always fits 2w bits.

    Args:
      growth: float `[T]`, bits that each step's exchange adds to the fullest element, `0 <= growth <= 7`.
      word: the store's word type.
    """
    bits = jnp.iinfo(word).bits
    # An upper bound in integer units: the second unit covers s // n, the last the rounding of the logarithm.
    units = jnp.where(growth > 0, jnp.ceil(growth * (1 + 1e-6) * 2**_UNIT_BITS).astype(jnp.int32) + 2, 0)
    whole, fine = units >> _UNIT_BITS, low_bits(units, _UNIT_BITS)
    coarse, fine = fine >> 10, low_bits(fine, 10)
    # Three sums that stay below 2**31 for two million steps.
    carried = jnp.cumsum(coarse) + (jnp.cumsum(fine) >> 10)
    total = jnp.cumsum(whole) + (carried >> (_UNIT_BITS - 10)) + 1
    start = 3 * bits // 2
    row_bits = bits // 4
    rows = jnp.maximum(0, -((2 * bits - start - total) // row_bits))
    return jnp.concatenate([jnp.zeros((1,), jnp.int32), rows.astype(jnp.int32)])


def rows_needed(bits: float, word) -> int:
    """Returns the rows that hold `bits` of entropy per element, beyond what the integers take up themselves."""
    width = jnp.iinfo(word).bits
    return max(0, int(-((width // 2 - 3 - bits) // (width // 4))))


def bits_held(store: BitStore, rows: Array) -> Array:
    """Returns the mean number of bits per element that the store has grown by since `create`.

    Args:
      store: the store.
      rows: int32 scalar, the rows spilled so far.
    """
    start = create(store.integer.low.size, 0, store.integer.low.dtype.type).integer
    bits = _row_bits(store.integer.low)
    return jnp.mean(_log2(store.integer) - _log2(start)) + bits * rows


def _log2(integer: Wide) -> Array:
    dtype = jnp.float32
    high = integer.high.astype(dtype) * dtype(2.0 ** word_bits(integer.low))
    return jnp.log2(jnp.maximum(high + integer.low.astype(dtype), 1))
