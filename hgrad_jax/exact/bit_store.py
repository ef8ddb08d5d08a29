"""A store of digits in mixed bases, one per weight, from which they come back in reverse order.

Every element of a `BitStore` is one large non-negative integer s: `push(digit, base)` makes it s *
base + digit and `pop(base)` returns s mod base and leaves s // base, as in Maclaurin, Duvenaud and
Adams (2015), section 3.1. What is pushed costs log2(base) bits and what is popped gives them back,
so a digit in base d stored in exchange for one in base n < d costs log2(d / n): an arithmetic
coder, without its tables.

The integer stays below 2**48 between steps, in two words of fast memory. Before it would pass that,
its low byte is *spilled*: written to the next row of an array `[rows, N]`, one row for all elements
together. When to spill depends on the bases alone (`spill_schedule`), so it is
known before the trajectory starts, is the same for all elements, and needs no host. Right after a
spill the integer still has 40 bits, of which a base takes 24, so that rounding s // n wastes less
than 2**-16 of it.

The store starts at a fixed pseudo-random integer of 40 bits and not at zero: the first digits
popped are then as good random numbers for stochastic rounding as the later ones, and a run
backwards must end at these very integers, which checks the whole store.
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
      rows: uint8 (uint16 under float64) `[rows + 1, N]`, in the order in which they were spilled;
        the last takes the writes that do not count. `[0, N]` if there is no room for any.
    """

    integer: Wide
    rows: Array


class Spill(NamedTuple):
    """Where a store spills next, and whether it does in this step.

    Attributes:
      row: int32 scalar, below the store's number of rows if the spill is due.
      is_due: bool scalar.
    """

    row: Array
    is_due: Array


def create(size: int, rows: int, word: type) -> BitStore:
    """Returns a store of `size` elements at their fixed start, with room for `rows` spills."""
    index = jax.lax.iota(word, size) + word(1)
    bits = jnp.iinfo(word).bits
    # Two rounds of multiply and shift (Steele, Lea and Flood 2014) with 32-bit odd constants.
    mixed = (index ^ (index >> (bits // 2))) * word(0x9E3779B1)
    low = (mixed ^ (mixed >> (bits // 2))) * word(0x85EBCA6B)
    high = (low ^ (low >> (bits // 2))) * word(0xC2B2AE35)
    high = low_bits(high, bits // 4 - 1) | word(1 << (bits // 4 - 1))
    # One row more: a write that is not due must not fall on the last one that was.
    spare = 1 if rows else 0
    return BitStore(Wide(high, low), jnp.zeros((rows + spare, size), _row_dtype(word)))


def _row_dtype(word: type) -> type:
    return jnp.uint8 if jnp.iinfo(word).bits == 32 else jnp.uint16


def _row_bits(word: Array) -> int:
    return word_bits(word) // 4


def quotient(integer: Wide, base: Array) -> Array:
    """Returns s // base, which fits one word.

    Args:
      integer: s, unsigned words `[N]`, below 2**(3w / 2).
      base: unsigned words, scalar or `[N]`, `2**(digit_bits - 7) <= base <= 2**digit_bits`.
    """
    half = word_bits(base) // 2
    inverse = reciprocal(base)
    # The high word has half a word of bits, below every base: it is the first remainder.
    upper, rest = divide_digit(integer.high, integer.low >> half, half, base, inverse)
    lower, _ = divide_digit(rest, low_bits(integer.low, half), half, base, inverse)
    return (upper << half) | lower


def pop(integer: Wide, base: Array) -> tuple[Array, Array]:
    """Removes the last digit: returns s // base and s mod base, one word each. Undone by `push`.

    Args: as `quotient`.
    """
    rest = quotient(integer, base)
    return rest, integer.low - rest * base


def push(rest: Array, digit: Array, base: Array) -> Wide:
    """Appends a digit: returns rest * base + digit. Undone by `pop`.

    Args:
      rest: unsigned words `[N]`.
      digit: unsigned words `[N]`, below base.
      base: unsigned words, scalar or `[N]`, at most `2**digit_bits`.
    """
    low = rest * base + digit
    return Wide(high_product(rest, base) + (low < digit).astype(low.dtype), low)


def push_full(rows: Array, rest: Array, digit: Array, spill: Spill) -> BitStore:
    """Appends a digit in base d = 2**digit_bits, and spills the low byte of the result if due.

    The row is written in any case, and counts only if it is due: under `vmap` a conditional write
    would copy the whole store.

    Args:
      rows: the spilled rows `[rows, N]`.
      rest: unsigned words `[N]`, from `pop`.
      digit: unsigned words `[N]`, from the multiplication.
      spill: where the row goes, and whether it is due.
    """
    width, bits = word_bits(rest), digit_bits(rest)
    if rows.shape[0]:
        byte = low_bits(digit, _row_bits(rest)).astype(rows.dtype)
        rows = jax.lax.dynamic_update_index_in_dim(rows, byte, spill.row, 0)
    spilled = _shift(spill.is_due, rest)
    low = (rest << (bits - spilled)) | (digit >> spilled)
    return BitStore(Wide(rest >> (width - bits + spilled), low), rows)


def pop_full(store: BitStore, spill: Spill) -> tuple[Array, Array]:
    """Takes the spilled byte back if due and removes a digit in base d: inverse of `push_full`."""
    width, bits = word_bits(store.integer.low), digit_bits(store.integer.low)
    high, low = store.integer
    spilled = _shift(spill.is_due, low)
    rest = (low >> (bits - spilled)) | (high << (width - bits + spilled))
    digit = low << spilled
    if store.rows.shape[0]:
        byte = jax.lax.dynamic_index_in_dim(store.rows, spill.row, 0, keepdims=False)
        digit = digit | jnp.where(spill.is_due, byte.astype(low.dtype), low.dtype.type(0))
    return rest, low_bits(digit, bits)


def _shift(is_due: Array, like: Array) -> Array:
    return jnp.where(is_due, like.dtype.type(_row_bits(like)), like.dtype.type(0))


def spill_schedule(growth: Array, word: type) -> Array:
    """Returns how many rows have been spilled before each step: int32 `[T + 1]`, rising by 0 or 1.

    A bound on log2(s) is followed in integers, so the schedule is a function of the decays alone;
    it stays below 3w / 2 bits.

    Args:
      growth: float `[T]`, bits that each step's exchange adds to the fullest element, in [0, 7].
      word: the store's word type.
    """
    bits = jnp.iinfo(word).bits
    # An upper bound in integer units. Rounding s // n adds log2(1 + n / s) <= 2**-16 * 1.45 bits,
    # which is 23.2 units.
    units = jnp.where(
        growth > 0, jnp.ceil(growth * (1 + 1e-6) * 2**_UNIT_BITS).astype(jnp.int32) + 25, 0
    )
    whole, fine = units >> _UNIT_BITS, low_bits(units, _UNIT_BITS)
    coarse, fine = fine >> 10, low_bits(fine, 10)
    # Three sums that stay below 2**31 for two million steps.
    carried = jnp.cumsum(coarse) + (jnp.cumsum(fine) >> 10)
    total = jnp.cumsum(whole) + (carried >> (_UNIT_BITS - 10)) + 1
    row_bits = bits // 4
    # From 5w / 4 bits up to 3w / 2 there is room for one row.
    rows = jnp.maximum(0, -((row_bits - total) // row_bits))
    return jnp.concatenate([jnp.zeros((1,), jnp.int32), rows.astype(jnp.int32)])


def rows_needed(bits: float, word: type) -> int:
    """Returns the rows that hold `bits` of entropy per element, beyond what the integers hold."""
    width = jnp.iinfo(word).bits // 4
    return max(0, int(-((width - 2 - bits) // width)))


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
