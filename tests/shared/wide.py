"""Exact integers to and from Python's, and numbers of every size to try them with."""

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.bits.double import Wide

RNG = np.random.default_rng(0)


def words(numbers):
    """Python integers modulo 2**64, as uint64 on the device."""
    with jax.enable_x64(True):
        return jnp.asarray(np.array([x % 2**64 for x in numbers], np.uint64))


def integers(kind, numbers):
    """Python integers as numbers of a kind, modulo their width."""
    if kind.number_bits == 64:
        return words(numbers)
    return Wide(words([x >> 64 for x in numbers]), words(numbers))


def ints(value):
    """Non-negative Python integers: of single words, or of wide ones."""
    if isinstance(value, Wide):
        return [(h << 64) + low for h, low in zip(ints(value.high), ints(value.low), strict=True)]
    return [int(x) for x in np.asarray(value).reshape(-1)]


def signed_ints(kind, value):
    """Python integers of two's complement numbers."""
    sign = 1 << (kind.number_bits - 1)
    return [x - 2 * sign if x >= sign else x for x in ints(value)]


def draws(bound, size=4000):
    """Numbers below `bound`, evenly spread over their sizes, edge values among them."""
    powers = {2**k + e for k in range(bound.bit_length()) for e in (-1, 0, 1)}
    edges = sorted(x for x in powers | {0, 1, bound - 1} if 0 <= x < bound)
    lengths = RNG.integers(1, bound.bit_length() + 1, size)
    random = [int.from_bytes(RNG.bytes(16), "little") % min(bound, 2 ** int(n)) for n in lengths]
    picked = RNG.choice(len(edges), size)
    return [edges[i] if RNG.random() < 0.3 else x for i, x in zip(picked, random, strict=True)]


def assert_same(got, want):
    """Bit for bit."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)
