"""What a kind of exact number offers: 64-bit numbers (`single`) and 128-bit ones (`double`).

The engine, the store and the decay are written once, for either kind. A variable is kept in 64
bits, unless the training is in float64 or its `Slot` asks for more (Adam's second moment).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.bits.integers import Array, signed

Integer = Any
"""An integer per element: uint64 `[N]`, or a `double.Wide` of two."""

RANGE_BITS = 60
"""The highest words of numbers in range are below 2**60 in size."""


class Damage(NamedTuple):
    """What went wrong with fixed-point numbers, if anything.

    Attributes:
      overflow: bool scalar, some number left the range.
      nonfinite: bool scalar, some increment was infinite or NaN.
    """

    overflow: Array
    nonfinite: Array


class Kind(NamedTuple):
    """Exact numbers of one width, with their store of digits. All functions are elementwise.

    Numbers v are two's complement of `number_bits`. Decays are n / d with d = 2**digit_bits. The
    store of a number is a non-negative integer s below d**2 between steps.

    Attributes:
      number_bits: 64 or 128.
      digit_bits: 24 or 48.
      row_bits: bits of a spilled row, 8 or 16.
      row_dtype: their dtype.
      fraction_factor: a `Slot`'s fraction bits times this are the number's.
      encode: `(x, fraction_bits) -> v`: floating-point numbers from `bounded`, within one unit of
        the last place.
      decode: `(v, fraction_bits, dtype) -> x`: to the nearest but for double rounding;
        deterministic whatever it is compiled with. Infinite where out of range, NaN where
        something went in that was not finite.
      damage: `v -> Damage`, just after an addition.
      add: `(v, w) -> v + w`.
      subtract: `(v, w) -> v - w`.
      scale: `(v, s, n) -> v', s'`: the exchange of `hgrad_jax.bits.decay`.
      unscale: `(v', s', n) -> v, s`, the inverse.
      spill: `(s, shift) -> s // 2**shift`, shift an integer scalar.
      unspill: `(s, row, shift) -> s`, the inverse, given the bits that were spilled.
      row: `s -> s mod 2**row_bits`, of row_dtype.
      start: `size -> s`, fixed pseudo-random integers with digit_bits + 2 row_bits bits.
      log2: `s -> float32`.
      differ: `(a, b) -> bool`.
    """

    number_bits: int
    digit_bits: int
    row_bits: int
    row_dtype: Any
    fraction_factor: int
    encode: Callable[[Array, int], Integer]
    decode: Callable[[Integer, int, Any], Array]
    damage: Callable[[Integer], Damage]
    add: Callable[[Integer, Integer], Integer]
    subtract: Callable[[Integer, Integer], Integer]
    scale: Callable[[Integer, Integer, Array], tuple[Integer, Integer]]
    unscale: Callable[[Integer, Integer, Array], tuple[Integer, Integer]]
    spill: Callable[[Integer, Array], Integer]
    unspill: Callable[[Integer, Array, Array], Integer]
    row: Callable[[Integer], Array]
    start: Callable[[int], Integer]
    log2: Callable[[Integer], Array]
    differ: Callable[[Integer, Integer], Array]


def damage_of(word: Array) -> Damage:
    """Says what is wrong with highest words: uint64 `[N]`, N > 0."""

    def reaches(units):
        return lambda word: jnp.any(jnp.abs(signed(word)) >= np.int64(units << RANGE_BITS))

    is_damaged = reaches(1)(word)
    # The second reduction only when it is needed (under `vmap`, always). It reads the words as they
    # are: what is computed for a branch is computed whether it is taken or not.
    is_nan = jax.lax.cond(is_damaged, reaches(5), lambda _: jnp.zeros((), bool), word)
    return Damage(is_damaged & ~is_nan, is_nan)
