import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgrad_jax.data import full_batch, minibatches, shuffled, with_replacement
from hgrad_jax.data.dataset import num_examples
from hgrad_jax.data.minibatches import _mul_mod
from hgrad_jax.data.permutation import permuted, swap_or_not

KEY = jax.random.key(0)
LAST_STEP = 2**31 - 1
FACTORIES = [
    minibatches(4),
    shuffled(4, seed=3),
    with_replacement(4),
    full_batch(),
]


def places(batch_fn, n, t, key=KEY):
    """The indices that a batch function picks at step t, or at each step of an array [T]."""
    t = jnp.asarray(t)
    mapped = jax.vmap(batch_fn, (None, 0, None)) if t.ndim else batch_fn
    return np.asarray(jax.jit(mapped)(jnp.arange(n), t, key))


class TestInOrder:
    @pytest.mark.parametrize(("n", "batch_size"), [(6, 4), (12, 4), (7, 7), (5, 1)])
    def test_steps_follow_each_other_and_wrap(self, n, batch_size):
        seen = places(minibatches(batch_size), n, np.arange(2 * n)).ravel()
        np.testing.assert_array_equal(seen, np.arange(seen.size) % n)

    @pytest.mark.parametrize("n", [250, 251, 60_000, 65_537])
    def test_last_int32_step_does_not_overflow(self, n):
        start = LAST_STEP * 250 % n
        want = (start + np.arange(250)) % n
        np.testing.assert_array_equal(places(minibatches(250), n, LAST_STEP), want)

    @given(st.data())
    @settings(max_examples=20, deadline=None)
    def test_modular_product_in_words_that_do_not_hold_it(self, data):
        n = data.draw(st.integers(2, 2**31 - 1))
        x, factor = data.draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))
        assert int(_mul_mod(jnp.uint32(x), factor, n)) == x * factor % n


class TestPermutation:
    @pytest.mark.parametrize("n", [*range(1, 20), 63, 64, 65, 1000, 1797, 4096, 4097])
    def test_is_a_permutation(self, n):
        got = permuted(jnp.arange(n, dtype=jnp.uint32), n, jax.random.key(n))
        np.testing.assert_array_equal(np.sort(got), np.arange(n))

    @given(st.data())
    @settings(max_examples=50, deadline=None)
    def test_a_round_undoes_itself_up_to_the_largest_n(self, data):
        n = data.draw(st.integers(1, 2**31 - 1))
        x, total = (jnp.uint32(data.draw(st.integers(0, n - 1))) for _ in range(2))
        salt = jnp.uint32(data.draw(st.integers(0, 2**32 - 1)))
        once = swap_or_not(x, n, total, salt)
        assert int(once) in {int(x), (int(total) - int(x)) % n}
        assert int(swap_or_not(once, n, total, salt)) == int(x)

    @pytest.mark.parametrize("n", [2, 3, 4, 5])
    def test_all_permutations_are_equally_frequent(self, n):
        """Chi-square of the n! permutations over 24,000 keys, within 4 standard deviations."""
        keys = jax.random.split(jax.random.key(1), 24_000)
        orders = jax.vmap(lambda key: permuted(jnp.arange(n, dtype=jnp.uint32), n, key))(keys)
        _, counts = np.unique(np.asarray(orders), axis=0, return_counts=True)
        kinds = np.prod(np.arange(1, n + 1))
        assert len(counts) == kinds
        expected = len(keys) / kinds
        chi2 = np.sum((counts - expected) ** 2) / expected
        assert abs(chi2 - (kinds - 1)) < 4 * np.sqrt(2 * (kinds - 1))

    def test_neighbours_land_independently(self):
        """Chi-square of the pair (element at 17, element at 18) over 7 x 7 blocks of 700."""
        n, blocks = 700, 7
        keys = jax.random.split(jax.random.key(2), 20_000)
        pair = jax.vmap(lambda key: permuted(jnp.uint32([17, 18]), n, key))(keys)
        cells = np.asarray(pair, int) // (n // blocks)
        counts = np.bincount(cells[:, 0] * blocks + cells[:, 1], minlength=blocks**2)
        size = n // blocks
        probs = np.full((blocks, blocks), size / (n - 1) / blocks)
        probs -= np.eye(blocks) / (n - 1) / blocks  # the two are never the same element
        expected = len(keys) * probs.ravel()
        chi2 = np.sum((counts - expected) ** 2 / expected)
        dof = blocks**2 - 1
        assert abs(chi2 - dof) < 4 * np.sqrt(2 * dof)

    def test_one_permutation_looks_random(self):
        """Fixed points, cycles' number and serial correlation of one order of 60,000."""
        n = 60_000
        order = np.asarray(permuted(jnp.arange(n, dtype=jnp.uint32), n, jax.random.key(4)), int)
        assert np.sum(order == np.arange(n)) <= 1 + 4  # Poisson(1): 4 standard errors
        correlation = np.corrcoef(order[:-1], order[1:])[0, 1]
        assert abs(correlation) < 4 / np.sqrt(n)
        descents = np.mean(order[1:] < order[:-1])
        assert abs(descents - 0.5) < 4 * np.sqrt(1 / 12 / n)  # of a permutation: (n + 1) / 12


class TestShuffled:
    @pytest.mark.parametrize(("n", "batch_size"), [(12, 4), (13, 4), (5, 5), (1797, 250)])
    def test_an_epoch_repeats_no_example(self, n, batch_size):
        steps = n // batch_size
        batches = places(shuffled(batch_size, seed=0), n, np.arange(3 * steps))
        for epoch in np.split(batches, 3):
            assert len(np.unique(epoch)) == steps * batch_size

    def test_epochs_and_seeds_differ(self):
        first, later = places(shuffled(100, seed=0), 1000, [0, 10])
        assert not np.array_equal(first, later)
        assert not np.array_equal(first, places(shuffled(100, seed=1), 1000, 0))
        assert not np.array_equal(first, places(shuffled(100, seed=2**32 - 1), 1000, 0))

    def test_every_example_is_left_out_equally_often(self):
        """10 of 13 examples an epoch, over 4,000 epochs: binomial counts, within 4 deviations."""
        batches = places(shuffled(10, seed=5), 13, np.arange(4000))
        counts = np.bincount(batches.ravel(), minlength=13)
        deviation = np.sqrt(4000 * 10 / 13 * 3 / 13)
        np.testing.assert_allclose(counts, 4000 * 10 / 13, atol=4 * deviation)

    def test_the_step_key_and_the_default_generator_make_no_difference(self):
        want = places(shuffled(4, seed=3), 9, 5)
        np.testing.assert_array_equal(places(shuffled(4, seed=3), 9, 5, jax.random.key(8)), want)
        with jax.default_prng_impl("rbg"):
            got = places(shuffled(4, seed=3), 9, 5)
        np.testing.assert_array_equal(got, want)

    def test_last_int32_step_works(self):
        n, batch_size = 60_000, 250
        epoch, step = divmod(LAST_STEP, n // batch_size)
        key = jax.random.fold_in(jax.random.key(3), epoch)
        want = permuted(jnp.arange(n, dtype=jnp.uint32), n, key)[step * batch_size :][:batch_size]
        np.testing.assert_array_equal(places(shuffled(250, seed=3), n, LAST_STEP), want)


class TestWithReplacement:
    def test_follows_the_key_alone(self):
        batch_fn = with_replacement(50)
        np.testing.assert_array_equal(places(batch_fn, 100, 0), places(batch_fn, 100, 9))
        other = places(batch_fn, 100, 0, jax.random.key(1))
        assert not np.array_equal(places(batch_fn, 100, 0), other)

    def test_is_uniform(self):
        """Counts over 7 examples of 4,000 draws of 5: within 4 standard deviations."""
        keys = jax.random.split(KEY, 4000)
        draws = jax.vmap(with_replacement(5), (None, None, 0))(jnp.arange(7), jnp.int32(0), keys)
        counts = np.bincount(np.asarray(draws).ravel(), minlength=7)
        np.testing.assert_allclose(counts, 20_000 / 7, atol=4 * np.sqrt(20_000 * 6 / 49))


@pytest.mark.parametrize("batch_fn", FACTORIES, ids=str)
class TestEveryBatchFunction:
    def test_keeps_the_tree_and_matches_rows(self, batch_fn):
        data = {"x": np.arange(18.0).reshape(9, 2), "y": np.arange(9, dtype=np.int32)}
        batch = batch_fn(data, 5, KEY)
        assert batch["x"].dtype == jnp.float32
        assert batch["y"].dtype == jnp.int32
        np.testing.assert_array_equal(batch["x"][:, 0], 2 * batch["y"])

    def test_jit_vmap_and_scan_give_the_same_bits(self, batch_fn):
        data = jnp.arange(9)
        keys = jax.random.split(KEY, 6)
        steps = jnp.arange(6)
        want = jnp.stack([batch_fn(data, t, key) for t, key in zip(range(6), keys, strict=True)])
        mapped = jax.jit(jax.vmap(batch_fn, (None, 0, 0)))(data, steps, keys)
        np.testing.assert_array_equal(mapped, want)
        _, scanned = jax.lax.scan(lambda c, tk: (c, batch_fn(data, *tk)), None, (steps, keys))
        np.testing.assert_array_equal(scanned, want)

    def test_vmap_over_data(self, batch_fn):
        data = jnp.stack([jnp.arange(9), jnp.arange(9) + 100])
        got = jax.vmap(batch_fn, (0, None, None))(data, 3, KEY)
        np.testing.assert_array_equal(got[1], got[0] + 100)
        np.testing.assert_array_equal(got[0], batch_fn(data[0], 3, KEY))

    def test_gradient_reaches_the_data(self, batch_fn):
        weights = jnp.arange(1.0, 5.0) if batch_fn != full_batch() else jnp.arange(1.0, 10.0)
        grad = jax.grad(lambda data: weights @ batch_fn(data, 3, KEY))(jnp.ones(9))
        want = np.zeros(9)
        np.add.at(want, places(batch_fn, 9, 3), weights)
        np.testing.assert_array_equal(grad, want)

    def test_leading_axes_must_agree(self, batch_fn):
        data = {"x": jnp.zeros((9, 2)), "y": jnp.zeros(8)}
        message = r"one leading axis.*data\['x'\] \[9, 2\], data\['y'\] \[8\]"
        with pytest.raises(ValueError, match=message):
            jax.jit(batch_fn)(data, 0, KEY)


def test_equal_settings_are_not_traced_again():
    traces = []

    def step(batch_fn, data):
        traces.append(batch_fn)
        return batch_fn(data, 0, KEY)

    step = jax.jit(step, static_argnums=0)
    for _ in range(2):
        step(minibatches(2), jnp.arange(4))
        step(shuffled(2, seed=0), jnp.arange(4))
        step(shuffled(2, seed=1), jnp.arange(4))
    assert len(traces) == 3
    assert minibatches(2) != with_replacement(2)


@pytest.mark.parametrize("make", [minibatches, lambda b: shuffled(b, seed=0), with_replacement])
def test_batch_size_is_checked(make):
    for wrong in (0, -3, 2.0, True):
        with pytest.raises(ValueError, match=f"batch_size is {wrong}; it must be a positive int"):
            make(wrong)
    with pytest.raises(ValueError, match="batch_size is 10, but data has 9 examples"):
        jax.eval_shape(make(10), jnp.zeros((9, 2)), 0, KEY)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5])
def test_seed_is_checked(seed):
    with pytest.raises(ValueError, match="seed must be an integer with 0 <= seed"):
        shuffled(2, seed=seed)


@pytest.mark.parametrize(
    ("data", "message"),
    [({}, "holds no array"), (np.float32(1), r"data \[\]"), ((np.ones(2), 3.0), r"data\[1\] \[\]")],
)
def test_data_without_examples_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        num_examples(data)


def test_drawing_needs_a_key():
    with pytest.raises(ValueError, match=r"key is None, but with_replacement .* shuffled"):
        with_replacement(2)(jnp.arange(5), jnp.int32(0), None)
