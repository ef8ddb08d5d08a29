"""What DrMAD's hypergradients are worth, and what exact ones add.

The experiments of St. Jules (2017, sections 2.1, 2.3 and 3.1). A network whose weights are
exp(s) z is trained in z with momentum; its hyperparameters s, one for each output unit, take steps
along the signs of a hypergradient of the validation loss, DrMAD's or the exact one's, which the
original could not afford. The parts:

- `tuning`: at each meta-step the hypergradients of DrMAD and DrMAD2, with as many steps back as
  the displacement of the first steps suggests, beside the exact one: norms, cosines, errors.
- `back`: how the exact hypergradient accumulates on the way back, and where a training undone in
  floating point parts from the exact one, at meta-step 11 or the last one.
- `paths`: of a conv net with dropout: its path on random coordinates, and how far it passes from
  where it ended before a meta-step, with the same dropout or another.

A part's records are files under `--out`; the same command goes on from them, and draws the figures
from them. `--sharing weight --follow exact --num-meta-steps 1` is a single exact hypergradient of a
scale for every weight.

Examples:
    python -m experiments.drmad_study --parts tuning back --num-steps 200 2000
    python -m experiments.drmad_study --data mnist --data-dir FOLDER
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hgrad_jax as hg
from experiments.common import environment, parse, script, write_json_line
from experiments.drmad_study import back, paths, report, tuning
from experiments.drmad_study.config import Config
from experiments.drmad_study.problem import start
from experiments.drmad_study.records import journal
from hgrad_jax.data import DataUnavailableError


def run_tuning(config: Config) -> report.Tunings:
    """Tunes as far as is not recorded yet, and returns all records."""
    starts = functools.cache(functools.partial(start, config))
    found: report.Tunings = {}
    for num_steps in config.num_steps:
        # Compiled when the first meta-step needs it, once for all seeds and both signs.
        compiled = functools.cache(
            lambda num_steps=num_steps: tuning.programs(config, num_steps, starts(config.seeds[0]))
        )
        for seed in config.seeds:
            for follow in config.follow:
                tuning.tune(
                    *(config, num_steps, follow, seed, compiled, starts(seed)),
                    say=functools.partial(print, flush=True),
                )
                records = journal(config, num_steps, follow, seed).records
                found[num_steps, follow, seed] = records[: config.num_meta_steps]
    return found


def run(config: Config) -> dict[str, Any]:
    """Runs the parts, prints the tables, writes records and figures, and returns the result."""
    begun, stamp = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    out = Path(config.out)
    result: dict[str, Any] = {
        "experiment": "drmad_study",
        "started": stamp,
        "environment": environment(),
        "config": dataclasses.asdict(config),
    }
    if "tuning" in config.parts:
        found = run_tuning(config)
        result["tuning"] = report.summary(found)
        print("\n" + report.table(result["tuning"]), end="\n\n")
        report.draw_tuning(out, found)
    if "back" in config.parts:
        for num_steps in config.num_steps:
            print(f"{num_steps} steps: the way back", flush=True)
            back.measure(config, num_steps)
        found = {num_steps: back.read(config, num_steps) for num_steps in config.num_steps}
        result["back"] = {num_steps: back.summary(each) for num_steps, each in found.items()}
        print(report.back_table(result["back"]), end="\n\n")
        report.draw_back(out, found)
    if "paths" in config.parts:
        print(f"{config.path_steps} steps of a conv net: its paths", flush=True)
        paths.measure(config)
        found = paths.read(config)
        result["paths"] = paths.summary(found)
        print(report.paths_table(result["paths"]), end="\n\n")
        report.draw_paths(out, found)
    result["seconds"] = time.perf_counter() - begun
    write_json_line(out / "results.jsonl", result)
    print(f"records and figures: {out}")
    return result


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the study that the command line asks for, and returns its result.

    Raises:
      SystemExit: after --help, or with a message on what is wrong: an option, the data, records of
        other settings, or a hypergradient that `hg.check` refuses.
    """
    config = parse(Config, argv, __doc__)
    try:
        return run(config)
    except (DataUnavailableError, hg.HypergradientError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    script(main)
