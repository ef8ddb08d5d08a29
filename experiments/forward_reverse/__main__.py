"""Forward against reverse: the same hypergradients in four modes, and what each of them costs.

After the comparison by Franceschi, Donini, Frasconi and Pontil (2017): a network trained on MNIST
by 100 steps of momentum from fresh weights; the objective is the validation cross-entropy after
them; its hyperparameters are an L1 and an L2 coefficient for each layer, which start at 0, the
learning rate, and the momentum. Adam tunes all of them, and stops at 0. At every meta-step all
modes are given the same hyperparameters, those that the hypergradients of `reverse` have led to,
and the same initial weights, so that whatever differs is rounding.

Then the same hyperparameters are learned in real time, during one training, beside the training
that keeps them. Printed are two tables; written are figures, a line of JSON for each meta-step and
mode, and one for the real-time run.

Examples:
    python -m experiments.forward_reverse --data mnist --data-dir FOLDER
    python -m experiments.forward_reverse --model cnn --modes reversible --x64
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import hgrad_jax as hg
from experiments.common import environment, option, parse, script, write_json_line
from experiments.forward_reverse import report
from experiments.forward_reverse.problem import (
    Data,
    Problem,
    initial_hparams,
    initial_params,
    load_data,
    loss,
    make_model,
    named,
    require_positive,
    validation_error,
)
from experiments.forward_reverse.real_time import real_time
from hgrad_jax.data import DataUnavailableError, minibatches
from hgrad_jax.models import classification_metrics
from hgrad_jax.tools.files import write_figures

MODES = ("forward", "reverse", "checkpointed", "reversible")
LEADER = "reverse"


@dataclasses.dataclass(frozen=True)
class Config(Problem):
    """How the problem is tuned, in which modes, and where the results go."""

    num_steps: int = option(100, "training steps of a hypergradient")
    num_meta_steps: int = option(3, "steps of the tuning")
    meta_learning_rate: float = option(1e-3, "of Adam on the hyperparameters")
    modes: tuple[str, ...] = option(MODES, "which are run; reverse, which leads, always is")
    repeats: int = option(1, "runs of each hypergradient, of which the fastest counts")
    real_time_steps: int = option(300, "steps of the training that learns in real time; 0: none")
    every: int = option(5, "its steps between updates of hyperparameters")
    x64: bool = option(False, "compute in 64 bits")
    out: str = option("results/forward_reverse", "folder for results.jsonl and figures")

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("num_steps", "num_meta_steps", "repeats", "every")
        require_positive(self, *counts, "meta_learning_rate")
        if self.real_time_steps < 0:
            raise ValueError(f"real_time_steps is {self.real_time_steps}; it must be at least 0.")
        for name in self.modes:
            if name not in MODES:
                raise ValueError(f"there is no mode {name!r}: they are {', '.join(MODES)}.")


class Program(NamedTuple):
    """A compiled meta-step in one mode.

    Attributes:
      run: `run(params, hparams, opt_state, train, valid) -> MetaStep`.
      temp_bytes: its temporaries; None where the backend does not tell.
      compile_seconds: what it took to make.
    """

    run: Callable[..., hg.MetaStep]
    temp_bytes: int | None
    compile_seconds: float


class Timed(NamedTuple):
    """What a program returned, and the cost of the fastest run: wall clock, and of all cores."""

    found: hg.MetaStep
    seconds: float
    cpu_seconds: float


def adjoint_of(config: Config, mode: str) -> hg.Adjoint:
    """Returns how a mode differentiates the training."""
    # Adam moves a number by about its rate a step, so that no decay will be below this.
    least = config.momentum - 2 * config.meta_learning_rate * config.num_meta_steps
    return {
        "forward": hg.ForwardMode(),
        "reverse": hg.Direct(),
        "checkpointed": hg.Checkpointed(),
        "reversible": hg.Reversible(smallest_decay=max(least, 2**-7)),
    }[mode]


def meta_step(config: Config, mode: str) -> Callable[..., hg.MetaStep]:
    """Returns the step of the tuning in one mode, a pure function of arrays.

    The rule is `heavy_ball`, v' = m v + grad, x' = x - rate v'. The published hypergradients are of
    that convention: dE/dm there is 0.96 rate / (1 - m) dE/drate at all three meta-steps (here
    0.98), since a momentum of m makes a gradient count 1 / (1 - m) times in the end; that of
    `momentum`, which averages, is small and positive here. `classical_momentum` gives the same
    numbers as `heavy_ball` at a constant rate.
    """
    model = make_model(config)
    run = hg.Run(
        hg.heavy_ball(loss(model)),
        num_steps=config.num_steps,
        batch_fn=minibatches(config.batch_size),
        adjoint=adjoint_of(config, mode),
    )
    optimizer = hg.nonnegative_adam(config.meta_learning_rate)
    objective = validation_error(model)

    def step(params: Any, hparams: Any, opt_state: Any, *data: Any) -> hg.MetaStep:
        settings = {"optimizer": optimizer, "opt_state": opt_state}
        return hg.meta_step(objective, run, params, hparams, *data, **settings)

    return step


def compiled(config: Config, mode: str, args: tuple) -> Program:
    """Returns the meta-step as a program for arguments like these."""
    begun = time.perf_counter()
    program = jax.jit(meta_step(config, mode)).lower(*args).compile()
    memory = program.memory_analysis()
    temp_bytes = None if memory is None else memory.temp_size_in_bytes
    return Program(program, temp_bytes, time.perf_counter() - begun)


def timed(program: Program, args: tuple, repeats: int) -> Timed:
    """Runs a program some times.

    Raises:
      HypergradientError: the hypergradient is not what it should be.
    """
    runs = []
    for _ in range(repeats):
        begun, cpu_begun = time.perf_counter(), time.process_time()
        found = jax.block_until_ready(program.run(*args))
        runs.append(Timed(found, time.perf_counter() - begun, time.process_time() - cpu_begun))
    hg.check(runs[0].found.found.info)
    return min(runs, key=lambda run: run.seconds)


def compare(config: Config, data: Data, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Yields a record for each meta-step and mode: the measurements, beside those of `LEADER`."""
    measure = jax.jit(classification_metrics(make_model(config)))
    hparams = initial_hparams(config, data)
    opt_state = hg.nonnegative_adam(config.meta_learning_rate).init(hparams)
    modes = tuple(mode for mode in MODES if mode in (*config.modes, LEADER))
    programs = {}
    for k in range(config.num_meta_steps):
        args = (initial_params(config, data, k), hparams, opt_state, data.train, data.valid)
        found = {}
        for mode in modes:
            if mode not in programs:
                programs[mode] = compiled(config, mode, args)
            found[mode] = timed(programs[mode], args, config.repeats)
            value = float(found[mode].found.found.value[0])
            say(f"meta-step {k}, {mode}: {value:.6f} in {found[mode].seconds:.2f} s")
        leader = found[LEADER].found
        for mode, (step, seconds, cpu_seconds) in found.items():
            trained = jax.tree.map(lambda x: x[0], step.found.unrolled.params)
            got, want = named(step.gradient), named(leader.gradient)
            info = step.found.info
            yield {
                "meta_step": k,
                "mode": mode,
                "accuracy": {
                    part: float(measure(trained, getattr(data, part))["accuracy"])
                    for part in data._fields
                },
                "validation_error": float(step.found.value[0]),
                "hparams": named(hparams),
                "hypergradient": got,
                "hparams_after": named(step.hparams),
                "relative_difference": {name: difference(got[name], want[name]) for name in got},
                "is_restored": None if info.mismatches is None else bool(info.is_restored[0]),
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "temp_bytes": programs[mode].temp_bytes,
                "compile_seconds": programs[mode].compile_seconds,
                "num_params": sum(x.size for x in jax.tree.leaves(trained)),
            }
        hparams, opt_state = leader.hparams, leader.opt_state


def difference(got: float, want: float) -> float:
    """Returns |got - want| / |want|; 0 where both are equal, infinite where only `want` is 0.

    >>> difference(1.5, -1.0), difference(0.0, 0.0), difference(1.0, 0.0)
    (2.5, 0.0, inf)
    """
    if got == want:
        return 0.0
    return abs(got - want) / abs(want) if want else math.inf


def experiment(config: Config) -> list[dict[str, Any]]:
    """Runs the comparison and the real-time training; prints, draws and writes their results."""
    say = functools.partial(print, flush=True)
    data, out = load_data(config), Path(config.out)
    about = {
        "experiment": "forward_reverse",
        "environment": environment(),
        "seed": config.seed,
        "config": dataclasses.asdict(config),
    }
    records: list[dict[str, Any]] = []

    def keep(record: dict[str, Any]) -> None:
        records.append(about | record)
        write_json_line(out / "results.jsonl", records[-1])

    for record in compare(config, data, say):
        keep(record)
    if config.real_time_steps:
        say(f"real time: {config.real_time_steps} steps")
        settings = {"every": config.every, "meta_learning_rate": config.meta_learning_rate}
        keep(real_time(config, data, num_steps=config.real_time_steps, **settings))
    dtype = about["environment"]["dtype"]
    title = f"{config.data}, {config.model} of {records[0]['num_params']:,} weights, {dtype}"
    say(f"\n{title}\n\n{report.table(records)}")
    figures = report.draw(records, title, np.finfo(dtype).eps)
    write_figures(out, figures)
    say(f"results: {out / 'results.jsonl'}, {', '.join(f'{name}.png' for name in figures)}")
    return records


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the study that the command line asks for, and returns its records.

    Raises:
      SystemExit: after --help, or with a message on what is wrong: an option, the data, or a
        hypergradient that `hg.check` refuses.
    """
    config = parse(Config, argv, __doc__)
    try:
        with jax.enable_x64(True) if config.x64 else contextlib.nullcontext():
            return experiment(config)
    except (DataUnavailableError, ValueError, hg.HypergradientError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    script(main)
