"""What the compiled programs need: bytes, evaluations of the gradient, and traces."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hgrad_jax as hg
from hgrad_jax.bits import bit_store
from hgrad_jax.bits.single import SINGLE
from hgrad_jax.models import MLP
from tests.shared.problems import KEY, classifier, slices

pytestmark = pytest.mark.compiled

HPARAMS = {"learning_rate": jnp.float32(0.1), "momentum": jnp.float32(0.9)}


def program(loss, params, data, num_steps, adjoint, size=100):
    def end(hparams):
        out = hg.unroll(
            hg.Run(hg.momentum(loss), num_steps=num_steps, batch_fn=slices(size), adjoint=adjoint),
            params,
            hparams,
            data,
            key=KEY,
        )
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(out.params))

    return jax.jit(jax.grad(end))


@functools.cache
def small():
    return classifier(MLP((32, 10), activation=nn.tanh))


@functools.cache
def temp_bytes(num_steps, adjoint):
    """Of the hypergradient of a small network; nothing is run."""
    return temp_bytes_of(program(*small(), num_steps, adjoint))


def temp_bytes_of(jitted):
    analysis = jitted.lower(HPARAMS).compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def num_weights(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_reversal_takes_a_fiftieth_of_storing_everything():
    """Of a network 784-50-50-50-10, batch 100, 1,000 steps, a store for decays from 0.9."""
    mnist = classifier(MLP((50, 50, 50, 10), activation=nn.tanh), (28, 28))
    direct, reversible = (
        temp_bytes_of(program(*mnist, 1000, adjoint))
        for adjoint in (hg.Direct(), hg.Reversible(smallest_decay=0.9))
    )
    assert reversible <= direct / 50


def test_reversal_grows_by_its_store_alone():
    """log2(1 / decay) bits per weight and step, and a few words a step of schedules."""
    adjoint = hg.Reversible(smallest_decay=0.9)
    growth = temp_bytes(2000, adjoint) - temp_bytes(1000, adjoint)
    weights = num_weights(small().params)
    store = 1000 * -math.log2(0.9) / 8 * weights
    assert store - weights <= growth <= store + 2 * weights + 64 * 1000


def test_checkpoints_grow_by_the_root():
    sizes = [temp_bytes(n, hg.Checkpointed()) for n in (100, 400, 1600)]
    differences = np.diff(sizes)
    assert differences[1] == pytest.approx(2 * differences[0], rel=0.05)
    assert sizes[2] < temp_bytes(1600, hg.Direct()) / 10


def test_binary_checkpoints_grow_by_the_logarithm():
    sizes = [temp_bytes(n, hg.Checkpointed(branching=2)) for n in (64, 128, 256)]
    differences = np.diff(sizes)
    states = 4 * 2 * num_weights(small().params)
    assert np.all(differences <= 4 * states)
    assert sizes[2] < temp_bytes(256, hg.Checkpointed())


@pytest.mark.parametrize(
    ("adjoint", "num_steps", "runs"),
    [
        (hg.Direct(), 16, 1),
        (hg.Checkpointed(), 16, 2),
        (hg.Checkpointed(branching=2), 16, 5),
        (hg.Checkpointed(branching=4), 16, 3),
        (hg.Checkpointed(), 13, 2),
    ],
    ids=repr,
)
def test_how_often_the_loss_is_evaluated(adjoint, num_steps, runs):
    """One run forward, and the extra ones of the docstrings."""
    count = [0]

    def up(_):
        count[0] += 1

    def loss(params, hparams, batch, key):
        jax.debug.callback(up, params)  # an argument, or it would leave the loop
        return jnp.sum(jnp.cosh(params))

    def end(hparams):
        out = hg.unroll(
            hg.Run(hg.momentum(loss), num_steps=num_steps, adjoint=adjoint),
            jnp.ones(2),
            hparams,
            None,
        )
        return jnp.sum(out.params)

    jax.block_until_ready(jax.jit(jax.grad(end))(HPARAMS))
    jax.effects_barrier()
    assert count[0] == runs * num_steps


@pytest.mark.parametrize("adjoint", [hg.Checkpointed(), hg.Reversible()], ids=repr)
def test_new_values_do_not_trace_again(adjoint):
    traces = [0]

    def loss(params, hparams, batch, key):
        traces[0] += 1
        return jnp.sum(params**2)

    @jax.jit
    def hypergradient(hparams):
        def end(hparams):
            return jnp.sum(
                hg.unroll(
                    hg.Run(hg.momentum(loss), num_steps=9, adjoint=adjoint),
                    jnp.ones(2),
                    hparams,
                    None,
                ).params
            )

        return jax.grad(end)(hparams)

    first = hypergradient(HPARAMS)
    once = traces[0]
    second = hypergradient(jax.tree.map(lambda x: 0.9 * x, HPARAMS))
    assert traces[0] == once
    assert first["momentum"] != second["momentum"]
    # However long the run, the loss is traced as often.
    assert once < 20


def test_rows_are_what_the_capacity_says():
    adjoint = hg.Reversible(smallest_decay=0.5)
    growth = temp_bytes(2000, adjoint) - temp_bytes(2000, hg.Reversible(smallest_decay=0.9))
    rows = [bit_store.rows_needed(2000 * -math.log2(d), SINGLE) for d in (0.5, 0.9)]
    want = (rows[0] - rows[1]) * num_weights(small().params)
    assert growth == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize(("is_shared", "per_weight"), [(True, 80), (False, 52)])
def test_bytes_per_weight_of_reversal(is_shared, per_weight):
    """What the docstring of `Reversible` says, stores for eight steps of one byte included."""

    def loss(params, hparams, batch, key):
        return jnp.sum((batch @ params) ** 2)

    def temp_bytes(size):
        def end(hparams, params):
            adjoint = hg.Reversible(smallest_decay=0.9, share_gradient=is_shared)
            data = jnp.ones((2, size))
            rule = hg.momentum(loss)
            out = hg.unroll(hg.Run(rule, num_steps=8, adjoint=adjoint), params, hparams, data)
            return jnp.sum(out.params)

        hparams = {"learning_rate": jnp.float32(0.1), "momentum": jnp.float32(0.9)}
        lowered = jax.jit(jax.grad(end)).lower(hparams, jnp.ones(size))
        analysis = lowered.compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    found = (temp_bytes(200_000) - temp_bytes(100_000)) / 100_000
    assert abs(found - per_weight) <= 8
