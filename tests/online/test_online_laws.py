"""What all online methods keep to: the path without updates, jit, vmap, fit, refusals."""

import re
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg
from hgrad_jax import online
from hgrad_jax.data import Dataset, minibatches, with_replacement
from tests.shared.runs import run_with

TRAIN = np.float32(np.random.default_rng(0).normal(size=(6, 3)))
VALID = np.float32(np.random.default_rng(1).normal(size=(4, 3)) + 1.0)
DATA = (TRAIN, VALID)
START = np.array([2.0, -1.0, 0.3], np.float32)
PAIRS = online.paired(minibatches(2), minibatches(1))
EVERY = 3
PERIODS = online.periods(minibatches(2), minibatches(1), every=EVERY)
NO_FUNCTION: Any = 3
HPARAMS = {"learning_rate": 0.1, "momentum": 0.5, "meta_rate": 0.05}
LEARNED = {"learned": ("learning_rate",), "make_tx": lambda h: optax.sgd(h["meta_rate"])}


def loss(params, hparams, batch, key):
    noise = 0.0 if key is None else 0.1 * jax.random.normal(key, params.shape)
    return jnp.mean((params - batch + noise) ** 2)


def valid_loss(params, hparams, batch, key):
    return jnp.mean((params - batch) ** 2)


INNER = hg.heavy_ball(loss)
METHODS = {
    "rtho": (online.rtho(INNER, valid_loss, every=2, **LEARNED), PAIRS),
    "t1_t2": (online.t1_t2(INNER, valid_loss, every=2, **LEARNED), PAIRS),
    "adaptive": (online.adaptive(INNER, valid_loss, every=EVERY, window=2, **LEARNED), PERIODS),
    "descent": (
        online.hypergradient_descent(
            loss, rule=hg.heavy_ball, valid_loss=valid_loss, hyper_rate=hg.field("meta_rate")
        ),
        PAIRS,
    ),
}


def run(method, hparams, num_steps=4, **settings):
    rule, batch_fn = METHODS[method]
    settings = {"batch_fn": batch_fn, "num_steps": num_steps} | settings
    start = jnp.asarray(START, jnp.result_type(float))
    return run_with(hg.unroll, rule, start, hparams, DATA, **settings)


@pytest.mark.parametrize("method", METHODS)
def test_runs_under_jit_and_vmap_are_the_single_runs(method):
    rates = jnp.array([0.0, 0.02, 0.05])

    def end(meta_rate):
        out = run(method, HPARAMS | {"meta_rate": meta_rate})
        return out.params, out.state.hparams["learning_rate"]

    params, found = jax.jit(jax.vmap(end))(rates)
    for i, rate in enumerate(rates):
        alone_params, alone = end(rate)
        np.testing.assert_allclose(params[i], alone_params, rtol=1e-5)
        np.testing.assert_allclose(found[i], alone, rtol=1e-5)
    assert found[0] == np.float32(0.1)
    assert np.all(np.diff(found) != 0)


@pytest.mark.parametrize("method", ["rtho", "t1_t2"])
def test_vmapped_runs_evaluate_the_validation_loss_only_when_it_is_due(method):
    """The condition stays one: vmap makes a select only of a condition that differs among runs."""

    def end(meta_rate):
        return run(method, HPARAMS | {"meta_rate": meta_rate}).params

    jaxpr = str(jax.make_jaxpr(jax.vmap(end))(jnp.ones(3)))
    assert len(re.findall(r"\bcond\[", jaxpr)) == 1


@pytest.mark.parametrize("method", ["rtho", "t1_t2", "descent"])
def test_without_updates_the_path_is_the_rules_own(method):
    """With the same keys, for batches and for the loss."""
    key, hparams = jax.random.key(3), HPARAMS | {"meta_rate": 0.0}
    batch_fn = with_replacement(2)
    plain = hg.unroll(
        hg.Run(INNER, num_steps=4, batch_fn=batch_fn), jnp.asarray(START), hparams, TRAIN, key=key
    )
    out = run(method, hparams, key=key, batch_fn=online.paired(batch_fn, with_replacement(1)))
    np.testing.assert_allclose(out.params, plain.params, rtol=1e-6)


def test_without_updates_periods_are_the_rules_own_steps():
    hparams = HPARAMS | {"meta_rate": 0.0}
    plain = hg.unroll(
        hg.Run(INNER, num_steps=4 * EVERY, batch_fn=minibatches(2)),
        jnp.asarray(START),
        hparams,
        TRAIN,
    )
    out = run("adaptive", hparams)
    np.testing.assert_allclose(out.params, plain.params, rtol=1e-6)
    np.testing.assert_allclose(
        out.state.inner.slots["velocity"], plain.state.slots["velocity"], rtol=1e-4
    )


def test_every_step_of_a_period_has_its_own_keys():
    seen = []

    def note(batch, key):
        seen.append((float(batch), tuple(int(word) for word in key)))

    def drawing(params, hparams, batch, key):
        jax.debug.callback(note, batch, jax.random.key_data(key))
        return jnp.sum(params) * 0.0

    def draw(data, t, key):
        return jax.random.uniform(key)

    rule = online.adaptive(hg.sgd(drawing), valid_loss, every=3, window=1, **LEARNED)
    batch_fn = online.periods(draw, None, every=3)
    data = (jnp.zeros(1), jnp.zeros(3))
    run = hg.Run(rule, num_steps=2, batch_fn=batch_fn)
    jax.block_until_ready(hg.unroll(run, jnp.zeros(3), HPARAMS, data, key=jax.random.key(0)).params)
    jax.effects_barrier()
    assert len({batch for batch, _ in seen}) == 6
    assert len({key for _, key in seen}) == 6


@pytest.mark.parametrize("method", METHODS)
def test_at_a_minimum_all_numbers_stay_finite(method):
    rule, _ = METHODS[method]
    data = (jnp.zeros((1, 3)), jnp.zeros((1, 3)))
    batch_fn = online.periods(every=EVERY) if method == "adaptive" else online.paired()

    def end(hparams):
        out = hg.unroll(hg.Run(rule, num_steps=4, batch_fn=batch_fn), jnp.zeros(3), hparams, data)
        return jnp.sum(out.params) + out.state.hparams["learning_rate"]

    value, bars = jax.value_and_grad(end)(jax.tree.map(jnp.float32, HPARAMS))
    assert value == np.float32(0.1)
    assert bars["learning_rate"] == 1
    assert all(np.isfinite(x) for x in bars.values())


@pytest.mark.parametrize("method", METHODS)
def test_the_meta_rate_has_a_hypergradient(method):
    with jax.enable_x64(True):

        def end(meta_rate):
            return jnp.sum(run(method, HPARAMS | {"meta_rate": meta_rate}).params ** 2)

        slope = jax.jit(jax.grad(end))(0.05)
        value = jax.jit(end)
        step = 2e-4
        stencil = [value(0.05 + i * step) for i in (-2, -1, 1, 2)]
        difference = (stencil[0] - 8 * stencil[1] + 8 * stencil[2] - stencil[3]) / (12 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-7)
    assert abs(float(slope)) > 1e-4


@pytest.mark.parametrize(
    ("method", "batch_fn", "length"),
    [
        ("rtho", online.paired(minibatches(2)), 3),
        ("t1_t2", online.paired(), 1),
        ("adaptive", online.periods(minibatches(1), every=EVERY), 2),
        ("adaptive", online.periods(minibatches(3), every=EVERY), 1),
    ],
)
def test_an_epoch_of_fit_is_as_long_as_the_training_part(method, batch_fn, length):
    rule = METHODS[method][0]
    found = hg.fit(
        rule, jnp.asarray(START), HPARAMS, DATA, num_epochs=1, batch_fn=batch_fn, progress=False
    )
    assert found.state.count == length


@pytest.mark.parametrize("method", METHODS)
def test_fit_trains_online(method):
    rule, batch_fn = METHODS[method]

    def metrics(params, data):
        return {"loss": valid_loss(params, {}, data, None)}

    found = hg.fit(
        rule,
        jnp.asarray(START),
        HPARAMS,
        DATA,
        VALID,
        num_epochs=2,
        steps_per_epoch=2,
        batch_fn=batch_fn,
        metrics=metrics,
        train_sample=TRAIN,
        progress=False,
    )
    out = jax.jit(lambda: run(method, HPARAMS))()
    np.testing.assert_allclose(found.params, out.params, rtol=1e-6)
    np.testing.assert_allclose(
        found.state.hparams["learning_rate"], out.state.hparams["learning_rate"], rtol=1e-6
    )
    losses = found.history.metrics["valid_loss"]
    assert losses[-1] < losses[0]


def test_bounds_hold_from_the_start_and_for_trees():
    rule = online.t1_t2(
        hg.sgd(loss),
        valid_loss,
        learned=("learning_rate",),
        make_tx=online.by_sign({"learning_rate": 0.1}),
        bounds={"learning_rate": (0.15, lambda h: jnp.array([0.2, 1.0, 1.0]))},
    )
    hparams = {"learning_rate": jnp.full(3, 0.1)}
    first = rule.init(jnp.asarray(START), hparams)
    np.testing.assert_array_equal(first.hparams["learning_rate"], np.full(3, np.float32(0.15)))
    axes = {"learning_rate": None}
    run = hg.Run(rule, num_steps=2, batch_fn=PAIRS, hparams_axes=axes)
    rates = hg.unroll(run, jnp.asarray(START), hparams, DATA).state.hparams
    assert rates["learning_rate"].max() > 0.3
    assert rates["learning_rate"][0] <= np.float32(0.2)
    assert rates["learning_rate"].min() >= np.float32(0.15)


def test_what_is_not_learned_may_be_a_schedule():
    hparams = HPARAMS | {"momentum": jnp.array([0.0, 0.9, 0.0, 0.9]), "meta_rate": 0.0}
    axes = {"learning_rate": None, "momentum": 0, "meta_rate": None}
    inner = hg.Run(INNER, num_steps=4, batch_fn=minibatches(2), hparams_axes=axes)
    plain = hg.unroll(inner, jnp.asarray(START), hparams, TRAIN)
    for method in ("rtho", "t1_t2"):
        out = run(method, hparams, hparams_axes=axes)
        np.testing.assert_allclose(out.params, plain.params, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_reversible_is_refused(method):
    with pytest.raises(ValueError, match="hyperparameters change on the way"):
        run(method, HPARAMS, adjoint=hg.Reversible())


def made(method=online.t1_t2, **settings: Any):
    inner = settings.pop("inner", INNER)
    outer = settings.pop("valid_loss", valid_loss)
    return method(inner, outer, **LEARNED | settings)


@pytest.mark.parametrize("method", [online.rtho, online.t1_t2, online.adaptive])
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"inner": loss}, TypeError, "inner is .*; pass a rule such as hg.sgd"),
        ({"valid_loss": 0.1}, TypeError, "valid_loss is 0.1"),
        ({"learned": "learning_rate"}, TypeError, "learned is 'learning_rate'; it must be a tuple"),
        ({"learned": ()}, ValueError, "name at least one entry"),
        ({"learned": ("a", "a")}, ValueError, "each once"),
        ({"make_tx": optax.sgd(0.1)}, TypeError, "make_tx is .*; pass a function that returns"),
        ({"every": 0}, ValueError, "every is 0; it must be a positive int"),
        ({"bounds": {"momentum": (0.0, 1.0)}}, ValueError, "'momentum', which is not learned"),
        ({"bounds": {"learning_rate": 1.0}}, ValueError, r"must be a pair \(lower, upper\)"),
        (
            {"bounds": {"learning_rate": (1.0, jnp.array([0.5, 2.0]))}},
            ValueError,
            r"bounds\['learning_rate'\] is .*, whose lower bound is above the upper one",
        ),
        ({"bounds": {"learning_rate": ("a", 1.0)}}, TypeError, r"\] has 'a'; a bound is a number"),
    ],
)
def test_refuses_when_it_is_made(method, settings, error, message):
    with pytest.raises(error, match=message):
        made(method, **settings)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: made(online.adaptive, window=0), ValueError, "window is 0"),
        (lambda: made(online.adaptive, every=3, window=4), ValueError, "a period has 3 steps"),
        (lambda: made(online.rtho, discount=1.5), ValueError, "discount is 1.5"),
        (lambda: made(online.rtho, memory=0), ValueError, "memory is 0"),
        (lambda: online.paired(NO_FUNCTION), TypeError, "batch_fn is 3"),
        (lambda: online.periods(None, NO_FUNCTION, every=2), TypeError, "valid_batch_fn is 3"),
        (lambda: online.periods(every=True), ValueError, "every is True"),
        (lambda: online.by_sign(NO_FUNCTION), TypeError, "step_sizes is 3; it must be a dict"),
    ],
)
def test_refuses_settings_of_one_method(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("rule", "settings", "error", "message"),
    [
        (made(), {"hparams": jnp.ones(3)}, TypeError, "hparams is a .*; pass a dict"),
        (made(), {"hparams": {"momentum": 0.5}}, ValueError, "hparams has no 'learning_rate'"),
        (made(), {"batch_fn": minibatches(2), "data": TRAIN}, TypeError, "hg.online.paired"),
        (made(), {"data": TRAIN}, ValueError, r"pass data=\(train, valid\)"),
        (
            made(),
            {"data": Dataset(*cast(Any, DATA))},
            ValueError,
            r"data is a Dataset, .*; pass data=",
        ),
        (made(), {"batch_fn": PERIODS}, TypeError, r"a Period, which only adaptive takes"),
        (made(make_tx=lambda h: 0.1), {}, TypeError, "make_tx returned 0.1"),
        (made(make_tx=online.by_sign({"b1": 1.0})), {}, ValueError, r"step_sizes has \['b1'\]"),
        (made(bounds={"learning_rate": (jnp.ones(2), None)}), {}, ValueError, r"\[0\] has shape"),
        (made(valid_loss=lambda p, h, b, k: p), {}, ValueError, "valid_loss returned float32"),
        (made(online.rtho, memory=20), {}, ValueError, "learned has the size 1, .* takes 24 bytes"),
        (made(online.adaptive, every=4, window=1), {}, TypeError, "a step of adaptive is a period"),
        (
            made(online.adaptive, every=4, window=1),
            {"batch_fn": PERIODS},
            ValueError,
            "periods of 3",
        ),
    ],
)
def test_refuses_when_it_is_run(rule, settings, error, message):
    settings = {"hparams": HPARAMS, "data": DATA, "batch_fn": PAIRS, "num_steps": 2} | settings
    with pytest.raises(error, match=message):
        run_with(hg.unroll, rule, jnp.asarray(START), **settings)
