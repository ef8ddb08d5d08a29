"""The adjoints against a closed form, each other, and themselves under JAX's transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hgrad_jax as hg
from hgrad_jax.models import MLP
from tests.shared import regression
from tests.shared.problems import KEY, classifier, slices

ADJOINTS = regression.ADJOINTS
OTHERS = ADJOINTS[1:]


def assert_close(got, want, rtol):
    """Within rtol of the largest number of each leaf."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.max(np.abs(b)))


# A quadratic, whose training is a power of one matrix.

CURVATURE = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]])
CENTRE = np.array([1.0, -1.0, 0.5])
OUTER = np.array([0.7, -0.4, 1.1])
POWER = 60


def closed_form(start, rate, decay):
    """Value, gradients with respect to start, rate and decay of OUTER @ x_T, in float64.

    With e = x - CENTRE: (e', v') = M (e, v), M = [[1 - lr k, lr g], [-k, g]], k = (1 - g) A.
    """
    one, zero = np.eye(3), np.zeros((3, 3))
    kick = (1 - decay) * CURVATURE
    matrix = np.block([[one - rate * kick, rate * decay * one], [-kick, decay * one]])
    by_rate = np.block([[-kick, decay * one], [zero, zero]])
    by_decay = np.block([[rate * CURVATURE, rate * one], [CURVATURE, one]])
    powers = [np.eye(6)]
    for _ in range(POWER):
        powers.append(matrix @ powers[-1])
    state = np.concatenate([start - CENTRE, np.zeros(3)])
    read = np.concatenate([OUTER, np.zeros(3)])

    def along(change):
        terms = [powers[POWER - 1 - t] @ change @ powers[t] for t in range(POWER)]
        return read @ sum(terms) @ state

    value = read @ powers[POWER] @ state + OUTER @ CENTRE
    return value, ((read @ powers[POWER])[:3], along(by_rate), along(by_decay))


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_closed_form(adjoint):
    def loss(params, hparams, batch, key):
        error = params - jnp.asarray(CENTRE, jnp.float32)
        return error @ jnp.asarray(CURVATURE, jnp.float32) @ error / 2

    def end(start, rate, decay):
        hparams = {"learning_rate": rate, "momentum": decay}
        out = hg.unroll(
            hg.Run(hg.momentum(loss), num_steps=POWER, adjoint=adjoint), start, hparams, None
        )
        return jnp.asarray(OUTER, jnp.float32) @ out.params

    at = np.array([0.2, 0.3, -0.4]), 0.4, 0.8
    value, gradients = closed_form(*at)
    got = jax.jit(jax.value_and_grad(end, argnums=(0, 1, 2)))(
        *(jnp.asarray(x, jnp.float32) for x in at)
    )
    assert_close(got, (value, gradients), 1e-5)


# The regression of every kind of hyperparameter.


@functools.cache
def differentiated(adjoint, rule="momentum", kind="per number and step"):
    hparams, axes = regression.hparams_and_axes(kind)
    value = regression.objective(rule, adjoint, axes)
    return jax.jit(jax.value_and_grad(value, argnums=(0, 1))), value, hparams


@pytest.mark.parametrize("adjoint", OTHERS[1:], ids=repr)
def test_transformations_commute(adjoint):
    """jit(grad), vmap(grad) and grad(vmap) over three runs: the same numbers."""
    jitted, value, hparams = differentiated(adjoint)
    grad = jax.grad(value, argnums=(0, 1))
    starts = jax.tree.map(
        lambda x: x + jnp.arange(3.0).reshape((3,) + (1,) * x.ndim) / 10, regression.start()
    )
    three = jax.tree.map(
        lambda x: x * (1 + jnp.arange(3.0).reshape((3,) + (1,) * x.ndim) / 20), hparams
    )
    batched = jax.jit(jax.vmap(grad))(starts, three)
    summed = jax.jit(jax.grad(lambda p, h: jnp.sum(jax.vmap(value)(p, h)), argnums=(0, 1)))
    assert_close(summed(starts, three), batched, 1e-5)
    for i in range(3):
        one = jax.tree.map(lambda x, i=i: x[i], (starts, three))
        assert_close(jax.tree.map(lambda x, i=i: x[i], batched), jitted(*one)[1], 1e-5)


def test_the_trace_is_the_same_for_every_adjoint():
    hparams, axes = regression.hparams_and_axes("per step")

    def trace(adjoint):
        return hg.unroll(
            hg.Run(
                hg.momentum(regression.loss),
                num_steps=regression.NUM_STEPS,
                batch_fn=regression.batch_fn,
                hparams_axes=axes,
                record=lambda state, data: (state.params, state.slots["velocity"]),
                adjoint=adjoint,
            ),
            regression.start(),
            hparams,
            regression.data(),
            key=jnp.asarray(regression.KEY),
        ).trace

    traces = [jax.jit(lambda a=adjoint: trace(a))() for adjoint in ADJOINTS]
    assert traces[0][0]["w"].shape == (regression.NUM_STEPS, 3)
    for other in traces[1:]:
        assert_close(other, traces[0], 1e-6)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_the_pullback_is_the_gradient(adjoint):
    """Also of the trace, and through an initial state that depends on the hyperparameters."""

    def init(params, hparams):
        return {"velocity": jax.tree.map(lambda x: hparams["start"] * x, params)}

    rule = hg.kick_drift(
        lambda params, hparams, batch, key: jnp.sum(jnp.cosh(params - batch)),
        kick=lambda gradient, hparams, count: {"velocity": gradient},
        drift=lambda slots, hparams, count: -hparams["rate"] * slots["velocity"],
        decays=lambda hparams, count: {"velocity": hparams["decay"]},
        slots={"velocity": hg.Slot()},
        init=init,
    )
    hparams = {
        "start": jnp.float32(0.3),
        "rate": jnp.linspace(0.05, 0.1, 6),
        "decay": jnp.float32(0.8),
    }
    run = hg.Run(
        rule,
        num_steps=6,
        hparams_axes={"start": None, "rate": 0, "decay": None},
        record=lambda state, data: jnp.sum(state.params**2),
        adjoint=adjoint,
    )
    params, data = jnp.array([0.4, -0.7]), jnp.ones(2)
    weights = jnp.arange(1.0, 7.0)

    @jax.jit
    def from_pullback(params, hparams):
        out, pullback = hg.vjp(run, params, hparams, data)
        bars, info = pullback(2 * out.params, weights)
        return bars.params, bars.hparams, info

    @jax.jit
    def from_grad(params, hparams):
        def value(params, hparams):
            out = hg.unroll(run, params, hparams, data)
            return jnp.sum(out.params**2) + weights @ out.trace

        return jax.grad(value, argnums=(0, 1))(params, hparams)

    *bars, info = from_pullback(params, hparams)
    hg.check(info)
    want = list(from_grad(params, hparams))
    if isinstance(adjoint, hg.ForwardMode):
        assert bars[0] is None
        want[0] = None
    assert_close(bars, want, 1e-6)
    assert abs(float(bars[1]["start"])) > 1e-2


@pytest.mark.parametrize("rule", ["momentum", "adam"])
def test_the_gradient_apart_gives_the_same(rule):
    start = regression.start()
    shared, _, hparams = differentiated(hg.Reversible(), rule, "one")
    apart, _, _ = differentiated(hg.Reversible(share_gradient=False), rule, "one")
    assert_close(apart(start, hparams), shared(start, hparams), 1e-6)
    direct, _, _ = differentiated(hg.Direct(), rule, "one")
    assert_close(shared(start, hparams), direct(start, hparams), 1e-5)


def test_a_loss_with_custom_vjp_gives_the_same():
    @jax.custom_vjp
    def cosh(x):
        return jnp.cosh(x)

    # The usual way to write it: the forward rule calls the function itself.
    cosh.defvjp(lambda x: (cosh(x), x), lambda x, bar: (bar * jnp.sinh(x),))

    def end(function, hparams, gradient=hg.backpropagation):
        rule = hg.momentum(
            lambda params, hparams, batch, key: jnp.sum(hparams["scale"] * function(params)),
            gradient=gradient,
        )
        out = hg.unroll(
            hg.Run(rule, num_steps=20, adjoint=hg.Reversible()), jnp.ones(3), hparams, None
        )
        return jnp.sum(out.params)

    hparams = {
        "scale": jnp.array([1.0, 2.0, 0.5]),
        "learning_rate": jnp.float32(0.1),
        "momentum": jnp.float32(0.7),
    }
    want = jax.grad(lambda h: end(jnp.cosh, h))(hparams)
    assert_close(jax.grad(lambda h: end(cosh, h))(hparams), want, 1e-5)

    def estimator(params, hparams, batch, key):
        return hparams["scale"] * jnp.sinh(params)

    assert_close(jax.grad(lambda h: end(jnp.cosh, h, lambda loss: estimator))(hparams), want, 1e-5)


def test_an_estimator_with_an_asymmetric_jacobian():
    """Not the gradient of anything: the product with its transpose is what is needed."""
    twist = jnp.array([[1.0, 0.8], [-0.3, 0.6]])

    def end(matrix, adjoint):
        rule = hg.heavy_ball(
            lambda params, hparams, batch, key: jnp.sum(params),
            learning_rate=0.1,
            momentum=0.8,
            gradient=lambda loss: lambda params, hparams, batch, key: jnp.tanh(hparams @ params),
        )
        start = jnp.array([0.5, -1.0])
        return jnp.sum(
            hg.unroll(hg.Run(rule, num_steps=15, adjoint=adjoint), start, matrix, None).params
        )

    want = jax.grad(end)(twist, hg.Direct())
    for adjoint in OTHERS:
        assert_close(jax.grad(end)(twist, adjoint), want, 1e-5)


def test_norms_of_the_cotangents():
    rule = hg.momentum(lambda params, hparams, batch, key: jnp.sum(jnp.cosh(params)))
    hparams = {"learning_rate": jnp.linspace(0.1, 0.2, 5), "momentum": jnp.float32(0.8)}

    def pulled(num_steps):
        given = hparams | {"learning_rate": hparams["learning_rate"][-num_steps:]}
        out, pullback = hg.vjp(
            hg.Run(
                rule,
                num_steps=num_steps,
                hparams_axes={"learning_rate": 0, "momentum": None},
                adjoint=hg.Reversible(trace_norms=True),
            ),
            jnp.ones(3),
            given,
            None,
        )
        return pullback(jnp.ones_like(out.params))

    bars, info = pulled(5)
    assert info.norms is not None
    assert {name: norm.shape for name, norm in info.norms.items()} == {
        "params": (5,),
        "velocity": (5,),
        "hparams": (5,),
    }
    assert all(norm.dtype == jnp.float32 for norm in info.norms.values())
    # Before step 0 they are the norms of what comes out.
    assert_close(info.norms["params"][0], jnp.linalg.norm(bars.params), 1e-6)
    assert_close(info.norms["hparams"][0], jnp.abs(bars.hparams["momentum"]), 1e-6)
    assert np.all(np.diff(np.asarray(info.norms["hparams"])) < 0)
    _, plain = hg.vjp(
        hg.Run(rule, num_steps=2), jnp.ones(3), {"learning_rate": 0.1, "momentum": 0.8}, None
    )
    assert plain(jnp.ones(3))[1].norms is None


# A network of the usual size.


@pytest.mark.gpu
@pytest.mark.parametrize("num_steps", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_agreement_in_float32_on_an_mnist_sized_network(num_steps):
    """Against storing everything: within 1e-4 of the norm."""
    loss, params, data = classifier(MLP((50, 50, 50, 10), activation=nn.tanh), (28, 28))

    def end(params, hparams, adjoint):
        out = hg.unroll(
            hg.Run(hg.momentum(loss), num_steps=num_steps, batch_fn=slices(100), adjoint=adjoint),
            params,
            hparams,
            data,
            key=KEY,
        )
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(out.params))

    hparams = {"learning_rate": jnp.float32(0.1), "momentum": jnp.float32(0.9)}
    found = [
        jax.jit(jax.grad(lambda p, h, a=a: end(p, h, a), argnums=(0, 1)))(params, hparams)
        for a in (hg.Direct(), hg.Checkpointed(), hg.Reversible())
    ]
    for other in found[1:]:
        for got, want in zip(jax.tree.leaves(other), jax.tree.leaves(found[0]), strict=True):
            error = np.linalg.norm(got - want) / np.linalg.norm(want)
            assert error < 1e-4


def test_the_key_is_used_and_reproduced():
    """Other keys give other trajectories; the same key the same, in every adjoint."""
    loss, params, data = classifier(MLP((8, 10), dropout_rate=0.5))
    hparams = {"learning_rate": jnp.float32(0.1), "momentum": jnp.float32(0.9)}

    def end(key, adjoint):
        run = hg.Run(hg.momentum(loss), num_steps=10, batch_fn=slices(16), adjoint=adjoint)
        return hg.unroll(run, params, hparams, data, key=key).params

    ends = [jax.jit(lambda key, a=a: end(key, a))(KEY) for a in (hg.Direct(), hg.Reversible())]
    assert_close(ends[1], ends[0], 1e-5)
    other = jax.jit(lambda key: end(key, hg.Direct()))(jax.random.key(9))
    assert np.max(np.abs(other["Dense_0"]["kernel"] - ends[0]["Dense_0"]["kernel"])) > 1e-3


def test_bits_that_sharing_loses_are_found_again():
    """An elementwise loss, whose gradient XLA computes otherwise beside its product.

    It loses them on the CPUs that this was written on; elsewhere it may not, but the hypergradient
    is the same.
    """

    def loss(params, hparams, batch, key):
        return jnp.sum(jnp.cosh(jnp.exp(hparams["log_scale"]) * params))

    rule = hg.momentum(loss, learning_rate=0.05, momentum=0.8)
    hparams = {"log_scale": jnp.linspace(-0.5, 0.3, 3)}

    def pulled(hparams, adjoint):
        out, pull = hg.vjp(
            hg.Run(rule, num_steps=50, adjoint=adjoint), jnp.linspace(1.0, -1.0, 3), hparams, None
        )
        return out, pull(out.params)

    @jax.jit
    def both(hparams):
        return [
            pulled(hparams, hg.Reversible(share_gradient=is_shared))[1]
            for is_shared in (True, False)
        ]

    (bars, info), (apart, apart_info) = both(hparams)
    assert hg.check(info).is_restored
    assert hg.check(apart_info).is_restored
    assert not apart_info.is_repeated
    assert_close(bars, apart, 1e-5)
    several = jax.tree.map(lambda x: jnp.stack([x, 0.9 * x]), hparams)
    for adjoint in (hg.Reversible(), hg.Reversible(share_gradient=False)):
        mapped, mapped_info = jax.jit(jax.vmap(lambda h, a=adjoint: pulled(h, a)[1]))(several)
        assert np.all(hg.check(mapped_info).is_restored)
        assert_close(jax.tree.map(lambda x: x[0], mapped), apart, 1e-5)
