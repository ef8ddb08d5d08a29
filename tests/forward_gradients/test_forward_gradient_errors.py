"""What forward gradients refuse, and why."""

# JAX arrays and flax modules pass where pyright sees narrower types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hgrad_jax as hg
from hgrad_jax.forward_gradients import activity_forward_gradient, example_losses
from hgrad_jax.models import MLP, classification_loss
from tests.shared.forward_gradients import KEY, NET, problem


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
                hg.unroll(hg.Run(rule, num_steps=1), params, {}, batch)

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
