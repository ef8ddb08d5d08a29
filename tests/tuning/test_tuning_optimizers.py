"""Outer optimizers: steps along signs, and hyperparameters that stay positive."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg


class TestOptimizers:
    def test_sign_descent_with_momentum(self):
        optimizer, h = hg.sign_descent(0.5, momentum=0.9), jnp.zeros(2)
        state, u = optimizer.init(h), np.zeros(2)
        for g in ([1.0, -1.0], [-0.5, 0.95], [-0.5, 0.1]):
            update, state = optimizer.update(jnp.array(g), state, h)
            u = 0.9 * u + g
            np.testing.assert_array_equal(update, -0.5 * np.sign(u))
        with pytest.raises(ValueError, match="momentum is 1; it must be at least 0 and below 1"):
            hg.sign_descent(0.1, momentum=1)
        for make in (hg.sign_descent, hg.nonnegative_adam):
            with pytest.raises(ValueError, match=r"learning_rate is -0\.1; it must be positive"):
                make(-0.1)
            with pytest.raises(TypeError, match="learning_rate is 'a'; it must be a positive"):
                make(cast(Any, "a"))

    def test_settings_may_be_injected_or_traced(self):
        h, g = jnp.array([0.2, 5.0]), jnp.array([1.0, -3.0])
        for make in (hg.sign_descent, hg.nonnegative_adam):
            plain, injected = make(0.5), optax.inject_hyperparams(make)(0.5)
            want, _ = plain.update(g, plain.init(h), h)
            found, _ = injected.update(g, injected.init(h), h)
            np.testing.assert_allclose(
                jnp.asarray(found), jnp.asarray(want), rtol=2e-5
            )  # b2 becomes float32

        def second(momentum):
            optimizer = hg.sign_descent(0.5, momentum=momentum)
            _, state = optimizer.update(g, optimizer.init(h), h)
            return optimizer.update(-0.5 * g, state, h)[0]

        signs = [[-1.0, 1.0], [1.0, -1.0]]  # of 0.25 g - 0.5 g and 0.75 g - 0.5 g
        found = jax.vmap(second)(jnp.array([0.25, 0.75]))
        np.testing.assert_array_equal(found, -0.5 * np.array(signs))
        with pytest.raises(ValueError, match=r"b1 is Array\(1\., .*; it must be at least 0"):
            hg.nonnegative_adam(0.1, b1=cast(Any, jnp.float32(1)))

    def test_nonnegative_adam_ends_at_zero_and_comes_back(self):
        optimizer, plain = hg.nonnegative_adam(0.5), optax.adam(0.5)
        h = jnp.array([0.2, 5.0])
        state, plain_state = optimizer.init(h), plain.init(h)
        for g, is_cut in (([1.0, 1.0], True), ([-9.0, 1.0], False)):
            update, state = optimizer.update(jnp.array(g), state, h)
            want, plain_state = plain.update(jnp.array(g), plain_state, h)
            stepped: Any = optax.apply_updates(h, update)
            free: Any = optax.apply_updates(h, want)
            np.testing.assert_array_equal(stepped, np.maximum(free, 0))
            h = stepped
            assert (float(h[0]) == 0) == is_cut
