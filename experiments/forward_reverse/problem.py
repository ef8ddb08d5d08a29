"""What `forward_reverse` trains and tunes: data, networks, losses and hyperparameters."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

import hgrad_jax as hg
from experiments.common import option
from hgrad_jax.data import Dataset, load, split
from hgrad_jax.models import CNN, MLP, SoftmaxRegression, classification_loss, cross_entropy
from hgrad_jax.models.initializers import lecun_normal
from hgrad_jax.types import Loss

NUM_CLASSES = 10
MODELS = ("mlp", "softmax", "cnn")
ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu}
SHARES = (0.5, 0.3, 0.2)  # of MNIST's 70,000, the published parts: 35,000, 21,000 and 14,000
PIECE = 1000


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is trained, and the hyperparameters that it starts from."""

    data: str = option("digits", "the images", ("digits", "mnist"))
    data_dir: str | None = option(None, "folder with MNIST's original files")
    model: str = option("mlp", "hidden layers, logistic regression, or convolutions", MODELS)
    activation: str = option("tanh", "of hidden units; relu has kinks", tuple(ACTIVATIONS))
    hidden: tuple[int, ...] = option((300, 300), "units of each hidden layer of the mlp")
    batch_size: int = option(200, "images a step")
    learning_rate: float = option(0.01, "where the tuning starts")
    momentum: float = option(0.5, "where the tuning starts, in [1/128, 1)")
    seed: int = option(0, "chooses the parts of the data and the initial weights")

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "learning_rate")
        if min(self.hidden) < 1:
            raise ValueError(f"hidden is {self.hidden}; every layer needs a unit.")
        if not 2**-7 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be in [1/128, 1).")


class Data(NamedTuple):
    """The parts of the data, a `Dataset` each: to train on, to tune on, and to report on."""

    train: Any
    valid: Any
    test: Any


def require_positive(config: Any, *names: str) -> None:
    """Raises a ValueError if one of these fields is not positive, or not finite."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be positive.")


def load_data(problem: Problem) -> Data:
    """Returns all examples of a data set, divided anew, as device arrays [N, H, W, 1].

    Raises:
      DataUnavailableError: MNIST is not there.
      ValueError: a batch is larger than the training part.
    """
    parts = load(problem.data, problem.data_dir)
    inputs, labels = map(np.concatenate, zip(*parts, strict=True))
    side = math.isqrt(inputs[0].size)
    images = inputs.reshape(-1, side, side, 1).astype(jnp.result_type(float))
    data = split(Dataset(images, labels), SHARES, seed=problem.seed)
    num_train = len(data[0].labels)
    if problem.batch_size > num_train:
        raise ValueError(
            f"batch_size is {problem.batch_size}, but {problem.data} has {num_train} images to "
            "train on."
        )
    return Data(*jax.tree.map(jnp.asarray, data))


def make_model(problem: Problem) -> nn.Module:
    """Returns the network, a value without parameters.

    It has no kinks, unless its units are rectified, since a unit or a maximum that rounding puts on
    the other side of one changes hypergradients by more than rounding does: the conv net halves
    images by strides, and weights of logistic regression are random at the start too, not 0, where
    |w| has one.
    """
    activation = ACTIVATIONS[problem.activation]
    models = {
        "mlp": MLP((*problem.hidden, NUM_CLASSES), activation),
        "softmax": SoftmaxRegression(NUM_CLASSES, kernel_init=lecun_normal()),
        "cnn": CNN(
            NUM_CLASSES, channels=(4, 8), hidden=(64,), activation=activation, max_pool=False
        ),
    }
    return models[problem.model]


def initial_params(problem: Problem, data: Data, meta_step: int) -> dict[str, Any]:
    """Returns random weights, others in each meta-step, those in 64 bits the same as in 32."""
    key = jax.random.fold_in(jax.random.key(problem.seed), meta_step)
    image = jnp.zeros((1, *data.train.inputs.shape[1:]), jnp.float32)
    params = _initial(make_model(problem), key, image)
    return jax.tree.map(lambda x: x.astype(data.train.inputs.dtype), dict(params))


@functools.partial(jax.jit, static_argnums=0)
def _initial(model: nn.Module, key: Array, image: Array) -> Any:
    return model.init(key, image, train=False)["params"]


def kernels(params: Any) -> list[Array]:
    """Returns the weights of each layer without the biases, whose start at 0 is a kink of |w|."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [x for path, x in leaves if path[-1].key == "kernel"]


def initial_hparams(problem: Problem, data: Data) -> dict[str, Array]:
    """Returns l1 and l2 [layers], which are 0, learning_rate [] and momentum []."""
    num_layers = len(kernels(jax.eval_shape(lambda: initial_params(problem, data, 0))))
    zeros = jnp.zeros(num_layers)
    rates = (jnp.asarray(x, zeros.dtype) for x in (problem.learning_rate, problem.momentum))
    return {"l1": zeros, "l2": zeros} | dict(zip(("learning_rate", "momentum"), rates, strict=True))


def loss(model: nn.Module) -> Loss:
    """Returns cross-entropy + sum over layers j of l1_j |W_j| + l2_j |W_j|**2 / 2."""
    error = classification_loss(model)

    def penalized(params: Any, hparams: Any, batch: Dataset, key: Array | None) -> Array:
        layers = kernels(params)
        l1, l2 = (list(hparams[name]) for name in ("l1", "l2"))
        return (
            error(params, hparams, batch, key) + hg.hyper.l1(layers, l1) + hg.hyper.l2(layers, l2)
        )

    return penalized


def validation_error(model: nn.Module) -> Callable[[Any, Any, Dataset], Array]:
    """Returns the mean cross-entropy as an objective whose memory is that of some images.

    They are evaluated in pieces, and again where the error is differentiated: of all of MNIST's
    the activations would weigh more than what the modes are compared for.
    """

    def error(params: Any, hparams: Any, valid: Dataset) -> Array:
        del hparams
        num_images = len(valid.labels)
        size = min(PIECE, num_images)
        num_whole, rest = divmod(num_images, size)

        def summed(first: Any, size: int) -> Array:
            inputs, labels = (jax.lax.dynamic_slice_in_dim(x, first, size) for x in valid)
            logits = model.apply({"params": params}, inputs, train=False)
            return size * cross_entropy(jnp.asarray(logits), labels)

        again = jax.checkpoint(summed, static_argnums=1)
        total = jnp.sum(jax.lax.map(lambda i: again(i * size, size), jnp.arange(num_whole)))
        return (total + (again(num_whole * size, rest) if rest else 0)) / num_images

    return error


def named(hparams: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of a tree like the hyperparameters by name, such as l1_0.

    >>> named({"l1": jnp.array([1.0, 2.0]), "momentum": jnp.array(0.5)})
    {'l1_0': 1.0, 'l1_1': 2.0, 'momentum': 0.5}
    """
    numbers = {}
    for name, x in hparams.items():
        values = np.asarray(x, np.float64)
        each = (
            {name: values} if values.ndim == 0 else {f"{name}_{i}": v for i, v in enumerate(values)}
        )
        numbers |= {n: float(v) for n, v in each.items()}
    return numbers
