"""RTHO, T1-T2 and the adaptive method: by derivation in NumPy, and against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg
from hgrad_jax import online
from hgrad_jax.data import load, minibatches
from hgrad_jax.hyper import l2, log, log10
from hgrad_jax.models import SoftmaxRegression, classification_loss
from tests.shared.runs import run_and_rest

CURVATURES = np.array([1.0, 2.0, 0.5])
VALID_CURVATURES = np.array([0.7, 1.1, 2.0])
TRAIN = np.random.default_rng(0).normal(size=(5, 3))
VALID = np.random.default_rng(1).normal(size=(4, 3)) + 1.0
DATA = (TRAIN, VALID)
START = np.array([2.0, -1.0, 0.3])
PAIRS = online.paired(minibatches(1), minibatches(1))
HPARAMS = {"log_rate": np.log(0.1), "log_l2": -1.0, "momentum": 0.6}


def loss(params, hparams, batch, key):
    penalty = l2(params, jnp.exp(hparams["log_l2"]))
    return jnp.sum(CURVATURES * (params - batch[0]) ** 2) / 2 + penalty


def valid_loss(params, hparams, batch, key):
    """Depends on the hyperparameters directly too."""
    direct = jnp.sum(jnp.asarray(hparams["log_l2"]) ** 2) / 20
    return jnp.sum(VALID_CURVATURES * (params - batch[0]) ** 2) / 2 + direct


def rate(hparams):
    return jnp.exp(hparams["log_rate"])


SGD = hg.sgd(loss, learning_rate=rate)
HEAVY_BALL = hg.heavy_ball(loss, learning_rate=rate)
ADAM = hg.adam(loss, learning_rate=rate, b1=hg.field("momentum"), eps=0.01)


def descent(hparams):
    return optax.sgd(hparams["meta_rate"])


def unrolled(rule, num_steps, hparams, **settings):
    settings = {"batch_fn": PAIRS, "record": lambda state, data: state.hparams} | settings
    data = settings.pop("data", DATA)
    run, rest = run_and_rest(rule, {"num_steps": num_steps} | settings)

    @jax.jit
    def end(hparams):
        return hg.unroll(run, jnp.asarray(START), hparams, data, **rest)

    with jax.enable_x64(True):
        return end(jax.tree.map(jnp.asarray, hparams))


def gradient_by_hand(x, t, weight_decay):
    return CURVATURES * (x - TRAIN[t % 5]) + weight_decay * x


# -- RTHO --------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [HEAVY_BALL, ADAM], ids=["heavy_ball", "adam"])
def test_the_first_window_of_rtho_is_forward_mode(inner):
    num_steps = 4
    hparams = HPARAMS | {"log_rate": np.log([0.1, 0.2, 0.3])}
    rule = online.rtho(
        inner, valid_loss, learned=tuple(hparams), make_tx=lambda h: optax.sgd(0.0), every=num_steps
    )
    out = unrolled(rule, num_steps, hparams)

    def objective(params, hparams, valid):
        return valid_loss(params, hparams, valid, None)

    @jax.jit
    def forward_mode(hparams):
        return hg.value_and_hypergradient(
            objective,
            hg.Run(inner, num_steps=num_steps, batch_fn=minibatches(1), adjoint=hg.ForwardMode()),
            jnp.asarray(START),
            hparams,
            TRAIN,
            VALID[[num_steps - 1]],
        )

    with jax.enable_x64(True):
        forward = forward_mode(jax.tree.map(jnp.asarray, hparams))
    for name in hparams:
        found = out.state.hypergradient[name]
        np.testing.assert_allclose(found, forward.hparams[name], rtol=1e-12)
        assert np.all(np.abs(found) > 1e-3)
    np.testing.assert_allclose(out.params, forward.unrolled.params, rtol=1e-12)


@pytest.mark.parametrize("discount", [1.0, 0.7, 0.0])
def test_rtho_carries_its_tangents_from_window_to_window(discount):
    every, meta_rate = 2, 0.05
    rule = online.rtho(
        SGD, valid_loss, learned=("log_rate", "log_l2"), make_tx=descent, every=every,
        discount=discount,
    )  # fmt: skip
    out = unrolled(rule, 7, HPARAMS | {"meta_rate": meta_rate})

    x, by_rate, by_l2 = START, np.zeros(3), np.zeros(3)
    log_rate, log_l2, rates, decays = np.log(0.1), -1.0, [], []
    for t in range(7):
        step, decay = np.exp(log_rate), np.exp(log_l2)
        contraction = 1 - step * (CURVATURES + decay)
        g = gradient_by_hand(x, t, decay)
        by_rate = contraction * discount * by_rate - step * g
        by_l2 = contraction * discount * by_l2 - step * decay * x
        x = x - step * g
        if (t + 1) % every == 0:
            slope = VALID_CURVATURES * (x - VALID[t % 4])
            log_rate, log_l2 = (
                log_rate - meta_rate * slope @ by_rate,
                log_l2 - meta_rate * (slope @ by_l2 + log_l2 / 10),
            )
        rates.append(log_rate)
        decays.append(log_l2)
    np.testing.assert_allclose(out.trace["log_rate"], rates, rtol=1e-12)
    np.testing.assert_allclose(out.trace["log_l2"], decays, rtol=1e-12)
    np.testing.assert_allclose(out.params, x, rtol=1e-12)
    assert np.ptp(rates) > 0.02


# -- T1-T2 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
def test_t1_t2_by_hand(every):
    meta_rate = 0.3
    rule = online.t1_t2(
        SGD, valid_loss, learned=("log_rate", "log_l2"), make_tx=descent, every=every
    )
    out = unrolled(rule, 7, HPARAMS | {"meta_rate": meta_rate})
    x, log_rate, log_l2, rates, decays = START, np.log(0.1), -1.0, [], []
    for t in range(7):
        step, decay = np.exp(log_rate), np.exp(log_l2)
        before, g = x, gradient_by_hand(x, t, decay)
        x = x - step * g
        if (t + 1) % every == 0:
            slope = VALID_CURVATURES * (x - VALID[t % 4])
            log_rate -= meta_rate * slope @ (-step * g)
            log_l2 -= meta_rate * (slope @ (-step * decay * before) + log_l2 / 10)
        rates.append(log_rate)
        decays.append(log_l2)
    np.testing.assert_allclose(out.trace["log_rate"], rates, rtol=1e-12)
    np.testing.assert_allclose(out.trace["log_l2"], decays, rtol=1e-12)
    np.testing.assert_allclose(out.params, x, rtol=1e-12)
    assert int(out.state.count) == 7


@pytest.mark.parametrize("inner", [HEAVY_BALL, ADAM], ids=["heavy_ball", "adam"])
def test_three_methods_that_look_back_one_step_agree(inner):
    """One in reverse mode, one in forward mode, one as a period; all with momentum above."""
    settings = {
        "learned": ("log_rate", "momentum"),
        "make_tx": lambda h: optax.sgd(0.1, momentum=0.5),
    }
    greedy = online.t1_t2(inner, valid_loss, **settings)
    forward = online.rtho(inner, valid_loss, discount=0.0, **settings)
    period = online.adaptive(inner, valid_loss, every=1, window=1, **settings)
    hparams = HPARAMS | {"log_rate": np.log([0.1, 0.2, 0.3])}
    ends = [unrolled(rule, 5, hparams) for rule in (greedy, forward)]
    batch_fn = online.periods(minibatches(1), minibatches(1), every=1)
    ends.append(unrolled(period, 5, hparams, batch_fn=batch_fn))
    for end in ends[1:]:
        for name in ("log_rate", "momentum"):
            np.testing.assert_allclose(end.trace[name], ends[0].trace[name], rtol=1e-10)
        np.testing.assert_allclose(end.params, ends[0].params, rtol=1e-10)


# -- The adaptive method -----------------------------------------------------------------------

EVERY = 4
PERIODS = online.periods(minibatches(1), minibatches(1), every=EVERY)


def adaptive_by_hand(num_periods, window, floor, ceiling, is_restarted):
    """Carries tangents of each number by its own rate and coefficient, with heavy ball."""
    x, v, m = START, np.zeros(3), HPARAMS["momentum"]
    log_rate, log10_l2 = np.full(3, np.log(0.3)), np.full(3, -1.5)
    rates, decays = [], []
    for period in range(num_periods):
        dx, dv = np.zeros((2, 3)), np.zeros((2, 3))
        for i in range(EVERY):
            if i == EVERY - window:
                dx, dv = np.zeros((2, 3)), np.zeros((2, 3))
            step, decay = np.exp(log_rate), 10.0**log10_l2
            g = CURVATURES * (x - TRAIN[(period * EVERY + i) % 5]) + decay * x
            dg = (CURVATURES + decay) * dx + np.stack([np.zeros(3), np.log(10) * decay * x])
            v, dv = m * v + g, m * dv + dg
            x, dx = x - step * v, dx - step * dv - np.stack([step * v, np.zeros(3)])
        slope = VALID_CURVATURES * (x - VALID[period % 4])
        log_rate = np.clip(log_rate - 0.2 * np.sign(slope * dx[0]), floor[period], ceiling)
        log10_l2 = log10_l2 - 0.01 * np.sign(slope * dx[1])
        v = v * (not is_restarted)
        rates.append(log_rate)
        decays.append(log10_l2)
    return np.array(rates), np.array(decays), x


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("window", [1, 3, EVERY])
def test_adaptive_by_hand(window, is_restarted):
    num_periods, ceiling = 6, -0.5
    floor = np.log(0.25) - 0.05 * np.arange(num_periods)

    def elementary(params, hparams, batch, key):
        penalty = l2(params, log10.to_value(hparams["log10_l2"]))
        return jnp.sum(CURVATURES * (params - batch[0]) ** 2) / 2 + penalty

    def judge(params, hparams, batch, key):
        return jnp.sum(VALID_CURVATURES * (params - batch[0]) ** 2) / 2

    inner = hg.heavy_ball(
        elementary, learning_rate=lambda h: log.to_value(h["log_learning_rate"])
    )  # fmt: skip
    rule = online.adaptive(
        inner,
        judge,
        every=EVERY,
        window=window,
        bounds={"log_learning_rate": (hg.field("floor"), ceiling)},
        is_restarted=is_restarted,
    )
    hparams = {
        "log_learning_rate": np.full(3, np.log(0.3)),
        "log10_l2": np.full(3, -1.5),
        "momentum": HPARAMS["momentum"],
        "floor": floor,
    }
    axes = {"log_learning_rate": None, "log10_l2": None, "momentum": None, "floor": 0}
    out = unrolled(rule, num_periods, hparams, batch_fn=PERIODS, hparams_axes=axes)
    rates, decays, x = adaptive_by_hand(num_periods, window, floor, ceiling, is_restarted)
    np.testing.assert_allclose(out.trace["log_learning_rate"], rates, rtol=1e-12)
    np.testing.assert_allclose(out.trace["log10_l2"], decays, rtol=1e-12)
    np.testing.assert_allclose(out.params, x, rtol=1e-11)
    is_at = (rates == ceiling) | (rates == floor[:, None])
    assert is_at.any()
    assert not is_at.all()


def test_adaptive_finds_learning_rates_for_the_digits():
    train, valid = load("digits")
    train, valid = jax.tree.map(lambda x: x[:800], train), jax.tree.map(lambda x: x[:300], valid)
    model = SoftmaxRegression(10)
    params = model.init(jax.random.key(0), train.inputs[:1], train=False)["params"]
    cross_entropy = classification_loss(model)

    def penalized(params, hparams, batch, key):
        penalty = l2(params, log10.to_value(hparams["log10_l2"]))
        return cross_entropy(params, hparams, batch, key) + penalty

    inner = hg.heavy_ball(
        penalized, learning_rate=lambda h: log.to_value(h["log_learning_rate"]), momentum=0.9
    )
    hparams = {
        "log_learning_rate": jax.tree.map(lambda x: jnp.full_like(x, -9.0), params),
        "log10_l2": jax.tree.map(lambda x: jnp.full_like(x, -3.0), params),
    }

    steps = {"log_learning_rate": hg.field("step"), "log10_l2": lambda h: h["step"] / 20}
    bounds = {"log_learning_rate": (None, 0.0)}
    rule = online.adaptive(
        inner, cross_entropy, every=10, make_tx=online.by_sign(steps), bounds=bounds
    )
    batch_fn = online.periods(minibatches(50), minibatches(100), every=10)

    @jax.jit
    def validated(step):
        given, data = hparams | {"step": step}, (train, valid)
        out = hg.unroll(hg.Run(rule, num_steps=30, batch_fn=batch_fn), params, given, data)
        return cross_entropy(out.params, hparams, valid, None), out.state.hparams

    plain, _ = validated(0.0)
    adapted, found = validated(0.2)
    assert adapted < 0.5 * plain
    assert all(jnp.all(x <= 0) for x in jax.tree.leaves(found["log_learning_rate"]))
