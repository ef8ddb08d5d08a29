"""A store of digits in mixed bases, one per weight, from which they come back in reverse order.

Every element of a `BitStore` is one large non-negative integer s: appending a digit makes it s *
base + digit, and removing one leaves s // base and returns s mod base, as in Maclaurin, Duvenaud
and Adams (2015), section 3.1. What is appended costs log2(base) bits and what is removed gives them
back, so a digit in base d stored in exchange for one in base n < d costs log2(d / n): an arithmetic
coder, without its tables.

The integer lives in fast memory. When it has passed 2**48 (2**96 for 128-bit numbers), the next
step first *spills* its low byte: writes it to the next row of an array `[rows, N]`, one row for all
elements together. When to spill depends on the bases alone (`spill_schedule`), so it is
known before the trajectory starts, is the same for all elements, and needs no host. Right after a
spill the integer still has 40 bits, of which a base takes 24, so that rounding s // n wastes less
than 2**-16 of it.

The store starts at a fixed pseudo-random integer of 40 bits and not at zero: the first digits
removed are then as good random numbers for stochastic rounding as the later ones, and a run
backwards must end at these very integers, which checks the whole store.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.bits.integers import Array
from hgrad_jax.bits.kinds import Integer, Kind

LARGEST_GROWTH = 7
"""Most bits that one exchange may add to the store; with it, a decay is at least 2**-7."""

_UNIT_BITS = 20  # Entropy is counted in units of 2**-20 bits.


class BitStore(NamedTuple):
    """One integer per element: `integer` in fast memory, above the bytes spilled to `rows`.

    Attributes:
      integer: non-negative `[N]`.
      rows: uint8 (uint16 for 128-bit numbers) `[rows + 1, N]`, in the order in which they were
        spilled; the last takes the writes that do not count. `[0, N]` if there is no room for any.
    """

    integer: Integer
    rows: Array


class Spill(NamedTuple):
    """Where a store spills next, and whether it does in this step.

    Attributes:
      row: int32 scalar, below the store's number of rows if the spill is due.
      is_due: bool scalar.
    """

    row: Array
    is_due: Array


def create(kind: Kind, size: int, rows: int) -> BitStore:
    """Returns a store of `size` elements at their fixed start, with room for `rows` spills."""
    # One row more: a write that is not due must not fall on the last one that was.
    spare = 1 if rows else 0
    return BitStore(kind.start(size), jnp.zeros((rows + spare, size), kind.row_dtype))


def spill(kind: Kind, store: BitStore, spill: Spill) -> BitStore:
    """Moves the low bits of the integers to the next row, if that is due.

    The row is written in any case, and counts only if it is due: under `vmap` a conditional write
    would copy the whole store.
    """
    integer, rows = store
    if rows.shape[0]:
        rows = jax.lax.dynamic_update_index_in_dim(rows, kind.row(integer), spill.row, 0)
        # The same integer, its low bits from where they were written: so that XLA knows that they
        # are written before it changes, and does not copy all integers in every step.
        row = jax.lax.dynamic_index_in_dim(rows, spill.row, 0, keepdims=False)
        bits = jnp.int32(kind.row_bits)
        integer = kind.unspill(kind.spill(integer, bits), row, bits)
    return BitStore(kind.spill(integer, _shift(kind, spill)), rows)


def unspill(kind: Kind, store: BitStore, spill: Spill) -> BitStore:
    """Takes the row back, if it was spilled: the inverse of `spill`."""
    row = jnp.zeros((), kind.row_dtype)
    if store.rows.shape[0]:
        row = jax.lax.dynamic_index_in_dim(store.rows, spill.row, 0, keepdims=False)
        row = jnp.where(spill.is_due, row, jnp.zeros_like(row))
    return store._replace(integer=kind.unspill(store.integer, row, _shift(kind, spill)))


def _shift(kind: Kind, spill: Spill) -> Array:
    return jnp.where(spill.is_due, kind.row_bits, 0)


def spill_schedule(growth: Array, kind: Kind) -> Array:
    """Returns how many rows have been spilled before each step: int32 `[T + 1]`, rising by 0 or 1.

    Step t begins by spilling row `schedule[t]` if `schedule[t + 1]` is larger. A bound on log2(s)
    is followed in integers, so the schedule is a function of the decays alone; the bound is below
    2 digit_bits after each spill.

    Args:
      growth: float32 `[T]`, bits that each step's exchange adds to the fullest element, in [0, 7].
      kind: of the numbers.
    """
    # Of constant decays XLA would take the sums below while it compiles: 5 seconds at T = 200,000.
    growth = jax.lax.optimization_barrier(growth)
    # An upper bound in integer units. Rounding s // n adds log2(1 + n / s) <= 2**-16 * 1.45 bits,
    # which is 23.2 units.
    units = jnp.where(
        growth > 0, jnp.ceil(growth * (1 + 1e-6) * 2**_UNIT_BITS).astype(jnp.int32) + 25, 0
    )
    whole, fine = units >> _UNIT_BITS, units & ((1 << _UNIT_BITS) - 1)
    coarse, fine = fine >> 10, fine & 1023
    # Three sums that stay below 2**31 for two million steps.
    carried = jnp.cumsum(coarse) + (jnp.cumsum(fine) >> 10)
    total = jnp.cumsum(whole) + (carried >> (_UNIT_BITS - 10)) + 1
    # The integer starts two rows above a digit; up to two digits there is room for one row more.
    rows = jnp.maximum(0, -((kind.row_bits - total) // kind.row_bits))
    # What a step makes too large the next one spills.
    return jnp.concatenate([jnp.zeros((2,), jnp.int32), rows[:-1].astype(jnp.int32)])


def rows_needed(bits: float, kind: Kind) -> int:
    """Returns the rows that hold `bits` of entropy per element, beyond what the integers hold."""
    return max(0, int(-((kind.row_bits - 2 - bits) // kind.row_bits)))


def bits_held(kind: Kind, store: BitStore, rows: Array, size: int) -> Array:
    """Returns the mean number of bits per element that the store has grown by since `create`.

    Args:
      kind: of the numbers.
      store: the store.
      rows: int32 scalar, the rows spilled so far.
      size: the number of elements.
    """
    return jnp.mean(kind.log2(store.integer) - kind.log2(kind.start(size))) + (
        kind.row_bits * rows
    ).astype(jnp.float32)
