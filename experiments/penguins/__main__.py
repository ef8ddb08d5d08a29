"""Forward gradients against backpropagation on the Palmer penguins, over many seeds.

Two classifiers of the species by four measurements: `softmax`, a regression 4-3 from standard
normal values (learning rate 0.2, until the training cross-entropy is 0.3), and `mlp`, a network
4-64-8-3 with ReLU from uniform values in [-1, 1] (0.05, until 0.2); plain gradient descent on all
training birds. The measurements are standardized. Every method starts from the same values for the
same seed.

Printed is a table; written are a line of JSON for each model and method, and a figure for each
model: loss, accuracy and misclassifications against steps and against seconds.

Examples:
    python -m experiments.penguins --models mlp --methods backpropagation signs
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import hgrad_jax as hg
from experiments.common import environment, option, parse, script, write_json_line
from experiments.penguins import report
from experiments.penguins.problem import (
    METHODS,
    TASKS,
    Method,
    Task,
    initial_params,
    load_data,
    measures,
    training,
)
from hgrad_jax.data import Splits


@dataclasses.dataclass(frozen=True)
class Config:
    """How long, how often, and where the results go."""

    models: tuple[str, ...] = option(tuple(TASKS), "which of the models")
    methods: tuple[str, ...] = option(tuple(METHODS), "where gradients come from, each of them")
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
                    raise ValueError(f"there is no {name!r}: write some of {', '.join(known)}.")


def runs(
    task: Task, method: Method, data: Splits, keys: jax.Array, num_steps: int
) -> dict[str, jax.Array]:
    """Returns what was measured before each step and after the last, [seeds, num_steps + 1]."""

    def run(key):
        start_key, run_key = jax.random.split(key)
        params = initial_params(task, data, start_key)
        first = measures(task, params, data)
        measured = dataclasses.replace(
            training(task, method, num_steps),
            record=lambda state, _: measures(task, state.params, data),
        )
        out = hg.unroll(measured, params, {}, data.train, key=run_key)
        return jax.tree.map(lambda a, b: jnp.append(a, b), first, out.trace)

    return jax.vmap(run)(keys)


def seconds_per_step(task: Task, config: Config, data: Splits, key: jax.Array) -> dict[str, float]:
    """Returns the CPU seconds of a step by each method, in one run that measures nothing else.

    The least of seven timings, each method in turn: other processes may share the machine.
    """
    params = initial_params(task, data, key)

    @functools.partial(jax.jit, static_argnames="name")
    def train(params, key, *, name):
        run = training(task, METHODS[name](task.model), config.timed_steps)
        return hg.unroll(run, params, {}, data.train, key=key).params

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


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the experiment that the command line asks for, and returns its records.

    Raises:
      SystemExit: after --help, or with a message on a wrong option.
    """
    config = parse(Config, argv, __doc__)
    out, found = Path(config.out), []
    for name in config.models:
        records = run_task(config, name)
        report.draw(records, out / f"{name}.png")
        for record in records:
            where = {"environment": environment(), "config": dataclasses.asdict(config)}
            # Of the curves, the median seed's worth: all of them would be megabytes.
            medians = {k: report.quartiles(v)[1] for k, v in record["curves"].items()}
            write_json_line(out / "results.jsonl", where | record | {"curves": medians})
        found += records
    print(report.table(found, config.num_seeds))
    print("ms: of CPU time. errors: mean misclassified test birds, of 68, at the stop.")
    print("not: seeds without a stop.")
    print(f"results: {out / 'results.jsonl'} and figures beside it")
    return found


if __name__ == "__main__":
    script(main)
