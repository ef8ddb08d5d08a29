"""Training run backwards ends at the very bits it started from, whatever the net and the decays.

Marked `gpu` throughout: these run on any machine, and again on an accelerator by `make test-gpu`.
"""

# JAX arrays and flax modules pass where pyright sees narrower types.
# pyright: reportArgumentType=false, reportCallIssue=false

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hgrad_jax as hg
from hgrad_jax.exact import engine, products
from hgrad_jax.models import CNN, MLP
from tests.shared.problems import KEY, classifier, slices

pytestmark = [pytest.mark.gpu, pytest.mark.compiled]

DROPOUT = MLP((32, 16, 10), activation=nn.tanh, dropout_rate=0.2)
SMALL = MLP((12, 10), activation=nn.gelu)
DECAYS = [0.5, 0.9, 0.99, 0.999]
HPARAMS = {"learning_rate": jnp.float32(0.05), "momentum": jnp.float32(0.9)}
EIGHT = {
    "learning_rate": jnp.geomspace(0.01, 0.1, 8),
    "momentum": jnp.asarray([0.3, 0.5, 0.8, 0.9, 0.95, 0.97, 0.99, 0.999]),
}

REVERSIBLE = hg.Reversible(smallest_decay=0.25)

slow = pytest.mark.slow


def convolutional(activation):
    return CNN(10, channels=(4, 6), hidden=(12,), activation=activation, batch_norm=True)


@functools.cache
def problem(model):
    return classifier(model)


@functools.cache
def backwards(model, rule, num_steps, *, adjoint=REVERSIBLE, axes=None, is_batched=False):
    """The run and its pullback, at the trained parameters as cotangent: `hparams -> bars, info`."""
    loss, params, data = problem(model)

    def run(hparams):
        out, pullback = hg.vjp(
            hg.Run(
                rule(loss),
                num_steps=num_steps,
                batch_fn=slices(16),
                hparams_axes=dict(axes) if axes else None,
                adjoint=adjoint,
            ),
            params,
            hparams,
            data,
            key=KEY,
        )
        return pullback(out.params)

    return jax.jit(jax.vmap(run) if is_batched else run)


def assert_restored(bars, info):
    hg.check(info)
    assert np.all(np.asarray(info.mismatches) == 0)
    assert np.all(np.asarray(info.is_restored))
    sizes = [np.max(np.abs(leaf)) for leaf in jax.tree.leaves(bars)]
    assert np.all(np.isfinite(sizes))
    assert max(sizes) > 0


STEPS = [1000, pytest.param(20_000, marks=slow)]


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("momentum", DECAYS)
def test_mlp_with_dropout(momentum, num_steps):
    run = backwards(DROPOUT, hg.momentum, num_steps)
    assert_restored(*run(HPARAMS | {"momentum": jnp.float32(momentum)}))


@pytest.mark.parametrize("num_steps", STEPS)
def test_eight_runs_at_once(num_steps):
    bars, info = backwards(DROPOUT, hg.momentum, num_steps, is_batched=True)(EIGHT)
    assert_restored(bars, info)
    assert info.mismatches.shape == (8,)
    assert len(set(np.asarray(info.run.bits_per_step["velocity"]).round(3).tolist())) == 8


@pytest.mark.parametrize(
    ("activation", "num_steps"),
    [
        (nn.relu, 100),
        (nn.gelu, 100),
        *(pytest.param(f, 2000, marks=slow) for f in (nn.tanh, nn.relu, nn.gelu)),
    ],
)
def test_convolutions_with_batch_normalization_and_max_pooling(activation, num_steps):
    run = backwards(convolutional(activation), hg.momentum, num_steps)
    assert_restored(*run(HPARAMS))


@slow
def test_eight_convolutional_runs_at_once():
    run = backwards(convolutional(nn.gelu), hg.momentum, 2000, is_batched=True)
    assert_restored(*run(EIGHT))


def adamw(loss):
    return hg.adamw(loss, b1=hg.field("momentum"), weight_decay=0.1)


def rmsprop_momentum(loss):
    return hg.rmsprop_momentum(loss, decay=0.95)


RULES = [hg.heavy_ball, hg.adam, adamw, rmsprop_momentum]


@pytest.mark.parametrize("num_steps", [300, pytest.param(2000, marks=slow)])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rules(rule, num_steps):
    hparams = HPARAMS | {"learning_rate": jnp.float32(0.003)}
    assert_restored(*backwards(SMALL, rule, num_steps)(hparams))


@pytest.mark.parametrize(
    ("rule", "num_steps"),
    [(adamw, 100), *(pytest.param(rule, 2000, marks=slow) for rule in RULES)],
)
def test_eight_runs_of_a_rule(rule, num_steps):
    # Small rates: at 2e-3 RMSProp amplifies perturbations beyond float32, which is flagged.
    hparams = EIGHT | {"learning_rate": EIGHT["learning_rate"] / 100}
    bars, info = backwards(SMALL, rule, num_steps, is_batched=True)(hparams)
    assert_restored(bars, info)
    assert info.mismatches.shape == (8,)


@pytest.mark.parametrize("num_steps", [100, pytest.param(2000, marks=slow)])
def test_adam_on_a_convolutional_net(num_steps):
    """Adam's kick squares the gradient, which `jax.linearize` would return with other bits."""
    hparams = HPARAMS | {"learning_rate": jnp.float32(0.001)}
    assert_restored(*backwards(convolutional(nn.gelu), hg.adam, num_steps)(hparams))


def random_decays(*shape):
    return jax.random.uniform(jax.random.key(3), shape, minval=0.4, maxval=0.999)


def per_tensor(make):
    params = problem(SMALL).params
    shapes, treedef = jax.tree.flatten(jax.tree.map(jnp.shape, params), lambda x: type(x) is tuple)
    decays = [make(i, shape) for i, shape in enumerate(shapes)]
    return jax.tree.unflatten(treedef, decays)


KINDS_OF_DECAY = pytest.mark.parametrize(
    ("make", "is_schedule"),
    [
        (lambda: random_decays(300), True),
        (lambda: per_tensor(lambda i, shape: 0.6 + 0.1 * jnp.float32(i)), False),
        (lambda: per_tensor(lambda i, shape: random_decays(300, *shape)), True),
    ],
    ids=["schedule", "per tensor", "per number and step"],
)
SCHEDULED = (("learning_rate", None), ("momentum", 0))


@KINDS_OF_DECAY
def test_kinds_of_decay(make, is_schedule):
    hparams = HPARAMS | {"momentum": make()}
    axes = SCHEDULED if is_schedule else None
    assert_restored(*backwards(SMALL, hg.momentum, 300, axes=axes)(hparams))


@slow
@KINDS_OF_DECAY
def test_eight_runs_of_kinds_of_decay(make, is_schedule):
    eight = jax.tree.map(lambda x: jnp.linspace(0.8, 1, 8).reshape(8, *[1] * x.ndim) * x, make())
    hparams = {"learning_rate": EIGHT["learning_rate"], "momentum": eight}
    axes = SCHEDULED if is_schedule else None
    run = backwards(SMALL, hg.momentum, 300, axes=axes, is_batched=True)
    assert_restored(*run(hparams))


def test_under_grad():
    """Where no info comes out, the poison says it: a finite hypergradient is of a restored run."""
    loss, params, data = problem(SMALL)

    def objective(hparams):
        run = hg.Run(hg.momentum(loss), adjoint=REVERSIBLE, num_steps=300, batch_fn=slices(16))
        out = hg.unroll(run, params, hparams, data, key=KEY)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(out.params)) / 2

    one = jax.jit(jax.grad(objective))(HPARAMS)
    bars, info = backwards(SMALL, hg.momentum, 300)(HPARAMS)
    assert_restored(bars, info)
    for name in HPARAMS:
        np.testing.assert_allclose(one[name], bars.hparams[name], rtol=1e-5)
    eight = jax.jit(jax.vmap(jax.grad(objective)))(EIGHT)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(eight))
    assert np.all(np.abs(eight["learning_rate"]) > 0)


def with_custom_vjp(loss):
    """The same loss behind a custom_vjp, which forbids forward mode."""

    @jax.custom_vjp
    def identity(x):
        return x

    identity.defvjp(lambda x: (identity(x), None), lambda _, bar: (bar,))
    return lambda params, *rest: identity(loss(params, *rest))


def hidden(loss):
    return hg.momentum(with_custom_vjp(loss))


def apart(loss):
    return hg.momentum(loss)


@pytest.mark.parametrize(
    ("rule", "num_steps"),
    [
        (hidden, 100),
        pytest.param(hidden, 2000, marks=slow),
        pytest.param(apart, 2000, marks=slow),
    ],
)
def test_other_ways_to_the_gradient(rule, num_steps):
    """A loss with a custom_vjp, and the gradient evaluated apart: as with the shared gradient."""
    model = convolutional(nn.gelu)
    adjoint = hg.Reversible(share_gradient=rule is not apart)
    got, info = backwards(model, rule, num_steps, adjoint=adjoint)(HPARAMS)
    assert_restored(got, info)
    want, _ = backwards(model, hg.momentum, num_steps)(HPARAMS)
    for name in HPARAMS:
        np.testing.assert_allclose(got.hparams[name], want.hparams[name], rtol=1e-2)


# What would go wrong otherwise.


def test_reversal_in_floating_point_loses_the_start():
    """The textbook inverse, v = (v' - kick) / decay, with the very same gradients."""
    target = jnp.linspace(-1, 1, 50)
    start = (jnp.zeros(50), jnp.full(50, 0.1))

    def forward(state, _):
        x, v = state
        v = 0.5 * v - 0.1 * jnp.tanh(x - target)
        return (x + 0.1 * v, v), None

    def backward(state, _):
        x, v = state
        x = x - 0.1 * v
        return (x, (v + 0.1 * jnp.tanh(x - target)) / 0.5), None

    end, _ = jax.lax.scan(forward, start, length=200)
    back, _ = jax.lax.scan(backward, end, length=200)
    # Each step back doubles an error of 6e-8 in v: after 200, nothing is left of the start.
    assert not np.max(np.abs(back[0] - start[0])) < 0.1


def test_a_loss_that_differs_between_the_passes_is_caught():
    """Poisoned with NaN and flagged, by `check` with what to do."""
    calls = iter(range(10**9))

    def count():
        return np.float32(next(calls) % 7)

    def loss(params, hparams, batch, key):
        noise = jax.pure_callback(count, jax.ShapeDtypeStruct((), jnp.float32))
        return jnp.sum((params - 1) ** 2) * (1 + 1e-6 * noise)

    def run(rate):
        hparams = {"learning_rate": rate, "momentum": 0.9}
        out, pullback = hg.vjp(
            hg.Run(hg.momentum(loss), num_steps=40, adjoint=hg.Reversible()),
            jnp.zeros(5),
            hparams,
            None,
        )
        return out, pullback(out.params)

    out, (bars, info) = jax.jit(run)(jnp.float32(0.1))
    hg.check(out)
    assert np.all(np.isfinite(out.params))
    assert int(info.mismatches) == 10  # positions and velocities
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(bars))
    with pytest.raises(
        hg.HypergradientError, match=r"not restore the start: 10 numbers .* loss and"
    ):
        hg.check(info)


def test_what_isolation_is_for(monkeypatch):
    """Without it the compiler rounds differently on the way back; what comes of it is flagged."""
    monkeypatch.setattr(products, "isolate", lambda function, step: function)
    monkeypatch.setattr(engine, "isolate", lambda function, step: function)
    hparams = HPARAMS | {"learning_rate": jnp.float32(0.001)}
    bars, info = backwards.__wrapped__(convolutional(nn.gelu), hg.adam, 100)(hparams)
    if jax.default_backend() == "cpu":
        assert int(info.mismatches) > 0
    if int(info.mismatches):
        assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(bars))
        with pytest.raises(hg.HypergradientError, match="did not restore the start"):
            hg.check(info)


def test_trainings_in_a_scan_that_is_differentiated():
    """JAX takes what no carry changes out of such a scan, and may not take it out of a gradient.

    Losses of this kind were all restored with other bits on the way back: what was left of the
    forward gradient, with the loss's cotangent computed outside, was another program.
    """
    x, y = jax.random.normal(jax.random.key(1), (6, 3, 7)), jnp.linspace(-1, 1, 6)

    def loss(params, strength, batch, key):
        x, y = batch
        error = jnp.mean(jnp.sin(x @ params), 1) - y
        return jnp.mean(error**2) + 0.1 * strength * jnp.mean(params**2)

    rule = hg.heavy_ball(loss, learning_rate=0.05, momentum=0.8)

    def last(params, strength, adjoint):
        def training(params, _):
            run = hg.Run(rule, num_steps=20, adjoint=adjoint)
            return hg.unroll(run, params, strength, (x, y)).params, None

        return jnp.sum(jax.lax.scan(training, params, length=2)[0])

    gradient = jax.jit(jax.grad(last, (0, 1)), static_argnums=2)
    start = jnp.linspace(0.1, 1, 7), jnp.float32(0.7)
    got, want = (gradient(*start, adjoint) for adjoint in (hg.Reversible(), hg.Direct()))
    for found, wanted in zip(got, want, strict=True):
        assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)
