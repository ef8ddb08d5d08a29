"""Tunes hundreds of hyperparameters of a digits classifier by exact hypergradients.

Tuned are a learning rate for every training step, an L2 coefficient for every input of every
layer, and the momentum; the objective is the validation loss after training. Each meta-step trains
several networks from fresh seeds, runs the trainings backwards (`hg.Reversible()`), and takes one
step of Adam. What was gained is measured on seeds that were not tuned on, and on a test set that no
gradient has seen. Written to `--out`: `result.jsonl`, three figures, and a folder of the tuning's
records and checkpoints; the same command goes on from them.

Examples:
    python -m experiments.tune_digits --data mnist --data-dir FOLDER
    python -m experiments.tune_digits --num-meta-steps 40 --seed 1
"""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Sequence
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
from experiments.common import environment, option, parse, script, write_json_line
from experiments.tune_digits import report
from hgrad_jax.data import DataUnavailableError, load, split, with_replacement
from hgrad_jax.hypergradient import Objective
from hgrad_jax.models import MLP, cross_entropy, error_rate

SCHEDULES = {"log_l2": None, "log_learning_rate": 0, "logit_momentum": None}
HELD_OUT = 1  # a role of keys that the tuning, without fresh splits, does not use


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, how, and from which hyperparameters the tuning starts."""

    data: str = option("digits", "the data set", ("digits", "mnist"))
    data_dir: str | None = option(None, "folder with MNIST's original files")
    out: str = option("results/tune_digits", "folder for records and figures")
    seed: int = option(0, "chooses the division of the data and all random numbers")
    num_train: int = option(300, "training examples; few, so that regularization matters")
    num_valid: int = option(1000, "validation examples")
    batch_size: int = option(50, "examples per training step, drawn with replacement")
    num_steps: int = option(100, "training steps")
    hidden: tuple[int, ...] = option((50, 50), "tanh units of each hidden layer")
    learning_rate: float = option(0.3, "of every step at the start of the tuning")
    l2: float = option(1e-3, "coefficient of every weight's square / 2 at the start of the tuning")
    momentum: float = option(0.9, "decay of the velocity at the start of the tuning, in (0, 1)")
    num_meta_steps: int = option(20, "steps of the tuning")
    meta_learning_rate: float = option(0.1, "Adam's, on logarithms and logits")
    num_runs: int = option(4, "networks trained side by side in each meta-step")

    def __post_init__(self) -> None:
        numbers = ("num_valid", "batch_size", "num_steps", "num_meta_steps", "num_runs")
        for name in (*numbers, "learning_rate", "l2", "meta_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive.")
        if not 0 < self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be between 0 and 1.")
        if self.batch_size > self.num_train:
            raise ValueError(
                f"batch_size is {self.batch_size}, more than num_train, {self.num_train}."
            )


class Data(NamedTuple):
    """The parts of the data, a `Dataset` each: to train on, to tune on, and to report on."""

    train: Any
    valid: Any
    test: Any


def load_data(config: Config) -> Data:
    """Returns the data as device arrays, whatever is not asked for left out."""
    everything = load(config.data, config.data_dir)
    sizes = (config.num_train, config.num_valid)
    train, valid = split(everything.train, sizes, seed=config.seed)
    return jax.tree.map(jnp.asarray, Data(train, valid, everything.test))


def make_model(config: Config) -> MLP:
    """Returns the network, a value without parameters."""
    return MLP((*config.hidden, 10), activation=nn.tanh)


def initial_params(model: MLP, inputs: Array, key: Array) -> dict[str, Any]:
    """Returns random weights for inputs [N, *shape]."""
    return dict(model.init(key, inputs[:1], train=False)["params"])


def initial_hparams(config: Config, inputs: Array) -> dict[str, Any]:
    """Returns the hyperparameters to start from, as logarithms and a logit.

    The hidden units' coefficients are those of the weights that go out from them.

    Returns:
      log_l2 {layer: [units into it]}, log_learning_rate [T], logit_momentum [].
    """
    model = make_model(config)
    params = jax.eval_shape(lambda: initial_params(model, inputs, jax.random.key(0)))
    units = {layer: weights["kernel"].shape[0] for layer, weights in params.items()}
    return {
        "log_l2": {layer: jnp.full(count, jnp.log(config.l2)) for layer, count in units.items()},
        "log_learning_rate": jnp.full(config.num_steps, jnp.log(config.learning_rate)),
        "logit_momentum": jax.scipy.special.logit(jnp.asarray(config.momentum)),
    }


def training_loss(
    model: MLP, params: dict[str, Any], hparams: dict[str, Any], batch: Any, key: Array | None
) -> Array:
    """Returns cross-entropy + sum over layers, inputs i, outputs j of l2_i * weight_ij**2 / 2."""
    del key
    l2 = sum(
        jnp.exp(hparams["log_l2"][layer]) @ jnp.sum(weights["kernel"] ** 2, axis=1) / 2
        for layer, weights in params.items()
    )
    return validation_loss(model, params, hparams, batch) + l2


def validation_loss(
    model: MLP, params: dict[str, Any], hparams: dict[str, Any], data: Any
) -> Array:
    """Returns the mean cross-entropy in nats."""
    del hparams
    return cross_entropy(logits(model, params, data.inputs), data.labels)


def logits(model: MLP, params: dict[str, Any], inputs: Array) -> Array:
    """Returns what the softmax is taken of, [N, 10]."""
    return jnp.asarray(model.apply({"params": params}, inputs, train=False))


def problem(config: Config) -> tuple[Objective, hg.Run]:
    """Returns the validation loss, and the training that is run backwards."""
    model = make_model(config)
    rule = hg.momentum(
        functools.partial(training_loss, model),
        learning_rate=lambda hparams: jnp.exp(hparams["log_learning_rate"]),
        momentum=lambda hparams: jax.nn.sigmoid(hparams["logit_momentum"]),
    )
    return functools.partial(validation_loss, model), hg.Run(
        rule,
        num_steps=config.num_steps,
        batch_fn=with_replacement(config.batch_size),
        hparams_axes=SCHEDULES,
        adjoint=hg.Reversible(),
    )


def trained_and_measured(
    config: Config, hparams: dict[str, Any], key: Array, data: Data
) -> dict[str, Array]:
    """Returns losses and error rates after a training; pure."""
    model, (_, run) = make_model(config), problem(config)
    key_init, key_run = jax.random.split(key)
    params = hg.unroll(
        dataclasses.replace(run, adjoint=hg.Direct()),
        initial_params(model, data.train.inputs, key_init),
        hparams,
        data.train,
        key=key_run,
    ).params
    measured = {}
    for name, part in (("validation", data.valid), ("test", data.test)):
        scores = logits(model, params, part.inputs)
        measured[f"{name}_loss"] = cross_entropy(scores, part.labels)
        measured[f"{name}_error"] = error_rate(scores, part.labels)
    return measured


def held_out_keys(config: Config) -> Array:
    """Returns keys [num_runs] of seeds that were not tuned on."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), HELD_OUT), 0)
    return jax.random.split(key, config.num_runs)


def records_folder(config: Config) -> Path:
    """Returns the folder of this configuration's tuning, another one for another."""
    choices = repr(dataclasses.replace(config, out=""))
    return Path(config.out) / hashlib.sha256(choices.encode()).hexdigest()[:8]


def run(config: Config, data: Data, console: Console) -> dict[str, Any]:
    """Tunes, writes the records and figures, prints the table, and returns the result."""
    started, out = time.perf_counter(), Path(config.out)
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    first = initial_hparams(config, data.train.inputs)
    count = sum(x.size for x in jax.tree.leaves(first))
    console.print(f"{config.data}: tuning {count} hyperparameters in {config.num_meta_steps} steps")
    folder = records_folder(config)
    tuned = hg.tune(
        *problem(config),
        functools.partial(initial_params, make_model(config), data.train.inputs),
        first,
        data.train,
        data.valid,
        num_meta_steps=config.num_meta_steps,
        optimizer=optax.adam(config.meta_learning_rate),
        key=jax.random.key(config.seed),
        num_runs=config.num_runs,
        records=hg.Records(folder, every=5, figures_every=None, is_whole=True),
    )
    found = hg.sweep(
        functools.partial(trained_and_measured, config),
        [first, tuned.hparams],
        data,
        keys=held_out_keys(config),
    )
    lines = [json.loads(x) for x in (folder / "meta_steps.jsonl").read_text().splitlines()]
    result = {
        "experiment": "tune_digits",
        "started": stamp,
        "environment": environment(),
        "seed": config.seed,
        "config": dataclasses.asdict(config),
        "num_hparams": count,
        "before": {name: values[0] for name, values in found.results.items()},
        "after": {name: values[1] for name, values in found.results.items()},
        "seconds_per_meta_step": np.median(tuned.history.seconds),
        "temp_bytes": lines[-1]["bytes"],
        "bits_per_step": lines[-1]["bits_per_step"]["velocity"],
        "entropy_per_step": lines[-1]["entropy_per_step"]["velocity"],
        "is_restored": all(line["is_restored"] for line in lines),
        "momentum": jax.nn.sigmoid(tuned.hparams["logit_momentum"]),
    }
    report.draw(out, tuned.history.value, first, tuned.hparams)
    result["seconds"] = time.perf_counter() - started
    write_json_line(out / "result.jsonl", result)
    report.print_table(console, result, config.num_runs)
    console.print(f"records and figures: {config.out}")
    return result


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the experiment that the command line asks for, and returns its result.

    Raises:
      SystemExit: after --help, or with a message on what is wrong: an option, the data, or a
        hypergradient that `hg.check` refuses.
    """
    config = parse(Config, argv, __doc__)
    try:
        data = load_data(config)
    except (DataUnavailableError, ValueError) as error:  # more examples than there are
        raise SystemExit(f"error: {error}") from error
    try:
        return run(config, data, Console())
    except (hg.HypergradientError, hg.CheckpointError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    script(main)
