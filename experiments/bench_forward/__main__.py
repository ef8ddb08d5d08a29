"""What a training step by forward gradients takes, beside one by backpropagation.

Each program is a `lax.scan` of training steps with momentum, timed in CPU seconds of this process,
in turn with the others; where other processes run, pin it to one core: `taskset -c 0 python -m
experiments.bench_forward`. The problems are those of `bench`: an MLP 784-50-50-50-10 at batch 250,
and a conv net with 4 and 8 channels at batch 32.

Examples:
    python -m experiments.bench_forward --problems mlp --gradients rademacher
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

import hgrad_jax as hg
from experiments.bench.cases import Problem, make_problem
from experiments.common import environment, option, parse, script, write_json_line
from hgrad_jax.show.text_table import aligned

BACKPROPAGATION = "backpropagation"
PROVIDERS: dict[str, Callable[..., Any]] = {
    BACKPROPAGATION: hg.backpropagation,
    "loss-alone": lambda loss: (
        lambda params, hparams, batch, key: jax.tree.map(
            lambda x: x * loss(params, hparams, batch, key), params
        )
    ),
    "rademacher": hg.forward_gradient(hg.Rademacher()),
    "gaussian": hg.forward_gradient(hg.Gaussian()),
    "standardized": hg.forward_gradient(hg.Standardized()),
    "orthogonal": hg.forward_gradient(hg.Orthogonal()),
    "rademacher-per-tensor": hg.forward_gradient(hg.Rademacher(), is_joint=False),
    "8-rademacher": hg.forward_gradient(hg.Rademacher(), num_directions=8),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed, and how often."""

    problems: tuple[str, ...] = option(("mlp", "cnn"), "of bench's problems")
    num_steps: int = option(200, "training steps a program")
    repeats: int = option(7, "timed calls of each program, in turn with the others'")
    gradients: tuple[str, ...] = option(tuple(PROVIDERS), f"what to time beside {BACKPROPAGATION}")
    out: str = option("results/bench/forward.jsonl", "file that a line a program is added to")
    seed: int = option(0, "chooses synthetic data, initial weights and directions")

    def __post_init__(self):
        for name in ("num_steps", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive.")
        for name in self.problems:
            if name not in ("mlp", "cnn", "softmax"):
                raise ValueError(f"problems has {name!r}; write some of mlp, cnn, softmax.")
        for name in self.gradients:
            if name not in PROVIDERS:
                raise ValueError(f"gradients has {name!r}; write some of {', '.join(PROVIDERS)}.")


def trained(problem: Problem, provider: Callable[..., Any], *args: Any) -> Any:
    """Returns the parameters after T steps."""
    params, hparams, data, key = args
    rule = hg.momentum(problem.loss, gradient=provider)
    run = dataclasses.replace(problem.run, transition=rule)
    # So short a step that every program does the same work on the same numbers.
    hparams = hparams | {"learning_rate": 1e-4 * hparams["learning_rate"]}
    return hg.unroll(run, params, hparams, data, key=key).params


def measure(name: str, config: Config) -> list[dict[str, Any]]:
    """Returns a record for each provider."""
    problem = make_problem(name, config.num_steps, seed=config.seed, data_dir=None)
    args = (*problem.args[:3], jax.random.key(config.seed))
    programs = {}
    for label in dict.fromkeys((BACKPROPAGATION, *config.gradients)):
        provider = PROVIDERS[label]
        program = jax.jit(lambda *args, provider=provider: trained(problem, provider, *args))
        programs[label] = program.lower(*args).compile()
        jax.block_until_ready(programs[label](*args))
    seconds = {label: [] for label in programs}
    for _ in range(config.repeats):
        for label, program in programs.items():
            begun = time.process_time()
            jax.block_until_ready(program(*args))
            seconds[label].append((time.process_time() - begun) / config.num_steps)
    least = min(seconds[BACKPROPAGATION])
    memory = {label: program.memory_analysis() for label, program in programs.items()}
    return [
        {
            "experiment": "bench_forward",
            "environment": environment(),
            "config": dataclasses.asdict(config),
            "problem": name,
            "gradient": label,
            "cpu_seconds_per_step": times,
            "least": min(times),
            "ratio": min(times) / least,
            "temp_bytes": None if memory[label] is None else memory[label].temp_size_in_bytes,
        }
        for label, times in seconds.items()
    ]


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the benchmark that the command line asks for, and returns its records.

    Raises:
      SystemExit: after --help, or with a message on a wrong option.
    """
    config = parse(Config, argv, __doc__)
    records = [record for name in config.problems for record in measure(name, config)]
    for record in records:
        write_json_line(Path(config.out), record)
    rows = [["problem", "gradient", "CPU ms / step", "ratio", "temp MB"]]
    rows += [
        [
            record["problem"],
            record["gradient"],
            f"{1e3 * record['least']:.3f}",
            f"{record['ratio']:.2f}",
            "-" if record["temp_bytes"] is None else f"{record['temp_bytes'] / 1e6:.2f}",
        ]
        for record in records
    ]
    print("\n".join(aligned(rows, left=(0, 1))))
    print(f"ratio: to backpropagation; the least of {config.repeats}. records: {config.out}")
    return records


if __name__ == "__main__":
    script(main)
