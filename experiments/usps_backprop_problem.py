"""What `usps_backprop` trains: data in file order, a net of logistic units without biases."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from experiments.common import option
from hgrad_jax.data import Dataset, load_digits, load_usps
from hgrad_jax.models import MLP, cosine, cross_entropy

NUM_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """The net, the settings of its training, and where the results go."""

    data: str = option("digits", "8x8 digits from the library, or USPS files", ("digits", "usps"))
    data_dir: str | None = option(None, "folder with the USPS files")
    num_hidden: int = option(10, "logistic hidden units")
    learning_rates: tuple[float, ...] = option((0.002, 0.01, 0.05, 0.2, 1, 5, 20), "each of them")
    momenta: tuple[float, ...] = option((0.0, 0.9), "with each of these, in [0, 1)")
    weight_decays: tuple[float, ...] = option((0.0,), "and each of these, at least 0")
    num_steps: int = option(70, "training steps")
    batch_size: int = option(4, "examples a step")
    early_stopping: bool = option(
        False, "measure at the step of least validation loss, not at the end"
    )
    x64: bool = option(False, "compute in 64 bits")
    out: str = option("results/usps_backprop", "folder for result.jsonl and figures")

    def __post_init__(self):
        for name in ("num_hidden", "num_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive.")
        for name, least, bound in (
            ("learning_rates", 0, math.inf),
            ("momenta", 0, 1),
            ("weight_decays", 0, math.inf),
        ):
            values = getattr(self, name)
            if not all(least <= value < bound for value in values):
                raise ValueError(f"{name} are {values}; they must be in [{least}, {bound}).")
            if len(set(values)) < len(values):
                raise ValueError(f"{name} are {values}; give each once.")


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
