"""Finds examples with wrong labels by hypergradients: data hyper-cleaning.

Franceschi, Donini, Frasconi and Pontil (2017, section 5.1). Half of the training labels are
replaced, each by one of the nine others, drawn uniformly (so that every replaced label is wrong).
Every training example has a weight in [0, 1], by which its loss is multiplied; all start at 1, and
each meta-step trains a classifier with them, takes the hypergradient of the validation loss with
respect to all of them, and moves them by one step of Adam and a projection to the box (as an
option, to the ball of the paper too: their sum is at most R). Examples whose weight ends below a
threshold count as found.

Printed are how well that finds what was replaced, by exact hypergradients (`hg.Reversible()`,
and `hg.Direct()` to compare) and by approximate ones, and two simpler ways to find the same; and
the test accuracy of classifiers trained on what is left, on everything, and on what an oracle would
leave. Nothing is chosen by the test data, and nothing that trains or tunes sees the true labels of
the training examples. Written to `--out`: `result.jsonl`, three figures a seed, and folders of the
tunings' records and checkpoints; the same command goes on from them.
"""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array
from rich.console import Console

import hgrad_jax as hg
from experiments import hyper_cleaning_report as report
from experiments.common import environment, option, parse, write_json_line
from hgrad_jax.data import Dataset, DataUnavailableError, load, shuffled, split
from hgrad_jax.models import (
    MLP,
    SoftmaxRegression,
    classification_loss,
    cross_entropy,
    error_rate,
)

SIZES = {"digits": (500, 500), "mnist": (5000, 5000)}
NUM_CLASSES = 10
CORRUPTION = 1  # a role of seeds
EXACT = "Reversible"
ONLY_VALIDATION = report.NOTHING + report.WITH_VALIDATION


@dataclasses.dataclass(frozen=True)
class Config:
    """What is corrupted and trained, and how the weights are tuned."""

    data: str = option("digits", "the data set", tuple(SIZES))
    data_dir: str | None = option(None, "folder with MNIST's original files")
    out: str = option("results/hyper_cleaning", "folder for records and figures")
    seeds: tuple[int, ...] = option((0,), "of division, corruption and training; one run for each")
    num_train: int | None = option(None, "training examples; None for 500 digits, 5000 of MNIST")
    num_valid: int | None = option(None, "validation examples; None for as many as that")
    corrupted: float = option(0.5, "fraction of training labels replaced, in (0, 1)")
    hidden: int = option(0, "tanh units of a hidden layer; 0 for softmax regression")
    batch_fraction: float = option(0.1, "of the training examples, in a step's batch, in (0, 1]")
    num_steps: int = option(200, "training steps in a meta-step")
    learning_rate: float = option(0.5, "of momentum")
    momentum: float = option(0.9, "decay of the velocity, in (0, 1)")
    num_meta_steps: int = option(30, "steps of the tuning")
    meta_learning_rate: float = option(0.1, "Adam's, of the weights")
    l1_radius: float | None = option(None, "most that the weights may sum to; None for any sum")
    threshold: float = option(0.5, "examples with a smaller weight are found, in (0, 1]")
    num_final_steps: int = option(2000, "steps of the trainings whose accuracy is reported")
    compare: bool = option(True, "tune by stored and by approximate hypergradients too")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and field.name != "hidden" and not value > 0:
                raise ValueError(f"{field.name} is {value}; it must be positive.")
        for name in ("corrupted", "momentum"):
            if not getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be below 1.")
        for name in ("batch_fraction", "threshold"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at most 1.")
        if self.hidden < 0:
            raise ValueError(f"hidden is {self.hidden}; it must be at least 0.")
        if not all(0 <= seed < 2**32 for seed in self.seeds):
            raise ValueError(f"seeds are {self.seeds}; each must be in [0, 2**32).")

    @property
    def sizes(self) -> tuple[int, int]:
        """How many training and validation examples there are."""
        num_train, num_valid = SIZES[self.data]
        return self.num_train or num_train, self.num_valid or num_valid

    @property
    def batch_size(self) -> int:
        """Examples of a training step."""
        return max(1, round(self.batch_fraction * self.sizes[0]))


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


def onto_box_and_ball(x: Array, radius: float | None) -> Array:
    """Returns the nearest point with 0 <= x <= 1 and sum x <= radius, which is then the L1 norm.

    That is clip(x - tau, 0, 1) with the least tau >= 0 that makes the sum small enough, found by
    halving.

    Args:
      x: floats [N].
      radius: positive; None for no bound of the sum.

    >>> onto_box_and_ball(jnp.array([2.0, 0.5, 0.25, -1.0]), 1.25).round(4)
    Array([1.  , 0.25, 0.  , 0.  ], dtype=float32)
    """

    def at(tau: Array) -> Array:
        return jnp.clip(x - tau, 0, 1)

    if radius is None:
        return at(jnp.zeros_like(x[0]))

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        is_enough = jnp.sum(at(middle)) <= radius
        return jnp.where(is_enough, low, middle), jnp.where(is_enough, middle, high)

    zero = jnp.zeros_like(x[0])
    _, tau = jax.lax.fori_loop(0, 60, halve, (zero, jnp.maximum(jnp.max(x), 0)))
    return jnp.where(jnp.sum(at(zero)) <= radius, at(zero), at(tau))


def adjoints(config: Config) -> Mapping[str, hg.Adjoint]:
    """Returns by what the weights are tuned, the one that all else is compared with first."""
    exact = {EXACT: hg.Reversible(smallest_decay=config.momentum)}
    if not config.compare:
        return exact
    window = max(1, config.num_steps // 10)
    return exact | {
        "Direct": hg.Direct(),
        f"Truncated({window})": hg.Truncated(window),
        "DrMAD": hg.DrMAD(),
    }


def problem(config: Config, data: Data, seed: int, adjoint: hg.Adjoint) -> dict[str, Any]:
    """Returns what `hg.tune` and `hg.meta_step` need."""
    model = make_model(config)

    def project(hparams: dict[str, Array]) -> dict[str, Array]:
        return {"weights": onto_box_and_ball(hparams["weights"], config.l1_radius)}

    return {
        "objective": functools.partial(validation_loss, model),
        "transition": hg.momentum(
            functools.partial(weighted_loss, model),
            learning_rate=config.learning_rate,
            momentum=config.momentum,
        ),
        "init_params": functools.partial(initial_params, model, data.train.inputs),
        "num_steps": config.num_steps,
        "optimizer": hg.projected(optax.adam(config.meta_learning_rate), project),
        "batch_fn": shuffled(config.batch_size, seed=seed),
        "adjoint": adjoint,
    }


def first_weights(config: Config) -> dict[str, Array]:
    """Returns the hyperparameters that the tuning starts from: ones, or less where R is less."""
    num_train = config.sizes[0]
    return {"weights": onto_box_and_ball(jnp.ones(num_train), config.l1_radius)}


class Cleaning(NamedTuple):
    """A tuning that is done.

    Attributes:
      weights: float32 [K + 1, N], before every meta-step and after the last.
      hypergradient: float32 [N], at the first weights.
      valid_loss: float [K], before every meta-step.
      seconds_per_meta_step: the median; compilation not counted.
      temp_bytes: the compiled meta-step's temporaries; None where the backend does not tell.
      is_restored: whether every run was restored bit for bit; None where none is run backwards.
    """

    weights: np.ndarray
    hypergradient: np.ndarray
    valid_loss: np.ndarray
    seconds_per_meta_step: float
    temp_bytes: int | None
    is_restored: bool | None


def clean(config: Config, data: Data, seed: int, name: str) -> Cleaning:
    """Tunes the weights by one of the `adjoints`, or goes on with that."""
    folder = records_folder(config, seed) / name
    tuned = hg.tune(
        **problem(config, data, seed, adjoints(config)[name]),
        hparams=first_weights(config),
        train=data.train,
        valid=data.valid,
        num_meta_steps=config.num_meta_steps,
        key=jax.random.key(seed),
        records=hg.Records(folder, every=5, figures_every=None, is_whole=True),
    )
    lines = [json.loads(x) for x in (folder / "meta_steps.jsonl").read_text().splitlines()]
    path = [line["hparams"]["weights"] for line in lines]
    restored = [line["is_restored"] for line in lines]
    return Cleaning(
        np.asarray([*path, np.asarray(tuned.hparams["weights"])], np.float32),
        np.asarray(lines[0]["hypergradient"]["weights"], np.float32),
        tuned.history.value[:, 0],
        float(np.median(tuned.history.seconds)),
        lines[-1]["bytes"],
        None if None in restored else all(restored),
    )


def records_folder(config: Config, seed: int) -> Path:
    """Returns the folder of one seed's tunings, another one for another configuration."""
    told = {"out": "", "seeds": (seed,), "compare": True, "threshold": 0.5, "num_final_steps": 1}
    choices = repr(dataclasses.replace(config, **told))
    return Path(config.out) / hashlib.sha256(choices.encode()).hexdigest()[:8]


def score(is_found: np.ndarray, is_corrupted: np.ndarray) -> dict[str, float]:
    """Returns how well the corrupted examples were found; 0 where nothing was.

    >>> score(np.array([True, True, False, False]), np.array([True, False, True, True]))
    {'f1': 0.4, 'precision': 0.5, 'recall': 0.3333333333333333, 'num_found': 2}
    """
    right, found = int(np.sum(is_found & is_corrupted)), int(np.sum(is_found))
    precision, recall = right / max(found, 1), right / max(int(np.sum(is_corrupted)), 1)
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"f1": f1, "precision": precision, "recall": recall, "num_found": found}


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
    return hg.unroll(
        rule,
        params,
        {},
        (examples, places, count),
        num_steps=config.num_final_steps,
        batch_fn=batch_fn,
        key=key,
    ).params


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


def run_seed(config: Config, seed: int, console: Console) -> dict[str, Any]:
    """Cleans one corrupted data set in every way, writes its record and figures."""
    started, stamp = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    data = load_data(config, seed)
    is_corrupted = data.is_corrupted
    console.print(
        f"{config.data}, seed {seed}: tuning {len(is_corrupted)} weights, of examples of which "
        f"{is_corrupted.sum()} have wrong labels"
    )
    cleanings = {name: clean(config, data, seed, name) for name in adjoints(config)}
    exact = cleanings[EXACT]

    def found_by(cleaning: Cleaning) -> np.ndarray:
        return cleaning.weights[-1] < config.threshold

    accuracy, doubted = accuracies(config, data, found_by(exact), seed)
    result = {
        "experiment": "hyper_cleaning",
        "started": stamp,
        "environment": environment(),
        "seed": seed,
        "config": dataclasses.asdict(config),
        "num_corrupted": is_corrupted.sum(),
        "found": {
            name: score(found_by(cleaning), is_corrupted)
            | {
                "f1_at_zero": score(cleaning.weights[-1] <= 0, is_corrupted)["f1"],
                "valid_loss": cleaning.valid_loss[-1],
                **_compared(cleaning.hypergradient, exact.hypergradient),
                "seconds_per_meta_step": cleaning.seconds_per_meta_step,
                "temp_bytes": cleaning.temp_bytes,
                "is_restored": cleaning.is_restored,
            }
            for name, cleaning in cleanings.items()
        },
        "found_otherwise": {
            "sign of the first hypergradient": score(exact.hypergradient > 0, is_corrupted),
            "other than a classifier says": score(doubted, is_corrupted),
        },
        "accuracy": accuracy,
    }
    f1 = [score(weights < config.threshold, is_corrupted)["f1"] for weights in exact.weights]
    figures = {
        "progress": report.draw_progress(exact.valid_loss, np.asarray(f1)),
        "weights": report.draw_weights(exact.weights[-1], is_corrupted, config.threshold),
        "found": report.draw_found(
            np.asarray(data.train.inputs),
            np.asarray(data.train.labels),
            data.true_labels,
            np.flatnonzero(found_by(exact)),
        ),
    }
    figures_at = Path(config.out) / f"seed_{seed}"
    report.write(figures_at, figures)
    result["seconds"] = time.perf_counter() - started
    write_json_line(Path(config.out) / "result.jsonl", result)
    console.print(f"records and figures: {config.out}/result.jsonl, {figures_at}")
    return result


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the experiment that the command line asks for, and returns a result for each seed.

    Raises:
      SystemExit: after --help, or with a message on what is wrong: an option, the data, or a
        hypergradient that `hg.check` refuses.
    """
    config = parse(Config, argv, "Finds wrong labels by hypergradients of examples' weights.")
    console = Console()
    try:
        results = [run_seed(config, seed, console) for seed in config.seeds]
    except (DataUnavailableError, ValueError) as error:  # more examples than there are
        raise SystemExit(f"error: {error}") from error
    except (hg.HypergradientError, hg.CheckpointError) as error:
        raise SystemExit(f"error: {error}") from error
    report.print_tables(console, results)
    return results


def _compared(hypergradient: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Returns the relative error and the cosine."""
    norm = float(np.linalg.norm(exact))
    size = float(np.linalg.norm(hypergradient)) * norm
    return {
        "relative_error": float(np.linalg.norm(hypergradient - exact)) / norm,
        "cosine": float(hypergradient @ exact) / size if size else float("nan"),
    }


if __name__ == "__main__":
    main()
