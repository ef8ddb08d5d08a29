"""Sums, products and quotients of machine words against Python's integers."""

import jax
import numpy as np
import pytest

from hgrad_jax.bits import double, integers, single
from hgrad_jax.bits.double import DOUBLE
from hgrad_jax.bits.integers import in_64_bits
from hgrad_jax.bits.single import SINGLE
from tests.shared.wide import RNG, draws, ints, signed_ints, words
from tests.shared.wide import integers as as_integers

pytestmark = pytest.mark.compiled

KINDS = pytest.mark.parametrize("kind", [SINGLE, DOUBLE], ids=["single", "double"])


@KINDS
def test_sums(kind):
    bound = 2**kind.number_bits
    a, b = draws(bound), draws(bound)
    x, y = as_integers(kind, a), as_integers(kind, b)
    assert ints(kind.add(x, y)) == [(p + q) % bound for p, q in zip(a, b, strict=True)]
    assert ints(kind.subtract(x, y)) == [(p - q) % bound for p, q in zip(a, b, strict=True)]
    assert np.asarray(kind.differ(x, y)).tolist() == [p != q for p, q in zip(a, b, strict=True)]


@KINDS
def test_spilling(kind):
    """For both shifts: the low bits go to the row and come back."""
    row_bits = kind.row_bits
    numbers = draws(2 ** (2 * kind.digit_bits + 7))
    integer = as_integers(kind, numbers)
    row = kind.row(integer)
    assert row.dtype == kind.row_dtype
    assert np.asarray(row).tolist() == [x % 2**row_bits for x in numbers]
    for shift in (0, row_bits):
        rest = kind.spill(integer, jax.numpy.int32(shift))
        assert ints(rest) == [x >> shift for x in numbers]
        back = kind.unspill(rest, row if shift else row * 0, jax.numpy.int32(shift))
        assert ints(back) == numbers


def test_floor_divide():
    """Two's complement below 2**53 in size, exact multiples and their neighbours among them."""
    divisors = [2**17 + x for x in draws(2**24 - 2**17)]
    quotients = draws(2**28)
    near = [q * n + int(RNG.integers(-1, 2)) for q, n in zip(quotients, divisors, strict=True)]
    for numbers in (near, draws(2**53), [-x for x in draws(2**53)], [-x for x in near]):
        n = words(divisors)
        floor_divide = in_64_bits(lambda w, n: single.floor_divide(w, n, integers.inverse(n)))
        got = signed_ints(SINGLE, floor_divide(words(numbers), n))
        assert got == [x // n for x, n in zip(numbers, divisors, strict=True)]


def test_high_product():
    a, b = draws(2**64), draws(2**48)
    got = in_64_bits(double.high_product)(words(a), words(b))
    assert ints(got) == [(p * q) >> 64 for p, q in zip(a, b, strict=True)]


def divide_digit(remainders, limbs, bits, divisors):
    n = words(divisors)
    quotient, rest = in_64_bits(
        lambda r, limb, n: double.divide_digit(r, limb, bits, n, integers.inverse(n))
    )(words(remainders), words(limbs), n)
    return list(zip(ints(quotient), ints(rest), strict=True))


@pytest.mark.parametrize("bits", [32, 16, 8])
def test_divide_digit(bits):
    """For every divisor, 2**48 itself included, and remainders up to divisor - 1."""
    divisors = [min(d + 1, 2**48) for d in draws(2**48)] + [2**48] * 50
    rests = [r % d for r, d in zip(draws(2**64, len(divisors)), divisors, strict=True)]
    rests = [d - 1 if r % 5 == 0 else r for r, d in zip(rests, divisors, strict=True)]
    limbs = draws(2**bits, len(divisors))
    assert divide_digit(rests, limbs, bits, divisors) == [
        divmod((r << bits) + limb, n) for r, limb, n in zip(rests, limbs, divisors, strict=True)
    ]


def test_divide_digit_at_multiples():
    """Where an estimate is most easily off by one."""
    divisors = [max(d, 2) for d in draws(2**48)]
    quotients = draws(2**32)
    dividends = [
        max(0, min(q * d + int(RNG.integers(-1, 2)), (d << 32) - 1))
        for q, d in zip(quotients, divisors, strict=True)
    ]
    got = divide_digit([x >> 32 for x in dividends], [x % 2**32 for x in dividends], 32, divisors)
    assert got == [divmod(x, n) for x, n in zip(dividends, divisors, strict=True)]


@pytest.mark.parametrize("is_x64", [False, True])
def test_64_bit_types_stay_within(is_x64):
    """In a user's 32-bit mode everything else keeps its types, inside a scan of integers too."""
    with jax.enable_x64(is_x64):
        wanted = jax.numpy.arange(3.0).dtype
        seen = []

        def step(value, _):
            seen.append(jax.numpy.arange(3.0).dtype)
            return SINGLE.add(value, value), SINGLE.decode(value, 44, np.dtype(np.float32))

        start = SINGLE.encode(jax.numpy.ones(2, np.float32), 44)
        end, path = jax.jit(lambda x: jax.lax.scan(step, x, length=3))(start)
        assert str(end.dtype) == "uint64"
        assert set(seen) == {wanted}
        assert path.tolist() == [[1, 1], [2, 2], [4, 4]]
