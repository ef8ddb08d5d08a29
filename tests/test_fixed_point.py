"""Fixed point: rounding, range, and the marks of what leaves it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgrad_jax.exact import fixed_point, words

FRACTION_BITS = [44, 52, 60]


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
    return np.concatenate([numbers, np.array([0, top / 2, -top / 2, top, -top], dtype)])


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
def test_damage_is_recognised_after_any_addition(dtype, fraction_bits):
    largest = fixed_point.largest(fraction_bits, dtype)
    wrong = np.array([np.inf, -np.inf, largest, -1.5 * largest, np.nan], dtype)
    others = (np.array([-0.999, -0.5, 0.0, 0.5, 0.999]) * largest).astype(dtype)

    @jax.jit
    @jax.vmap
    def add(x, y):
        x, y = (fixed_point.encode(value[None], fraction_bits) for value in (x, y))
        total = words.add(x, y)
        return fixed_point.damage(total), fixed_point.decode(total, fraction_bits)[0]

    x, y = np.meshgrid(wrong, others)
    damage, decoded = add(x.ravel(), y.ravel())
    is_nan = np.isnan(x.ravel())
    np.testing.assert_array_equal(damage.nonfinite, is_nan)
    np.testing.assert_array_equal(damage.overflow, ~is_nan)
    np.testing.assert_array_equal(np.isnan(decoded), is_nan)
    np.testing.assert_array_equal(np.isinf(decoded), ~is_nan)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_adding_and_subtracting_an_increment_changes_nothing(data):
    """The law that exact reversal rests on; float32 sums break it almost always."""
    numbers = st.floats(-1000, 1000, width=32)
    x, y = (jnp.asarray([data.draw(numbers)], jnp.float32) for _ in range(2))
    value, increment = fixed_point.encode(x), fixed_point.encode(y)
    back = words.subtract(words.add(value, increment), increment)
    np.testing.assert_array_equal(back.high, value.high)
    np.testing.assert_array_equal(back.low, value.low)
