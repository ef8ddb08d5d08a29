"""Learning rates and momenta of a small net without biases, all settings in one call.

A net of logistic hidden units and a softmax, without biases, starts at 0.1 cos(0, 1, 2, ...) filled
column by column into the matrices [hidden, inputs] and [classes, hidden], and is trained on
mini-batches in file order, round and round: v' = m v - g, w' = w + lr v', where g is the gradient
of the mean cross-entropy + wd / 2 |w|**2. First the gradient is checked by differences. Printed is
a table of loss, classification loss (without the penalty) and error on the three parts of the data;
written are a line of JSON, and two figures for each weight decay. By default on the digits that
come with the library; `--data usps` reads the USPS files that the exercise was made for (CS-E4850,
Aalto, after csc321, Toronto, whose own program fills the weights in row by row).
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from matplotlib.figure import Figure

import hgrad_jax as hg
from experiments.common import environment, option, parse, write_json_line
from hgrad_jax.data import Dataset, DataUnavailableError, load_digits, load_usps, minibatches
from hgrad_jax.diagnostics.text_table import aligned
from hgrad_jax.models import MLP, cosine, cross_entropy, error_rate

NUM_CLASSES = 10
PARTS = ("train", "validation", "test")
MEASURES = ("loss", "classification_loss", "error")


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

    def run(hparams: Any, key: Any, data: Data) -> dict[str, Any]:
        out = hg.unroll(
            rule,
            initial_params(config, data.train.inputs),
            hparams,
            data,
            num_steps=config.num_steps,
            key=key,
            batch_fn=batch_fn,
            record=record,
        )
        params, step = out.params, config.num_steps - 1
        if config.early_stopping:
            losses = out.trace["losses"]["validation"]
            step = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
            params = jax.tree.map(lambda x: x[step], out.trace["params"])
        measured = {}
        for part in PARTS:
            scores, labels = logits(model, params, getattr(data, part)), getattr(data, part).labels
            measured[part] = {
                "loss": loss(model, params, hparams, getattr(data, part)),
                "classification_loss": cross_entropy(scores, labels),
                "error": error_rate(scores, labels),
            }
        return measured | {"path": out.trace["losses"], "steps": jnp.asarray(step + 1)}

    return run


def table(found: hg.Sweep) -> str:
    """Returns loss, classification loss and error on the three parts for each setting."""
    head = ["rate", "momentum", "decay", "steps"]
    over = [""] * len(head)
    for part in PARTS:
        over += [part, "", ""]
        head += ["loss", "class. loss", "error"]
    best = found.best("validation.classification_loss").place
    rows = []
    for i, setting in enumerate(found.settings):
        row = [f"{value:g}" for value in setting.values()] + [str(found.results["steps"][i, 0])]
        for part in PARTS:
            measured = (found.results[part][name][i, 0] for name in MEASURES)
            row += [f"{x:{form}}" for x, form in zip(measured, (".4f", ".4f", ".2%"), strict=True)]
        rows.append([*row, "least validation loss" if i == best else ""])
    return "\n".join(aligned([[*over, ""], [*head, ""], *rows], left=(-1,)))


def draw(found: hg.Sweep, out: Path) -> list[Path]:
    """Writes `heat_map.png` and `curves.png`, both for each weight decay, and returns where."""
    out.mkdir(parents=True, exist_ok=True)
    decays = sorted(set(found.values("weight_decay")))
    names = [f"_weight_decay_{x:g}" for x in decays] if len(decays) > 1 else [""]
    return [
        path
        for decay, name in zip(decays, names, strict=True)
        for path in _draw_one(found.select({"weight_decay": decay}), out, name)
    ]


def _draw_one(part: hg.Sweep, out: Path, name_of_part: str) -> list[Path]:
    paths = [out / f"{name}{name_of_part}.png" for name in ("heat_map", "curves")]
    figure = Figure(
        figsize=(8, 1.6 + 0.8 * len(set(part.values("momentum")))), layout="constrained"
    )
    axes = figure.subplots()
    part.plot_heat_map("learning_rate", "momentum", "validation.classification_loss", axes=axes)
    figure.savefig(paths[0], dpi=150)

    figure = Figure(figsize=(13, 5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("train", "validation"), strict=True):
        part.plot_curves(f"path.{name}", axes=axes)
        chance = math.log(NUM_CLASSES)
        axes.set(ylim=(0, 1.2 * chance), ylabel="classification loss in nats", title=name)
        if name == "train":
            axes.get_legend().remove()
    figure.savefig(paths[1], dpi=150)
    return paths


def experiment(config: Config) -> hg.Sweep:
    """Checks the gradient, runs all settings, prints the table and writes the results."""
    data, out = load_data(config), Path(config.out)
    report = check_gradient(config, data).raise_if_wrong()
    worst = report.worst.relative_error
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
    print(table(found))
    print(f"\n{len(settings)} trainings in one call: {seconds:.3f} s", end=", ")
    print(f"and {compile_seconds:.1f} s to compile it")
    paths = draw(found, out)
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
    assert __doc__ is not None
    config = parse(Config, argv, __doc__)
    try:
        with jax.enable_x64(True) if config.x64 else contextlib.nullcontext():
            return experiment(config)
    except (DataUnavailableError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
