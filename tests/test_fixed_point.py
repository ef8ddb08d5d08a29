"""Fixed point: rounding, range, and the marks of what leaves it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgrad_jax.exact import fixed_point, words

FRACTION_BITS = [44, 52, 60]
LARGEST = {bits: fixed_point.largest(bits) for bits in FRACTION_BITS}


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"], autouse=True)
def dtype(request):
    with jax.enable_x64(request.param is np.float64):
        yield request.param


def as_fractions(value, fraction_bits):
    """The numbers that the integers stand for, as Python integers over 2**(scaled bits)."""
    bits = words.word_bits(value.low)
    numbers = []
    for high, low in zip(np.asarray(value.high), np.asarray(value.low), strict=True):
        number = (int(high) << bits) + int(low)
        numbers.append(number - (1 << (2 * bits)) * (number >> (2 * bits - 1)))
    return numbers, fraction_bits * (bits // 32)


def spread(dtype, largest, size=5000):
    """Numbers of either sign and every size below `largest`, the closest to it included."""
    rng = np.random.default_rng(1)
    sizes = largest * np.exp2(-rng.uniform(0, 60, size))
    numbers = (rng.choice([-1, 1], size) * sizes).astype(dtype)
    top = np.nextafter(dtype(largest), dtype(0))
    numbers = np.clip(numbers, -top, top)
    return np.concatenate([numbers, np.array([0, 1, -1, top, -top], dtype)])


@pytest.mark.parametrize("fraction_bits", FRACTION_BITS)
def test_encode_is_within_its_stated_error(dtype, fraction_bits):
    x = spread(dtype, fixed_point.largest(fraction_bits, dtype))
    numbers, scaled_bits = as_fractions(
        fixed_point.encode(jnp.asarray(x), fraction_bits), fraction_bits
    )
    for number, want in zip(numbers, x, strict=True):
        # x is a dyadic rational: compare integers, without rounding anything.
        numerator, denominator = float(want).as_integer_ratio()
        error = abs(number * denominator - (numerator << scaled_bits))
        assert error <= denominator, f"{want} is off by {error / denominator} units"


@pytest.mark.parametrize("fraction_bits", FRACTION_BITS)
def test_round_trip(dtype, fraction_bits):
    """Within an ulp, or a unit of the fixed point where that is coarser; encode undoes decode."""
    x = spread(dtype, fixed_point.largest(fraction_bits, dtype))
    value = fixed_point.encode(jnp.asarray(x), fraction_bits)
    back = np.asarray(fixed_point.decode(value, fraction_bits))
    unit = 2.0 ** -(fraction_bits * (1 if dtype is np.float32 else 2))
    assert np.all(np.abs(back - x) <= np.spacing(np.abs(x)) + unit)
    again = fixed_point.encode(jnp.asarray(back), fraction_bits)
    np.testing.assert_array_equal(fixed_point.decode(again, fraction_bits), back)
    damage = fixed_point.damage(value)
    assert not damage.overflow
    assert not damage.nonfinite


@pytest.mark.parametrize("fraction_bits", FRACTION_BITS)
@pytest.mark.parametrize("share", [-0.999, -0.5, 0.0, 0.5, 0.999])
@pytest.mark.parametrize("wrong", ["inf", "-inf", "nan", "large", "-large"])
def test_damage_is_recognised_after_any_addition(dtype, fraction_bits, share, wrong):
    largest = fixed_point.largest(fraction_bits, dtype)
    named = {"large": largest, "-large": -1.5 * largest}
    x = jnp.asarray([dtype(named.get(wrong, 0) or wrong)])
    other = fixed_point.encode(jnp.asarray([dtype(share * largest)]), fraction_bits)
    total = words.add(fixed_point.encode(x, fraction_bits), other)
    damage = fixed_point.damage(total)
    assert bool(damage.overflow) == (wrong != "nan")
    assert bool(damage.nonfinite) == (wrong == "nan")
    decoded = fixed_point.decode(total, fraction_bits)
    assert np.all(np.isnan(decoded) if wrong == "nan" else np.isinf(decoded))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_adding_and_subtracting_an_increment_changes_nothing(data):
    """The law that exact reversal rests on; float32 sums break it almost always."""
    numbers = st.floats(-1000, 1000, width=32)
    x, y = (jnp.asarray([data.draw(numbers)], jnp.float32) for _ in range(2))
    value, increment = fixed_point.encode(x), fixed_point.encode(y)
    back = words.subtract(words.add(value, increment), increment)
    np.testing.assert_array_equal(back.high, value.high)
    np.testing.assert_array_equal(back.low, value.low)
