"""Forward mode: its memory, its groups of tangents, what it does inside jvp, and its limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg
from hgrad_jax.data import DataUnavailableError, load, minibatches, split
from hgrad_jax.models import cross_entropy
from hgrad_jax.tools.liveness import live_bytes
from tests.shared import regression

NUM_WEIGHTS = 2000


def wide(params, hparams, batch, key):
    return jnp.sum(jnp.cosh(params - jnp.sum(hparams["shift"]))) / 2


def compiled(adjoint, num_steps, derivative=jax.grad, num_shifts=1, record=None):
    """The hypergradient with respect to a rate and some shifts, compiled."""

    def value(hparams):
        start = jnp.linspace(-1.0, 1.0, NUM_WEIGHTS)
        run = hg.Run(
            hg.heavy_ball(wide, momentum=0.5), num_steps=num_steps, adjoint=adjoint, record=record
        )
        out = hg.unroll(run, start, hparams, None)
        return jnp.sum(out.params**2)

    given = {"learning_rate": jnp.float32(0.1), "shift": jnp.full(num_shifts, 0.1 / num_shifts)}
    program = jax.jit(derivative(value)).lower(given).compile()
    memory = program.memory_analysis()
    assert memory is not None
    return program(given), memory.temp_size_in_bytes


def test_memory_does_not_grow_with_the_number_of_steps():
    (short, short_bytes), (long, long_bytes) = (compiled(hg.ForwardMode(), n) for n in (10, 1000))
    assert short_bytes > 2 * 4 * NUM_WEIGHTS  # It does carry tangents.
    assert long_bytes <= short_bytes + 256
    assert jax.tree.leaves(short) != jax.tree.leaves(long)


def test_groups_keep_to_the_memory_and_change_nothing():
    whole, whole_bytes = compiled(hg.ForwardMode(), 10, num_shifts=100)
    budget = 20 * 8 * NUM_WEIGHTS
    parts, parts_bytes = compiled(hg.ForwardMode(memory=budget), 10, num_shifts=100)
    assert whole_bytes > 100 * 4 * NUM_WEIGHTS > parts_bytes
    assert parts_bytes < budget + 20 * 4 * NUM_WEIGHTS
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("memory", [2**31, 3000])
def test_inside_forward_mode_and_second_derivatives(memory):
    hparams, axes = regression.hparams_and_axes("one")
    hessians, pushed = [], []
    for adjoint in (hg.Direct(), hg.ForwardMode(memory)):
        value = regression.objective("momentum", adjoint, axes)
        in_hparams = functools.partial(value, regression.start())
        direction = jax.tree.map(jnp.ones_like, hparams)
        pushed.append(
            jax.jit(lambda h, d, f=in_hparams: jax.jvp(f, (h,), (d,)))(hparams, direction)
        )
        hessians.append(jax.jit(jax.hessian(in_hparams))(hparams))
    for got, want in (pushed[::-1], hessians[::-1]):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_the_jacobian_of_the_end():
    hparams, axes = regression.hparams_and_axes("per tensor")

    def end(hparams, adjoint):
        return hg.unroll(
            hg.Run(
                hg.momentum(regression.loss),
                num_steps=regression.NUM_STEPS,
                batch_fn=regression.batch_fn,
                hparams_axes=axes,
                adjoint=adjoint,
            ),
            regression.start(),
            hparams,
            regression.data(),
            key=jnp.asarray(regression.KEY),
        ).params

    want = jax.jit(jax.jacfwd(lambda h: end(h, hg.Direct())))(hparams)
    for jacobian in (jax.jacfwd, jax.jacrev):
        got = jax.jit(jacobian(lambda h: end(h, hg.ForwardMode())))(hparams)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_memory_without_bound():
    for a, b in zip(
        *(compiled(hg.ForwardMode(m), 10)[0].values() for m in (np.inf, 1e9)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_only_what_is_differentiated_is_carried():
    """Not the weights: with one number, as much memory as a tangent, not as NUM_WEIGHTS of them."""
    assert compiled(hg.ForwardMode(), 10)[1] < 20 * 4 * NUM_WEIGHTS


def test_memory_for_not_even_one_tangent():
    with pytest.raises(
        ValueError, match=r"memory is 1e\+03 bytes, but one tangent .* about 5.6e\+04"
    ):
        compiled(hg.ForwardMode(memory=1000), 10)


@pytest.mark.parametrize("memory", [0, -1.0, True])
def test_memory_is_positive(memory):
    with pytest.raises(ValueError, match=r"memory is .* positive number of bytes"):
        hg.ForwardMode(memory)


def test_live_bytes_counts_loops_and_calls_once():
    def scanned(x):
        return jax.lax.scan(lambda s, _: (jnp.sin(jnp.outer(s, s)).sum(0), None), x, None, 9)[0]

    x = jnp.ones(100)
    once = live_bytes(lambda s: jnp.sin(jnp.outer(s, s)).sum(0), x)
    assert 40_000 <= once <= live_bytes(scanned, x) <= once + 2000
    assert live_bytes(lambda i: i + 1, jnp.arange(100)) == 0  # integers have no tangents


@pytest.mark.slow
def test_forward_is_reverse_on_mnist():
    """MLP 784-300-300-10, 328,810 weights, 100 steps; per-layer L1 and L2, rate, momentum.

    The study of Franceschi et al. (2017) in which both agree to six digits.
    """
    try:
        images = load("mnist", download=False).train
    except DataUnavailableError as unavailable:
        pytest.skip(f"needs MNIST: {unavailable}")
    train, valid = split(images, (20_000, 5_000), seed=0)
    train, valid = jax.tree.map(jnp.asarray, (train, valid))
    sizes = [784, 300, 300, 10]
    keys = jax.random.split(jax.random.key(0), 3)
    params = [
        {"kernel": jax.random.normal(key, (a, b)) / np.sqrt(a), "bias": jnp.zeros(b)}
        for key, a, b in zip(keys, sizes, sizes[1:], strict=False)
    ]
    assert sum(x.size for x in jax.tree.leaves(params)) == 328_810

    def error(params, batch):
        x = batch.inputs.reshape(len(batch.inputs), -1) / 255.0
        for i, layer in enumerate(params):
            x = x @ layer["kernel"] + layer["bias"]
            x = jnp.tanh(x) if i < 2 else x
        return cross_entropy(x, batch.labels)

    def loss(params, hparams, batch, key):
        kernels = [layer["kernel"] for layer in params]
        l1 = jnp.stack([jnp.sum(jnp.abs(k)) for k in kernels]) @ hparams["l1"]
        l2 = jnp.stack([jnp.sum(k**2) for k in kernels]) @ hparams["l2"]
        return error(params, batch) + l1 + l2

    hparams = {
        "l1": jnp.zeros(3),
        "l2": jnp.zeros(3),
        "learning_rate": jnp.float32(0.01),
        "momentum": jnp.float32(0.5),
    }

    def validation(hparams, adjoint):
        out = hg.unroll(
            hg.Run(hg.heavy_ball(loss), num_steps=100, batch_fn=minibatches(200), adjoint=adjoint),
            params,
            hparams,
            train,
        )
        return error(out.params, valid)

    found = {
        adjoint: jax.jit(jax.grad(lambda h, a=adjoint: validation(h, a)))(hparams)
        for adjoint in (hg.ForwardMode(), hg.Direct(), hg.Checkpointed(), hg.Reversible())
    }
    for adjoint, got in found.items():
        for a, b in zip(
            jax.tree.leaves(got), jax.tree.leaves(found[hg.ForwardMode()]), strict=True
        ):
            assert np.max(np.abs(a - b) / np.abs(b)) < 1e-5, adjoint
