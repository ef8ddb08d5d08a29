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
from hgrad_jax.exact import bit_store, decay
from hgrad_jax.exact.bit_store import BitStore, Spill
from hgrad_jax.exact.words import Wide

SIZE = 3000
STEP = jnp.int32(0)


@pytest.fixture(params=[32, 64], ids=["uint32", "uint64"])
def bits(request):
    with jax.enable_x64(request.param == 64):
        yield request.param


def word_of(bits):
    return np.uint32 if bits == 32 else np.uint64


def random_words(rng, bits, size=SIZE):
    return rng.integers(0, 2**bits, size, word_of(bits), endpoint=False)


def wide_ints(value, *, is_signed=False):
    bits = value.low.dtype.itemsize * 8
    high, low = np.asarray(value.high), np.asarray(value.low)
    total = [(int(h) << bits) + int(x) for h, x in zip(high, low, strict=True)]
    sign = 1 << (2 * bits - 1)
    return [x - 2 * sign if is_signed and x >= sign else x for x in total]


def random_state(bits, seed=0):
    """Values of every size, and stores anywhere in the range that the schedule keeps them in."""
    rng = np.random.default_rng(seed)
    word, quarter = word_of(bits), bits // 4
    shift = rng.integers(0, bits - 4, SIZE).astype(word)
    # The high word of a value stays below 2**(w - 4) in size.
    high = (random_words(rng, bits) >> word(5)) >> shift
    high = np.where(rng.random(SIZE) < 0.5, high, ~high).astype(word)
    value = Wide(jnp.asarray(high), jnp.asarray(random_words(rng, bits)))
    lowest = word(1 << (quarter - 1))
    top = (random_words(rng, bits) >> word(3 * quarter)) | lowest
    integer = Wide(jnp.asarray(top), jnp.asarray(random_words(rng, bits)))
    rows = jnp.zeros((3, SIZE), jnp.uint8 if bits == 32 else jnp.uint16)
    return value, BitStore(integer, rows)


def numerators(bits):
    """Edge cases, all the decays people use, one per number, and one for all."""
    digit = 3 * bits // 4
    edge = [2 ** (digit - 7), 2 ** (digit - 7) + 1, 2 ** (digit - 1), 2**digit - 1, 2**digit]
    usual = [round(x * 2**digit) for x in (0.1, 0.5, 0.9, 0.95, 0.99, 0.999)]
    each = np.random.default_rng(5).integers(2 ** (digit - 7), 2**digit, SIZE)
    return [np.asarray(n, word_of(bits)) for n in [*edge, *usual, each]]


def assert_same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


@functools.cache
def jitted(function):
    return jax.jit(function)


def test_scale_equals_its_formula(bits):
    """w = v * n + pop(n), v' = w // d, push(w mod d), the low byte spilled or not."""
    value, store = random_state(bits)
    digit, row_bits = 3 * bits // 4, bits // 4
    for n in numerators(bits):
        for is_due in (False, True):
            got, after = jitted(decay.scale)(value, store, n, Spill(jnp.int32(1), is_due), STEP)
            each = np.broadcast_to(n, SIZE).tolist()
            integers = wide_ints(store.integer)
            want = [
                v * k + s % k
                for v, k, s in zip(wide_ints(value, is_signed=True), each, integers, strict=True)
            ]
            assert wide_ints(got, is_signed=True) == [w >> digit for w in want]
            pushed = [
                ((s // k) << digit) + w % 2**digit
                for w, k, s in zip(want, each, integers, strict=True)
            ]
            shift = row_bits if is_due else 0
            assert wide_ints(after.integer) == [s >> shift for s in pushed]
            if is_due:
                assert np.asarray(after.rows[1]).tolist() == [s % 2**row_bits for s in pushed]


def test_unscale_undoes_scale(bits):
    value, store = random_state(bits, seed=1)
    for n in numerators(bits):
        for is_due in (False, True):
            spill = Spill(jnp.int32(2), is_due)
            got, after = jitted(decay.scale)(value, store, n, spill, STEP)
            back, integer = jitted(decay.unscale)(got, after, n, spill, STEP)
            assert_same((back, integer.integer), (value, store.integer))


def test_scale_undoes_unscale(bits):
    """The other way round, without a spill: both are bijections, so either may come first."""
    value, store = random_state(bits, seed=2)
    for n in numerators(bits):
        if np.ndim(n) == 0 and int(n) < 2 ** (3 * bits // 4 - 1):
            continue  # The quotient by a smaller decay would leave the range.
        small = Wide(
            jnp.asarray(np.asarray(value.high).view(f"int{bits}") >> 2).view(word_of(bits)),
            value.low,
        )
        each = np.maximum(n, word_of(bits)(2 ** (3 * bits // 4 - 1)))
        spill = Spill(jnp.int32(0), False)
        divided, shorter = jitted(decay.unscale)(small, store, each, spill, STEP)
        back, again = jitted(decay.scale)(divided, shorter, each, spill, STEP)
        assert_same((back, again.integer), (small, store.integer))


def test_push_undoes_pop(bits):
    _, store = random_state(bits, seed=3)
    for n in numerators(bits):
        rest, digit = jitted(bit_store.pop)(store.integer, n)
        each = np.broadcast_to(n, SIZE).tolist()
        want = [divmod(s, k) for s, k in zip(wide_ints(store.integer), each, strict=True)]
        assert list(zip(np.asarray(rest).tolist(), np.asarray(digit).tolist(), strict=True)) == want
        assert_same(jitted(bit_store.push)(rest, digit, n), store.integer)


@pytest.mark.parametrize("kind", ["constant", "uniform", "alternating", "small", "near one"])
def test_the_schedule_keeps_the_integer_in_its_words(bits, kind):
    """The fullest integer possible, in Python's integers: below 2**(3w / 2) before and after each
    step, a row at most a step; and the emptiest, full enough that rounding wastes nothing."""
    num_steps, digit, row_bits = 3000, 3 * bits // 4, bits // 4
    rng = np.random.default_rng(7)
    decays = {
        "constant": np.full(num_steps, 0.9),
        "uniform": rng.uniform(2**-7, 1, num_steps),
        "alternating": np.tile([2.0**-7, 1.0], num_steps // 2),
        "small": np.full(num_steps, 2.0**-7),
        "near one": 1 - 10 ** rng.uniform(-7, -2, num_steps),
    }[kind]
    n = decay.numerator(
        jnp.asarray(decays, jnp.float32 if bits == 32 else jnp.float64), word_of(bits)
    )
    rows = np.asarray(bit_store.spill_schedule(decay.growth(n), word_of(bits)))
    is_due = np.diff(rows)
    assert set(is_due.tolist()) <= {0, 1}
    largest = 2 ** (bits + row_bits) - 1  # `create` makes integers of w + w / 4 bits.
    smallest = 2 ** (bits + row_bits - 1)
    for k, due in zip(np.asarray(n).tolist(), is_due.tolist(), strict=True):
        largest = ((largest // k << digit) + 2**digit - 1) >> (row_bits * due)
        smallest = (smallest // k << digit) >> (row_bits * due)
        assert largest < 2 ** (bits + 2 * row_bits)
    # The bound on the integer is never loose by more than a few bits in thousands of steps.
    assert smallest >= 2 ** (bits + row_bits - 4)


def test_every_step_of_a_long_run_is_undone(bits):
    """400 steps with per-number decays and all spills, then back: the very same words."""
    num_steps = 400
    value, _ = random_state(bits, seed=4)
    word = word_of(bits)
    rng = np.random.default_rng(8)
    decays = rng.uniform(0.3, 1, (num_steps, SIZE))
    n = jax.vmap(lambda x: decay.numerator(x, word))(
        jnp.asarray(decays, jnp.float32 if bits == 32 else jnp.float64)
    )
    rows = bit_store.spill_schedule(jnp.max(decay.growth(n), 1), word)
    store = bit_store.create(SIZE, int(rows[-1]), word)
    xs = (n, Spill(rows[:-1], rows[1:] > rows[:-1]))

    def forward(carry, x):
        return decay.scale(*carry, *x, STEP), None

    def backward(carry, x):
        return decay.unscale(*carry, *x, STEP), None

    end, _ = jax.lax.scan(forward, (value, store), xs)
    start, _ = jax.lax.scan(backward, end, xs, reverse=True)
    assert_same((start[0], start[1].integer), (value, store.integer))


def test_numerator_is_the_nearest_fraction():
    x = jnp.asarray([2.0**-7, 0.1, 0.3, 0.5, 0.9, 0.999, 1 - 2.0**-24, 1.0])
    n = decay.numerator(x, np.uint32)
    np.testing.assert_array_equal(np.asarray(n), [round(float(v) * 2**24) for v in x])
    from_half = np.asarray(x) >= 0.5
    np.testing.assert_array_equal(np.asarray(decay.fraction(n))[from_half], x[from_half])
    out = decay.numerator(jnp.asarray([jnp.nan, -1.0, 0.0, 2.0, jnp.inf]), np.uint32)
    assert np.all((np.asarray(out) >= 2**17) & (np.asarray(out) <= 2**24))


@functools.cache
def quadratic_run():
    """10,000 steps on 50 weights, the decay traced: compiled once for all decays."""
    target = jnp.linspace(-1, 1, 50)
    rule = hg.momentum(lambda params, hparams, batch, key: jnp.mean((params - target) ** 2))

    def run(momentum):
        hparams = {"learning_rate": 0.1, "momentum": momentum}
        out, pullback = hg.vjp(
            rule, jnp.zeros(50), hparams, None, num_steps=10_000, adjoint=hg.Reversible()
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
            rule, jnp.zeros(5), hparams, None, num_steps=num_steps, adjoint=hg.Reversible()
        )
        return pullback(out.params)[1]

    assert bool(hg.check(jax.jit(run)(jnp.float32(0.5))).is_restored)


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
def test_capacity_is_the_entropy_of_the_smallest_decay(momentum):
    for num_steps in (1, 10, 1000, 100_000):
        bits = num_steps * -math.log2(momentum)
        rows = bit_store.rows_needed(bits, np.uint32)
        assert bits - 8 <= 8 * rows + 8 <= bits + 16
        n = decay.numerator(jnp.full(num_steps, momentum), np.uint32)
        used = bit_store.spill_schedule(decay.growth(n), np.uint32)[-1]
        assert int(used) <= bit_store.rows_needed(
            bits * (1 + 2e-6) + num_steps * 4e-6 + 2, np.uint32
        )
