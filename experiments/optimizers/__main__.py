"""How update rules train a deep network, and how far batch normalization gets it.

Two studies of Stanford's course on convolutional networks (CS231n, second assignment, of
fully connected networks), in images times 255 less their mean, as there:

- `rules`: five hidden layers of 100 rectified units whose weights start with standard deviation
  0.05; gradient descent without and with momentum (classical, Nesterov's), RMSProp and Adam, on
  4,000 images.
- `batch_norm`: three hidden layers of 500 with batch normalization, trained by Adam on all
  images, its learning rate multiplied by 0.9 after every epoch.

Validation is on the data set's own test part, by which nothing is chosen here. Printed is a table,
written are a figure and a line of JSON for each study.

Examples:
    python -m experiments.optimizers --study rules --rules-num-epochs 10
    python -m experiments.optimizers --data cifar10_subset --data-dir FOLDER
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

import hgrad_jax as hg
from experiments.common import environment, option, parse, script, write_json_line
from experiments.optimizers import report
from hgrad_jax.data import (
    Dataset,
    DataUnavailableError,
    Splits,
    load,
    shuffled,
    validate_examples,
)
from hgrad_jax.models import MLP, classification_loss, classification_metrics
from hgrad_jax.models.initializers import scaled_normal
from hgrad_jax.tools.files import write_figures

NUM_CLASSES = 10
DATA = ("digits", "mnist", "cifar10_subset", "cifar10")
STUDIES = ("rules", "batch_norm")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, how long, and where the results go."""

    study: str = option("both", "which of the two", ("both", *STUDIES))
    data: str = option("digits", "training and validation images", DATA)
    data_dir: str | None = option(None, "folder with the data set's original files")
    out: str = option("results/optimizers", "folder for records and figures")
    seed: int = option(0, "chooses initial weights and the order of the images")
    batch_size: int = option(100, "images a step")
    weight_scale: float = option(0.05, "standard deviation of the initial weights")
    num_measured: int = option(1000, "images whose accuracy is measured, of either part")
    num_statistics: int = option(10_000, "training images whose statistics normalize predictions")
    rules_num_train: int = option(4000, "images to train on, or all if there are fewer")
    rules_num_epochs: int = option(5, "epochs of every rule")
    rules_hidden: tuple[int, ...] = option((100,) * 5, "rectified units of each hidden layer")
    sgd_learning_rate: float = option(1e-2, "of gradient descent, with momentum and without")
    momentum: float = option(0.9, "decay of the velocity, in [0, 1)")
    rmsprop_learning_rate: float = option(2e-4, "of RMSProp")
    adam_learning_rate: float = option(1e-3, "of Adam, in both studies at the start")
    batch_norm_num_epochs: int = option(10, "epochs of the normalized network")
    batch_norm_hidden: tuple[int, ...] = option((500,) * 3, "units of its hidden layers")
    batch_norm_decay: float = option(0.9, "its learning rate's factor per epoch, in (0, 1]")
    progress: bool = option(True, "a bar for each training, in a terminal")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            is_free = field.name in ("seed", "momentum", "progress")
            if not is_free and any(isinstance(x, int | float) and not x > 0 for x in numbers):
                raise ValueError(f"{field.name} is {value}; it must be positive.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be in [0, 1).")
        if self.rules_num_train < self.batch_size:
            raise ValueError(
                f"rules_num_train is {self.rules_num_train}, less than batch_size, "
                f"{self.batch_size}."
            )
        if self.batch_norm_decay > 1:
            raise ValueError(f"batch_norm_decay is {self.batch_norm_decay}; it must be in (0, 1].")


class Data(NamedTuple):
    """Images with their classes.

    Attributes:
      train: what to learn from.
      sample: some of it, to measure training accuracy on.
      valid: what no gradient sees.
    """

    train: Dataset
    sample: Dataset
    valid: Dataset


def load_data(config: Config) -> Splits:
    """Returns the data set's two parts, checked, as they come: inputs in [0, 1]."""
    parts = load(config.data, config.data_dir)
    for name, part in zip(("train", "test"), parts, strict=True):
        validate_examples(part, NUM_CLASSES, name)
    if config.batch_size > len(parts.train.labels):
        raise ValueError(
            f"batch_size is {config.batch_size}, but {config.data} has "
            f"{len(parts.train.labels)} training images."
        )
    return parts


def prepared(parts: Splits, num_train: int | None, num_measured: int) -> Data:
    """Returns the data of a study, with inputs 255 times those given less the mean image."""
    train, valid = _first(parts.train, num_train), _first(parts.test, num_measured)
    mean = train.inputs.mean(axis=0)

    def centred(part: Dataset) -> Dataset:
        return part._replace(inputs=255 * (part.inputs - mean))

    train = centred(train)
    return Data(train, _first(train, num_measured), centred(valid))


def rules_of(config: Config, loss: Any) -> Mapping[str, hg.Transition]:
    """Returns the update rules that are compared, by name."""
    rate, momentum = config.sgd_learning_rate, config.momentum
    return {
        "SGD": hg.sgd(loss, learning_rate=rate),
        "momentum": hg.classical_momentum(loss, learning_rate=rate, momentum=momentum),
        "Nesterov": hg.nesterov(loss, learning_rate=rate, momentum=momentum),
        "RMSProp": hg.rmsprop(loss, learning_rate=config.rmsprop_learning_rate),
        "Adam": hg.adam(loss, learning_rate=config.adam_learning_rate),
    }


def compare_rules(config: Config, parts: Splits, console: Console) -> dict[str, hg.Fit]:
    """Trains the same network from the same weights by every rule."""
    data = prepared(parts, config.rules_num_train, config.num_measured)
    model = MLP((*config.rules_hidden, NUM_CLASSES), kernel_init=scaled_normal(config.weight_scale))
    loss = classification_loss(model)
    runs = {}
    for name, rule in rules_of(config, loss).items():
        console.print(f"{name}: {config.rules_num_epochs} epochs")
        runs[name] = hg.fit(
            rule,
            initial_params(model, data, config),
            {},
            data.train,
            data.valid,
            num_epochs=config.rules_num_epochs,
            batch_fn=shuffled(config.batch_size, seed=config.seed),
            loss=loss,
            metrics=classification_metrics(model),
            train_sample=data.sample,
            progress=None if config.progress else False,
        )
    return runs


def train_batch_norm(config: Config, parts: Splits, console: Console) -> dict[str, hg.Fit]:
    """Trains the normalized network."""
    data = prepared(parts, None, config.num_measured)
    model = MLP(
        (*config.batch_norm_hidden, NUM_CLASSES),
        batch_norm=True,
        kernel_init=scaled_normal(config.weight_scale),
    )
    loss = classification_loss(model)

    def decayed(hparams: dict[str, Any], epoch: Any) -> dict[str, Any]:
        return {"learning_rate": hparams["learning_rate"] * config.batch_norm_decay**epoch}

    console.print(f"batch normalization: {config.batch_norm_num_epochs} epochs")
    out = hg.fit(
        hg.adam(loss),
        initial_params(model, data, config),
        {"learning_rate": config.adam_learning_rate},
        data.train,
        data.valid,
        num_epochs=config.batch_norm_num_epochs,
        batch_fn=shuffled(config.batch_size, seed=config.seed),
        epoch_hparams=decayed,
        loss=loss,
        metrics=classification_metrics(model),
        metrics_args=(data.train.inputs[: config.num_statistics],),
        train_sample=data.sample,
        progress=None if config.progress else False,
    )
    return {"batch norm": out}


def initial_params(model: MLP, data: Data, config: Config) -> Any:
    """Returns the weights that every training with this seed starts from."""
    key = jax.random.key(config.seed)
    return model.init(key, data.train.inputs[:1], train=False)["params"]


def title_of(config: Config, parts: Splits, study: str) -> str:
    """Returns what a study's table and figure say about it."""
    is_rules = study == "rules"
    hidden = config.rules_hidden if is_rules else config.batch_norm_hidden
    images = len(parts.train.labels)
    images = min(images, config.rules_num_train) if is_rules else images
    widths = "-".join(map(str, hidden))
    return f"{config.data}, {images:,} images, {'' if is_rules else 'Adam, '}hidden layers {widths}"


def run(config: Config, parts: Splits, console: Console) -> list[dict[str, Any]]:
    """Runs the studies, prints their tables, writes records and figures; returns the records."""
    studies = {"rules": compare_rules, "batch_norm": train_batch_norm}
    records = []
    for study in STUDIES if config.study == "both" else (config.study,):
        begun, stamp = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
        runs = studies[study](config, parts, console)
        record = {
            "experiment": "optimizers",
            "study": study,
            "started": stamp,
            "environment": environment(),
            "seed": config.seed,
            "config": dataclasses.asdict(config),
            "runs": {
                name: out.history._asdict() | {"reason": out.reason} for name, out in runs.items()
            },
            "seconds": time.perf_counter() - begun,
        }
        write_json_line(Path(config.out) / "result.jsonl", record)
        figure = Path(config.out) / f"{study}.png"
        title = title_of(config, parts, study)
        write_figures(figure.parent, {figure.stem: report.draw(runs, title)}, dpi=120)
        report.print_table(console, runs, title)
        console.print(f"record and figure: {config.out}/result.jsonl, {figure}\n")
        records.append(record)
    return records


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the studies that the command line asks for, and returns their records.

    Raises:
      SystemExit: after --help, or with a message on what is wrong with an option or the data.
    """
    config = parse(Config, argv, __doc__)
    try:
        parts = load_data(config)
    except (DataUnavailableError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    return run(config, parts, Console())


def _first(data: Dataset, count: int | None) -> Dataset:
    return Dataset(*(x[:count] for x in data))


if __name__ == "__main__":
    script(main)
