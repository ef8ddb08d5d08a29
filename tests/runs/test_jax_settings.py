"""Hypergradients under JAX's settings: the same numbers as without them."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg
from tests.shared import tune_child
from tests.shared.fits import fit_quadratic

DATA = jnp.linspace(-1, 1, 12).reshape(4, 3), jnp.array([0.5, -1.0, 0.25, 2.0])
START = {"w": jnp.array([0.3, -0.1, 0.2]), "b": jnp.float32(0.1)}
MIXED = START | {"b": jnp.bfloat16(0.1)}
HPARAMS = {
    "learning_rate": jnp.float32(0.05),
    "l2": jnp.float32(0.1),
    "momentum": jnp.float32(0.75),
    "decay": jnp.float32(0.875),
    "weight_decay": jnp.float32(0.01),
}
EXACT = hg.Reversible(smallest_decay=0.5)
KEY = jax.random.key(0)


def loss(params, hparams, batch, key):
    inputs, targets = batch
    noise = 0.01 * jax.random.normal(key, (4,), jnp.float32)
    errors = inputs @ params["w"] + params["b"].astype(jnp.float32) - targets + noise
    return jnp.mean(errors**2) + hparams["l2"] * jnp.sum(params["w"] ** 2)


RULES = {
    "heavy_ball": hg.heavy_ball(loss),
    "rmsprop_momentum": hg.rmsprop_momentum(loss),
    "adam": hg.adam(loss, eps=1e-3),
    "adamw": hg.adamw(loss, eps=1e-3),
    "signs": hg.heavy_ball(loss, gradient=hg.forward_gradient(hg.Rademacher())),
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def hypergradient(rule, adjoint, key, start=START, hparams=HPARAMS):
    """Of a number that the end is worth, after 4 steps; JAX compiles one for each setting."""

    def worth(hparams):
        out = hg.unroll(
            hg.Run(RULES[rule], num_steps=4, adjoint=adjoint), start, hparams, DATA, key=key
        )
        return jnp.sum(out.params["w"] ** 2)

    return jax.grad(worth)(hparams)


def assert_close(got, want):
    assert max(map(float, jax.tree.leaves(jax.tree.map(lambda x: jnp.max(jnp.abs(x)), want)))) > 0
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), got, want)


CASES = [
    *((rule, EXACT) for rule in RULES),
    *(("adam", adjoint) for adjoint in (hg.Direct(), hg.Waypoints(2))),
    *(("heavy_ball", adjoint) for adjoint in (hg.Waypoints(2), hg.DrMAD(), hg.Checkpointed())),
]
SETTINGS = {
    "strict dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "strict ranks": lambda: jax.numpy_rank_promotion("raise"),
}


def promotions():
    """Every case under both; of ranks two are enough in a hurry."""
    for setting in SETTINGS:
        for rule, adjoint in CASES:
            is_slow = setting == "strict ranks" and rule not in ("adamw", "signs")
            marks = (pytest.mark.slow,) if is_slow else ()
            yield pytest.param(
                setting, rule, adjoint, id=f"{setting}-{rule}-{adjoint}", marks=marks
            )


@pytest.mark.parametrize(("setting", "rule", "adjoint"), list(promotions()))
def test_strict_promotion_changes_no_number(setting, rule, adjoint):
    with SETTINGS[setting]():
        strict = hypergradient(rule, adjoint, KEY, MIXED)
    assert_close(strict, hypergradient(rule, adjoint, KEY, MIXED))


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(lambda: jax.debug_nans(True), id="debug_nans"),
        pytest.param(jax.checking_leaks, id="checking_leaks"),
        pytest.param(jax.disable_jit, id="disable_jit", marks=pytest.mark.slow),
    ],
)
def test_what_helps_to_find_faults_finds_none(setting):
    with setting():
        found = hypergradient("heavy_ball", EXACT, KEY)
    assert_close(found, hypergradient("heavy_ball", hg.Direct(), KEY))


def test_without_jit_the_tools_still_compile():
    """What they lower ahead has no other form; `check_hypergradient` compiles nothing ahead."""

    def loss(params, hparams, batch, key):
        return hparams["curvature"] * jnp.sum((params - 1) ** 2)

    def objective(params, hparams, data):
        return jnp.sum(params**2)

    rule = hg.heavy_ball(loss, learning_rate=0.1, momentum=0.5)
    run = hg.Run(rule, num_steps=2, adjoint=hg.Reversible())
    problem = (objective, run, jnp.zeros(2), {"curvature": jnp.float32(0.7)}, None)
    with jax.disable_jit():
        assert hg.check_hypergradient(*problem).is_ok
        table = hg.compare(*problem, adjoints=[hg.Direct(), hg.Checkpointed()])
        assert all(row.problem is None for row in table.rows)
        assert np.isfinite(tune_child.tune(num_meta_steps=1).history.value).all()
        assert np.isfinite(fit_quadratic(num_epochs=2).params).all()


def test_the_spread_of_one_run_is_no_fault():
    """It is NaN, but nobody computes it."""
    with jax.debug_nans(True):
        assert jnp.isnan(hg.mean_and_spread(jnp.ones((1, 2))).spread).all()
        assert np.isnan(tune_child.tune(num_meta_steps=1).history.spread).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision",
    ["default", "high", "highest", "bfloat16", "tensorfloat32", "float32", "BF16_BF16_F32_X3"],
)
def test_matrix_products_of_every_precision_are_restored(precision):
    with jax.default_matmul_precision(precision):
        exact, direct = (hypergradient("heavy_ball", a, KEY) for a in (EXACT, hg.Direct()))
    assert_close(exact, direct)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg", "raw"])
@pytest.mark.parametrize("is_double", [False, True], ids=["float32", "x64"])
def test_every_kind_of_key(kind, is_double):
    key = jax.random.PRNGKey(3) if kind == "raw" else jax.random.key(3, impl=kind)
    with jax.enable_x64(True) if is_double else contextlib.nullcontext():
        exact, direct = (hypergradient("heavy_ball", a, key) for a in (EXACT, hg.Direct()))
    assert_close(exact, direct)
