"""Hypergradient descent against its paper's algorithms in NumPy, for every rule."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg
from hgrad_jax import online
from hgrad_jax.data import minibatches

CURVATURES = np.array([1.0, 2.0, 0.5])
VALID_CURVATURES = np.array([0.7, 1.1, 2.0])
TRAIN = np.random.default_rng(0).normal(size=(5, 3))
VALID = np.random.default_rng(1).normal(size=(4, 3)) + 1.0
START = np.array([2.0, -1.0, 0.3])
NUM_STEPS = 7
MOMENTUM, B1, B2, EPS = 0.6, 0.7, 0.85, 0.05


def loss(params, hparams, batch, key):
    return jnp.sum(CURVATURES * (params - batch[0]) ** 2) / 2


def valid_loss(params, hparams, batch, key):
    return jnp.sum(VALID_CURVATURES * (params - batch[0]) ** 2) / 2


# Each returns the step's derivative by its rate, and what the rule remembers; u = rate * direction.


def sgd(gradient, memory, t, rate):
    return -gradient, memory


def heavy_ball(gradient, memory, t, rate):
    v = MOMENTUM * memory.get("v", 0) + gradient
    return -v, {"v": v}


def momentum(gradient, memory, t, rate):
    v = MOMENTUM * memory.get("v", 0) - (1 - MOMENTUM) * gradient
    return v, {"v": v}


def nesterov(gradient, memory, t, rate):
    v = MOMENTUM * memory.get("v", 0) + gradient
    return -(gradient + MOMENTUM * v), {"v": v}


def nesterov_of_optax(loss):
    return hg.from_optax(lambda h: optax.sgd(h["learning_rate"], MOMENTUM, nesterov=True), loss)


def adam(gradient, memory, t, rate):
    m = B1 * memory.get("m", 0) + (1 - B1) * gradient
    v = B2 * memory.get("v", 0) + (1 - B2) * gradient**2
    mean, square = m / (1 - B1 ** (t + 1)), v / (1 - B2 ** (t + 1))
    return -mean / (np.sqrt(square) + EPS), {"m": m, "v": v}


RULES = {
    "sgd": (hg.sgd, sgd),
    "heavy_ball": (functools.partial(hg.heavy_ball, momentum=MOMENTUM), heavy_ball),
    "momentum": (functools.partial(hg.momentum, momentum=MOMENTUM), momentum),
    "nesterov": (nesterov_of_optax, nesterov),
    "adam": (functools.partial(hg.adam, b1=B1, b2=B2, eps=EPS), adam),
}


def by_hand(direction_of, rate, hyper_rate, is_multiplicative, is_validated, share):
    """Returns the rates of all steps and the last parameters; `share` sums for a rate."""
    x, last, memory, rates = START, np.zeros(3), {}, []
    for t in range(NUM_STEPS):
        gradient = CURVATURES * (x - TRAIN[t % 5])
        judged = VALID_CURVATURES * (x - VALID[t % 4]) if is_validated else gradient
        product = share(judged * last)
        if is_multiplicative:
            norms = np.sqrt(share(judged**2)) * np.sqrt(share(last**2))
            rate = rate * (1 - hyper_rate * product / np.where(norms == 0, 1, norms))
        else:
            rate = rate - hyper_rate * product
        last, memory = direction_of(gradient, memory, t, rate)
        x = x + rate * last
        rates.append(rate)
    return np.array(rates), x


def unrolled(rule, rate, hyper_rate, change, is_validated):
    batch_fn = minibatches(1)
    transition = online.hypergradient_descent(
        loss, rule=rule, change=change, valid_loss=valid_loss if is_validated else None
    )

    @jax.jit
    def run(hparams):
        return hg.unroll(
            hg.Run(
                transition,
                num_steps=NUM_STEPS,
                batch_fn=online.paired(batch_fn, batch_fn) if is_validated else batch_fn,
                record=lambda state, data: state.hparams["learning_rate"],
            ),
            jnp.asarray(START),
            hparams,
            (TRAIN, VALID) if is_validated else TRAIN,
        )

    return run({"learning_rate": jnp.asarray(rate), "hyper_rate": jnp.asarray(hyper_rate)})


@pytest.mark.parametrize("is_validated", [False, True])
@pytest.mark.parametrize(
    ("change", "hyper_rate"), [(online.additive, 0.01), (online.multiplicative, 0.1)]
)
@pytest.mark.parametrize("name", RULES)
def test_rates_follow_the_paper(name, change, hyper_rate, is_validated):
    rule, direction_of = RULES[name]
    is_multiplicative = change is online.multiplicative
    with jax.enable_x64(True):
        out = unrolled(rule, 0.1, hyper_rate, change, is_validated)
    rates, x = by_hand(direction_of, 0.1, hyper_rate, is_multiplicative, is_validated, np.sum)
    np.testing.assert_allclose(out.trace, rates, rtol=1e-12)
    np.testing.assert_allclose(out.params, x, rtol=1e-12)
    assert np.ptp(rates) > 0.002


@pytest.mark.parametrize(
    ("change", "hyper_rate"), [(online.additive, 0.01), (online.multiplicative, 0.1)]
)
def test_where_the_rate_is_inside_the_velocity_the_last_gradient_counts(change, hyper_rate):
    x, v, last, rate, rates = START, 0.0, np.zeros(3), 0.1, []
    for t in range(NUM_STEPS):
        gradient = CURVATURES * (x - TRAIN[t % 5])
        product, norms = gradient @ last, np.linalg.norm(gradient) * np.linalg.norm(last)
        if change is online.multiplicative:
            rate *= 1 - hyper_rate * product / (norms or 1.0)
        else:
            rate -= hyper_rate * product
        v = MOMENTUM * v - rate * gradient
        x = x + MOMENTUM * v - rate * gradient
        last = -(1 + MOMENTUM) * gradient
        rates.append(rate)
    rule = functools.partial(hg.nesterov, momentum=MOMENTUM)
    with jax.enable_x64(True):
        out = unrolled(rule, 0.1, hyper_rate, change, False)
    np.testing.assert_allclose(out.trace, rates, rtol=1e-12)
    np.testing.assert_allclose(out.params, x, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "hyper_rate"), [(online.additive, 0.01), (online.multiplicative, 0.1)]
)
def test_each_number_has_its_own_rate(change, hyper_rate):
    rule, direction_of = RULES["adam"]
    start = np.array([0.1, 0.2, 0.05])
    with jax.enable_x64(True):
        out = unrolled(rule, start, hyper_rate, change, True)
    is_multiplicative = change is online.multiplicative
    rates, x = by_hand(direction_of, start, hyper_rate, is_multiplicative, True, lambda x: x)
    np.testing.assert_allclose(out.trace, rates, rtol=1e-12)
    np.testing.assert_allclose(out.params, x, rtol=1e-12)


def test_numbers_that_share_a_rate_share_their_product():
    def of_tree(params, hparams, batch, key):
        return jnp.sum(params["w"] ** 2) / 2 + jnp.sum(params["b"] ** 4)

    params = {"w": jnp.array([[1.0, 2.0], [3.0, -1.0]]), "b": jnp.array([0.5, 0.25])}
    rates = {"w": jnp.array([[0.1], [0.2]]), "b": jnp.float32(0.01)}  # one a row, one a tensor
    rule = online.hypergradient_descent(of_tree, hyper_rate=0.0)
    axes = {"learning_rate": None}
    out = hg.unroll(
        hg.Run(rule, num_steps=2, hparams_axes=axes), params, {"learning_rate": rates}, None
    )
    found = out.state.hypergradient["learning_rate"]
    first = {"w": params["w"], "b": 4 * params["b"] ** 3}
    x = {"w": params["w"] - rates["w"] * first["w"], "b": params["b"] - 0.01 * first["b"]}
    rows = -jnp.sum(x["w"] * first["w"], axis=1, keepdims=True)
    np.testing.assert_allclose(found["w"], rows, rtol=1e-6)
    np.testing.assert_allclose(found["b"], -jnp.sum(4 * x["b"] ** 3 * first["b"]), rtol=1e-6)


def test_optax_rules_and_logarithmic_rates():
    rules = {
        "ours": functools.partial(hg.adam, learning_rate=lambda h: jnp.exp(h["log_rate"])),
        "optax": functools.partial(hg.from_optax, lambda h: optax.adam(jnp.exp(h["log_rate"]))),
    }
    ends = {
        name: hg.unroll(
            hg.Run(
                online.hypergradient_descent(loss, rule=rule, learned="log_rate", hyper_rate=0.5),
                num_steps=NUM_STEPS,
                batch_fn=minibatches(1),
            ),
            jnp.float32(START),
            {"log_rate": -2.0},
            TRAIN.astype(np.float32),
        )
        for name, rule in rules.items()
    }
    ours, theirs = (ends[name].state.hparams["log_rate"] for name in rules)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert abs(ours + 2.0) > 0.01


def test_averages_around_and_projects_inside():
    def boxed(loss):
        return hg.project_to_box(hg.sgd(loss), lower=-0.5, upper=0.5)

    rule = hg.average(online.hypergradient_descent(loss, rule=boxed), decay=0.5)
    hparams = {"learning_rate": 0.5, "hyper_rate": 0.1}
    data = jnp.full((1, 3), 4.0)
    out = hg.unroll(hg.Run(rule, num_steps=2), jnp.zeros(3), hparams, data)
    np.testing.assert_array_equal(out.params, np.full(3, 0.375))  # 0.5 from the first step on
    # In the first step the box held every number, and no rate could have moved it.
    assert out.state.inner.hparams["learning_rate"] == 0.5


@pytest.mark.parametrize("change", [online.additive, online.multiplicative])
def test_zero_gradients_change_nothing(change):
    def flat(params, hparams, batch, key):
        return 0.0 * jnp.sum(params)

    rule = online.hypergradient_descent(flat, rule=hg.adam, change=change)

    def end(hparams):
        out = hg.unroll(hg.Run(rule, num_steps=3), jnp.ones(3), hparams, None)
        return jnp.sum(out.params) + out.state.hparams["learning_rate"]

    hparams = {"learning_rate": jnp.float32(0.5), "hyper_rate": jnp.float32(0.1)}
    value, bars = jax.value_and_grad(end)(hparams)
    assert value == 3.5
    assert all(np.isfinite(x) for x in bars.values())


def test_the_rate_of_the_rate_has_a_hypergradient_and_bounds_hold():
    def end(hyper_rate, **settings):
        rule = online.hypergradient_descent(loss, **settings)
        hparams = {"learning_rate": 0.1, "hyper_rate": hyper_rate, "most": 0.11}
        run = hg.Run(rule, num_steps=5, batch_fn=minibatches(1))
        return hg.unroll(run, jnp.asarray(START), hparams, TRAIN)

    with jax.enable_x64(True):

        def value(hyper_rate):
            return jnp.sum(end(hyper_rate).params)

        slope = jax.jit(jax.grad(value))(0.02)
        difference = (value(0.02 + 1e-5) - value(0.02 - 1e-5)) / 2e-5
        np.testing.assert_allclose(slope, difference, rtol=1e-7)
    free, bound = end(0.02), end(0.02, bounds={"learning_rate": (None, hg.field("most"))})
    assert free.state.hparams["learning_rate"] > 0.12
    assert bound.state.hparams["learning_rate"] == np.float32(0.11)


def run_with(**settings: Any):
    hparams = settings.pop("hparams", {"learning_rate": 0.1, "hyper_rate": 0.1})
    rule = online.hypergradient_descent(settings.pop("loss", loss), **settings)
    return hg.unroll(hg.Run(rule, num_steps=1), jnp.zeros(3), hparams, jnp.ones((1, 3)))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rule": lambda loss: 0.1}, TypeError, "rule returned 0.1"),
        ({"rule": 0.1}, TypeError, "rule is 0.1"),
        ({"rule": lambda loss: hg.average(hg.sgd(loss))}, TypeError, "average around"),
        ({"learned": ("learning_rate",)}, TypeError, "must be the name of an entry"),
        ({"learned": "rate"}, ValueError, "hparams has no 'rate'"),
        ({"hparams": jnp.ones(3)}, TypeError, "pass a dict"),
        ({"hparams": {"learning_rate": 0.1}}, ValueError, "hparams has no 'hyper_rate'"),
        ({"change": 0.1}, TypeError, "change is 0.1"),
        ({"valid_loss": 0.1}, TypeError, "valid_loss is 0.1"),
        ({"valid_loss": valid_loss}, TypeError, "hg.online.paired"),
        ({"bounds": {"rate": (None, 1.0)}}, ValueError, "bounds has 'rate', which is not learned"),
        ({"hparams": {"learning_rate": jnp.ones(2), "hyper_rate": 0.1}}, ValueError, "broadcasts"),
    ],
)
def test_refuses(settings, error, message):
    with pytest.raises(error, match=message):
        run_with(**settings)
