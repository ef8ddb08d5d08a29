from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from hgrad_jax.models import (
    CNN,
    MLP,
    BatchNorm,
    SoftmaxRegression,
    batch_statistics,
    cosine,
    cross_entropy,
    error_rate,
    glorot_normal,
    glorot_uniform,
    he_normal,
    he_uniform,
    scaled_normal,
    uniform,
)

KEY = jax.random.key(0)
IMAGES = jax.random.normal(jax.random.key(1), (12, 8, 8, 2))
LABELS = jnp.arange(12) % 3
MODELS = [
    SoftmaxRegression(3),
    MLP((7, 3), activation=nn.tanh),
    MLP((7, 5, 3), batch_norm=True, dropout_rate=0.3),
    CNN(3, channels=(4, 5), hidden=(6,), activation=nn.gelu),
    CNN(3, channels=(4,), hidden=(6,), max_pool=False, batch_norm=True, dropout_rate=0.3),
    MLP((7, 3), activation=nn.sigmoid, use_bias=False, kernel_init=scaled_normal(0.3)),
]


def init(model, x=IMAGES):
    return dict(jax.jit(model.init, static_argnames="train")(KEY, x, train=False)["params"])


def apply(model, variables, x, *, train, key=KEY):
    """The logits, as a numpy array."""
    jitted = jax.jit(model.apply, static_argnames="train")
    return np.asarray(jitted(variables, x, train=train, rngs={"dropout": key}))


class TestLosses:
    def test_integer_labels_by_hand(self):
        logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]))
        want = -(np.log(0.7) + np.log(0.25)) / 2
        assert float(cross_entropy(logits, jnp.array([0, 1]))) == pytest.approx(want, rel=1e-6)

    def test_one_hot_equals_integers_and_soft_labels_are_linear(self):
        logits = jax.random.normal(KEY, (5, 4))
        labels = jnp.array([0, 3, 1, 1, 2])
        hot = jax.nn.one_hot(labels, 4, dtype=jnp.int32)
        np.testing.assert_allclose(
            cross_entropy(logits, hot), cross_entropy(logits, labels), rtol=1e-6
        )
        flat = jnp.full((5, 4), 0.25)
        mixed = cross_entropy(logits, 0.9 * hot + 0.1 * flat)
        want = 0.9 * cross_entropy(logits, labels) + 0.1 * cross_entropy(logits, flat)
        np.testing.assert_allclose(mixed, want, rtol=1e-6)

    def test_large_logits_stay_finite_to_the_second_derivative(self):
        logits = jnp.array([[1e4, -1e4, 0.0], [-1e30, 1e30, 0.0]])
        labels = jnp.array([1, 1])
        loss, grad = jax.value_and_grad(cross_entropy)(logits, labels)
        assert float(loss) == 1e4
        np.testing.assert_array_equal(grad, [[0.5, -0.5, 0], [0, 0, 0]])
        assert np.all(np.isfinite(jax.hessian(cross_entropy)(logits, labels)))

    def test_derivatives_against_the_closed_form(self):
        """Gradient (p - q) / B, Hessian (diag p - p p') / B, gradient in q: -log p / B."""
        logits, labels = jax.random.normal(KEY, (2, 3)), jnp.array([2, 0])
        p = jax.nn.softmax(logits)
        q = jax.nn.one_hot(labels, 3)
        np.testing.assert_allclose(
            jax.grad(cross_entropy)(logits, labels), (p - q) / 2, rtol=1e-5, atol=1e-7
        )
        hessian = jax.hessian(cross_entropy)(logits, labels)
        for i in range(2):
            want = (np.diag(p[i]) - np.outer(p[i], p[i])) / 2
            np.testing.assert_allclose(hessian[i, :, i], want, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(hessian[0, :, 1], 0)
        np.testing.assert_allclose(
            jax.grad(cross_entropy, argnums=1)(logits, q), -jnp.log(p) / 2, rtol=1e-5
        )

    @pytest.mark.parametrize("wrong", [-1, 4])
    def test_a_label_that_is_no_class_is_not_silent(self, wrong):
        assert np.isnan(cross_entropy(jnp.zeros((2, 4)), jnp.array([0, wrong])))

    def test_error_rate(self):
        logits = jnp.array([[1.0, 2, 0], [3, 1, 1], [0, 0, 1], [1, 1, 0]])
        assert float(error_rate(logits, jnp.array([1, 1, 2, 0]))) == 0.25
        assert float(error_rate(logits, jax.nn.one_hot(jnp.array([0, 1, 2, 1]), 3))) == 0.75

    @pytest.mark.parametrize("loss", [cross_entropy, error_rate])
    def test_shapes_and_dtypes_are_checked(self, loss):
        with pytest.raises(ValueError, match=r"logits \[4, 3\] need labels \[4\] or \[4, 3\]: got"):
            loss(jnp.zeros((4, 3)), jnp.zeros((3,), int))
        with pytest.raises(ValueError, match=r"labels \[4\] must be integers: got float32"):
            loss(jnp.zeros((4, 3)), jnp.zeros(4))
        with pytest.raises(ValueError, match=r"logits \[\] need"):
            loss(jnp.zeros(()), jnp.zeros((), int))


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
class TestEveryModel:
    def test_parameters_are_the_only_collection(self, model):
        for train in (True, False):
            variables = jax.eval_shape(
                lambda keys, train=train: model.init(keys, IMAGES, train=train),
                {"params": KEY, "dropout": KEY},
            )
            assert list(variables) == ["params"]
        logits = apply(model, {"params": init(model)}, IMAGES, train=True)
        assert logits.shape == (12, 3)
        assert logits.dtype == jnp.float32

    def test_hessian_vector_products_of_both_orders_and_differences_agree(self, model):
        params = init(model)
        # From random parameters: at the zeros of a softmax regression much would cancel.
        flat, unravel = ravel_pytree(params)
        flat = flat + 0.1 * jax.random.normal(jax.random.key(2), flat.shape)
        direction = jax.random.normal(jax.random.key(3), flat.shape)
        direction /= jnp.linalg.norm(direction)

        @jax.jit
        def grad(flat):
            def loss(flat):
                variables = {"params": unravel(flat)}
                logits = model.apply(variables, IMAGES, train=True, rngs={"dropout": KEY})
                return cross_entropy(logits, LABELS)

            return jax.grad(loss)(flat)

        forward = jax.jvp(grad, (flat,), (direction,))[1]
        reverse = jax.grad(lambda flat: grad(flat) @ direction)(flat)
        step = 1e-3
        central = (grad(flat + step * direction) - grad(flat - step * direction)) / (2 * step)
        np.testing.assert_allclose(forward, reverse, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(forward, central, rtol=2e-2, atol=2e-3)
        assert float(jnp.linalg.norm(forward)) > 1e-2

    def test_prediction_does_not_depend_on_the_other_examples(self, model):
        params = init(model)
        variables = {"params": params, "batch_stats": batch_statistics(model, params, IMAGES)}
        together = apply(model, variables, IMAGES, train=False)
        alone = apply(model, variables, IMAGES[3:4], train=False)
        np.testing.assert_allclose(together[3:4], alone, rtol=1e-4, atol=1e-5)


def test_mlp_by_hand():
    params = init(MLP((4, 3), activation=nn.tanh))
    first, last = params["Dense_0"], params["Dense_1"]
    x = np.asarray(IMAGES).reshape(12, -1)
    want = np.tanh(x @ first["kernel"] + first["bias"]) @ last["kernel"] + last["bias"]
    got = apply(MLP((4, 3), activation=nn.tanh), {"params": params}, IMAGES, train=True)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_mlp_without_biases_by_hand():
    model = MLP((4, 3), activation=nn.sigmoid, use_bias=False)
    params = init(model)
    assert {name: list(layer) for name, layer in params.items()} == {
        "Dense_0": ["kernel"],
        "Dense_1": ["kernel"],
    }
    x = np.asarray(IMAGES).reshape(12, -1)
    hidden = 1 / (1 + np.exp(-x @ params["Dense_0"]["kernel"]))
    got = apply(model, {"params": params}, IMAGES, train=True)
    np.testing.assert_allclose(got, hidden @ params["Dense_1"]["kernel"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_pool", [True, False])
def test_a_convolution_may_leave_the_image_as_large_as_it_is(max_pool):
    """1-2 and 2-4 channels at 28x28, halved once at the end: 784-64-10."""
    model = CNN(10, channels=(2, 4), hidden=(64,), halves=(False, True), max_pool=max_pool)
    images = jnp.ones((1, 28, 28, 1))
    params = jax.eval_shape(lambda: model.init(KEY, images, train=False)["params"])
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert {name: shapes[name]["kernel"] for name in ("Conv_0", "Conv_1")} == {
        "Conv_0": (3, 3, 1, 2),
        "Conv_1": (3, 3, 2, 4),
    }
    assert shapes["MLP_0"]["Dense_0"]["kernel"] == (784, 64)
    assert shapes["MLP_0"]["Dense_1"]["kernel"] == (64, 10)


class TestInitializers:
    @pytest.mark.parametrize(
        ("initializer", "variance"),
        [
            (he_normal(), 2 / 400),
            (he_uniform(), 2 / 400),
            (glorot_normal(), 2 / (400 + 100)),
            (glorot_uniform(), 2 / (400 + 100)),
            (scaled_normal(0.3), 0.09),
            (uniform(-0.5, 0.5), 1 / 12),
            (uniform(1.0, 3.0), 4 / 12),
        ],
    )
    def test_means_and_variances(self, initializer, variance):
        """Within 4 standard errors; a normal's variance has the larger one, sqrt(2 / n)."""
        weights = np.asarray(initializer(KEY, (400, 100), jnp.float32), np.float64)
        mean = 2.0 if weights.min() > 0.9 else 0.0
        assert weights.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / weights.size))
        assert weights.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / weights.size))

    def test_uniform_keeps_to_its_range(self):
        weights = np.asarray(uniform(-0.25, 0.75)(KEY, (10_000,), jnp.float32))
        assert -0.25 <= weights.min() < -0.249
        assert 0.749 < weights.max() < 0.75

    def test_cosine_counts_on_from_layer_to_layer(self):
        inits = (cosine(), cosine(offset=128 * 5))
        model = MLP((5, 3), use_bias=False, kernel_init=inits)
        params = init(model)
        # Column-major in matrices [outputs, inputs], which are the kernels' transposes.
        filled = np.concatenate(
            [np.asarray(params[name]["kernel"]).T.ravel("F") for name in ("Dense_0", "Dense_1")]
        )
        np.testing.assert_allclose(filled, 0.1 * np.cos(np.arange(128 * 5 + 15)), rtol=1e-6)

    def test_cosine_is_rounded_once(self):
        far = cosine(2.0, offset=10**7)(KEY, (3,), jnp.float32)
        np.testing.assert_array_equal(far, np.float32(2 * np.cos(10**7 + np.arange(3.0))))
        assert cosine()(None, (3,), jnp.bfloat16).dtype == jnp.bfloat16

    def test_each_layer_has_its_own(self):
        ones, twos = nn.initializers.constant(1.0), nn.initializers.constant(2.0)
        model = CNN(3, channels=(2,), hidden=(4,), kernel_init=(ones, twos, ones), bias_init=twos)
        params = init(model)
        assert np.unique(params["Conv_0"]["kernel"]) == 1
        assert np.unique(params["MLP_0"]["Dense_0"]["kernel"]) == 2
        assert np.unique(params["MLP_0"]["Dense_1"]["kernel"]) == 1
        assert np.unique(params["Conv_0"]["bias"]) == 2
        assert np.unique(params["MLP_0"]["Dense_1"]["bias"]) == 2
        softmax = init(SoftmaxRegression(3, kernel_init=ones, bias_init=twos))["Dense_0"]
        assert np.unique(softmax["kernel"]) == 1
        assert np.unique(softmax["bias"]) == 2
        assert list(init(SoftmaxRegression(3, use_bias=False))["Dense_0"]) == ["kernel"]

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: uniform(1.0, 1.0), r"low is 1.0 and high 1.0"),
            (lambda: cosine(offset=-1), "offset is -1; it must be an integer"),
            (lambda: init(MLP((4, 3), kernel_init=(cosine(),))), "1 initializers for 2 layers"),
            (lambda: init(CNN(3, halves=(True,))), "halves has 1 entries for 2 convolutions"),
            (lambda: init(MLP(cast(Any, 10))), "features is 10; give the widths of all layers"),
            (lambda: init(CNN(3, (2, 2, 2, 2))), "an image of 1 x 1 cannot be halved again"),
            (lambda: init(MLP(())), "give the widths of all layers"),
            (
                lambda: init(MLP((3,), dropout_rate=1.5)),
                r"dropout_rate is 1\.5; it must be in \[0,",
            ),
            (lambda: init(MLP((3,), dropout_rate=cast(Any, "a"))), "dropout_rate is 'a'; it must"),
            (lambda: init(MLP((5, 0))), r"features is \(5, 0\); give widths of layers, positive"),
            (lambda: init(MLP(cast(Any, (5.0, 3)))), r"features is \(5.0, 3\); give widths"),
            (lambda: init(CNN(3, channels=cast(Any, 4))), "channels is 4; give widths of layers"),
            (lambda: init(CNN(3, hidden=cast(Any, 4))), "hidden is 4; give widths of layers"),
            (lambda: init(CNN(3, halves=cast(Any, True))), "halves is True; give a bool for each"),
            (lambda: init(SoftmaxRegression(cast(Any, "a"))), "num_classes is 'a'; it must be a"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (
                lambda: init(MLP((4, 3), activation=cast(Any, "relu"))),
                "activation is 'relu'; pass a function such as flax.linen.relu",
            ),
            (
                lambda: init(CNN(3, activation=cast(Any, None))),
                "activation is None; pass a function such as flax.linen.relu",
            ),
            (
                lambda: init(MLP((4, 3), kernel_init=cast(Any, "zeros"))),
                r"kernel_init is 'zeros'; pass a function such as hgrad_jax.models.he_normal",
            ),
            (
                lambda: init(MLP((4, 3), kernel_init=cast(Any, (1.0, 2.0)))),
                r"kernel_init\[0\] is 1.0; pass a function",
            ),
            (
                lambda: init(SoftmaxRegression(3, bias_init=cast(Any, 0.0))),
                "bias_init is 0.0; pass a function such as",
            ),
        ],
    )
    def test_what_is_no_function(self, call, message):
        with pytest.raises(TypeError, match=message):
            call()


def test_dropout_follows_its_key_and_keeps_the_mean():
    """One hidden layer of 2,000 units that are all 1: the kept fraction, within 4 deviations."""
    model = MLP((2000, 1), activation=jnp.ones_like, dropout_rate=0.25)
    params = init(model, IMAGES[:4])
    params = params | {"Dense_1": {"kernel": jnp.ones((2000, 1)) / 2000, "bias": jnp.zeros(1)}}

    def out(key):
        return apply(model, {"params": params}, IMAGES[:4], train=True, key=key)

    np.testing.assert_array_equal(out(KEY), out(KEY))
    assert not np.array_equal(out(KEY), out(jax.random.key(1)))
    np.testing.assert_allclose(out(KEY), 1, atol=4 * np.sqrt(0.25 / 0.75 / 2000))
    predicted = apply(model, {"params": params}, IMAGES[:4], train=False)
    np.testing.assert_allclose(predicted, 1, rtol=1e-5)


def test_softmax_regression_starts_at_zero():
    logits = apply(SoftmaxRegression(3), {"params": init(SoftmaxRegression(3))}, IMAGES, train=True)
    np.testing.assert_array_equal(logits, np.zeros((12, 3)))


class TestBatchNorm:
    def test_training_normalizes_by_the_batch(self):
        x = 5 + 3 * IMAGES
        variables = {"params": {"scale": jnp.array([1.0, 2.0]), "bias": jnp.array([0.0, -1.0])}}
        out = apply(BatchNorm(), variables, x, train=True)
        np.testing.assert_allclose(out.mean((0, 1, 2)), [0, -1], atol=1e-5)
        np.testing.assert_allclose(out.std((0, 1, 2)), [1, 2], rtol=1e-5)

    def test_missing_statistics_are_named(self):
        model = MLP((7, 3), batch_norm=True)
        params = init(model)
        for variables in ({"params": params}, {"params": params, "batch_stats": {}}):
            with pytest.raises(ValueError, match=r"train=False needs the statistics.*batch_stati"):
                model.apply(variables, IMAGES, train=False)

    @pytest.mark.parametrize("model", [MODELS[2], MODELS[4]])
    def test_one_pass_over_the_training_data_predicts_as_training_on_all_of_it(self, model):
        """With all data as the batch and no dropout, both modes use the same statistics."""
        params = init(model)
        variables = {"params": params, "batch_stats": batch_statistics(model, params, IMAGES)}
        trained = apply(model.clone(dropout_rate=0.0), variables, IMAGES, train=True)
        predicted = apply(model, variables, IMAGES, train=False)
        np.testing.assert_allclose(predicted, trained, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("batch_size", [1, 4, 5, 12])
    def test_pooled_statistics_are_those_of_all_examples(self, batch_size):
        x = 1000 + IMAGES  # a large mean: E[x**2] - mean**2 would lose the variance
        params = BatchNorm().init(KEY, x, train=True)["params"]
        stats = batch_statistics(BatchNorm(), params, x, batch_size=batch_size)
        exact = np.asarray(x, np.float64)
        np.testing.assert_allclose(stats["mean"], exact.mean((0, 1, 2)), rtol=1e-6)
        np.testing.assert_allclose(stats["var"], exact.var((0, 1, 2)), rtol=1e-3)

    def test_later_layers_average_over_batches(self):
        """Layer 2's mean and variance, pooled by hand from two unequal batches."""
        model = MLP((4, 4, 3), batch_norm=True)
        params = init(model)
        stats = batch_statistics(model, params, IMAGES, batch_size=8)["BatchNorm_1"]
        parts = [
            batch_statistics(model, params, batch)["BatchNorm_1"]
            for batch in (IMAGES[:8], IMAGES[8:])
        ]
        weights = np.array([8, 4]) / 12
        means = np.stack([part["mean"] for part in parts])
        mean = weights @ means
        var = weights @ (np.stack([part["var"] for part in parts]) + (means - mean) ** 2)
        np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(stats["var"], var, rtol=1e-5)

    def test_models_without_it_have_no_statistics(self):
        assert batch_statistics(MODELS[1], init(MODELS[1]), IMAGES, batch_size=5) == {}

    @pytest.mark.parametrize("batch_size", [0, 13])
    def test_batch_size_is_checked(self, batch_size):
        with pytest.raises(ValueError, match=rf"in 1\.\.12.*got {batch_size}"):
            batch_statistics(MODELS[2], init(MODELS[2]), IMAGES, batch_size=batch_size)
