"""Random permutations of 0..N-1 that are evaluated at single places, in constant memory.

The swap-or-not shuffle of Hoang, Morris and Rogaway (An Enciphering Scheme Based on a Card Shuffle,
CRYPTO 2012). Each round draws K in 0..N-1 and pairs x with its partner K - x mod N; a random bit
that depends on the pair, and not on which of the two is asked, says whether they change places.
A round is its own inverse, so for every N, every number of rounds and every source of bits the
result is a permutation: no cycle walking, no data-dependent loop, which a GPU or `vmap` would pay
for. The bits are murmur3's finalizer of the pair's larger member, so this is no cipher.
"""

import jax
import jax.numpy as jnp
from jax import Array

# After r rounds a place has kept its element by never having swapped with probability 2**-r, and is
# uniform otherwise.
NUM_ROUNDS = 32


def permuted(places: Array, n: int, key: Array) -> Array:
    """Returns the elements that a permutation of 0..n-1, chosen by `key`, has at `places`.

    Costs `NUM_ROUNDS` rounds of some 15 integer operations a place, whatever n is; a sorted draw of
    n random numbers costs O(n log n) and n words of memory.

    Args:
      places: uint32 [*shape], less than n.
      n: length of the permutation, 1 <= n < 2**31.
      key: PRNG key.

    Returns:
      uint32 [*shape], less than n; distinct for distinct places.

    >>> sorted(permuted(jnp.arange(7, dtype=jnp.uint32), 7, jax.random.key(0)).tolist())
    [0, 1, 2, 3, 4, 5, 6]
    """
    key_sum, key_bit = jax.random.split(key)
    sums = jax.random.randint(key_sum, (NUM_ROUNDS,), 0, n, jnp.int32).astype(jnp.uint32)
    salts = jax.random.bits(key_bit, (NUM_ROUNDS,), jnp.uint32)

    def do_round(x: Array, total_and_salt: tuple[Array, Array]) -> tuple[Array, None]:
        return swap_or_not(x, n, *total_and_salt), None

    # Unrolled in part: a loop's turn is a kernel launch on a GPU, and all 32 rounds at once take
    # longer to compile than the rest of the batch function.
    return jax.lax.scan(do_round, places, (sums, salts), unroll=8)[0]


def swap_or_not(x: Array, n: int, total: Array, salt: Array) -> Array:
    """Returns `total - x mod n` or `x`, the same choice for both: one round, its own inverse.

    Args:
      x: uint32 [*shape], less than n.
      n: length of the permutation.
      total: uint32 scalar, less than n, what x and its partner add up to modulo n.
      salt: uint32 scalar, chooses the random bits.

    Returns:
      uint32 [*shape], less than n.
    """
    partner = jnp.where(x <= total, total - x, total - x + jnp.uint32(n))
    is_swapped = _bit(jnp.maximum(x, partner) ^ salt)
    return jnp.where(is_swapped, partner, x)


def _bit(x: Array) -> Array:
    """Returns a pseudo-random boolean for each word: the top bit of murmur3's finalizer."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)  # the last x ^ (x >> 16) leaves the top bit alone
    return x >= jnp.uint32(1 << 31)
