"""Forward gradients against backpropagation on the Palmer penguins, over many seeds.

Two classifiers of the species by four measurements: softmax regression 4-3 from standard normal
values (learning rate 0.2, until the training cross-entropy is 0.3), and a network 4-64-8-3 with
ReLU from uniform values in [-1, 1] (0.05, until 0.2); plain gradient descent on all training birds.
The measurements are standardized. Every method starts from the same values for the same seed.
Printed is a table; written are a line of JSON for each model and method, and a figure for each
model: loss, accuracy and misclassifications against steps and against seconds.
"""

import dataclasses
import functools
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from matplotlib.figure import Figure

import hgrad_jax as hg
from experiments.common import environment, option, parse, write_json_line
from hgrad_jax.data import Dataset, Splits, load
from hgrad_jax.diagnostics.text_table import aligned
from hgrad_jax.models import (
    MLP,
    SoftmaxRegression,
    activity_forward_gradient,
    classification_loss,
    cross_entropy,
    error_rate,
    example_losses,
    scaled_normal,
    uniform,
)

PUBLISHED = hg.Standardized(is_shifted=False)


class Task(NamedTuple):
    """A model and how it is trained."""

    model: nn.Module
    learning_rate: float
    stop_at: float


TASKS = {
    "softmax 4-3": Task(
        SoftmaxRegression(3, kernel_init=scaled_normal(1.0), bias_init=scaled_normal(1.0)),
        learning_rate=0.2,
        stop_at=0.3,
    ),
    "MLP 4-64-8-3": Task(
        MLP((64, 8, 3), kernel_init=uniform(-1.0, 1.0), bias_init=uniform(-1.0, 1.0)),
        learning_rate=0.05,
        stop_at=0.2,
    ),
}


class Method(NamedTuple):
    """Where gradients come from, and the factor of the task's learning rate."""

    provider: Callable[..., Any]
    factor: float = 1.0


METHODS: dict[str, Callable[[nn.Module], Method]] = {
    "backpropagation": lambda model: Method(hg.backpropagation),
    "as published": lambda model: Method(hg.forward_gradient(PUBLISHED, is_joint=False)),
    "signs, a tensor each": lambda model: Method(hg.forward_gradient(is_joint=False)),
    "signs": lambda model: Method(hg.forward_gradient()),
    "signs, rate / 10": lambda model: Method(hg.forward_gradient(), 0.1),
    "Gaussian": lambda model: Method(hg.forward_gradient(hg.Gaussian())),
    "8 orthogonal": lambda model: Method(hg.forward_gradient(hg.Orthogonal(), num_directions=8)),
    "pre-activations": lambda model: Method(activity_forward_gradient(example_losses(model))),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """How long, how often, and where the results go."""

    models: tuple[str, ...] = option(tuple(TASKS), "which of the models, each in quotes")
    methods: tuple[str, ...] = option(tuple(METHODS), "which gradients, each in quotes")
    num_seeds: int = option(32, "initial values, and directions, for each model and method")
    num_steps: int = option(1000, "steps at most")
    timed_steps: int = option(1000, "steps of one run that are timed, without measurements")
    seed: int = option(0, "chooses the initial values and the directions")
    out: str = option("results/penguins", "folder for results.jsonl and figures")

    def __post_init__(self):
        for name in ("num_seeds", "num_steps", "timed_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive.")
        for known, names in ((TASKS, self.models), (METHODS, self.methods)):
            for name in names:
                if name not in known:
                    raise ValueError(f"there is no {name!r}: write some of {shlex.join(known)}.")


def rule(task: Task, method: Method) -> hg.Transition:
    """Returns plain gradient descent."""
    return hg.sgd(
        classification_loss(task.model),
        learning_rate=method.factor * task.learning_rate,
        gradient=method.provider,
    )


def load_data() -> Splits:
    """Returns 274 birds to train on and 68 to test on, standardized as the former are."""
    birds = load("penguins")
    mean, deviation = birds.train.inputs.mean(0), birds.train.inputs.std(0)
    return Splits(*(Dataset((x - mean) / deviation, y) for x, y in birds))


def initial_params(task: Task, data: Splits, key: jax.Array) -> Any:
    """Returns the values that a seed starts from."""
    return dict(task.model.init(key, data.train.inputs[:1], train=False)["params"])


def measures(task: Task, params: Any, data: Splits) -> dict[str, jax.Array]:
    """Returns the training loss, and loss, accuracy and misclassifications on the test birds."""

    def logits(inputs: Any) -> jax.Array:
        return jnp.asarray(task.model.apply({"params": params}, inputs, train=False))

    train_loss = cross_entropy(logits(data.train.inputs), jnp.asarray(data.train.labels))
    test, labels = logits(data.test.inputs), jnp.asarray(data.test.labels)
    wrong = error_rate(test, labels)
    return {
        "train_loss": train_loss,
        "loss": cross_entropy(test, labels),
        "accuracy": 1 - wrong,
        "errors": wrong * labels.size,
    }


def runs(
    task: Task, method: Method, data: Splits, keys: jax.Array, num_steps: int
) -> dict[str, jax.Array]:
    """Returns what was measured before each step and after the last, [seeds, num_steps + 1]."""

    def run(key):
        start_key, run_key = jax.random.split(key)
        params = initial_params(task, data, start_key)
        first = measures(task, params, data)
        out = hg.unroll(
            rule(task, method),
            params,
            {},
            data.train,
            num_steps=num_steps,
            key=run_key,
            record=lambda state, _: measures(task, state.params, data),
        )
        return jax.tree.map(lambda a, b: jnp.append(a, b), first, out.trace)

    return jax.vmap(run)(keys)


def seconds_per_step(task: Task, config: Config, data: Splits, key: jax.Array) -> dict[str, float]:
    """Returns the CPU seconds of a step by each method, in one run that measures nothing else.

    The least of seven timings, each method in turn: other processes may share the machine.
    """
    params = initial_params(task, data, key)

    @functools.partial(jax.jit, static_argnames="name")
    def train(params, key, *, name):
        method = rule(task, METHODS[name](task.model))
        steps = {"num_steps": config.timed_steps, "key": key}
        return hg.unroll(method, params, {}, data.train, **steps).params

    timings = {name: [] for name in config.methods}
    for _ in range(8):  # the first one compiles
        for name, seconds in timings.items():
            begun = time.process_time()
            jax.block_until_ready(train(params, key, name=name))
            seconds.append(time.process_time() - begun)
    return {name: min(seconds[1:]) / config.timed_steps for name, seconds in timings.items()}


def stopped_at(train_loss: np.ndarray, stop_at: float) -> list[int | None]:
    """Returns for each seed after how many steps the loss was first at most `stop_at`, or None.

    >>> stopped_at(np.array([[0.5, 0.3, 0.4], [0.5, 0.4, np.nan]]), 0.3)
    [1, None]
    """
    reached = train_loss <= stop_at
    return [int(np.argmax(row)) if row.any() else None for row in reached]


def run_task(config: Config, name: str) -> list[dict[str, Any]]:
    """Returns a record for each method, without writing any."""
    task, data = TASKS[name], load_data()
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    seconds = seconds_per_step(task, config, data, keys[0])
    records = []
    for name_of_method in config.methods:
        method = METHODS[name_of_method](task.model)
        run = jax.jit(functools.partial(runs, task, method, num_steps=config.num_steps))
        curves = jax.tree.map(np.asarray, run(data, keys))
        steps = stopped_at(curves["train_loss"], task.stop_at)
        at_stop = {
            measure: [
                None if t is None else float(curve[t])
                for curve, t in zip(curves[measure], steps, strict=True)
            ]
            for measure in ("loss", "accuracy", "errors")
        }
        records.append(
            {
                "experiment": "penguins",
                "model": name,
                "method": name_of_method,
                "learning_rate": method.factor * task.learning_rate,
                "stop_at": task.stop_at,
                "iterations": steps,
                "not_reached": [seed for seed, t in enumerate(steps) if t is None],
                "seconds_per_step": seconds[name_of_method],
                "test_at_stop": at_stop,
                "curves": curves,
            }
        )
        print(f"{name}, {name_of_method}: done", flush=True)
    return records


def table(records: Sequence[dict[str, Any]], num_seeds: int) -> str:
    """Returns what the records say, a line each."""
    rows = [
        [
            "model",
            "gradient",
            "reached",
            "iterations",
            "ms / step",
            "ms to stop",
            "errors",
            "not by seeds",
        ]
    ]
    for record in records:
        reached = [t for t in record["iterations"] if t is not None]
        errors = [e for e in record["test_at_stop"]["errors"] if e is not None]
        middle = float(np.median(reached)) if reached else float("nan")
        milliseconds = 1e3 * record["seconds_per_step"]
        rows.append(
            [
                record["model"],
                record["method"],
                f"{len(reached)}/{num_seeds}",
                f"{middle:.0f} ({min(reached)}-{max(reached)})" if reached else "-",
                f"{milliseconds:.4f}",
                f"{milliseconds * middle:.3g}",
                f"{np.mean(errors):.2f}" if errors else "-",
                " ".join(map(str, record["not_reached"])) or "none",
            ]
        )
    return "\n".join(aligned(rows, left=(0, 1, -1)))


def quartiles(curves: np.ndarray) -> np.ndarray:
    """Returns the quartiles over seeds of curves `[seeds, T]`, each a value of some seed: `[3, T]`.

    A loss that is NaN counts as infinite: a seed that diverged must not leave the statistics.

    >>> quartiles(np.array([[1.0], [2.0], [np.nan]])).tolist()
    [[1.0], [2.0], [inf]]
    """
    known = np.where(np.isnan(curves), np.inf, curves)
    return np.quantile(known, (0.25, 0.5, 0.75), axis=0, method="inverted_cdf")


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes a figure of one model: medians over seeds, and the middle half of them."""
    shown = {
        "loss": "test cross-entropy, nats",
        "accuracy": "test accuracy",
        "errors": "misclassified test birds",
    }
    figure = Figure(figsize=(13, 7), layout="constrained")
    panels = figure.subplots(2, 3)
    for number, record in enumerate(records):
        curves, color = record["curves"], f"C{number}"
        steps = np.arange(curves["loss"].shape[1])
        ends = [np.inf if t is None else t for t in record["iterations"]]
        middle_end = np.median(ends)
        for row, unit in enumerate((1.0, record["seconds_per_step"])):
            for axes, (measure, label) in zip(panels[row], shown.items(), strict=True):
                low, middle, high = quartiles(curves[measure])
                axes.plot(steps * unit, middle, color=color, label=record["method"])
                axes.fill_between(steps * unit, low, high, color=color, alpha=0.15, linewidth=0)
                if np.isfinite(middle_end):
                    end = int(middle_end)
                    axes.plot(end * unit, middle[end], "o", color=color)
                axes.set(
                    ylabel=label, xlabel="steps" if row == 0 else "CPU seconds", xscale="symlog"
                )
                if row == 1:
                    axes.set_xscale("symlog", linthresh=1e-4)
                if measure == "loss":
                    axes.set_yscale("log")
                    axes.set_ylim(0.03, 30)  # some diverge
    panels[0, 0].legend(fontsize=8)
    panels[0, 1].set_title(f"{records[0]['model']}: medians; a dot where half of the seeds stopped")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the experiment that the command line asks for, and returns its records.

    Raises:
      SystemExit: after --help, or with a message on a wrong option.
    """
    assert __doc__ is not None
    config = parse(Config, argv, __doc__)
    out, found = Path(config.out), []
    for name in config.models:
        records = run_task(config, name)
        draw(records, out / f"{name.split()[0].lower()}.png")
        for record in records:
            where = {"environment": environment(), "config": dataclasses.asdict(config)}
            # Of the curves, the median seed's worth: all of them would be megabytes.
            medians = {k: quartiles(v)[1] for k, v in record["curves"].items()}
            write_json_line(out / "results.jsonl", where | record | {"curves": medians})
        found += records
    print(table(found, config.num_seeds))
    print("ms: of CPU time. errors: mean misclassified test birds, of 68, at the stop.")
    print("not: seeds without a stop.")
    print(f"results: {out / 'results.jsonl'} and figures beside it")
    return found


if __name__ == "__main__":
    main()
