"""What `hyper_cleaning` trains: examples, some with wrong labels, a classifier and its losses."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

import hgrad_jax as hg
from experiments.hyper_cleaning.config import Config
from hgrad_jax.data import Dataset, load, split
from hgrad_jax.models import MLP, SoftmaxRegression, cross_entropy

NUM_CLASSES = 10
CORRUPTION = 1  # a role of seeds


class Weighted(NamedTuple):
    """Training examples, each of which knows which weight is its own.

    Attributes:
      inputs: float32 [N, *shape].
      labels: int32 [N], as given: some are wrong.
      places: int32 [N], 0..N-1.
    """

    inputs: Any
    labels: Any
    places: Any


class Data(NamedTuple):
    """What is trained on, tuned on, and reported on; and what only the report knows.

    Attributes:
      train: a Weighted.
      valid: a Dataset with right labels.
      test: likewise.
      true_labels: int32 [N], of the training examples.
    """

    train: Weighted
    valid: Dataset
    test: Dataset
    true_labels: np.ndarray

    @property
    def is_corrupted(self) -> np.ndarray:
        """Which of the training labels are wrong: bool [N]."""
        return np.asarray(self.train.labels) != self.true_labels


def load_data(config: Config, seed: int) -> Data:
    """Returns the data, the training labels corrupted.

    Raises:
      DataUnavailableError: MNIST is not there.
      ValueError: there are not so many examples.
    """
    everything = load(config.data, config.data_dir)
    train, valid = split(everything.train, config.sizes, seed=seed)
    labels = corrupt(train.labels, config.corrupted, seed)
    weighted = Weighted(train.inputs, labels, np.arange(len(labels), dtype=np.int32))
    weighted, valid, test = jax.tree.map(jnp.asarray, (weighted, valid, everything.test))
    return Data(weighted, valid, test, train.labels)


def corrupt(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Returns labels [N] of which round(fraction N) are replaced, each by any other class.

    >>> labels = np.arange(10)
    >>> np.sum(corrupt(labels, 0.5, seed=0) != labels)
    np.int64(5)
    """
    draws = np.random.RandomState([seed, CORRUPTION])
    places = draws.permutation(len(labels))[: round(fraction * len(labels))]
    result = labels.copy()
    shift = draws.randint(1, NUM_CLASSES, len(places))
    result[places] = (labels[places] + shift) % NUM_CLASSES
    return result


def make_model(config: Config) -> nn.Module:
    """Returns the classifier, a value without parameters."""
    if config.hidden == 0:
        return SoftmaxRegression(NUM_CLASSES)
    return MLP((config.hidden, NUM_CLASSES), activation=nn.tanh)


def weighted_loss(
    model: nn.Module, params: Any, hparams: dict[str, Array], batch: Weighted, key: Array | None
) -> Array:
    """Returns the mean over the batch of weight * cross-entropy."""
    del key
    log_probs = jax.nn.log_softmax(logits(model, params, batch.inputs))
    losses = -jnp.sum(jax.nn.one_hot(batch.labels, NUM_CLASSES) * log_probs, axis=-1)
    return hg.hyper.weighted_mean(losses, hparams["weights"][batch.places])


def validation_loss(model: nn.Module, params: Any, hparams: Any, valid: Dataset) -> Array:
    """Returns the mean cross-entropy in nats."""
    del hparams
    return cross_entropy(logits(model, params, valid.inputs), jnp.asarray(valid.labels))


def logits(model: nn.Module, params: Any, inputs: Any) -> Array:
    """Returns what the softmax is taken of, [N, 10]."""
    return jnp.asarray(model.apply({"params": params}, inputs, train=False))


def initial_params(model: nn.Module, inputs: Array, key: Array) -> Any:
    """Returns weights for inputs [N, *shape]: zeros for softmax regression, else random."""
    return dict(model.init(key, inputs[:1], train=False)["params"])
