"""Exact decays and the bit store: formulas in Python's integers, inverses bit for bit, and cost."""

# JAX arrays and flax modules pass where pyright sees narrower types.
# pyright: reportArgumentType=false, reportCallIssue=false

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg
from hgrad_jax.bits import bit_store, decay
from hgrad_jax.bits.bit_store import BitStore, Spill
from hgrad_jax.bits.double import DOUBLE
from hgrad_jax.bits.integers import in_64_bits
from hgrad_jax.bits.single import SINGLE
from tests.shared.wide import assert_same, draws, integers, ints, signed_ints, words

pytestmark = pytest.mark.compiled

SIZE = 3000
KINDS = pytest.mark.parametrize("kind", [SINGLE, DOUBLE], ids=["single", "double"])


def random_state(kind):
    """Values of every size in range, and stores anywhere that the schedule keeps them."""
    sign = [1 if x % 2 else -1 for x in draws(2**20, SIZE)]
    sizes = draws(2 ** (kind.number_bits - 5), SIZE)
    value = integers(kind, [s * x for s, x in zip(sign, sizes, strict=True)])
    lowest = 2 ** (kind.digit_bits + 2 * kind.row_bits - 1)
    store = [lowest + x for x in draws(2 ** (2 * kind.digit_bits) - lowest, SIZE)]
    return value, BitStore(integers(kind, store), jnp.zeros((3, SIZE), kind.row_dtype))


def numerators(kind):
    """Edge cases, all the decays people use, one per number, and one for all."""
    d = 2**kind.digit_bits
    edge = [d >> 7, (d >> 7) + 1, d >> 1, d - 1, d]
    usual = [round(x * d) for x in (0.1, 0.5, 0.9, 0.95, 0.99, 0.999)]
    each = np.random.default_rng(5).integers(d >> 7, d, SIZE)
    return [*([n] * SIZE for n in edge + usual), each.tolist()]


@functools.cache
def jitted(function, kind):
    return jax.jit(functools.partial(function, kind))


@KINDS
def test_scale_equals_its_formula(kind):
    """w = v * n + pop(n), v' = w // d, push(w mod d), the low bits spilled before or not."""
    value, store = random_state(kind)
    for each in numerators(kind):
        for is_due in (False, True):
            spill = Spill(jnp.int32(1), jnp.bool_(is_due))
            got, after = jitted(decay.scale, kind)(value, store, words(each), spill)
            shift = kind.row_bits if is_due else 0
            before = ints(store.integer)
            left = [s >> shift for s in before]
            want = [
                v * k + s % k for v, k, s in zip(signed_ints(kind, value), each, left, strict=True)
            ]
            assert signed_ints(kind, got) == [w >> kind.digit_bits for w in want]
            assert ints(after.integer) == [
                ((s // k) << kind.digit_bits) + w % 2**kind.digit_bits
                for w, k, s in zip(want, each, left, strict=True)
            ]
            if is_due:
                low = [s % 2**kind.row_bits for s in before]
                assert np.asarray(after.rows[1]).tolist() == low


@KINDS
def test_unscale_undoes_scale(kind):
    value, store = random_state(kind)
    for each in numerators(kind):
        for is_due in (False, True):
            n, spill = words(each), Spill(jnp.int32(2), jnp.bool_(is_due))
            got, after = jitted(decay.scale, kind)(value, store, n, spill)
            back, restored = jitted(decay.unscale, kind)(got, after, n, spill)
            assert_same((back, restored.integer), (value, store.integer))


@KINDS
def test_one_decay_for_all_numbers(kind):
    """A scalar n is broadcast: the same integers as one n per number."""
    value, store = random_state(kind)
    spill = Spill(jnp.int32(0), jnp.bool_(False))
    n = round(0.9 * 2**kind.digit_bits)
    scalar = jax.tree.map(lambda x: x[0], words([n]))
    got = jitted(decay.scale, kind)(value, store, scalar, spill)
    assert_same(got, jitted(decay.scale, kind)(value, store, words([n] * SIZE), spill))
    back = jitted(decay.unscale, kind)(*got, scalar, spill)
    assert_same((back[0], back[1].integer), (value, store.integer))


@KINDS
def test_scale_undoes_unscale(kind):
    """The other way round, without a spill: both are bijections, so either may come first."""
    value, store = random_state(kind)
    half = 2 ** (kind.digit_bits - 1)
    small = integers(kind, [x >> 2 for x in signed_ints(kind, value)])
    spill = Spill(jnp.int32(0), jnp.bool_(False))
    for each in numerators(kind):
        # The quotient by a smaller decay would leave the range.
        n = words([max(k, half) for k in each])
        divided, shorter = jitted(decay.unscale, kind)(small, store, n, spill)
        back, again = jitted(decay.scale, kind)(divided, shorter, n, spill)
        assert_same((back, again.integer), (small, store.integer))


@KINDS
@pytest.mark.parametrize("schedule", ["constant", "uniform", "alternating", "small", "near one"])
def test_the_schedule_keeps_the_integer_in_its_words(kind, schedule):
    """The fullest integer possible, in Python's integers: below d**2 after each spill, a row at
    most a step; and the emptiest, full enough that rounding wastes nothing."""
    num_steps, row_bits, digit = 3000, kind.row_bits, kind.digit_bits
    rng = np.random.default_rng(7)
    decays = {
        "constant": np.full(num_steps, 0.9),
        "uniform": rng.uniform(2**-7, 1, num_steps),
        "alternating": np.tile([2.0**-7, 1.0], num_steps // 2),
        "small": np.full(num_steps, 2.0**-7),
        "near one": 1 - 10 ** rng.uniform(-7, -2, num_steps),
    }[schedule]
    n = decay.numerator(jnp.asarray(decays, jnp.float32), kind)
    rows = np.asarray(bit_store.spill_schedule(decay.growth(n, kind), kind))
    is_due = np.diff(rows)
    assert set(is_due.tolist()) <= {0, 1}
    largest = 2 ** (digit + 2 * row_bits) - 1
    smallest = 2 ** (digit + 2 * row_bits - 1)
    for k, due in zip(ints(n), is_due.tolist(), strict=True):
        largest, smallest = largest >> (row_bits * due), smallest >> (row_bits * due)
        assert largest < 2 ** (2 * digit)
        # The bound on the integer is never loose by more than a few bits in thousands of steps.
        assert smallest >= 2 ** (digit + 2 * row_bits - 4)
        largest = (largest // k << digit) + 2**digit - 1
        smallest = smallest // k << digit


@KINDS
def test_every_step_of_a_long_run_is_undone(kind):
    """400 steps with per-number decays and all spills, then back: the very same words."""
    num_steps = 400
    value, _ = random_state(kind)
    decays = np.random.default_rng(8).uniform(0.3, 1, (num_steps, SIZE)).astype(np.float32)
    n = decay.numerator(jnp.asarray(decays), kind)
    growth = in_64_bits(jax.vmap(lambda n: decay.largest_growth(n, kind)))(n)
    rows = bit_store.spill_schedule(growth, kind)
    store = bit_store.create(kind, SIZE, int(rows[-1]))
    xs = (n, Spill(rows[:-1], rows[1:] > rows[:-1]))

    def forward(carry, x):
        return decay.scale(kind, *carry, *x), None

    def backward(carry, x):
        return decay.unscale(kind, *carry, *x), None

    end, _ = jax.lax.scan(forward, (value, store), xs)
    start, _ = jax.lax.scan(backward, end, xs, reverse=True)
    assert_same((start[0], start[1].integer), (value, store.integer))


def test_numerator_is_the_nearest_fraction():
    x = jnp.asarray([2.0**-7, 0.1, 0.3, 0.5, 0.9, 0.999, 1 - 2.0**-24, 1.0])
    n = decay.numerator(x, SINGLE)
    assert ints(n) == [round(float(v) * 2**24) for v in x]
    from_half = np.asarray(x) >= 0.5
    fraction = np.asarray(decay.fraction(n, SINGLE, np.float32))
    np.testing.assert_array_equal(fraction[from_half], x[from_half])
    out = decay.numerator(jnp.asarray([jnp.nan, -1.0, 0.0, 2.0, jnp.inf]), SINGLE)
    assert np.all((np.asarray(out) >= 2**17) & (np.asarray(out) <= 2**24))


@functools.cache
def quadratic_run():
    """10,000 steps on 50 weights, the decay traced: compiled once for all decays."""
    target = jnp.linspace(-1, 1, 50)
    rule = hg.momentum(lambda params, hparams, batch, key: jnp.mean((params - target) ** 2))

    def run(momentum):
        hparams = {"learning_rate": 0.1, "momentum": momentum}
        out, pullback = hg.vjp(
            hg.Run(rule, num_steps=10_000, adjoint=hg.Reversible()), jnp.zeros(50), hparams, None
        )
        return pullback(out.params)[1]

    return jax.jit(run)


@pytest.mark.parametrize("momentum", [0.5, 0.7, 0.9, 0.95, 0.99])
def test_the_store_grows_by_the_entropy(momentum):
    info = quadratic_run()(jnp.float32(momentum))
    hg.check(info)
    bits = float(info.run.bits_per_step["velocity"])
    entropy = float(info.run.entropy_per_step["velocity"])
    assert entropy == pytest.approx(-math.log2(momentum), rel=1e-5)
    # What the last bytes written still have room for is a few bits in all.
    assert 0.999 <= bits / entropy <= 1.01


@pytest.mark.parametrize("num_steps", range(1000, 1008))
def test_a_store_just_large_enough_loses_nothing(num_steps):
    """What is written after its last spill does not count, and must not fall on that spill."""
    rule = hg.momentum(lambda params, hparams, batch, key: jnp.mean((params - 1) ** 2))

    def run(momentum):
        hparams = {"learning_rate": 0.1, "momentum": momentum}
        out, pullback = hg.vjp(
            hg.Run(rule, num_steps=num_steps, adjoint=hg.Reversible()), jnp.zeros(5), hparams, None
        )
        return pullback(out.params)[1]

    assert bool(hg.check(jax.jit(run)(jnp.float32(0.5))).is_restored)


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
def test_capacity_is_the_entropy_of_the_smallest_decay(momentum):
    for num_steps in (1, 10, 1000, 100_000):
        bits = num_steps * -math.log2(momentum)
        rows = bit_store.rows_needed(bits, SINGLE)
        assert bits - 8 <= 8 * rows + 8 <= bits + 16
        n = decay.numerator(jnp.full(num_steps, momentum), SINGLE)
        used = bit_store.spill_schedule(decay.growth(n, SINGLE), SINGLE)[-1]
        assert int(used) <= bit_store.rows_needed(bits * (1 + 2e-6) + num_steps * 4e-6 + 2, SINGLE)
