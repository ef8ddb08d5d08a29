"""Fixed point: rounding, range, and the marks of what leaves it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgrad_jax.bits import fixed_point
from hgrad_jax.bits.double import DOUBLE
from hgrad_jax.bits.single import SINGLE
from tests.shared.wide import assert_same, signed_ints

pytestmark = pytest.mark.compiled

FRACTION_BITS = [44, 50, 56]
CASES = pytest.mark.parametrize(
    ("dtype", "kind"),
    [(np.float32, SINGLE), (np.float32, DOUBLE), (np.float64, DOUBLE)],
    ids=["float32 single", "float32 double", "float64 double"],
)


@pytest.fixture(autouse=True)
def x64(request):
    with jax.enable_x64(request.node.callspec.params.get("dtype") is np.float64):
        yield


def encode(x, fraction_bits, kind):
    x = fixed_point.bounded(jnp.asarray(x), fraction_bits, kind)
    return kind.encode(x, kind.fraction_factor * fraction_bits)


def decode(value, fraction_bits, kind, dtype):
    return kind.decode(value, kind.fraction_factor * fraction_bits, np.dtype(dtype))


def spread(dtype, largest, size=5000):
    """Numbers of either sign and every size below `largest`, the closest to it included."""
    rng = np.random.default_rng(1)
    sizes = largest * np.exp2(-rng.uniform(0, 60, size))
    numbers = (rng.choice([-1, 1], size) * sizes).astype(dtype)
    top = np.nextafter(dtype(largest), dtype(0))
    numbers = np.clip(numbers, -top, top)
    return np.concatenate([numbers, np.array([0, top / 2, -top / 2, top, -top], dtype)])


@CASES
@pytest.mark.parametrize("fraction_bits", FRACTION_BITS)
def test_encode_is_within_its_stated_error(dtype, kind, fraction_bits):
    x = spread(dtype, fixed_point.largest(fraction_bits, kind))
    scaled_bits = kind.fraction_factor * fraction_bits
    numbers = signed_ints(kind, encode(x, fraction_bits, kind))
    for number, want in zip(numbers, x, strict=True):
        # x is a dyadic rational: compare integers, without rounding anything.
        numerator, denominator = float(want).as_integer_ratio()
        error = abs(number * denominator - (numerator << scaled_bits))
        assert error <= denominator, f"{want} is off by {error / denominator} units"


@CASES
@pytest.mark.parametrize("fraction_bits", FRACTION_BITS)
def test_round_trip(dtype, kind, fraction_bits):
    """Within an ulp, or a unit of the fixed point where that is coarser; encode undoes decode."""
    x = spread(dtype, fixed_point.largest(fraction_bits, kind))
    value = encode(x, fraction_bits, kind)
    back = np.asarray(decode(value, fraction_bits, kind, dtype))
    unit = 2.0 ** -(kind.fraction_factor * fraction_bits)
    assert np.all(np.abs(back - x) <= np.spacing(np.abs(x)) + unit)
    again = encode(back, fraction_bits, kind)
    np.testing.assert_array_equal(decode(again, fraction_bits, kind, dtype), back)
    damage = kind.damage(value)
    assert not damage.overflow
    assert not damage.nonfinite


@CASES
@pytest.mark.parametrize("fraction_bits", FRACTION_BITS)
def test_damage_is_recognised_after_any_addition(dtype, kind, fraction_bits):
    largest = fixed_point.largest(fraction_bits, kind)
    wrong = np.array([np.inf, -np.inf, largest, -1.5 * largest, np.nan], dtype)
    others = (np.array([-0.999, -0.5, 0.0, 0.5, 0.999]) * largest).astype(dtype)

    @jax.jit
    @jax.vmap
    def add(x, y):
        x, y = (encode(value[None], fraction_bits, kind) for value in (x, y))
        total = kind.add(x, y)
        return kind.damage(total), decode(total, fraction_bits, kind, dtype)[0]

    x, y = np.meshgrid(wrong, others)
    damage, decoded = add(x.ravel(), y.ravel())
    is_finite = np.isfinite(x.ravel())
    np.testing.assert_array_equal(damage.nonfinite, ~is_finite)
    np.testing.assert_array_equal(damage.overflow, is_finite)
    np.testing.assert_array_equal(np.isnan(decoded), ~is_finite)
    np.testing.assert_array_equal(np.isinf(decoded), is_finite)


@pytest.mark.parametrize("kind", [SINGLE, DOUBLE], ids=["single", "double"])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_adding_and_subtracting_an_increment_changes_nothing(kind, data):
    """The law that exact reversal rests on; float32 sums break it almost always."""
    numbers = st.floats(-1000, 1000, width=32)
    x, y = (np.full(1, data.draw(numbers), np.float32) for _ in range(2))
    value, increment = encode(x, 44, kind), encode(y, 44, kind)
    assert_same(kind.subtract(kind.add(value, increment), increment), value)
