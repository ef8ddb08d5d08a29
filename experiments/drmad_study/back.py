"""The way back in the study of DrMAD: what accumulates, and how far floating point undoes steps.

Figures 3.4 to 3.6 of St. Jules (2017), at the scales that meta-step 11 of the first seed's tuning
along DrMAD's signs starts with, or the last one that is recorded.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

import hgrad_jax as hg
from experiments.drmad_study import tuning
from experiments.drmad_study.config import Config
from experiments.drmad_study.problem import adjoints, problem, start
from experiments.drmad_study.records import SETTINGS, Journal, journal
from hgrad_jax.diagnostics.cotangents import CotangentNorms
from hgrad_jax.diagnostics.reversal import ReversalErrors

META_STEP = 11
NUM_POINTS = 1000
NUM_STATES = 400


def measure(config: Config, num_steps: int) -> None:
    """Records the way back for one length of training, unless it is recorded.

    Raises:
      DataUnavailableError: the data are not there.
      HypergradientError: the training cannot be undone.
      ValueError: what is recorded is of other settings.
    """
    book = _journal(config, num_steps)
    if book.records:
        return
    seed, k = config.seeds[0], _meta_step(config, num_steps)
    given = start(config, seed)
    scales = given.scales
    if k:
        records = journal(config, num_steps, "DrMAD", seed).records
        scales = tuning.scales_before(given, records, k)
    objective, run = problem(config, num_steps, scales)
    run = dataclasses.replace(run, adjoint=adjoints(config)["exact"])
    args = (given.params, scales, given.images.train)
    norms = hg.cotangent_norms(objective, run, *args, given.images.valid)
    undone = hg.reversal_errors(run, *args, every=max(1, num_steps // NUM_STATES))
    at = _thinned(num_steps)
    book.add(
        {
            "norms": {"steps": at} | {name: each[at] for name, each in norms.norms.items()},
            "errors": {"steps": undone.steps} | undone.errors,
            **{
                name: getattr(undone, name)
                for name in ("exact_mismatches", "parting_step", "tolerance", "budget")
            },
            "num_undone": undone.num_undone,
        }
    )


def read(config: Config, num_steps: int) -> dict[str, Any]:
    """Returns what `measure` recorded, and under "meta_step" at which meta-step."""
    (record,) = _journal(config, num_steps).records
    return record | {"meta_step": _meta_step(config, num_steps)}


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record without its curves, and with what share of the hypergradient is when.

    "first_share" is how much of the accumulated norm the first tenth of the training adds.
    """
    curve = {name: np.array(values, float) for name, values in record["norms"].items()}
    tenth = np.searchsorted(curve["steps"], curve["steps"][-1] / 10)
    total = curve["hparams"][0]
    rest = {name: value for name, value in record.items() if name not in ("norms", "errors")}
    return rest | {"first_share": 1 - curve["hparams"][tenth] / total}


def norms_of(record: dict[str, Any]) -> CotangentNorms:
    """Returns the norms as `hg.cotangent_norms` does, of some steps."""
    curves = {name: np.array(values, float) for name, values in record["norms"].items()}
    steps = curves.pop("steps").astype(int)
    return CotangentNorms(steps, curves, info=None)  # pyright: ignore


def errors_of(record: dict[str, Any]) -> ReversalErrors:
    """Returns the errors as `hg.reversal_errors` does."""
    curves = {name: np.array(values, float) for name, values in record["errors"].items()}
    steps = curves.pop("steps").astype(int)
    rest = ("exact_mismatches", "parting_step", "tolerance", "budget")
    return ReversalErrors(steps, curves, *(record[name] for name in rest))


def _meta_step(config: Config, num_steps: int) -> int:
    tuned = journal(config, num_steps, "DrMAD", config.seeds[0])
    return min(META_STEP, len(tuned.records))


def _journal(config: Config, num_steps: int) -> Journal:
    settings = {name: getattr(config, name) for name in SETTINGS}
    settings |= {"num_steps": num_steps, "seed": config.seeds[0]}
    k = _meta_step(config, num_steps)
    name = f"{config.data}_{config.sharing}_{num_steps}_{config.seeds[0]}_at_{k}.jsonl"
    return Journal(Path(config.out) / "back" / name, settings | {"meta_step": k})


@functools.cache
def _thinned(num_steps: int) -> np.ndarray:
    """Returns at most some 1,200 steps, all of the first and of the last hundred among them."""
    evenly = np.linspace(0, num_steps - 1, min(NUM_POINTS, num_steps)).round().astype(int)
    ends = np.r_[: min(100, num_steps), max(0, num_steps - 100) : num_steps]
    return np.unique(np.r_[evenly, ends])
