"""What it takes to train a convolutional network without backpropagation.

The network is conv 3x3 (1-2), conv 3x3 (2-4), max-pool 2, dense 64, dense 10, with ReLU. A report
trained it on 500 digits of MNIST by 100 steps along one Gaussian direction each, and it did not
learn: the square error of such an estimate is that of the gradient times the number of weights,
50,986, so that it takes shorter steps than backpropagation and many more of them. Compared are that
setting, at three times as many steps; one direction with a step as long as it bears; 8 and 64
directions; and directions of pre-activations, one for each example, which are fewer than weights.
Printed is a table; written are a line of JSON for each method and a figure of the test accuracy.

Examples:
    python -m experiments.forward_gradient_cnn --data mnist --data-dir FOLDER
    python -m experiments.forward_gradient_cnn --methods pre-activations-adam
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import hgrad_jax as hg
from experiments.common import environment, option, parse, script, write_json_line
from hgrad_jax.data import Dataset, DataUnavailableError, Splits, load, shuffled
from hgrad_jax.forward_gradients import activity_forward_gradient, example_losses
from hgrad_jax.models import CNN, classification_loss, classification_metrics
from hgrad_jax.show.text_table import aligned
from hgrad_jax.tools.files import write_figures

MODEL = CNN(10, channels=(2, 4), hidden=(64,), halves=(False, True))


class Method(NamedTuple):
    """Where gradients come from and what is done with them.

    Attributes:
      provider: of gradients.
      rule: `rule(loss, gradient=provider)`.
      learning_rates: on the 8x8 digits and on MNIST's, at the first step; it falls to zero as half
        a cosine does.
      share: of the steps, since some of them take long.
      is_published: whether a batch is the first 500 examples, and the learning rate does not fall.
    """

    provider: Callable[..., Any]
    rule: Callable[..., hg.Transition]
    learning_rates: tuple[float, float]
    share: float = 1.0
    is_published: bool = False


METHODS = {
    "backpropagation-sgd": Method(hg.backpropagation, hg.sgd, (0.1, 0.1)),
    "backpropagation-adam": Method(hg.backpropagation, hg.adam, (3e-3, 3e-3)),
    "1-direction-as-published": Method(
        hg.forward_gradient(hg.Gaussian()), hg.sgd, (1e-3, 1e-3), 0.1, is_published=True
    ),
    "1-direction": Method(hg.forward_gradient(), hg.sgd, (5e-3, 3e-3)),
    "8-directions": Method(hg.forward_gradient(num_directions=8), hg.sgd, (1.5e-2, 1e-2), 0.5),
    "64-directions": Method(hg.forward_gradient(num_directions=64), hg.sgd, (0.05, 0.05), 0.125),
    "pre-activations-sgd": Method(
        activity_forward_gradient(example_losses(MODEL)), hg.sgd, (0.05, 0.015)
    ),
    "pre-activations-adam": Method(
        activity_forward_gradient(example_losses(MODEL)), hg.adam, (5e-3, 5e-3)
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is learned, how long, and where the results go."""

    data: str = option(
        "digits", "8x8 digits, MNIST, or its first 500 and 100", ("digits", "mnist", "mnist_500")
    )
    data_dir: str | None = option(None, "folder with MNIST's original files")
    methods: tuple[str, ...] = option(tuple(METHODS), "which of the methods")
    num_steps: int = option(3000, "training steps; some methods take a share of them")
    batch_size: int = option(100, "examples a step")
    rate_factor: float = option(1.0, "multiplies every learning rate")
    evaluations: int = option(10, "how often the test accuracy is measured")
    seed: int = option(0, "chooses initial values and directions")
    out: str = option("results/forward_gradient_cnn", "folder for results.jsonl and the figure")

    def __post_init__(self):
        for name in ("num_steps", "batch_size", "rate_factor", "evaluations"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive.")
        for name in self.methods:
            if name not in METHODS:
                known = ", ".join(METHODS)
                raise ValueError(f"there is no method {name!r}: they are {known}.")


def load_data(config: Config) -> Splits:
    """Returns images [N, H, W, 1] to train and to test on.

    Raises:
      DataUnavailableError: MNIST is not there.
    """
    if config.data == "digits":
        parts = load("digits")
        return Splits(*(Dataset(x.reshape(-1, 8, 8, 1), y) for x, y in parts))
    train, test = load("mnist", config.data_dir)
    if config.data == "mnist_500":
        train, test = Dataset(*(x[:500] for x in train)), Dataset(*(x[:100] for x in test))
    return Splits(train, test)


def initial_params(config: Config, data: Splits) -> Any:
    """Returns random weights."""
    init = jax.jit(lambda key: MODEL.init(key, data.train.inputs[:1], train=False)["params"])
    return dict(init(jax.random.key(config.seed)))


def train(
    params: Any, data: Splits, *, config: Config, method: Method, num_steps: int, every: int | None
) -> tuple[Any, Any]:
    """Returns the trained parameters and the test accuracy after each step, NaN where unmeasured.

    Args:
      params: initial.
      data: jax arrays.
      config, method: how.
      num_steps: T.
      every: test accuracy is measured once in so many steps; None for never.
    """
    rate = config.rate_factor * method.learning_rates[0 if config.data == "digits" else 1]
    progress = jnp.arange(num_steps) / num_steps
    rates = rate * (
        jnp.ones(num_steps) if method.is_published else (1 + jnp.cos(jnp.pi * progress)) / 2
    )
    metrics = classification_metrics(MODEL)

    def accuracy(state: Any, train: Any) -> jax.Array:
        del train
        return jax.lax.cond(
            state.count % every == 0,
            lambda params: metrics(params, data.test)["accuracy"],
            lambda params: jnp.float32(jnp.nan),
            state.params,
        )

    run = hg.Run(
        method.rule(classification_loss(MODEL), gradient=method.provider),
        num_steps=num_steps,
        batch_fn=None if method.is_published else shuffled(config.batch_size, seed=config.seed),
        hparams_axes=0,
        record=None if every is None else accuracy,
    )
    out = hg.unroll(
        run,
        params,
        {"learning_rate": rates},
        jax.tree.map(lambda x: x[:500], data.train) if method.is_published else data.train,
        key=jax.random.key(config.seed + 1),
    )
    return out.params, out.trace


def run_method(config: Config, name: str, data: Splits) -> dict[str, Any]:
    """Returns the record of one method."""
    method = METHODS[name]
    params = initial_params(config, data)
    num_steps = max(1, round(config.num_steps * method.share))
    every = max(1, num_steps // config.evaluations)
    run = functools.partial(train, config=config, method=method)
    trained, trace = jax.jit(functools.partial(run, num_steps=num_steps, every=every))(params, data)
    measured = jax.jit(classification_metrics(MODEL))
    trace = np.asarray(trace)
    (at,) = np.nonzero(np.arange(1, num_steps + 1) % every == 0)
    return {
        "experiment": "forward_gradient_cnn",
        "environment": environment(),
        "config": dataclasses.asdict(config),
        "method": name,
        "num_steps": num_steps,
        "num_params": sum(x.size for x in jax.tree.leaves(params)),
        "seconds_per_step": seconds_per_step(run, params, data),
        "steps": at + 1,
        "test_accuracy_at": trace[at],
        "train": measured(trained, data.train),
        "test": measured(trained, data.test),
    }


def seconds_per_step(run: Callable[..., Any], params: Any, data: Splits) -> float:
    """Returns the least of three timings of ten steps without measurements, per step."""
    ten = jax.jit(functools.partial(run, num_steps=10, every=None))
    jax.block_until_ready(ten(params, data))
    timings = []
    for _ in range(3):
        begun = time.perf_counter()
        jax.block_until_ready(ten(params, data))
        timings.append(time.perf_counter() - begun)
    return min(timings) / 10


def table(records: Sequence[dict[str, Any]]) -> str:
    """Returns what was reached, a line each."""
    rows = [["gradient", "steps", "ms / step", "seconds", "train loss", "test loss", "accuracy"]]
    for record in records:
        seconds = record["seconds_per_step"]
        rows.append(
            [
                record["method"],
                str(record["num_steps"]),
                f"{1e3 * seconds:.3g}",
                f"{seconds * record['num_steps']:.3g}",
                f"{record['train']['loss']:.3f}",
                f"{record['test']['loss']:.3f}",
                f"{record['test']['accuracy']:.2%}",
            ]
        )
    return "\n".join(aligned(rows))


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the figure: test accuracy against steps and against seconds."""
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for record in records:
        for axes, unit in zip(panels, (1, record["seconds_per_step"]), strict=True):
            axes.plot(
                record["steps"] * unit, record["test_accuracy_at"], ".-", label=record["method"]
            )
    for axes, label in zip(panels, ("steps", "seconds of training"), strict=True):
        axes.set(xlabel=label, xscale="log", ylim=(0, 1))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    write_figures(path.parent, {path.stem: figure}, dpi=150)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the experiment that the command line asks for, and returns its records.

    Raises:
      SystemExit: after --help, or with a message on what is wrong: an option, or the data.
    """
    config = parse(Config, argv, __doc__)
    out, records = Path(config.out), []
    try:
        data = jax.tree.map(jnp.asarray, load_data(config))
    except DataUnavailableError as error:
        raise SystemExit(f"error: {error}") from error
    num_images = len(data.train.labels)
    if config.batch_size > num_images:
        raise SystemExit(f"error: batch_size is {config.batch_size}, of {num_images} images.")
    for name in config.methods:
        records.append(run_method(config, name, data))
        write_json_line(out / "results.jsonl", records[-1])
        print(f"{name}: {records[-1]['test']['accuracy']:.2%} of the test images", flush=True)
    draw(records, out / f"{config.data}.png")
    print(table(records))
    print(f"results: {out / 'results.jsonl'}, {out / config.data}.png")
    return records


if __name__ == "__main__":
    script(main)
