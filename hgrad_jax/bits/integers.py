"""64-bit integers in JAX's ordinary 32-bit mode.

All exact arithmetic is done in uint64 and divided by estimates in float64, whatever the precision
of the training: every processor has the operations, and one 64-bit word is handled in half the time
of two 32-bit ones. JAX traces 64-bit operations only where its `enable_x64` is on. So each function
of this package that makes or reads such integers is traced under it, by the decorator below, and
what it returns keeps its type: the loops that carry the integers, and the user's functions between
them, are traced in whatever mode the user is in.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
P = ParamSpec("P")
R = TypeVar("R")


def in_64_bits(function: Callable[P, R]) -> Callable[P, R]:
    """Traces a function with 64-bit types on."""

    @functools.wraps(function)
    def traced(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.enable_x64(True):
            return function(*args, **kwargs)

    return traced


def signed(word: Array) -> Array:
    """Reads uint64 as two's complement int64."""
    return jax.lax.bitcast_convert_type(word, jnp.int64)


def unsigned(number: Array) -> Array:
    """Reads int64 as uint64 modulo 2**64."""
    return jax.lax.bitcast_convert_type(number, jnp.uint64)


def low_bits(word: Array, bits: int) -> Array:
    """Returns a word modulo 2**bits."""
    return word & np.uint64((1 << bits) - 1)


def nearest(x: Array) -> Array:
    """Returns the integers nearest to float64 below 2**51 in size, as two's complement uint64."""
    # Adding 1.5 * 2**52 leaves them in the low bits: much cheaper than XLA's conversion, which also
    # handles NaN and saturates.
    magic = np.float64(1.5 * 2.0**52)
    return jax.lax.bitcast_convert_type(x + magic, jnp.uint64) - magic.view(np.uint64)


def inverse(divisor: Array) -> Array:
    """Returns 1 / divisor in float64."""
    return 1.0 / signed(divisor).astype(jnp.float64)


def scramble(size: int) -> tuple[Array, Array]:
    """Returns two vectors of fixed pseudo-random words, uint64 `[size]`."""
    index = jax.lax.iota(jnp.uint64, size) + np.uint64(1)
    # Multiply and shift (Steele, Lea and Flood 2014) with odd constants.
    first = _mix(index * np.uint64(0x9E3779B97F4A7C15), 0xBF58476D1CE4E5B9)
    return first, _mix(first, 0x94D049BB133111EB)


def _mix(word: Array, factor: int) -> Array:
    word = (word ^ (word >> 31)) * np.uint64(factor)
    return word ^ (word >> 29)
