"""What `penguins` trains and by which gradients: two models, eight methods, 342 birds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

import hgrad_jax as hg
from hgrad_jax.data import Dataset, Splits, load
from hgrad_jax.forward_gradients import activity_forward_gradient, example_losses
from hgrad_jax.models import (
    MLP,
    SoftmaxRegression,
    classification_loss,
    cross_entropy,
    error_rate,
    scaled_normal,
    uniform,
)

PUBLISHED = hg.Standardized(is_shifted=False)


class Task(NamedTuple):
    """A model and how it is trained."""

    model: nn.Module
    learning_rate: float
    stop_at: float


TASKS = {
    "softmax": Task(
        SoftmaxRegression(3, kernel_init=scaled_normal(1.0), bias_init=scaled_normal(1.0)),
        learning_rate=0.2,
        stop_at=0.3,
    ),
    "mlp": Task(
        MLP((64, 8, 3), kernel_init=uniform(-1.0, 1.0), bias_init=uniform(-1.0, 1.0)),
        learning_rate=0.05,
        stop_at=0.2,
    ),
}


class Method(NamedTuple):
    """Where gradients come from, and the factor of the task's learning rate."""

    provider: Callable[..., Any]
    factor: float = 1.0


METHODS: dict[str, Callable[[nn.Module], Method]] = {
    "backpropagation": lambda model: Method(hg.backpropagation),
    "as-published": lambda model: Method(hg.forward_gradient(PUBLISHED, is_joint=False)),
    "signs-per-tensor": lambda model: Method(hg.forward_gradient(is_joint=False)),
    "signs": lambda model: Method(hg.forward_gradient()),
    "signs-at-tenth-rate": lambda model: Method(hg.forward_gradient(), 0.1),
    "gaussian": lambda model: Method(hg.forward_gradient(hg.Gaussian())),
    "8-orthogonal": lambda model: Method(hg.forward_gradient(hg.Orthogonal(), num_directions=8)),
    "pre-activations": lambda model: Method(activity_forward_gradient(example_losses(model))),
}


def training(task: Task, method: Method, num_steps: int) -> hg.Run:
    """Returns plain gradient descent."""
    rule = hg.sgd(
        classification_loss(task.model),
        learning_rate=method.factor * task.learning_rate,
        gradient=method.provider,
    )
    return hg.Run(rule, num_steps=num_steps)


def load_data() -> Splits:
    """Returns 274 birds to train on and 68 to test on, standardized as the former are."""
    birds = load("penguins")
    mean, deviation = birds.train.inputs.mean(0), birds.train.inputs.std(0)
    return Splits(*(Dataset((x - mean) / deviation, y) for x, y in birds))


def initial_params(task: Task, data: Splits, key: jax.Array) -> Any:
    """Returns the values that a seed starts from."""
    return dict(task.model.init(key, data.train.inputs[:1], train=False)["params"])


def measures(task: Task, params: Any, data: Splits) -> dict[str, jax.Array]:
    """Returns the training loss, and loss, accuracy and misclassifications on the test birds."""

    def logits(inputs: Any) -> jax.Array:
        return jnp.asarray(task.model.apply({"params": params}, inputs, train=False))

    train_loss = cross_entropy(logits(data.train.inputs), jnp.asarray(data.train.labels))
    test, labels = logits(data.test.inputs), jnp.asarray(data.test.labels)
    wrong = error_rate(test, labels)
    return {
        "train_loss": train_loss,
        "loss": cross_entropy(test, labels),
        "accuracy": 1 - wrong,
        "errors": wrong * labels.size,
    }
