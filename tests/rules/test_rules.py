"""Hypergradients through update rules: hyperparameters in all forms, gradients that are 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg
from hgrad_jax.rules.adam import correction
from hgrad_jax.rules.arithmetic import merge, root
from tests.shared.rules import (
    ADJOINTS,
    DATA,
    END_BAR,
    IRREVERSIBLE,
    PARAMS,
    RULES,
    T,
    assert_close,
    batch_fn,
    hparams_of,
    loss,
    scaled,
)

pytestmark = pytest.mark.compiled


def label(adjoint):
    branching = getattr(adjoint, "branching", None)
    return type(adjoint).__name__ + (str(branching) if branching else "")


def table():
    """Rules and adjoints: quick ones by default, the others when slow tests are asked for."""
    for name in RULES:
        quick = hg.Checkpointed() if name in IRREVERSIBLE else hg.Reversible()
        for adjoint in ADJOINTS[1:]:
            if not (name in IRREVERSIBLE and adjoint == hg.Reversible()):
                marks = [] if adjoint == quick and name != "adam" else [pytest.mark.slow]
                yield pytest.param(name, adjoint, marks=marks, id=f"{name}-{label(adjoint)}")


@functools.partial(jax.jit, static_argnames=("name", "adjoint"))
def run(name, adjoint, params, hparams):
    """End of the run, cotangents of its start and hyperparameters, and the info of the way back."""
    axes = hparams_of(name)[1]
    out, pullback = hg.vjp(
        hg.Run(RULES[name][0], num_steps=T, batch_fn=batch_fn, hparams_axes=axes, adjoint=adjoint),
        params,
        hparams,
        DATA,
    )
    bars, info = pullback(END_BAR)
    return out.params, bars, info


class TestHypergradients:
    """Every hyperparameter, in all its forms; the loss's own; and the start."""

    @pytest.mark.parametrize(("name", "adjoint"), list(table()))
    def test_agree_between_adjoints(self, name, adjoint):
        hparams, _ = hparams_of(name)
        end, want, _ = run(name, hg.Direct(), PARAMS, hparams)
        params, bars, info = run(name, adjoint, PARAMS, hparams)
        hg.check(info)
        assert_close(params, end, 1e-5)
        assert_close(bars, want, 1e-4)
        if adjoint == hg.Reversible():
            assert info.mismatches == 0
        if name != "from_optax":  # which has no use for the scale
            assert all(np.all(np.asarray(x) != 0) for x in jax.tree.leaves(want))


def two_steps(rule, hparams):
    """Parameters after two steps, without a scan: nothing to compile but single operations."""
    h = hparams | {"penalty": jnp.float32(0.03)}
    state = rule.init(PARAMS, h)
    for _ in range(2):
        state = rule.step(state, h, DATA, None)
    return rule.params(state)


class TestPrefixes:
    """A tree prefix means the same in every form."""

    @pytest.mark.parametrize("name", ["sgd", "nesterov", "rmsprop_momentum", "adamw"])
    def test_every_form_of_one_value(self, name):
        values = {"learning_rate": 0.05, "momentum": 0.75, "weight_decay": 0.5, "b2": 0.75}
        rule = getattr(hg, name)(loss, **({"b2": hg.field("b2")} if name == "adamw" else {}))
        forms = [
            lambda v: v,
            lambda v: {"w": v, "b": v},
            lambda v: jax.tree.map(lambda x: jnp.full(x.shape, v), PARAMS),
            lambda v: {"w": jnp.full((3, 1), v), "b": jnp.full((2,), v)},
        ]
        ends = [
            two_steps(rule, {k: form(jnp.float32(v)) for k, v in values.items()}) for form in forms
        ]
        for end in ends[1:]:
            assert_close(end, ends[0], 1e-7)

    def test_weight_decay_finer_or_coarser_than_the_learning_rate(self):
        rule = hg.adamw(loss)
        scalar = {"learning_rate": jnp.float32(0.05), "weight_decay": jnp.float32(0.5)}
        tree = {"w": jnp.full((3, 1), 1.0), "b": jnp.float32(1.0)}
        for name in scalar:
            end = two_steps(rule, scalar | {name: scaled(scalar[name], tree)})
            assert_close(end, two_steps(rule, scalar), 1e-7)

    def test_merge_refuses_two_unrelated_structures(self):
        with pytest.raises(ValueError, match="neither a prefix of the other; give one of them"):
            merge(jnp.multiply, learning_rate={"w": 1.0}, weight_decay={"b": 1.0})


class TestFiniteAtZero:
    """A gradient that is exactly zero, from the first step on: dead in x[0], flat in x[1]."""

    @staticmethod
    def partly_flat(params, hparams, batch, key):
        # x[0] never matters; x[1] starts where the slope, but not the curvature, is zero.
        return jnp.sum(hparams["curvature"] * params[1:] ** 2)

    @pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "rmsprop_momentum"])
    def test_hypergradients_are_finite_and_right(self, name):
        sources = {"weight_decay": 0.1} if name == "adamw" else {}
        sources |= {"momentum": 0.5} if name == "rmsprop_momentum" else {}
        rule = getattr(hg, name)(self.partly_flat, eps=hg.field("eps"), **sources)
        h = {"learning_rate": jnp.float32(0.1), "eps": jnp.float32(0.5), "curvature": jnp.ones(2)}
        start = jnp.array([1.0, 0.0, 2.0])
        adjoint = hg.Direct() if name == "rmsprop" else hg.Reversible()

        @jax.jit
        def after_one(start, h):
            out, pullback = hg.vjp(hg.Run(rule, num_steps=1, adjoint=adjoint), start, h, None)
            return out.params, *pullback(jnp.ones(3))

        end, bars, info = after_one(start, h)
        hg.check(info)
        kept = 1 - 0.01 * (name == "adamw")
        # At a zero gradient a step is -lr g / eps, and g = 2 x: 1 - 0.1 * 2 / 0.5.
        np.testing.assert_allclose(bars.params[:2], [kept, kept - 0.4], rtol=1e-5)
        np.testing.assert_allclose(end[:2], [kept, 0.0], rtol=1e-6)
        assert all(np.all(np.isfinite(np.asarray(x))) for x in jax.tree.leaves(bars))

    def test_optax_is_not(self):
        rule = hg.from_optax(lambda h: optax.adam(h["learning_rate"]), self.partly_flat)

        def end(start):
            h = {"learning_rate": 0.1, "curvature": jnp.ones(2)}
            return jnp.sum(hg.unroll(hg.Run(rule, num_steps=1), start, h, None).params)

        assert np.isnan(jax.jit(jax.grad(end))(jnp.array([1.0, 0.0, 2.0]))).any()

    def test_root(self):
        x = jnp.array([0.0, 4.0, 1e-30])
        np.testing.assert_allclose(root(x), [0.0, 2.0, 1e-15], rtol=1e-6)
        np.testing.assert_allclose(jax.vmap(jax.grad(root))(x), [0.0, 0.25, 5e14], rtol=1e-6)
        assert jax.grad(jax.grad(root))(0.0) == 0


class TestSecondMomentSlot:
    """What `adam` says of gradients that are too small for the fixed point of v."""

    @staticmethod
    @functools.partial(jax.jit, static_argnames=("slot", "adjoint"))
    def one_step(slot, adjoint):
        rule = hg.adam(lambda p, h, b, k: 1e-7 * jnp.sum(p), learning_rate=0.1, second_moment=slot)
        return -hg.unroll(
            hg.Run(rule, num_steps=1, adjoint=adjoint), jnp.zeros(()), {}, None
        ).params

    def test_small_gradients_need_a_finer_slot(self):
        coarse, fine = hg.Slot(fraction_bits=52), hg.Slot(fraction_bits=60)
        want = 0.1 * 1e-7 / (1e-7 + 1e-8)
        assert self.one_step(coarse, hg.Direct()) == pytest.approx(want, rel=1e-5)
        assert self.one_step(coarse, hg.Reversible()) == pytest.approx(0.1 * 1e-7 / 1e-8, rel=1e-5)
        assert self.one_step(fine, hg.Reversible()) == pytest.approx(want, rel=0.05)


class TestCorrection:
    @pytest.mark.parametrize("decay", [0.5, 0.9, 0.99, 0.999, 0.9999])
    def test_is_accurate_where_the_formula_cancels(self, decay):
        count = jnp.arange(500)
        got = np.asarray(correction(jnp.float32(decay), count), np.float64)
        want = 1 - np.float64(np.float32(decay)) ** (np.arange(500) + 1)
        np.testing.assert_allclose(got, want, rtol=5e-7)

    def test_derivative_at_a_decay_of_zero(self):
        slope = jax.vmap(jax.value_and_grad(correction), (None, 0))(jnp.float32(0), jnp.arange(3))
        np.testing.assert_array_equal(slope[0], [1, 1, 1])
        np.testing.assert_array_equal(slope[1], [-1, 0, 0])


@pytest.mark.parametrize("make", [hg.adam, hg.adamw, hg.rmsprop_momentum])
def test_gradients_far_below_eps_are_not_lost(make):
    """Second moments down to 1e-20 beside one of 1: a step divides by their roots."""
    scale = jnp.asarray([1.0, 1e-3, 1e-6, 1e-8, 1e-10])

    def tiny(params, hparams, batch, key):
        return jnp.sum(scale * jnp.cosh(params - 1.0))

    def end(hparams, adjoint):
        start = jnp.linspace(-0.5, 0.5, 5)
        out, pullback = hg.vjp(hg.Run(rule, num_steps=20, adjoint=adjoint), start, hparams, None)
        bars, info = pullback(jnp.linspace(1.0, 2.0, 5))
        return out.params, bars, info

    decay = "decay" if make is hg.rmsprop_momentum else "b2"
    rule = make(tiny, **{decay: hg.field("decay"), "eps": 1e-8})
    hparams = {"learning_rate": 0.01, "decay": 0.99, "momentum": 0.5, "weight_decay": 0.1}
    got, want = (jax.jit(end, static_argnums=1)(hparams, a) for a in ADJOINTS[::-3])
    hg.check(got[2])
    assert_close(got[0], want[0], 2e-5)
    assert_close(got[1].params, want[1].params, 1e-4)
    for name in ("learning_rate", "decay"):
        assert_close(got[1].hparams[name], want[1].hparams[name], 1e-4)


@pytest.mark.parametrize("form", ["per tensor", "per number"])
@pytest.mark.parametrize("make", [hg.heavy_ball, hg.adamw])
def test_decays_of_their_own_beside_scalars(make, form):
    """The step sees one vector where everything is scalar; a decay per tensor must prevent it."""
    weight = {"per tensor": 0.8, "per number": jnp.linspace(0.7, 0.9, 6).reshape(3, 2)}[form]
    hparams = {"penalty": 0.1, "learning_rate": 0.05, "decay": {"w": weight, "b": 0.6}}
    name = "momentum" if make is hg.heavy_ball else "weight_decay"
    rule = make(loss, **{name: hg.field("decay")})

    @functools.partial(jax.jit, static_argnums=0)
    def cotangents(adjoint):
        run = hg.Run(rule, num_steps=T, batch_fn=batch_fn, adjoint=adjoint)
        return hg.vjp(run, PARAMS, hparams, DATA)[1](END_BAR)

    got, info = cotangents(hg.Reversible())
    hg.check(info)
    assert_close(got.hparams, cotangents(hg.Direct())[0].hparams, 1e-4)
