"""Two-word arithmetic against Python's integers."""

import jax
import numpy as np
import pytest

from hgrad_jax.exact import words
from hgrad_jax.exact.words import Wide

RNG = np.random.default_rng(0)
NUM_DRAWS = 4000


@pytest.fixture(params=[32, 64], ids=["uint32", "uint64"], autouse=True)
def bits(request):
    with jax.enable_x64(request.param == 64):
        yield request.param


def dtype_of(bits):
    return np.uint32 if bits == 32 else np.uint64


def edges(bound):
    """The least and the largest numbers below `bound`, and the powers of two beside them."""
    powers = {2**k + e for k in range(bound.bit_length()) for e in (-1, 0, 1)}
    return sorted(x for x in powers | {0, 1, bound - 1} if 0 <= x < bound)


def draws(bound, size=NUM_DRAWS):
    """Numbers below `bound`, evenly spread over their sizes, edge values among them."""
    some = edges(bound)
    lengths = RNG.integers(1, bound.bit_length() + 1, size)
    random = [int.from_bytes(RNG.bytes(16), "little") % min(bound, 2 ** int(n)) for n in lengths]
    picked = RNG.choice(len(some), size)
    return [some[i] if RNG.random() < 0.3 else x for i, x in zip(picked, random, strict=True)]


def wide(numbers, bits):
    dtype, mask = dtype_of(bits), 2**bits - 1
    numbers = [x % 2 ** (2 * bits) for x in numbers]
    return Wide(
        jax.numpy.asarray(np.array([x >> bits for x in numbers], dtype)),
        jax.numpy.asarray(np.array([x & mask for x in numbers], dtype)),
    )


def word(numbers, bits):
    return jax.numpy.asarray(np.array([x % 2**bits for x in numbers], dtype_of(bits)))


def ints(array):
    return [int(x) for x in np.asarray(array)]


def wide_ints(value):
    bits = words.word_bits(value.low)
    return [(h << bits) + low for h, low in zip(ints(value.high), ints(value.low), strict=True)]


def test_sums(bits):
    bound = 2 ** (2 * bits)
    a, b = draws(bound), draws(bound)
    x, y = wide(a, bits), wide(b, bits)
    assert wide_ints(words.add(x, y)) == [(p + q) % bound for p, q in zip(a, b, strict=True)]
    assert wide_ints(words.subtract(x, y)) == [(p - q) % bound for p, q in zip(a, b, strict=True)]
    assert wide_ints(words.negate(x)) == [-p % bound for p in a]


def test_high_product(bits):
    a, b = draws(2**bits), draws(2 ** (3 * bits // 4))
    got = words.high_product(word(a, bits), word(b, bits))
    assert ints(got) == [(p * q) >> bits for p, q in zip(a, b, strict=True)]


@pytest.mark.parametrize("share", [1, 2, 4], ids=lambda s: f"limb=w/{2 * s}")
def test_divide_digit(bits, share):
    """For every divisor, d itself included, and remainders up to divisor - 1."""
    limb_bits = bits // (2 * share)
    largest = 2 ** (3 * bits // 4)
    divisors = [min(d + 1, largest) for d in draws(largest)] + [largest] * 50
    rests = [r % d for r, d in zip(draws(2**bits, len(divisors)), divisors, strict=True)]
    rests = [d - 1 if r % 5 == 0 else r for r, d in zip(rests, divisors, strict=True)]
    limbs = draws(2**limb_bits, len(divisors))
    d = word(divisors, bits)
    quotient, rest = words.divide_digit(
        word(rests, bits), word(limbs, bits), limb_bits, d, words.reciprocal(d)
    )
    want = [
        divmod((r << limb_bits) + limb, n)
        for r, limb, n in zip(rests, limbs, divisors, strict=True)
    ]
    assert list(zip(ints(quotient), ints(rest), strict=True)) == want


def test_divide_digit_at_multiples(bits):
    """Where an estimate is most easily off by one: exact multiples and their neighbours."""
    half, largest = bits // 2, 2 ** (3 * bits // 4)
    divisors = [max(d, 2) for d in draws(largest)]
    quotients = draws(2**half)
    dividends = [
        max(0, min(q * d + int(RNG.integers(-1, 2)), (d << half) - 1))
        for q, d in zip(quotients, divisors, strict=True)
    ]
    d = word(divisors, bits)
    upper, lower = [x >> half for x in dividends], [x % 2**half for x in dividends]
    quotient, rest = words.divide_digit(
        word(upper, bits), word(lower, bits), half, d, words.reciprocal(d)
    )
    got = list(zip(ints(quotient), ints(rest), strict=True))
    assert got == [divmod(x, n) for x, n in zip(dividends, divisors, strict=True)]


def test_divide_signed(bits):
    half, largest = bits // 2, 2 ** (3 * bits // 4)
    divisors = [2**half + 1 + x for x in draws(largest - 2**half)]
    numbers = [x - 2 ** (bits - 1) for x in draws(2**bits)]
    d = word(divisors, bits)
    quotient, rest = words.divide_signed(word(numbers, bits), d, words.reciprocal(d))
    want = [divmod(x, n) for x, n in zip(numbers, divisors, strict=True)]
    assert ints(words.signed(quotient)) == [q for q, _ in want]
    assert ints(rest) == [r for _, r in want]
