"""The paths of training in the study of DrMAD: a conv net with dropout.

Figures 2.1 to 2.3 of St. Jules (2017): the path on two random coordinates, which is far from the
straight line that DrMAD takes; and how far a second training, after one meta-step, passes from
where the first one ended. The hyperparameters are L2 coefficients for every weight, which mean
something else if the second training ends elsewhere.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import hgrad_jax as hg
from experiments.drmad_study.config import Config
from experiments.drmad_study.records import Journal
from hgrad_jax.data import Dataset, load, minibatches, split
from hgrad_jax.diagnostics.distances import Distances
from hgrad_jax.diagnostics.projections import Projections
from hgrad_jax.models import classification_loss, classification_metrics

META_STEP_SIZE = 1 / 3  # of log10 L2, as in the original's experiments on GPU
NUM_POINTS = 500
SECOND_RUNS = ("the same dropout", "another dropout", "another dropout, no meta-step")
SETTINGS = (
    *("path_data", "path_steps", "path_batch_size", "path_learning_rate", "path_l2"),
    "momentum",
)


class ConvNet(nn.Module):
    """Convolution, pool, convolution, pool, dropout, dense, dropout, dense.

    Attributes:
      channels: of the two 3x3 convolutions.
      hidden: rectified units between them and the logits.
      dropout_rate: probability of zeroing a unit before each dense layer.
    """

    channels: tuple[int, int] = (8, 16)
    hidden: int = 64
    dropout_rate: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits [B, 10] for images [B, H, W, C]."""
        for width in self.channels:
            x = nn.max_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x.reshape((x.shape[0], -1)))
        x = nn.relu(nn.Dense(self.hidden)(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(10)(x)


def load_images(config: Config) -> tuple[Dataset, Dataset, Dataset]:
    """Returns images [N, H, W, C] to train on, to take the meta-step by, and to report on.

    Raises:
      DataUnavailableError: the data are not there.
    """
    parts = load(config.path_data, config.data_dir)

    def image(x: np.ndarray) -> np.ndarray:
        side = round(x.shape[-1] ** 0.5)
        return x if x.ndim == 4 else x.reshape(-1, side, side, 1)

    train, test = (part._replace(inputs=image(part.inputs)) for part in parts)
    train, valid = split(train, (0.75, 0.25), seed=0)
    return jax.tree.map(jnp.asarray, (train, valid, test))


def measure(config: Config) -> None:
    """Records the paths, unless they are recorded.

    Raises:
      DataUnavailableError: the data are not there.
      HypergradientError: the training does not stay finite.
      ValueError: what is recorded is of other settings.
    """
    book = _journal(config)
    if book.records:
        return
    model, (train, valid, test) = ConvNet(), load_images(config)
    objective_loss = classification_loss(ConvNet(dropout_rate=0.0))

    def loss(params, log10_l2, batch, key):
        coefficients = jax.tree.map(lambda x: 2 * 10**x, log10_l2)
        return classification_loss(model)(params, None, batch, key) + hg.hyper.l2(
            params, coefficients
        )

    def objective(params, log10_l2, valid):
        return objective_loss(params, None, valid, None)

    # The original's conv nets were trained by Lasagne's momentum, v' = m v - rate * gradient.
    rule = hg.classical_momentum(
        loss, learning_rate=config.path_learning_rate, momentum=config.momentum
    )
    init = jax.jit(lambda key: model.init(key, train.inputs[:1], train=False)["params"])
    params = init(jax.random.key(0))
    first = jax.tree.map(lambda x: jnp.full(x.shape, np.log10(config.path_l2)), params)
    keys = jax.random.split(jax.random.key(1))
    batch_fn = minibatches(config.path_batch_size)
    run = hg.Run(rule, num_steps=config.path_steps, batch_fn=batch_fn)

    @jax.jit
    def tuned(params, log10_l2, train, valid, key):
        by_drmad = dataclasses.replace(run, adjoint=hg.DrMAD(hg.EarlyDisplacement()))
        found = hg.value_and_hypergradient(
            objective, by_drmad, params, log10_l2, train, valid, key=key
        )
        after = jax.tree.map(lambda x, g: x - META_STEP_SIZE * jnp.sign(g), log10_l2, found.hparams)
        return found.unrolled.params, after, found.info

    end, after, info = tuned(params, first, train, valid, keys[0])
    hg.check(info)
    every = max(1, config.path_steps // NUM_POINTS)
    path = hg.projections(run, params, first, train, key=keys[0], every=every)
    settings = dict(
        zip(SECOND_RUNS, ((after, keys[0]), (after, keys[1]), (first, keys[1])), strict=True)
    )
    seconds = {
        name: hg.distances_to(run, params, hparams, train, end, key=key)
        for name, (hparams, key) in settings.items()
    }
    accuracy = jax.jit(classification_metrics(model))(end, test)["accuracy"]
    moved = jax.tree.map(jnp.subtract, end, params)
    book.add(
        {
            **path._asdict(),
            "distance_steps": seconds[SECOND_RUNS[0]].steps[::every],
            "distances": {name: each.distances[::every] for name, each in seconds.items()},
            "final_distances": {name: each.distances[-1] for name, each in seconds.items()},
            "length": np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(moved))),
            "test_error": 1 - accuracy,
            "num_params": sum(x.size for x in jax.tree.leaves(params)),
        }
    )


def read(config: Config) -> dict[str, Any]:
    """Returns what `measure` recorded."""
    (record,) = _journal(config).records
    return record


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record without its curves."""
    curves = ("steps", "coordinates", "components", "distance_steps", "distances", "meta_step")
    return {name: value for name, value in record.items() if name not in curves}


def projections_of(record: dict[str, Any]) -> Projections:
    """Returns the path as `hg.projections` does."""
    arrays = ("coordinates", "components", "explained_variance")
    return Projections(
        np.array(record["steps"]),
        tuple(record["names"]),
        *(np.array(record[name], float) for name in arrays),
    )


def distances_of(record: dict[str, Any]) -> dict[str, Distances]:
    """Returns the second runs' distances as `hg.distances_to` does, at some steps."""
    steps = np.array(record["distance_steps"])
    return {name: Distances(steps, np.array(x)) for name, x in record["distances"].items()}


def _journal(config: Config) -> Journal:
    settings = {name: getattr(config, name) for name in SETTINGS}
    name = f"{config.path_data}_{config.path_steps}.jsonl"
    return Journal(Path(config.out) / "paths" / name, settings)
