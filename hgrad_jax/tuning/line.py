"""What is written of a meta-step: one line of JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hgrad_jax.training.sweep_table import by_name
from hgrad_jax.tuning.history import Rows
from hgrad_jax.tuning.program import Outcome
from hgrad_jax.tuning.records import plain
from hgrad_jax.types import Hparams

STORES = ("bits_per_step", "entropy_per_step")
"""Of `RunInfo`, by variable: means over runs."""


def line_of(
    rows: Rows,
    metrics: Sequence[str],
    found: Outcome,
    num_bytes: int | None,
    problem: str | None,
    whole: tuple[Hparams, Hparams] | None,
) -> dict[str, Any]:
    """Returns what is written of the last meta-step, as JSON can hold it.

    Args:
      rows: up to it.
      metrics: their names.
      found: what it gave.
      num_bytes: of the compiled program's temporaries; None where that is unknown.
      problem: why the hypergradient could not be used; None if it could.
      whole: hyperparameters before it and mean hypergradient, where they are to be written; None
        where not.
    """
    numbers = {name: each[-1] for name, each in rows.numbers.items()}
    summaries: dict[str, dict[str, float]] = {}
    for name, number in numbers.items():
        kind, slash, leaf = name.partition("/")
        if slash:
            summaries.setdefault(leaf, {})[kind] = number

    def means(by_variable: dict[str, Any]) -> dict[str, Any]:
        return {name: np.mean(x) for name, x in by_variable.items()}

    mismatches = found.info.mismatches
    line = {
        "meta_step": rows.num_done - 1,
        "num_steps": int(numbers["num_steps"]),
        "value": rows.values[-1],
        **{name: numbers[name] for name in metrics},
        "norm": numbers["norm"],
        "spread": numbers["spread"],
        "summaries": summaries,
        "seconds": numbers["seconds"],
        "bytes": num_bytes,
        **{name: means(getattr(found.info.run, name)) for name in STORES},
        "is_restored": None if mismatches is None else bool(found.info.is_restored.all()),
        "problem": problem,
    }
    if whole is not None:
        line |= {"hparams": by_name(whole[0]), "hypergradient": by_name(whole[1])}
    return plain(line)
