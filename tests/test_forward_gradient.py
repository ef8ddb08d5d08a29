"""Forward gradients: their mean, their error, what they cost, and hypergradients through them."""

# JAX arrays and flax modules pass where pyright sees narrower types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

import hgrad_jax as hg
from hgrad_jax.dual import value_and_slope
from hgrad_jax.models import (
    CNN,
    MLP,
    SoftmaxRegression,
    activity_forward_gradient,
    classification_loss,
    example_losses,
)

KEY = jax.random.key(0)
NUM_DRAWS = 1500
KINDS = [hg.Gaussian(), hg.Rademacher(), hg.Standardized(), hg.Orthogonal()]

MODELS = {
    "softmax": (SoftmaxRegression(4), (9,)),
    "mlp": (MLP((6, 5, 4), dropout_rate=0.2), (9,)),
    "mlp with batch norm": (MLP((6, 4), activation=nn.tanh, batch_norm=True), (9,)),
    "cnn": (CNN(4, channels=(2, 3), hidden=(5,), halves=(False, True)), (6, 6, 1)),
}


class Normalized(nn.Module):
    """Parameters beside those of dense layers: a scale and a shift."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.LayerNorm()(nn.tanh(nn.Dense(5)(x)))
        return nn.Dense(4)(x)


def problem(model, shape, num_examples=8):
    """Returns parameters and a batch, both random."""
    inputs = jax.random.normal(jax.random.key(1), (num_examples, *shape))
    labels = jnp.arange(num_examples) % 4
    params = model.init(KEY, inputs[:2], train=False)["params"]
    start = jax.random.split(jax.random.key(2), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(start))
    moved = jax.tree.map(lambda p, k: p + 0.3 * jax.random.normal(k, p.shape), params, keys)
    return moved, (inputs, labels)


def probes(tree):
    """Returns vectors `[P, d]` that see what a wrong estimate would get wrong.

    The mean of each tensor, and random combinations of everything.
    """
    leaves = jax.tree.leaves(tree)
    blocks = np.repeat(np.arange(len(leaves)), [leaf.size for leaf in leaves])
    means = np.eye(len(leaves))[blocks].T
    return np.concatenate([means, np.random.default_rng(0).normal(size=(4, means.shape[1]))])


def sampled(model, shape, estimators, settings=None):
    """Returns for each estimator its errors against the gradient: seen by probes, and squared.

    Every draw has its own dropout mask, which estimate and gradient share.

    Args:
      model, shape: what is differentiated.
      estimators: `estimators(setting) -> providers`.
      settings: one for each draw.
    """
    params, batch = problem(model, shape)
    seen_by = jnp.asarray(probes(params), jnp.float32)
    loss = classification_loss(model)
    settings = jnp.zeros(NUM_DRAWS) if settings is None else settings

    def once(given):
        key, setting = given
        tree = hg.backpropagation(loss)(params, {}, batch, key)
        true, found = ravel_pytree(tree)[0], []
        for provider in estimators(setting):
            error = ravel_pytree(provider(loss)(params, {}, batch, key))[0] - true
            found.append((seen_by @ error, true @ error, error @ error))
        return found, [jnp.sum(g**2) for g in jax.tree.leaves(tree)]

    # One after another: what one compiled step gives, and compiled soon.
    keys = jax.random.split(jax.random.key(3), len(settings))
    found, squares = jax.jit(lambda xs: jax.lax.map(once, xs))((keys, settings))
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    return found, [np.asarray(s) for s in squares], sizes


def assert_zero_mean(draws):
    """Within four standard errors."""
    draws = np.asarray(draws, np.float64)
    error = np.std(draws, axis=0, ddof=1) / np.sqrt(len(draws))
    np.testing.assert_array_less(np.abs(np.mean(draws, axis=0)), 4 * error + 1e-7)


class OneOf(hg.Directions):
    """Directions of a kind that is chosen while the program runs: one compilation serves all."""

    def __init__(self, index):
        self.index = index

    def draw(self, key, like, count):
        branches = [functools.partial(kind.draw, like=like, count=count) for kind in KINDS]
        return jax.lax.switch(self.index, branches, key)


def each(names, slow):
    """Parameters of a test, some of which only `make test-slow` takes."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


@pytest.mark.parametrize("name", each(MODELS, ["mlp with batch norm"]))
def test_every_kind_is_unbiased_on_every_model_and_as_far_off_as_theory_says(name):
    model, shape = MODELS[name]
    draws = NUM_DRAWS * len(KINDS)
    index = jnp.arange(draws) % len(KINDS)
    (found,), squares, sizes = sampled(
        model, shape, lambda i: [hg.forward_gradient(OneOf(i))], index
    )
    d = sum(sizes)
    for i, kind in enumerate(KINDS):
        theory = (d + 1 if kind == hg.Gaussian() else d - 1) * np.sum(squares, axis=0)
        seen, along, error = (np.asarray(x)[i :: len(KINDS)] for x in found)
        assert_zero_mean(seen)
        assert_zero_mean(along)
        assert_zero_mean(error - theory[i :: len(KINDS)])


def jointly(factor):
    return lambda squares, sizes: factor(sum(sizes)) * sum(squares)


def a_tensor_each(squares, sizes):
    return sum((d - 1) * s for d, s in zip(sizes, squares, strict=True))


SETTINGS = {
    "five gaussian": (
        hg.forward_gradient(hg.Gaussian(), num_directions=5),
        jointly(lambda d: (d + 1) / 5),
    ),
    "five orthogonal": (
        hg.forward_gradient(hg.Orthogonal(), num_directions=5),
        jointly(lambda d: d / 5 - 1),
    ),
    "a tensor each": (hg.forward_gradient(is_joint=False), a_tensor_each),
    "two standardized, a tensor each": (
        hg.forward_gradient(hg.Standardized(), num_directions=2, is_joint=False),
        lambda squares, sizes: a_tensor_each(squares, sizes) / 2,
    ),
}


def test_so_are_several_directions_and_those_of_single_tensors():
    providers = [provider for provider, _ in SETTINGS.values()]
    found, squares, sizes = sampled(*MODELS["softmax"], lambda _: providers)
    for (seen, along, error), (_, theory) in zip(found, SETTINGS.values(), strict=True):
        assert_zero_mean(seen)
        assert_zero_mean(along)
        assert_zero_mean(error - theory(squares, sizes))


BY_PRE_ACTIVATIONS = {
    "softmax": {},
    "mlp": {"directions": hg.Gaussian(), "num_directions": 3},
    "cnn": {},
    "cnn, dense layers only": {"layers": (nn.Dense,)},
    "normalized": {},
}


@pytest.mark.parametrize("name", each(BY_PRE_ACTIVATIONS, ["cnn, dense layers only"]))
def test_estimates_by_pre_activations_are_unbiased(name):
    models = MODELS | {"normalized": (Normalized(), (9,))}
    model, shape = models[name.split(",")[0]]
    provider = activity_forward_gradient(example_losses(model), **BY_PRE_ACTIVATIONS[name])
    ((seen, along, error),), squares, sizes = sampled(model, shape, lambda _: [provider])
    assert_zero_mean(seen)
    assert_zero_mean(along)
    count = BY_PRE_ACTIVATIONS[name].get("num_directions", 1)
    assert np.mean(error) < np.mean(sum(squares)) * (sum(sizes) - 1) / count


def test_the_error_by_pre_activations_is_that_of_the_docstring():
    model = MLP((6, 5, 4), activation=nn.tanh)
    params, (inputs, labels) = problem(model, (9,))

    def losses(zs):
        """The network written out, from perturbations of its pre-activations."""
        x, out, seen = inputs, inputs, []
        for i, z in enumerate(zs):
            layer = params[f"Dense_{i}"]
            seen.append(x)
            out = x @ layer["kernel"] + layer["bias"] + z
            x = jnp.tanh(out)
        return -jax.nn.log_softmax(out)[jnp.arange(8), labels], seen

    zeros = [jnp.zeros((8, n)) for n in (6, 5, 4)]
    slopes, seen = jax.grad(lambda zs: (jnp.sum(losses(zs)[0]), losses(zs)[1]), has_aux=True)(zeros)
    squares = [jnp.sum(s**2, 1) for s in slopes]
    theory = sum(
        jnp.sum((jnp.sum(x**2, 1) + 1) * (n * sum(squares) - s)) / 64
        for x, n, s in zip(seen, (6, 5, 4), squares, strict=True)
    )
    provider = activity_forward_gradient(example_losses(model))
    ((_, _, error),), _, _ = sampled(model, (9,), lambda _: [provider])
    assert_zero_mean(np.asarray(error) - np.asarray(theory))


def test_many_directions_of_pre_activations_average_one_by_one():
    """Large enough that a compiler's fast paths are taken."""
    model, (inputs, labels) = SoftmaxRegression(10), problem(SoftmaxRegression(10), (20,), 300)[1]
    params = model.init(KEY, inputs, train=False)["params"]
    params = jax.tree.map(lambda p: p + jnp.cos(jnp.arange(p.size).reshape(p.shape)), params)
    drawn = []

    class Seen(hg.Rademacher):
        def draw(self, key, like, count):
            drawn.append(super().draw(key, like, count))
            return drawn[-1]

    provider = activity_forward_gradient(
        example_losses(model), directions=Seen(), num_directions=40
    )
    estimate = provider(None)(params, {}, (inputs, labels), KEY)
    layer, (signs,) = params["Dense_0"], drawn[0]
    logits = np.asarray(inputs @ layer["kernel"] + layer["bias"], np.float64)
    p = np.exp(logits) / np.sum(np.exp(logits), 1, keepdims=True)
    z_bar = p - np.eye(10)[labels]
    estimated = np.einsum("bn,kbn,kbm->bm", z_bar, signs, signs) / 40 / 300
    np.testing.assert_allclose(estimate["Dense_0"]["bias"], estimated.sum(0), atol=1e-5)
    np.testing.assert_allclose(estimate["Dense_0"]["kernel"], inputs.T @ estimated, atol=1e-5)


LIKE = {"w": jnp.zeros((7, 5)), "b": jnp.zeros(3), "scale": jnp.zeros(())}


class TestDirections:
    @pytest.mark.parametrize("kind", KINDS, ids=repr)
    def test_shapes_and_dtypes_are_the_tensors(self, kind):
        for dtype in (jnp.float32, jnp.bfloat16):
            like = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), LIKE)
            drawn = kind.draw(KEY, like, 4)
            assert jax.tree.map(lambda v: (v.shape, v.dtype), drawn) == jax.tree.map(
                lambda x: ((4, *x.shape), x.dtype), like
            )

    def test_signs_are_signs_and_differ(self):
        drawn = hg.Rademacher().draw(KEY, jnp.zeros(1000), 64)
        assert set(np.unique(drawn)) == {-1.0, 1.0}
        assert len(np.unique(drawn, axis=0)) == 64
        # Neighbours in a word, and words of neighbours, are uncorrelated: 4 standard errors.
        for lag in (1, 31, 32, 33):
            assert abs(np.mean(drawn[:, lag:] * drawn[:, :-lag])) < 4 / np.sqrt(64 * (1000 - lag))

    def test_standardized_ones_have_the_length_of_signs(self):
        for leaf in jax.tree.leaves(hg.Standardized().draw(KEY, LIKE, 4)):
            flat = np.asarray(leaf).reshape(4, -1)
            n = flat.shape[1]
            np.testing.assert_allclose(np.sum(flat**2, 1), n, rtol=1e-5)
            np.testing.assert_allclose(np.abs(np.mean(flat, 1)), 1 / np.sqrt(n), rtol=1e-4)

    def test_standardized_ones_that_are_not_shifted_have_mean_zero_and_variance_one(self):
        (w,) = hg.Standardized(is_shifted=False).draw(KEY, [jnp.zeros((7, 5))], 4)
        np.testing.assert_allclose(np.mean(w, (1, 2)), 0, atol=1e-6)
        np.testing.assert_allclose(np.var(w, (1, 2), ddof=1), 1, rtol=1e-5)

    def test_those_estimate_the_gradient_less_its_mean_in_each_tensor(self):
        gradient = {"w": jnp.array([[3.0, 1.0], [2.0, -1.0]]), "b": jnp.array([0.5, 2.5])}

        def loss(params, hparams, batch, key):
            return sum(jnp.vdot(gradient[name], params[name]) for name in gradient)

        provider = hg.forward_gradient(hg.Standardized(is_shifted=False))
        keys = jax.random.split(KEY, 20_000)
        at = jax.tree.map(jnp.zeros_like, gradient)
        draws = jax.jit(jax.vmap(lambda key: provider(loss)(at, {}, None, key)))(keys)
        for name, g in gradient.items():
            assert_zero_mean(draws[name] - (g - jnp.mean(g)))

    def test_orthogonal_ones_are(self):
        drawn = hg.Orthogonal().draw(KEY, LIKE, 39)
        flat = np.concatenate([np.asarray(v).reshape(39, -1) for v in jax.tree.leaves(drawn)], 1)
        np.testing.assert_allclose(flat @ flat.T, 39 * np.eye(39), atol=1e-3)

    def test_a_direction_for_every_number_gives_the_gradient(self):
        model, shape = MODELS["mlp"]
        params, batch = problem(model, shape)
        count = sum(x.size for x in jax.tree.leaves(params))
        loss = classification_loss(model)
        provider = hg.forward_gradient(hg.Orthogonal(), num_directions=count)
        got = jax.jit(provider(loss))(params, {}, batch, KEY)
        want = hg.backpropagation(loss)(params, {}, batch, KEY)
        np.testing.assert_allclose(ravel_pytree(got)[0], ravel_pytree(want)[0], atol=1e-5)


RULES = {
    "sgd": hg.sgd,
    "momentum": functools.partial(hg.momentum, momentum=0.5),
    "nesterov": functools.partial(hg.nesterov, momentum=0.5),
    "adam": hg.adam,
    "rmsprop_momentum": functools.partial(hg.rmsprop_momentum, decay=0.8, momentum=0.5),
    "average": lambda loss, gradient: hg.average(hg.sgd(loss, gradient=gradient), decay=0.8),
    "from_optax": lambda loss, gradient: hg.from_optax(
        lambda hparams: optax.sgd(hparams["learning_rate"]), loss, gradient=gradient
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_takes_it(rule):
    """With as many orthogonal directions as numbers, it trains as backpropagation does."""

    def loss(params, hparams, batch, key):
        return jnp.sum(jnp.cosh(params - jnp.arange(1.0, 4.0)))

    def end(gradient):
        transition = RULES[rule](loss, gradient=gradient)
        settings = {"num_steps": 3, "key": KEY}
        return hg.unroll(transition, jnp.zeros(3), {"learning_rate": 0.1}, None, **settings).params

    got = end(hg.forward_gradient(hg.Orthogonal(), num_directions=3))
    np.testing.assert_allclose(got, end(hg.backpropagation), rtol=1e-4, atol=1e-5)


# Hypergradients: through a smooth network with dropout, in float64.

NUM_STEPS = 6
NET = MLP((3, 4), activation=nn.tanh, dropout_rate=0.2)


def penalty(params, hparams):
    return hparams["l2"] * sum(jnp.sum(x**2) for x in jax.tree.leaves(params))


def net_loss(params, hparams, batch, key):
    return classification_loss(NET)(params, hparams, batch, key) + penalty(params, hparams)


PROVIDERS = {
    "a direction": hg.forward_gradient(),
    "orthogonal ones": hg.forward_gradient(hg.Orthogonal(), num_directions=3),
    "a tensor each": hg.forward_gradient(hg.Gaussian(), is_joint=False),
    "pre-activations": activity_forward_gradient(example_losses(NET), penalty=penalty),
}


@pytest.mark.parametrize("name", each(PROVIDERS, ["orthogonal ones", "a tensor each"]))
def test_hypergradients_agree_with_each_other_and_with_differences(name):
    with jax.enable_x64(True):
        params, batch = problem(NET, (4,))
        params, batch = jax.tree.map(
            lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            (params, batch),
        )
        hparams = {
            "learning_rate": jnp.linspace(0.02, 0.01, NUM_STEPS),
            "momentum": jnp.float64(0.8),
            "l2": jnp.float64(0.1),
        }
        flat, unravel = ravel_pytree((params, hparams))
        rule = hg.momentum(net_loss, gradient=PROVIDERS[name])

        def value(x, adjoint):
            params, hparams = unravel(x)
            out = hg.unroll(
                rule,
                params,
                hparams,
                batch,
                num_steps=NUM_STEPS,
                key=KEY,
                hparams_axes={"learning_rate": 0, "momentum": None, "l2": None},
                adjoint=adjoint,
            )
            return classification_loss(NET)(out.params, {}, batch, KEY)

        direct = jax.jit(functools.partial(value, adjoint=hg.Direct()))
        direction = jnp.cos(jnp.arange(flat.size, dtype=flat.dtype))
        h = 1e-3
        weights = {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}
        want = sum(
            w / h * (direct(flat + k * h * direction) - direct(flat - k * h * direction))
            for k, w in weights.items()
        )
        adjoints = [hg.Reversible()]
        if name == "a direction":
            adjoints += [hg.Direct()]
            along = jax.jit(
                lambda x, v: jax.jvp(functools.partial(value, adjoint=hg.Direct()), (x,), (v,))[1]
            )
            np.testing.assert_allclose(along(flat, direction), want, rtol=1e-9)
        for adjoint in adjoints:
            # NaN if a step on the way back had other directions than on the way there.
            found = jax.jit(jax.grad(functools.partial(value, adjoint=adjoint)))(flat)
            np.testing.assert_allclose(found @ direction, want, rtol=1e-9)


def test_float32_runs_are_restored_bit_for_bit():
    params, batch = problem(NET, (4,))
    rule = hg.heavy_ball(net_loss, gradient=hg.forward_gradient())
    hparams = {"learning_rate": 0.01, "momentum": 0.9, "l2": 0.1}
    settings = {"num_steps": 30, "key": KEY, "adjoint": hg.Reversible()}

    @jax.jit
    def back(params, hparams):
        out, pullback = hg.vjp(rule, params, hparams, batch, **settings)
        return pullback(out.params)[1]

    assert hg.check(back(params, hparams)).is_restored


class TestValueAndSlope:
    """The pass that both are taken in, against `jax.jvp`."""

    @staticmethod
    def awkward(params):
        """What is merged, what is not, and what is not differentiable."""
        x = jnp.cos(jnp.arange(12.0)).reshape(4, 3)
        inner = jax.jit(lambda h, w: jax.nn.relu(h @ w))
        h = inner(x, params["w"])
        h, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ params["w"]), None), h, None, length=2)
        h = jnp.einsum("bi,bij->bj", h, jnp.stack([params["w"]] * 4)) + params["w"][0] @ h.T @ x
        image = jax.lax.conv_general_dilated(
            h.reshape(1, 4, 3, 1), params["k"], (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        image = jax.lax.conv_general_dilated(
            image, jnp.tile(params["k"], (1, 1, 1, 2)), (2, 1), "VALID",
            dimension_numbers=("NHWC", "HWIO", "NCHW"), feature_group_count=2,
        )  # fmt: skip
        index = jnp.argmax(h[0])
        kept = jax.checkpoint(lambda h: jnp.sum(h**2))(h)
        return kept + jnp.sum(jnp.sort(h[:, 0])) + jax.nn.softmax(h)[0, index] + jnp.sum(image**3)

    def test_equals_jvp_and_so_do_its_derivatives(self):
        with jax.enable_x64(True):
            params = {
                "w": jnp.sin(jnp.arange(9.0)).reshape(3, 3),
                "k": jnp.sin(jnp.arange(8.0)).reshape(2, 2, 1, 2),
            }
            v = jax.tree.map(lambda x: jnp.cos(3 * x), params)
            want = jax.jvp(self.awkward, (params,), (v,))
            np.testing.assert_allclose(value_and_slope(self.awkward, params, v), want, rtol=1e-12)
            got = jax.grad(lambda p: value_and_slope(self.awkward, p, v)[1])(params)
            want = jax.grad(lambda p: jax.jvp(self.awkward, (p,), (v,))[1])(params)
            for name in params:
                np.testing.assert_allclose(got[name], want[name], rtol=1e-11)

    def test_a_loss_that_ignores_its_parameters_has_slope_zero(self):
        assert value_and_slope(lambda p: jnp.float32(2.0), jnp.ones(3), jnp.ones(3)) == (2.0, 0.0)

    def test_a_convolutional_layer_is_one_convolution(self):
        model, shape = MODELS["cnn"]
        params, batch = problem(model, shape)
        loss = functools.partial(classification_loss(model), hparams={}, batch=batch, key=None)

        def count(function):
            text = str(jax.make_jaxpr(function)(params, params))
            return text.count("conv_general_dilated[")

        assert count(lambda p, v: value_and_slope(loss, p, v)) == 2
        assert count(lambda p, v: jax.jvp(loss, (p,), (v,))) == 5


def centered(params, hparams, batch, key):
    """Losses with a normalization over the batch that is no flax module."""
    z = jnp.asarray(nn.Dense(3).apply({"params": params["Dense_0"]}, batch[0]))
    return jnp.sum((z - jnp.mean(z, axis=0)) ** 2, axis=1)


def contrasted(params, hparams, batch, key):
    """Losses that push examples of other classes away."""
    z = jnp.asarray(nn.Dense(3).apply({"params": params["Dense_0"]}, batch[0]))
    distances = jnp.sum((z[:, None] - z) ** 2, axis=2)
    is_other = batch[1][:, None] != batch[1]
    return jnp.sum(jnp.where(is_other, jnp.exp(-distances), 0), axis=1)


def stabilized(params, hparams, batch, key):
    """Losses of each example alone, though what is subtracted and added again is not."""
    z = jnp.asarray(nn.Dense(3).apply({"params": params["Dense_0"]}, batch[0]))
    largest = jax.lax.stop_gradient(jnp.max(z))
    return jnp.log(jnp.sum(jnp.exp(z - largest), axis=1)) + largest


class Rematerialized(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.remat(nn.Dense)(3, name="Dense_0")(x)


class TestErrors:
    def test_a_model_is_no_loss(self):
        with pytest.raises(TypeError, match=r"example_losses is a model; pass .*example_losses\("):
            activity_forward_gradient(MLP((3, 4)))
        with pytest.raises(TypeError, match=r"is called as example_losses\(params, hparams, ba"):
            activity_forward_gradient(lambda params: 0.0)

    def test_inputs_normalized_over_the_batch_are_fine(self):
        """Only what is perturbed may not mix."""
        params, batch = problem(MLP((3, 4)), (4,))

        def losses(p, h, b, k):
            x = b[0] - jnp.mean(b[0], axis=0)
            return example_losses(MLP((3, 4)))(p, h, (x, b[1]), k)

        for served in (losses, stabilized):
            with jax.debug_nans(True):
                estimate = jax.jit(activity_forward_gradient(served)(None))(params, {}, batch, KEY)
            assert any(np.any(x != 0) for x in jax.tree.leaves(estimate))

    def test_arguments(self):
        with pytest.raises(TypeError, match=r"directions is .*Gaussian.*must be a value such as"):
            hg.forward_gradient(hg.Gaussian)
        for make in (hg.forward_gradient, functools.partial(activity_forward_gradient, None)):
            with pytest.raises(ValueError, match="num_directions is 0; an estimate needs at least"):
                make(num_directions=0)
            with pytest.raises(ValueError, match=r"num_directions is 2\.0; it must be an int"):
                make(num_directions=2.0)

    def test_no_key(self):
        params, batch = problem(NET, (4,))
        for provider in (hg.forward_gradient(), activity_forward_gradient(example_losses(NET))):
            rule = hg.sgd(classification_loss(NET), learning_rate=0.1, gradient=provider)
            with pytest.raises(ValueError, match=r"key is None, but .*forward_gradient draws its"):
                hg.unroll(rule, params, {}, batch, num_steps=1)

    def test_more_directions_than_numbers(self):
        provider = hg.forward_gradient(hg.Orthogonal(), num_directions=4)
        with pytest.raises(ValueError, match="num_directions is 4, but 3 numbers have no more"):
            provider(lambda p, h, b, k: jnp.sum(p))(jnp.zeros(3), {}, None, KEY)

    def test_a_tensor_of_one_number_without_a_shift(self):
        provider = hg.forward_gradient(hg.Standardized(is_shifted=False))
        with pytest.raises(ValueError, match="met a tensor of one number"):
            provider(lambda p, h, b, k: jnp.sum(p))(jnp.zeros(()), {}, None, KEY)

    def test_a_loss_that_is_no_scalar(self):
        with pytest.raises(ValueError, match=r"loss returned float32 of shape \(3,\)"):
            hg.forward_gradient()(lambda p, h, b, k: p)(jnp.zeros(3), {}, None, KEY)

    @pytest.mark.parametrize(
        ("losses", "message"),
        [
            (example_losses(MLP((3, 4), batch_norm=True)), "the model has batch normalization"),
            (classification_loss(MLP((3, 4))), r"must return one loss for each example, \[B\]"),
            (lambda p, h, b, k: b[0] @ p["Dense_0"]["kernel"][:, 0], "applies none of the layers"),
            (
                lambda p, h, b, k: (
                    example_losses(MLP((3, 4)))(p, h, b, k) + jnp.sum(p["Dense_1"]["kernel"] ** 2)
                ),
                r"params\['Dense_1'\]\['kernel'\] through a perturbed layer and otherwise too",
            ),
            (
                lambda p, h, b, k: (
                    nn.Dense(3).apply({"params": p["Dense_0"]}, b[0][:4])[:, 0].sum() * jnp.ones(8)
                ),
                r"output has shape \(4, 3\), but there are 8 examples",
            ),
            (centered, "depends on the pre-activations of other examples"),
            (contrasted, "depends on the pre-activations of other examples"),
            (
                lambda p, h, b, k: Rematerialized().apply({"params": p}, b[0])[:, 0] ** 2,
                "stands in a jit, scan, vmap or remat of its own",
            ),
        ],
        ids=[
            "batch norm",
            "mean",
            "no layer",
            "penalty inside",
            "other axis",
            "norm",
            "contrast",
            "remat",
        ],
    )
    def test_losses_that_cannot_be_served(self, losses, message):
        params, batch = problem(MLP((3, 4)), (4,))
        if "normalization" in message:
            params = problem(MLP((3, 4), batch_norm=True), (4,))[0]
        with pytest.raises(ValueError, match=message):
            activity_forward_gradient(losses)(None)(params, {}, batch, KEY)
