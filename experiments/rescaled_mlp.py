"""The network of the studies of approximate hypergradients, and its data.

St. Jules (2017, section 3.1), after Maclaurin, Duvenaud and Adams (2015): 784-50-50-50-10 with tanh
on MNIST, whose weights w = exp(s) z are trained in z with an L2 penalty on z. The hyperparameters
are s, which so set initial scale and regularization together.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

import hgrad_jax as hg
from hgrad_jax.data import Dataset, load, split
from hgrad_jax.models import MLP, classification_loss
from hgrad_jax.models.initializers import Initializer, lecun_normal, zeros

SIZES = {"digits": (1000, 250), "mnist": (15_000, 5_000)}
NUM_TEST = 5000
LECUN_NORMAL = lecun_normal()


class Images(NamedTuple):
    """The parts of the data, as device arrays.

    Attributes:
      train: what the weights learn from.
      valid: what the hyperparameters learn from.
      test: what no gradient sees: the first 5,000 of the data set's own test part.
    """

    train: Dataset
    valid: Dataset
    test: Dataset


def load_images(data: str, data_dir: str | None, seed: int) -> Images:
    """Returns parts drawn by the seed, of the sizes in `SIZES`.

    Raises:
      DataUnavailableError: the data are not there.
    """
    parts = load(data, data_dir)
    train, valid = split(parts.train, SIZES[data], seed=seed)
    test = Dataset(*(x[:NUM_TEST] for x in parts.test))
    return jax.tree.map(jnp.asarray, Images(train, valid, test))


def make_model(kernel_init: Initializer = LECUN_NORMAL, bias_init: Initializer = zeros) -> MLP:
    """Returns the network, a value without parameters."""
    return MLP((50, 50, 50, 10), activation=nn.tanh, kernel_init=kernel_init, bias_init=bias_init)


def initial_params(model: MLP, images: Images, seed: int) -> dict[str, Any]:
    """Returns random z."""
    init = jax.jit(lambda key: model.init(key, images.train.inputs[:1], train=False)["params"])
    return dict(init(jax.random.key(seed)))


def validation_loss(model: MLP) -> Any:
    """Returns `objective(z, scales, examples)`: the mean cross-entropy in nats."""
    of_weights = classification_loss(model)

    def objective(z: Any, scales: Any, examples: Dataset) -> jax.Array:
        return of_weights(hg.hyper.weights_of(z, scales), scales, examples, None)

    return objective


def training_loss(model: MLP, log_penalty: float) -> Any:
    """Returns `loss(z, scales, batch, key)`: cross-entropy + exp(log_penalty) |z|**2."""
    return hg.hyper.rescaled(
        classification_loss(model),
        log_scale=lambda scales: scales,
        log_penalty=lambda scales: log_penalty,
    )
