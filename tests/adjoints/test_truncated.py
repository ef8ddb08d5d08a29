"""Truncated hypergradients against a closed form, and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg

NUM_STEPS = 12
RATES = np.linspace(0.05, 0.4, NUM_STEPS)
CURVATURE, START = 1.3, 2.0


def loss(params, hparams, batch, key):
    return hparams["curvature"] * jnp.sum(params**2) / 2


def end(hparams, start, adjoint):
    out = hg.unroll(
        hg.Run(
            hg.sgd(loss),
            num_steps=NUM_STEPS,
            hparams_axes={"curvature": None, "learning_rate": 0},
            record=lambda state, data: state.params**2,
            adjoint=adjoint,
        ),
        start,
        hparams,
        None,
    )
    return out.params, out.trace


HPARAMS = {"curvature": jnp.float32(CURVATURE), "learning_rate": jnp.asarray(RATES, jnp.float32)}


def gradient(adjoint):
    return jax.jit(jax.grad(lambda h, x: end(h, x, adjoint)[0], argnums=(0, 1)))(HPARAMS, START)


@pytest.mark.parametrize("window", [1, 5, NUM_STEPS - 1])
def test_closed_form(window):
    """x_T = x_0 prod(1 - lr_t a): the factors of the last steps are differentiated, no others."""
    factors = 1 - RATES * CURVATURE
    without = START * np.prod(factors) / factors
    late = np.arange(NUM_STEPS) >= NUM_STEPS - window
    by_hparams, by_start = gradient(hg.Truncated(window))
    want = np.where(late, -CURVATURE * without, 0)
    np.testing.assert_allclose(by_hparams["learning_rate"], want, rtol=1e-5)
    want = np.sum(np.where(late, -RATES * without, 0))
    np.testing.assert_allclose(by_hparams["curvature"], want, rtol=1e-5)
    assert by_start == 0


@pytest.mark.parametrize("window", [NUM_STEPS, 1000])
def test_a_window_as_long_as_the_run_is_exact(window):
    for a, b in zip(
        jax.tree.leaves(gradient(hg.Truncated(window))),
        jax.tree.leaves(gradient(hg.Direct())),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_the_run_and_its_trace_are_those_of_the_other_adjoints():
    for a, b in zip(
        end(HPARAMS, START, hg.Truncated(5)), end(HPARAMS, START, hg.Direct()), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_memory_is_of_the_window():
    def wide(params, hparams, batch, key):
        return jnp.sum(jnp.cosh(params))

    def temp_bytes(num_steps, adjoint):
        def value(rate):
            hparams = {"learning_rate": rate}
            start = jnp.linspace(-1.0, 1.0, 1000)
            out = hg.unroll(
                hg.Run(hg.sgd(wide), num_steps=num_steps, adjoint=adjoint), start, hparams, None
            )
            return jnp.sum(out.params**2)

        compiled = jax.jit(jax.grad(value)).lower(0.1).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    short, long = (temp_bytes(n, hg.Truncated(10)) for n in (50, 500))
    assert short > 10 * 4 * 1000  # It does store the window.
    assert long <= short + 64 * 500
    assert long < temp_bytes(500, hg.Direct()) / 10


@pytest.mark.parametrize("window", [0, -3, 2.0, True, "all"])
def test_the_window_is_a_positive_int(window):
    with pytest.raises(ValueError, match=r"window is .* positive int"):
        hg.Truncated(window)
