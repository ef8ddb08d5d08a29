import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg
from hgrad_jax.data import minibatches

NUM_STEPS = 7
KEY = jax.random.key(0)
INPUTS = jax.random.normal(jax.random.key(1), (6, 3))
TARGETS = INPUTS @ jnp.array([1.0, -2.0, 0.5]) + 0.1
VALID = (INPUTS[::-1] * 0.7, TARGETS)
START = {"w": jnp.array([0.3, -0.1, 0.2]), "b": jnp.float32(0.1)}
HPARAMS = {
    "log_l2": jnp.float32(-2.0),
    "log_rate": jnp.linspace(-3.0, -2.0, NUM_STEPS),
    "momentum": jnp.float32(0.8),
}
AXES = {"log_l2": None, "log_rate": 0, "momentum": None}
ADJOINTS = [hg.Direct(), hg.Checkpointed(), hg.Reversible()]


def residual(params, batch):
    inputs, targets = batch
    return inputs @ params["w"] + params["b"] - targets


def loss(params, hparams, batch, key):
    l2 = jnp.exp(hparams["log_l2"]) * jnp.sum(params["w"] ** 2)
    return jnp.mean(jnp.cosh(residual(params, batch))) + l2


def objective(params, hparams, valid):
    """Depends on a constant and on a schedule directly, too."""
    direct = 0.3 * hparams["log_l2"] ** 2 + 0.1 * jnp.sum(hparams["log_rate"] ** 2)
    return jnp.mean(residual(params, valid) ** 2) + direct


RULE = hg.heavy_ball(loss, learning_rate=lambda hparams: jnp.exp(hparams["log_rate"]))
DATA = (INPUTS, TARGETS)
RUN = hg.Run(RULE, num_steps=NUM_STEPS, batch_fn=minibatches(4), hparams_axes=AXES)


def composed(adjoint, objective=objective):
    run = dataclasses.replace(RUN, adjoint=adjoint)

    def value(params, hparams):
        end = hg.unroll(run, params, hparams, DATA, key=KEY)
        return objective(end.params, hparams, VALID)

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))


@functools.cache  # compiling takes seconds
def found(adjoint, objective=objective, **changes):
    run = dataclasses.replace(RUN, adjoint=adjoint, **changes)
    return jax.jit(
        lambda params, hparams: hg.value_and_hypergradient(
            objective, run, params, hparams, DATA, VALID, key=KEY
        )
    )


def assert_close(got, want, rtol=2e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda adjoint: type(adjoint).__name__)
def test_equals_the_gradient_of_the_composition(adjoint):
    got = found(adjoint)(START, HPARAMS)
    value, (params_bar, hparams_bar) = composed(hg.Direct())(START, HPARAMS)
    assert_close((got.value, got.params, got.hparams), (value, params_bar, hparams_bar))
    _, bars = composed(adjoint)(START, HPARAMS)
    assert_close((got.params, got.hparams), bars, rtol=1e-6)
    assert hg.check(got.info) is got.info
    hg.check(got.unrolled)
    if isinstance(adjoint, hg.Reversible):
        assert bool(got.info.is_restored)


def test_the_direct_dependence_is_added_once():
    with_direct = found(hg.Direct())(START, HPARAMS)
    without = found(
        hg.Direct(), lambda params, hparams, valid: jnp.mean(residual(params, valid) ** 2)
    )(START, HPARAMS)
    difference = jax.tree.map(jnp.subtract, with_direct.hparams, without.hparams)
    want = {"log_l2": 0.6 * HPARAMS["log_l2"], "log_rate": 0.2 * HPARAMS["log_rate"]}
    assert_close(difference, want | {"momentum": 0.0}, rtol=1e-5)


def test_an_objective_of_the_hyperparameters_alone():
    got = found(hg.Checkpointed(), lambda params, hparams, valid: hparams["log_l2"] ** 2)
    out = got(START, HPARAMS)
    assert_close(out.hparams["log_l2"], 2 * HPARAMS["log_l2"])
    assert_close(out.params, jax.tree.map(jnp.zeros_like, START))


def test_python_numbers_are_hyperparameters_too():
    rule = hg.momentum(lambda params, hparams, batch, key: jnp.sum(params**2) / 2)
    out = hg.value_and_hypergradient(
        lambda params, hparams, _: jnp.sum(params) + hparams["momentum"],
        hg.Run(rule, num_steps=1),
        jnp.ones(1),
        {"learning_rate": 1.0, "momentum": 0.5},
        None,
    )
    # x' = 1 - lr (1 - g), plus g.
    assert_close(out.value, 1.0)
    assert_close(out.hparams, {"learning_rate": -0.5, "momentum": 2.0})


def test_vmap_over_seeds_equals_a_loop():
    def start(key):
        return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), START)

    keys = jax.random.split(KEY, 3)
    one, mapped = found(hg.Direct()), found(hg.Reversible())
    many = jax.jit(jax.vmap(lambda key: mapped(start(key), HPARAMS)))(keys)
    hg.check(many.info)
    assert many.info.is_restored.shape == (3,)
    for i, key in enumerate(keys):
        alone = one(start(key), HPARAMS)
        row = jax.tree.map(lambda x, i=i: x[i], (many.value, many.params, many.hparams))
        assert_close(row, (alone.value, alone.params, alone.hparams))


def test_the_record_comes_out_as_the_trace():
    out = found(hg.Checkpointed(), record=lambda state, data: state.params["b"])(START, HPARAMS)
    assert out.unrolled.trace.shape == (NUM_STEPS,)
    assert out.unrolled.trace[-1] == out.unrolled.params["b"]


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda params, hparams, valid: residual(params, valid), r"float32 of shape \(6,\)"),
        (lambda params, hparams, valid: jnp.int32(1), r"int32 of shape \(\)"),
        (lambda params, hparams, valid: (jnp.float32(1), None), "a tuple"),
    ],
)
def test_an_objective_that_is_not_a_scalar_is_refused_before_training(wrong, what):
    def never(data, t, key):
        raise AssertionError("the training was traced")

    with pytest.raises(ValueError, match=f"objective returned {what}; it must return one"):
        found(hg.Direct(), wrong, batch_fn=never)(START, HPARAMS)


def test_an_objective_that_asks_for_values_is_refused_before_training():
    def objective(params, hparams, valid):
        return float(hparams["momentum"])

    with pytest.raises(TypeError, match="objective asks a traced array for its value, as Python"):
        found(hg.Direct(), objective)(START, HPARAMS)


def test_errors_of_the_run_come_as_from_unroll():
    with pytest.raises(TypeError, match="adjoint is <class"):
        found(hg.Direct)(START, HPARAMS)
    with pytest.raises(ValueError, match=r"hparams_axes .* is not a tree prefix"):
        found(hg.Direct(), hparams_axes=(0,))(START, HPARAMS)
    with pytest.raises(TypeError, match=r"hparams\['momentum'\] has dtype int32"):
        found(hg.Direct())(START, HPARAMS | {"momentum": jnp.int32(1)})


def test_a_direct_term_that_is_not_finite_raises_the_flag():
    def root(params, hparams, valid):
        return jnp.sum(params["w"]) + jnp.sqrt(hparams["log_l2"] + 2.0)

    out = found(hg.Direct(), root)(START, HPARAMS)
    assert not out.info.is_finite
    with pytest.raises(hg.HypergradientError, match="the hypergradient is infinite or NaN"):
        hg.check(out.info)


def test_a_diverging_run_raises_the_flag():
    hparams = HPARAMS | {"log_rate": jnp.full(NUM_STEPS, 10.0)}
    out = found(hg.Reversible())(START, hparams)
    assert np.all(np.isnan(out.hparams["log_l2"]))
    with pytest.raises(hg.HypergradientError):
        hg.check(out.info)
