"""What `usps_backprop` trains: data in file order, a net of logistic units without biases."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from experiments.usps_backprop.config import Config
from hgrad_jax.data import Dataset, load_digits, load_usps
from hgrad_jax.models import MLP, cosine, cross_entropy

NUM_CLASSES = 10


class Data(NamedTuple):
    """Three parts, a `Dataset` each, in file order: to learn from, to choose by, to report on."""

    train: Any
    validation: Any
    test: Any


def load_data(config: Config) -> Data:
    """Returns the data as device arrays.

    Raises:
      DataUnavailableError: the USPS files are not there.
    """
    if config.data == "usps":
        parts = load_usps(config.data_dir)
    else:
        digits = load_digits()
        pieces = (slice(0, 1000), slice(1000, 1400), slice(1400, None))
        parts = [jax.tree.map(lambda x, piece=piece: x[piece], digits) for piece in pieces]
    dtype = jnp.result_type(float)

    def on_device(part: Any) -> Any:
        return part._replace(
            inputs=jnp.asarray(part.inputs, dtype), labels=jnp.asarray(part.labels)
        )

    return Data(*map(on_device, parts))


def make_model(config: Config) -> MLP:
    """Returns the net, a value without parameters."""
    return MLP((config.num_hidden, NUM_CLASSES), activation=nn.sigmoid, use_bias=False)


def initial_params(config: Config, inputs: Array) -> dict[str, Any]:
    """Returns the same weights always, in the precision of the inputs [N, *shape]."""
    num_inputs, hidden = math.prod(inputs.shape[1:]), config.num_hidden
    first = cosine()(None, (num_inputs, hidden), inputs.dtype)
    then = cosine(offset=first.size)(None, (hidden, NUM_CLASSES), inputs.dtype)
    return {"Dense_0": {"kernel": first}, "Dense_1": {"kernel": then}}


def loss(model: MLP, params: Any, hparams: Any, batch: Dataset) -> Array:
    """Returns the mean cross-entropy + wd / 2 |w|**2."""
    square = sum(jnp.sum(w**2) for w in jax.tree.leaves(params))
    return classification_loss(model, params, batch) + hparams["weight_decay"] / 2 * square


def classification_loss(model: MLP, params: Any, batch: Dataset) -> Array:
    """Returns the mean cross-entropy in nats."""
    return cross_entropy(logits(model, params, batch), jnp.asarray(batch.labels))


def logits(model: MLP, params: Any, batch: Dataset) -> Array:
    """Returns what the softmax is taken of, [N, 10]."""
    return jnp.asarray(model.apply({"params": params}, batch.inputs, train=True))
