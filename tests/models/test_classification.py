import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hgrad_jax.data import Dataset, validate_examples, validate_finite
from hgrad_jax.forward_gradients import example_losses
from hgrad_jax.models import (
    MLP,
    batch_statistics,
    classification_loss,
    classification_metrics,
    cross_entropy,
    error_rate,
)

KEY = jax.random.key(0)
DATA = Dataset(
    np.random.RandomState(0).normal(size=(25, 4)).astype(np.float32),
    (np.arange(25) % 3).astype(np.int32),
)
PLAIN = MLP((6, 3))
DROPOUT = MLP((6, 3), dropout_rate=0.5)
NORMED = MLP((6, 3), batch_norm=True)


def init(model):
    return model.init(KEY, DATA.inputs, train=False)["params"]


class Identity(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return x


class TestLoss:
    def test_is_the_cross_entropy_of_the_model_in_training(self):
        loss, params = classification_loss(NORMED), init(NORMED)
        logits = NORMED.apply({"params": params}, DATA.inputs, train=True)
        want = cross_entropy(jnp.asarray(logits), jnp.asarray(DATA.labels))
        assert loss(params, {"unused": 1.0}, DATA, None) == want
        assert loss(params, {}, (DATA.inputs, DATA.labels), KEY) == want

    def test_the_key_draws_the_dropout(self):
        loss, params = jax.jit(classification_loss(DROPOUT)), init(DROPOUT)
        at = [float(loss(params, {}, DATA, jax.random.key(i))) for i in (1, 1, 2)]
        assert at[0] == at[1] != at[2]
        with pytest.raises(ValueError, match="key is None, but the model draws random numbers"):
            loss(params, {}, DATA, None)


class TestMetrics:
    @pytest.mark.parametrize("batch_size", [1, 7, 25, 1000])
    def test_batches_do_not_change_what_is_measured(self, batch_size):
        params = init(PLAIN)
        measured = jax.jit(classification_metrics(PLAIN, batch_size=batch_size))(params, DATA)
        logits = jnp.asarray(PLAIN.apply({"params": params}, DATA.inputs, train=False))
        labels = jnp.asarray(DATA.labels)
        np.testing.assert_allclose(measured["loss"], cross_entropy(logits, labels), rtol=1e-5)
        np.testing.assert_allclose(measured["accuracy"], 1 - error_rate(logits, labels), rtol=1e-5)

    @pytest.mark.parametrize("count", [41, 47, 55])
    def test_all_is_all(self, count):
        """Times 1 / count it would be 0.99999994, and three quarters a bit less."""
        logits = jnp.eye(3)[np.arange(count) % 3]
        rate = jax.jit(error_rate)
        assert rate(logits, jnp.arange(count) % 3) == 0
        assert rate(logits, (jnp.arange(count) + 1) % 3) == 1
        labels = np.arange(count) % 3
        labels[:7] += 1
        assert rate(logits, labels % 3) == np.float32(7) / np.float32(count)

        def measured(labels):
            metrics = classification_metrics(Identity(), batch_size=10)
            return jax.jit(metrics)({}, (logits, labels))["accuracy"]

        assert measured(np.arange(count) % 3) == 1
        assert measured(labels % 3) == np.float32(count - 7) / np.float32(count)

    def test_dropout_is_off(self):
        params = init(DROPOUT)
        dropped, plain = (classification_metrics(m)(params, DATA) for m in (DROPOUT, PLAIN))
        assert dropped == plain

    def test_batch_normalization_uses_the_statistics_of_the_training_inputs(self):
        params, part = init(NORMED), Dataset(DATA.inputs[:5], DATA.labels[:5])
        metrics = jax.jit(classification_metrics(NORMED, batch_size=10))
        stats = batch_statistics(NORMED, params, jnp.asarray(DATA.inputs), batch_size=10)
        logits = NORMED.apply({"params": params, "batch_stats": stats}, part.inputs, train=False)
        want = cross_entropy(jnp.asarray(logits), jnp.asarray(part.labels))
        measured = metrics(params, part, DATA.inputs)
        np.testing.assert_allclose(measured["loss"], want, rtol=1e-5)
        assert abs(measured["loss"] - metrics(params, part, part.inputs)["loss"]) > 1e-3
        with pytest.raises(ValueError, match=r"train_inputs is None, but .*metrics_args="):
            metrics(params, part)

    def test_memory_is_that_of_a_batch(self):
        big = Dataset(np.zeros((4000, 64), np.float32), np.zeros(4000, np.int32))
        model = MLP((256, 256, 10))
        params = jax.eval_shape(lambda: model.init(KEY, big.inputs[:1], train=False)["params"])

        def bytes_at(batch_size):
            metrics = classification_metrics(model, batch_size=batch_size)
            memory = jax.jit(metrics).lower(params, big).compile().memory_analysis()
            assert memory is not None
            return memory.temp_size_in_bytes

        # Two layers of 256 units for every example of a batch.
        assert bytes_at(4000) > 4000 * 256 * 4
        assert bytes_at(100) < 4000 * 256 * 4 / 4

    @pytest.mark.parametrize("wrong", [0, -1, 2.0, True])
    def test_a_batch_size_is_a_positive_integer(self, wrong):
        with pytest.raises(ValueError, match=r"batch_size is .*; it must be a positive int"):
            classification_metrics(PLAIN, batch_size=wrong)


class TestValidation:
    def test_good_examples_are_returned(self):
        assert validate_examples(DATA, 3) is DATA
        validate_finite({"a": jnp.ones(2), "b": np.array([1, 2]), "c": jnp.ones(2, jnp.bfloat16)})

    @pytest.mark.parametrize("wrong", [-1, 3])
    def test_a_label_that_is_no_class_is_named(self, wrong):
        labels = DATA.labels.copy()
        labels[7] = wrong
        with pytest.raises(ValueError, match=rf"train has the label {wrong} at example 7.* 0\.\.2"):
            validate_examples((DATA.inputs, labels), 3, "train")

    @pytest.mark.parametrize("wrong", [np.nan, np.inf])
    def test_an_input_that_is_not_finite_is_named(self, wrong):
        inputs = DATA.inputs.copy()
        inputs[3, 1] = wrong
        with pytest.raises(
            ValueError, match="data has 1 numbers that are infinite or NaN, first a"
        ):
            validate_examples((inputs, DATA.labels), 3)
        with pytest.raises(ValueError, match=r"valid\.inputs has 1 numbers.*first at example 3"):
            validate_finite(Dataset(inputs, DATA.labels), "valid")

    def test_labels_are_integers_as_many_as_inputs_and_at_least_one(self):
        with pytest.raises(TypeError, match="labels of dtype float64"):
            validate_examples((DATA.inputs, np.zeros(25)), 3)
        with pytest.raises(ValueError, match="one leading axis"):
            validate_examples((DATA.inputs, DATA.labels[:4]), 3)
        with pytest.raises(ValueError, match="data has no examples"):
            validate_examples((DATA.inputs[:0], DATA.labels[:0]), 3)

    def test_the_loss_trains_under_a_partial(self):
        """What a rule takes is any function of four arguments."""
        loss = functools.partial(classification_loss(PLAIN))
        grads = jax.grad(loss)(init(PLAIN), {}, DATA, None)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize("make", [classification_loss, classification_metrics, example_losses])
@pytest.mark.parametrize("model", [None, type(PLAIN)])
def test_what_is_no_model(make, model):
    with pytest.raises(TypeError, match=r"model is .*; pass a flax module such as"):
        make(model)


@pytest.mark.parametrize("batch", [np.ones((3, 2)), (np.ones((3, 2)),), None])
def test_what_is_no_pair(batch):
    for function in (classification_loss(PLAIN), example_losses(PLAIN)):
        with pytest.raises(
            TypeError, match=r"the batch has .* parts; it must be the pair \(inputs"
        ):
            function({}, {}, batch, None)
    with pytest.raises(TypeError, match=r"the batch has .* parts"):
        classification_metrics(PLAIN)({}, batch)
