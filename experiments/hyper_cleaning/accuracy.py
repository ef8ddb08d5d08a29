"""What the cleaned examples are worth: trainings on some of the examples, all weighing the same.

Nothing is chosen by the test data; only the oracle knows which labels are wrong.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import hgrad_jax as hg
from experiments.hyper_cleaning import report
from experiments.hyper_cleaning.config import Config
from experiments.hyper_cleaning.problem import Data, initial_params, logits, make_model
from hgrad_jax.data import Dataset
from hgrad_jax.models import classification_loss, error_rate

ONLY_VALIDATION = report.NOTHING + report.WITH_VALIDATION


def accuracies(
    config: Config, data: Data, is_found: np.ndarray, seed: int
) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Trains on every selection of examples.

    Returns:
      By name, how many examples there were and the accuracy on the test data; and which of the
      training labels are not what the classifier trained on the validation data says, bool [N].
    """
    model, train = make_model(config), data.train
    examples = jax.tree.map(
        lambda x, y: jnp.concatenate([x, y]), Dataset(train.inputs, train.labels), data.valid
    )
    key_init, key_run = jax.random.split(jax.random.key(seed))
    params = initial_params(model, train.inputs, key_init)
    found, doubted = {}, np.zeros(0, bool)
    for name, places in kept(data, is_found).items():
        if not len(places):
            found[name] = {"num_examples": 0, "test_accuracy": float("nan")}
            continue
        padded = np.zeros(len(examples.labels), np.int32)
        padded[: len(places)] = places
        trained = train_on(config, examples, padded, np.int32(len(places)), params, key_run)
        scores = logits(model, trained, data.test.inputs)
        accuracy = 1 - float(error_rate(scores, jnp.asarray(data.test.labels)))
        found[name] = {"num_examples": len(places), "test_accuracy": accuracy}
        if name == ONLY_VALIDATION:
            says = np.argmax(logits(model, trained, train.inputs), axis=1)
            doubted = says != np.asarray(train.labels)
    return found, doubted


def kept(data: Data, is_found: np.ndarray) -> Mapping[str, np.ndarray]:
    """Returns on which examples the classifiers that are reported are trained.

    Returns:
      By name, places among the training examples and, behind them, the validation examples.
    """
    num_train, num_valid = len(is_found), len(data.valid.labels)
    valid = num_train + np.arange(num_valid)
    parts = {
        "all, as given": np.arange(num_train),
        "those not found": np.flatnonzero(~is_found),
        "those not wrong (oracle)": np.flatnonzero(~data.is_corrupted),
    }
    both = {name + report.WITH_VALIDATION: np.append(x, valid) for name, x in parts.items()}
    return parts | {ONLY_VALIDATION: valid} | both


@functools.partial(jax.jit, static_argnames="config")
def train_on(
    config: Config, examples: Dataset, places: Array, count: Array, params: Any, key: Array
) -> Any:
    """Returns the parameters after a training without weights on some of the examples.

    Args:
      config: the experiment.
      examples: training and validation examples, a Dataset.
      places: int32 [M], which; M is the same for all, so that one program serves.
      count: int32 scalar, of how many of the places, the first ones.
      params: initial parameters.
      key: PRNG key.
    """

    def batch_fn(data: Any, t: Array, key: Any) -> Dataset:
        del t
        examples, places, count = data
        rows = places[jax.random.randint(key, (config.batch_size,), 0, count)]
        return jax.tree.map(lambda x: x[rows], examples)

    rule = hg.momentum(
        classification_loss(make_model(config)),
        learning_rate=config.learning_rate,
        momentum=config.momentum,
    )
    run = hg.Run(rule, num_steps=config.num_final_steps, batch_fn=batch_fn)
    return hg.unroll(run, params, {}, (examples, places, count), key=key).params
