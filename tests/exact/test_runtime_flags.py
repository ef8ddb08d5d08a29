"""What goes wrong while a run is computed raises a flag, makes NaN, and `check` says what to do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg

pytestmark = pytest.mark.compiled

NUM_STEPS = 40


def loss(params, hparams, batch, key):
    return jnp.sum((params - batch) ** 2) / 2


@functools.cache
def compiled(adjoint, *, bad_step=None, bad=np.nan, is_batched=False):
    """`rate, momentum -> Unrolled, bars, BackwardInfo`; the batch of `bad_step` is bad."""

    def batch_fn(data, t, key):
        return jnp.where(t == (-1 if bad_step is None else bad_step), bad, data)

    def run(rate, momentum):
        out, pullback = hg.vjp(
            hg.Run(
                hg.heavy_ball(loss),
                num_steps=NUM_STEPS,
                batch_fn=batch_fn,
                record=lambda state, data: jnp.sum(state.params**2),
                adjoint=adjoint,
            ),
            jnp.ones(4),
            {"learning_rate": rate, "momentum": momentum},
            jnp.zeros(4),
        )
        return (out, *pullback(jnp.ones(4)))

    return jax.jit(jax.vmap(run) if is_batched else run)


def is_nan(tree):
    return all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(tree))


def is_finite(tree):
    return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


def test_a_run_in_order():
    out, bars, info = compiled(hg.Reversible())(0.1, 0.9)
    assert hg.check(out) is out
    assert hg.check(out.info) is out.info
    assert hg.check(info) is info
    assert int(out.info.damaged_at) == NUM_STEPS
    assert is_finite((out.params, out.trace, bars))


def test_numbers_beyond_the_fixed_point_range():
    out, bars, info = compiled(hg.Reversible())(4.0, 0.9)
    assert bool(out.info.overflow)
    assert not bool(out.info.nonfinite)
    assert is_nan((out.params, out.trace, bars))
    # The float run shows when: positions pass 2**16, or what is added to them, a step before.
    path = np.asarray(compiled(hg.Direct())(4.0, 0.9)[0].trace)
    first = int(out.info.damaged_at)
    assert int(np.argmax(path > 4 * 2.0**32)) in (first, first + 1)
    message = (
        rf"left the fixed-point range at step {first}; lower the learning rate .*fraction_bits"
    )
    for found in (out, out.info, info):
        with pytest.raises(hg.HypergradientError, match=message):
            hg.check(found)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_becomes_infinite_or_nan(bad):
    out, bars, info = compiled(hg.Reversible(), bad_step=17, bad=bad)(0.1, 0.9)
    assert bool(out.info.nonfinite)
    assert not bool(out.info.overflow)
    assert int(out.info.damaged_at) == 17
    assert is_nan((out.params, out.trace, bars))
    for found in (out, info):
        with pytest.raises(
            hg.HypergradientError, match=r"infinite or NaN at step 17; .* loss that"
        ):
            hg.check(found)


def test_a_gradient_that_is_finite_but_leaves_the_range_is_told_from_an_infinite_one():
    out, bars, info = compiled(hg.Reversible(), bad_step=17, bad=1e30)(0.1, 0.9)
    assert bool(out.info.overflow)
    assert not bool(out.info.nonfinite)
    assert is_nan((out.params, out.trace, bars))
    with pytest.raises(hg.HypergradientError, match="left the fixed-point range at step 17; lower"):
        hg.check(info)


def test_a_loss_that_becomes_nan_under_other_adjoints():
    for adjoint in (hg.Direct(), hg.Checkpointed()):
        out, bars, info = compiled(adjoint, bad_step=17)(0.1, 0.9)
        assert bool(out.info.nonfinite)
        assert is_nan((out.params, bars.params))
        with pytest.raises(hg.HypergradientError, match="the training became infinite or NaN"):
            hg.check(info)


@pytest.mark.parametrize("momentum", [0.007, 0.0, -0.5, 1.01, np.nan])
def test_traced_decays_out_of_range(momentum):
    out, bars, info = compiled(hg.Reversible())(0.01, momentum)
    assert bool(out.info.decay_out_of_range)
    assert is_nan((out.params, out.trace, bars))
    for found in (out, info):
        with pytest.raises(
            hg.HypergradientError, match=r"infinite or NaN|outside \[2\*\*-7, 1\]; k"
        ):
            hg.check(found)


@pytest.mark.parametrize("momentum", [2.0**-7, 1.0])
def test_traced_decays_at_the_ends_of_the_range(momentum):
    _, bars, info = compiled(hg.Reversible(smallest_decay=2.0**-7))(0.01, momentum)
    assert bool(hg.check(info).is_restored)
    _, want, _ = compiled(hg.Direct())(0.01, momentum)
    for got, other in zip(jax.tree.leaves(bars), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, other, rtol=1e-4)


def test_a_store_that_is_too_small():
    """The run is right and its parameters stand; only the way back is lost."""
    out, bars, info = compiled(hg.Reversible(smallest_decay=0.99))(0.1, 0.5)
    assert bool(out.info.store_overflow)
    assert is_finite((out.params, out.trace))
    hg.check(out)
    assert is_nan(bars)
    with pytest.raises(hg.HypergradientError, match=r"bit store was too small .*smallest_decay"):
        hg.check(info)


def test_a_capacity_by_variable():
    roomy = hg.Reversible(smallest_decay={"velocity": 0.25})
    _, bars, info = compiled(roomy)(0.1, 0.3)
    assert bool(hg.check(info).is_restored)
    assert is_finite(bars)
    assert hash(roomy) == hash(hg.Reversible(smallest_decay={"velocity": 0.25}))


def test_under_vmap_the_run_is_named():
    rates, momenta = jnp.asarray([0.1, 0.2, 4.0, 0.1]), jnp.full(4, 0.9)
    out, bars, info = compiled(hg.Reversible(), is_batched=True)(rates, momenta)
    with pytest.raises(
        hg.HypergradientError, match=r"fixed-point range .*\(run \(2,\) of \(4,\)\)"
    ):
        hg.check(info)
    is_bad = np.isnan(bars.hparams["learning_rate"])
    np.testing.assert_array_equal(is_bad, [False, False, True, False])
    np.testing.assert_array_equal(np.isnan(out.params).all(1), is_bad)
    np.testing.assert_array_equal(info.mismatches[jnp.asarray([0, 1, 3])], 0)


def test_check_inside_jit_is_refused():
    def run(rate):
        hparams = {"learning_rate": rate, "momentum": 0.9}
        return hg.check(
            hg.unroll(hg.Run(hg.momentum(loss), num_steps=3), jnp.ones(2), hparams, 0.0)
        ).params

    with pytest.raises(TypeError, match="check reads values and cannot run inside jit, grad or"):
        jax.jit(run)(0.1)


def test_only_reversible_restores():
    _, _, info = compiled(hg.Direct())(0.1, 0.9)
    with pytest.raises(AttributeError, match=r"is_restored: only Reversible\(\) runs backwards"):
        _ = info.is_restored


def test_a_hypergradient_that_overflows_on_a_finite_run():
    """A long flat valley: the run stays small while its derivative passes float32."""

    def saddle(params, hparams, batch, key):
        return -jnp.sum(params**2) / 2

    def run(rate):
        hparams = {"learning_rate": rate, "momentum": 0.9}
        out, pullback = hg.vjp(
            hg.Run(hg.heavy_ball(saddle), num_steps=200, adjoint=hg.Reversible()),
            jnp.zeros(2),
            hparams,
            None,
        )
        return out, *pullback(jnp.ones(2))

    out, bars, info = jax.jit(run)(jnp.float32(2.0))
    np.testing.assert_array_equal(out.params, 0.0)
    assert int(info.mismatches) == 0
    assert not bool(info.is_finite)
    assert not is_finite(bars)
    with pytest.raises(hg.HypergradientError, match=r"although the run is finite; .* shorten it"):
        hg.check(info)


def spike(loss_at):
    """A rule whose drift makes a finite step of an infinite velocity."""
    return hg.kick_drift(
        loss_at,
        kick=lambda gradient, hparams, count: {"velocity": -gradient},
        drift=lambda slots, hparams, count: hparams["rate"] * jnp.clip(slots["velocity"], -1, 1),
        decays=lambda hparams, count: {"velocity": 0.9},
        slots={"velocity": hg.Slot()},
    )


@pytest.mark.parametrize(
    ("rule", "hparams"),
    [
        (spike(lambda p, h, b, k: jnp.sum(p) * b), {"rate": 0.05}),
        (hg.adam(lambda p, h, b, k: jnp.sum(p) * b), {"learning_rate": 0.01}),
    ],
    ids=["clipped", "adam"],
)
def test_an_overflow_that_no_position_shows(rule, hparams):
    def batch_fn(data, t, key):
        return jnp.where(t == 3, 3e5, -1.0)

    def run(hparams):
        run = hg.Run(rule, num_steps=9, batch_fn=batch_fn, adjoint=hg.Reversible())
        return hg.vjp(run, jnp.zeros(2), hparams, None)[1](jnp.ones(2))

    bars, info = jax.jit(run)(hparams)
    assert int(info.run.damaged_at) == 3
    assert is_nan(bars)
    with pytest.raises(hg.HypergradientError, match="left the fixed-point range at step 3"):
        hg.check(info)
