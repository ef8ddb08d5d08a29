"""Learning rates and momenta of a small net without biases, all settings in one call.

A net of logistic hidden units and a softmax, without biases, starts at 0.1 cos(0, 1, 2, ...) filled
column by column into the matrices [hidden, inputs] and [classes, hidden], and is trained on
mini-batches in file order, round and round: v' = m v - g, w' = w + lr v', where g is the gradient
of the mean cross-entropy + wd / 2 |w|**2. First the gradient is checked by differences. Printed is
a table of loss, classification loss (without the penalty) and error on the three parts of the data;
written are a line of JSON, and two figures for each weight decay. By default on the digits that
come with the library; `--data usps` reads the USPS files that the exercise was made for (CS-E4850,
Aalto, after csc321, Toronto, whose own program fills the weights in row by row).

Examples:
    python -m experiments.usps_backprop --data usps --data-dir FOLDER
    python -m experiments.usps_backprop --momenta 0 0.5 0.9 --early-stopping
"""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import hgrad_jax as hg
from experiments.common import environment, parse, script, write_json_line
from experiments.usps_backprop import report
from experiments.usps_backprop.config import Config
from experiments.usps_backprop.problem import (
    Data,
    classification_loss,
    initial_params,
    load_data,
    logits,
    loss,
    make_model,
)
from hgrad_jax.data import Dataset, DataUnavailableError, minibatches
from hgrad_jax.models import cross_entropy, error_rate


def check_gradient(config: Config, data: Data) -> hg.GradientReport:
    """Returns the gradient at the initial weights, on the first batch, beside differences."""
    model = make_model(config)
    batch = jax.tree.map(lambda x: x[: config.batch_size], data.train)
    hparams = {"weight_decay": max(config.weight_decays) or 0.1}
    return hg.check_gradient(
        lambda params, hparams, batch: loss(model, params, hparams, batch),
        initial_params(config, data.train.inputs),
        hparams,
        batch,
        num_samples=10,
    )


def make_run(config: Config) -> Any:
    """Returns `run(hparams, key, data)`, one training and what is measured of it."""
    model = make_model(config)
    # Its velocity is the negative of the one above; the weights are the same.
    rule = hg.heavy_ball(lambda params, hparams, batch, key: loss(model, params, hparams, batch))

    def record(state: Any, data: Data) -> dict[str, Any]:
        losses = {
            part: classification_loss(model, state.params, getattr(data, part))
            for part in ("train", "validation")
        }
        return {"losses": losses} | ({"params": state.params} if config.early_stopping else {})

    def batch_fn(data: Data, t: Array, key: Any) -> Dataset:
        return minibatches(config.batch_size)(data.train, t, key)

    training = hg.Run(rule, num_steps=config.num_steps, batch_fn=batch_fn, record=record)

    def run(hparams: Any, key: Any, data: Data) -> dict[str, Any]:
        start = initial_params(config, data.train.inputs)
        out = hg.unroll(training, start, hparams, data, key=key)
        params, step = out.params, config.num_steps - 1
        if config.early_stopping:
            losses = out.trace["losses"]["validation"]
            step = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
            params = jax.tree.map(lambda x: x[step], out.trace["params"])
        measured = {}
        for part in report.PARTS:
            scores, labels = logits(model, params, getattr(data, part)), getattr(data, part).labels
            measured[part] = {
                "loss": loss(model, params, hparams, getattr(data, part)),
                "classification_loss": cross_entropy(scores, labels),
                "error": error_rate(scores, labels),
            }
        return measured | {"path": out.trace["losses"], "steps": jnp.asarray(step + 1)}

    return run


def experiment(config: Config) -> hg.Sweep:
    """Checks the gradient, runs all settings, prints the table and writes the results."""
    data, out = load_data(config), Path(config.out)
    checked = check_gradient(config, data).raise_if_wrong()
    worst = checked.worst.relative_error
    print(f"gradient against differences: relative error {worst:.0e} or less\n", flush=True)

    settings = hg.grid(
        {
            "learning_rate": config.learning_rates,
            "momentum": config.momenta,
            "weight_decay": config.weight_decays,
        }
    )
    run = make_run(config)
    begun = time.perf_counter()
    found = hg.sweep(run, settings, data)
    compiled = time.perf_counter()
    found = hg.sweep(run, settings, data)  # the same call again compiles nothing
    seconds = time.perf_counter() - compiled
    compile_seconds = compiled - begun - seconds
    print(report.table(found))
    print(f"\n{len(settings)} trainings in one call: {seconds:.3f} s", end=", ")
    print(f"and {compile_seconds:.1f} s to compile it")
    paths = report.draw(found, out)
    best = found.best("validation.classification_loss")
    write_json_line(
        out / "result.jsonl",
        {
            "experiment": "usps_backprop",
            "environment": environment(),
            "config": dataclasses.asdict(config),
            "gradient_error": worst,
            "settings": found.settings,
            "results": jax.tree.map(lambda x: x[:, 0], found.results),
            "best": {"setting": best.setting, "test": _of(found.results["test"], best.place)},
            "seconds": seconds,
            "compile_seconds": compile_seconds,
        },
    )
    print(f"results: {', '.join(map(str, (out / 'result.jsonl', *paths)))}")
    return found


def _of(results: Any, place: int) -> Any:
    return jax.tree.map(lambda x: np.asarray(x)[place, 0], results)


def main(argv: Sequence[str] | None = None) -> hg.Sweep:
    """Runs the experiment that the command line asks for, and returns its sweep.

    Raises:
      SystemExit: after --help, or with a message on what is wrong: an option, or the data.
    """
    config = parse(Config, argv, __doc__)
    try:
        with jax.enable_x64(True) if config.x64 else contextlib.nullcontext():
            return experiment(config)
    except (DataUnavailableError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    script(main)
