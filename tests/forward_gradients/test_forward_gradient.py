"""Forward gradients: their mean, their error, and the directions that they are drawn along."""

# JAX arrays and flax modules pass where pyright sees narrower types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

import hgrad_jax as hg
from hgrad_jax.forward_gradients import activity_forward_gradient, example_losses
from hgrad_jax.models import MLP, SoftmaxRegression, classification_loss
from tests.shared import regression
from tests.shared.forward_gradients import (
    KEY,
    KINDS,
    MODELS,
    NUM_DRAWS,
    assert_zero_mean,
    problem,
    sampled,
)


class Normalized(nn.Module):
    """Parameters beside those of dense layers: a scale and a shift."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.LayerNorm()(nn.tanh(nn.Dense(5)(x)))
        return nn.Dense(4)(x)


class OneOf(hg.Directions):
    """Directions of a kind that is chosen while the program runs: one compilation serves all."""

    def __init__(self, index):
        self.index = index

    def draw(self, key, like, count):
        branches = [functools.partial(kind.draw, like=like, count=count) for kind in KINDS]
        return jax.lax.switch(self.index, branches, key)


@pytest.mark.parametrize("name", regression.each(MODELS, ["cnn", "mlp with batch norm"]))
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


@pytest.mark.parametrize("name", regression.each(BY_PRE_ACTIVATIONS, ["cnn, dense layers only"]))
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
