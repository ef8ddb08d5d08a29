"""What `bench` trains: a data set, a network, an update rule, and the same rule written by hand.

Four problems, each of which a case `NAME-T` runs for T steps: `softmax` (64-10 on the digits, batch
50), `mlp` (784-50-50-50-10, batch 250), `adam` (the same network under Adam) and `cnn` (two
convolutions of 4 and 8 channels, batch 32). All but the first train on synthetic images of MNIST's
shape, or on MNIST itself.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

import hgrad_jax as hg
from hgrad_jax.data import Dataset, load, minibatches, split
from hgrad_jax.models import CNN, MLP, SoftmaxRegression, cross_entropy

NUM_TRAIN, NUM_VALID = 10_000, 250
AXES = {"learning_rate": 0, "l2": None, "momentum": None, "square_decay": None}
# At eps = 1e-8 a first step is nearly a sign, and a float32 hypergradient by initial parameters is
# 1.7 % off: methods could be compared to no more than that.
ADAM_EPS = 1e-4
PROBLEMS = ("softmax", "mlp", "adam", "cnn")


class Problem(NamedTuple):
    """A training to differentiate.

    Attributes:
      loss: `loss(params, hparams, batch, key)`, mean cross-entropy and L2.
      validation_loss: `validation_loss(params, hparams, valid)`, mean cross-entropy.
      run: the library's training.
      smallest_decay: of the rule's variables, for `hg.Reversible`.
      start: `start(params) -> slots`, of the rule by hand.
      update: `update(gradient, params, slots, hparams, t) -> params, slots`, of the rule by hand.
      batch_fn: `batch_fn(train, t, key) -> batch`, of the run.
      args: params, hparams, train, valid: what every measured program is called with.
    """

    loss: Callable[..., Array]
    validation_loss: Callable[..., Array]
    run: hg.Run
    smallest_decay: Any
    start: Callable[[Any], Any]
    update: Callable[..., Any]
    batch_fn: Callable[..., Any]
    args: tuple[Any, dict[str, Array], Dataset, Dataset]


def make_problem(name: str, num_steps: int, *, seed: int, data_dir: str | None) -> Problem:
    """Returns the problem of that name, one of PROBLEMS.

    Args:
      name: the problem.
      num_steps: T.
      seed: chooses synthetic data and initial weights.
      data_dir: folder with MNIST's original files, in place of synthetic images.

    Raises:
      DataUnavailableError: MNIST is not in `data_dir`.
    """
    model, batch_size = {
        "softmax": (SoftmaxRegression(10), 50),
        "mlp": (MLP((50, 50, 50, 10), activation=nn.tanh), 250),
        "adam": (MLP((50, 50, 50, 10), activation=nn.tanh), 250),
        "cnn": (CNN(10, channels=(4, 8), hidden=(), activation=nn.tanh, max_pool=False), 32),
    }[name]
    if name == "softmax":
        train, valid = split(load("digits").train, (1000, NUM_VALID), seed=seed)
    elif data_dir is None:
        train, valid = synthetic_images(seed)
    else:
        images = load("mnist", data_dir, download=False).train
        train, valid = split(images, (NUM_TRAIN, NUM_VALID), seed=seed)
    train, valid = jax.tree.map(jnp.asarray, (train, valid))
    init = jax.jit(functools.partial(model.init, train=False))
    params = init(jax.random.key(seed), train.inputs[:1])["params"]

    loss = functools.partial(training_loss, model)
    hparams = {"l2": jnp.float32(1e-3), "momentum": jnp.float32(0.9)}
    if name == "adam":
        hparams |= {"learning_rate": jnp.geomspace(3e-3, 3e-4, num_steps)}
        hparams |= {"square_decay": jnp.float32(0.999)}
        b1, b2 = hg.field("momentum"), hg.field("square_decay")
        rule = hg.adam(loss, b1=b1, b2=b2, eps=ADAM_EPS)
        smallest_decay = {"first_moment": 0.9, "second_moment": 0.999}
        start, update = start_adam, update_adam
    else:
        hparams |= {"learning_rate": jnp.geomspace(0.3, 0.03, num_steps)}
        rule, smallest_decay = hg.momentum(loss), 0.9
        start, update = start_momentum, update_momentum
    batch_fn = minibatches(batch_size)
    axes = {hparam: AXES[hparam] for hparam in hparams}
    return Problem(
        loss=loss,
        validation_loss=functools.partial(validation_loss, model),
        run=hg.Run(rule, num_steps=num_steps, batch_fn=batch_fn, hparams_axes=axes),
        smallest_decay=smallest_decay,
        start=start,
        update=update,
        batch_fn=batch_fn,
        args=(dict(params), hparams, train, valid),
    )


def synthetic_images(seed: int) -> tuple[Dataset, Dataset]:
    """Returns images [N, 28, 28, 1] of ten faint patterns in noise, for training and validation."""
    generator = np.random.default_rng(seed)
    patterns = generator.normal(size=(10, 28, 28, 1))
    labels = generator.integers(10, size=NUM_TRAIN + NUM_VALID, dtype=np.int32)
    noise = generator.normal(size=(len(labels), 28, 28, 1))
    inputs = (0.3 * (noise + 0.1 * patterns[labels])).astype(np.float32)
    return Dataset(inputs[:NUM_TRAIN], labels[:NUM_TRAIN]), Dataset(
        inputs[NUM_TRAIN:], labels[NUM_TRAIN:]
    )


def training_loss(
    model: nn.Module, params: Any, hparams: dict[str, Array], batch: Dataset, key: Array | None
) -> Array:
    """Returns the mean cross-entropy in nats + l2 * |params|**2 / 2."""
    del key
    squares = sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
    return validation_loss(model, params, hparams, batch) + hparams["l2"] * squares / 2


def validation_loss(
    model: nn.Module, params: Any, hparams: dict[str, Array], data: Dataset
) -> Array:
    """Returns the mean cross-entropy in nats."""
    del hparams
    logits = model.apply({"params": params}, data.inputs, train=True)
    return cross_entropy(jnp.asarray(logits), jnp.asarray(data.labels))


def start_momentum(params: Any) -> Any:
    """Returns the velocity at rest."""
    return jax.tree.map(jnp.zeros_like, params)


def update_momentum(
    gradient: Any, params: Any, velocity: Any, hparams: dict[str, Array], t: Array
) -> tuple[Any, Any]:
    """Returns parameters and velocity after step t of `hg.momentum`."""
    decay, rate = hparams["momentum"], hparams["learning_rate"][t]
    velocity = jax.tree.map(lambda v, g: decay * v - (1 - decay) * g, velocity, gradient)
    return jax.tree.map(lambda x, v: x + rate * v, params, velocity), velocity


def start_adam(params: Any) -> tuple[Any, Any]:
    """Returns both moments at zero."""
    return start_momentum(params), start_momentum(params)


def update_adam(
    gradient: Any, params: Any, moments: tuple[Any, Any], hparams: dict[str, Array], t: Array
) -> tuple[Any, tuple[Any, Any]]:
    """Returns parameters and moments after step t of `hg.adam`."""
    b1, b2, rate = hparams["momentum"], hparams["square_decay"], hparams["learning_rate"][t]
    first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, moments[0], gradient)
    second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, moments[1], gradient)
    scale_first, scale_second = 1 / (1 - b1 ** (t + 1)), 1 / (1 - b2 ** (t + 1))

    def move(x: Array, m: Array, v: Array) -> Array:
        return x - rate * scale_first * m / (jnp.sqrt(scale_second * v) + ADAM_EPS)

    return jax.tree.map(move, params, first, second), (first, second)
