"""Measures what exact hypergradients cost, beside the least that they could cost.

The hypergradient of the validation loss after T training steps, with respect to a learning rate for
every step, the momentum, an L2 coefficient and the initial parameters, takes at least T training
steps and T gradients with Hessian-vector products. Both are written by hand as `lax.scan` and timed
in the same run, in turn with every way that the library differentiates; their sum is the floor.
Timed is a compiled program until its results are there, after a call to warm up. Temporary memory
is what the compiler says of the program. The hypergradients are compared with each other.

Examples:
    python -m experiments.bench --quick
    python -m experiments.bench --cases mlp-1000 cnn-1000 --data-dir FOLDER
"""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from rich.console import Console

import hgrad_jax as hg
from experiments.bench.cases import PROBLEMS, make_problem
from experiments.bench.programs import ISOLATED, PLAIN, PRODUCTS, RIVALS, programs
from experiments.bench.report import print_summary, print_table
from experiments.common import environment, option, parse, script, write_json_line
from hgrad_jax.data import DataUnavailableError

CASES = ("softmax-100", "mlp-100", "mlp-1000", "mlp-10000", "cnn-1000", "adam-1000")
QUICK_CASES, QUICK_REPEATS = ("mlp-100",), 2


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and how often."""

    cases: tuple[str, ...] = option(CASES, f"PROBLEM-T, of {', '.join(PROBLEMS)} and any T")
    repeats: int = option(5, "timed calls of each program, in turn with the others'")
    max_seconds: float = option(60.0, "no program is called again after this many seconds of it")
    memory_limit: float = option(5.0, "GB; a program with more temporaries is compiled, not run")
    quick: bool = option(False, f"only {' '.join(QUICK_CASES)}, {QUICK_REPEATS} repeats")
    data_dir: str | None = option(None, "folder with MNIST's files; without it, synthetic images")
    out: str = option("results/bench/bench.jsonl", "file that a line a program is added to")
    seed: int = option(0, "chooses synthetic data and initial weights")

    def __post_init__(self):
        for case in self.cases:
            problem, _, num_steps = case.rpartition("-")
            if problem not in PROBLEMS or not num_steps.isdecimal() or int(num_steps) < 1:
                raise ValueError(
                    f"there is no case {case!r}: write one of {', '.join(PROBLEMS)}, a hyphen and "
                    "the number of steps, as in mlp-100."
                )
        for name in ("repeats", "max_seconds", "memory_limit"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive.")


def measure(case: str, config: Config, console: Console) -> list[dict[str, Any]]:
    """Returns a record for each program of a case, in the order of `programs`."""
    name, _, num_steps = case.rpartition("-")
    problem = make_problem(name, int(num_steps), seed=config.seed, data_dir=config.data_dir)
    compiled, records, found = {}, {}, {}
    for program, function in programs(problem).items():
        with console.status(f"{case}: compiling {program}"):
            begun = time.perf_counter()
            compiled[program] = jax.jit(function).lower(*problem.args).compile()
            compile_seconds = time.perf_counter() - begun
        memory = compiled[program].memory_analysis()
        temp_bytes = None if memory is None else memory.temp_size_in_bytes
        records[program] = {
            "case": case,
            "num_steps": problem.run.num_steps,
            "program": program,
            "seconds": [],
            "temp_bytes": temp_bytes,
            "compile_seconds": compile_seconds,
            "skipped": None,
        }
        if temp_bytes is not None and temp_bytes > config.memory_limit * 1e9:
            reason = f"{temp_bytes / 1e9:.3g} GB of temporaries, limit {config.memory_limit:g} GB"
            records[program]["skipped"] = reason
            console.print(f"{case}: {program} is not run: {reason} (--memory-limit)", markup=False)

    ready = [program for program in compiled if records[program]["skipped"] is None]
    for program in ready:
        with console.status(f"{case}: warming up {program}"):
            found[program] = jax.block_until_ready(compiled[program](*problem.args))
    for repeat in range(config.repeats):
        # In turn, so that a machine that slows down slows down all of them.
        for program in ready:
            seconds = records[program]["seconds"]
            if sum(seconds) < config.max_seconds:
                with console.status(f"{case}: {program}, repeat {repeat + 1} of {config.repeats}"):
                    begun = time.perf_counter()
                    jax.block_until_ready(compiled[program](*problem.args))
                    seconds.append(time.perf_counter() - begun)

    compare_times(records)
    compare_hypergradients(records, {p: x for p, x in found.items() if p not in RIVALS})
    return list(records.values())


def compare_times(records: dict[str, dict[str, Any]]) -> None:
    """Adds minimum, median and the ratio of the minimum to the floor; None where nothing ran."""
    for record in records.values():
        seconds = record["seconds"]
        record["min_seconds"] = min(seconds) if seconds else None
        record["median_seconds"] = statistics.median(seconds) if seconds else None
    parts = [records[program]["min_seconds"] for program in (PLAIN, PRODUCTS)]
    for record in records.values():
        known = None not in (*parts, record["min_seconds"])
        record["ratio"] = record["min_seconds"] / sum(parts) if known else None


def compare_hypergradients(
    records: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]]
) -> None:
    """Adds the relative error |bar - reference| / |reference| of each part of the hypergradient.

    The reference is `Direct()`'s, or `Checkpointed()`'s where that did not run.
    """
    if not found:
        return
    reference = next(iter(found))  # the programs' order is that of preference
    for program, result in found.items():
        errors = {
            name: float(relative_error(bar, found[reference]["bars"][name]))
            for name, bar in result["bars"].items()
        }
        restored = result["is_restored"]
        records[program] |= {
            "reference": reference,
            "relative_errors": errors,
            "relative_error": float(jnp.max(jnp.array(list(errors.values())))),
            "is_finite": bool(result["is_finite"]),
            "is_restored": None if restored is None else bool(restored),
        }


def relative_error(tree: Any, reference: Any) -> Array:
    """Returns |tree - reference| / |reference|, Euclidean over all numbers."""

    def norm(tree: Any) -> Array:
        return jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))

    return norm(jax.tree.map(jnp.subtract, tree, reference)) / norm(reference)


def run(config: Config, console: Console) -> list[dict[str, Any]]:
    """Measures all cases, writes and prints what was found, and returns the records.

    Raises:
      HypergradientError: after the table, if a hypergradient was not finite.
    """
    if config.quick:
        config = dataclasses.replace(config, cases=QUICK_CASES, repeats=QUICK_REPEATS)
    common = {
        "experiment": "bench",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "config": dataclasses.asdict(config),
    }
    records = []
    for case in config.cases:
        begun = time.perf_counter()
        of_case = measure(case, config, console)
        for record in of_case:
            write_json_line(config.out, common | record)
        records += of_case
        console.print(f"{case}: measured in {time.perf_counter() - begun:.0f} s", highlight=False)
    print_table(console, records)
    print_summary(console, records, plain=PLAIN, isolated=ISOLATED)
    console.print(f"records: {config.out}")
    unsound = [f"{r['case']} {r['program']}" for r in records if r.get("is_finite") is False]
    if unsound:
        raise hg.HypergradientError(f"not finite: {', '.join(unsound)}")
    return records


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the benchmark that the command line asks for, and returns its records.

    Raises:
      SystemExit: after --help, or with a message on what is wrong: an option, the data, or a
        hypergradient that is not finite.
    """
    config = parse(Config, argv, __doc__)
    # Compiling is measured, too: what an earlier process has compiled must not be found.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return run(config, Console())
    except (hg.HypergradientError, DataUnavailableError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    script(main)
