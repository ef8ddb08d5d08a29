"""Finds examples with wrong labels by hypergradients: data hyper-cleaning.

Franceschi, Donini, Frasconi and Pontil (2017, section 5.1). Half of the training labels are
replaced, each by one of the nine others, drawn uniformly (so that every replaced label is wrong).
Every training example has a weight in [0, 1], by which its loss is multiplied; all start at 1, and
each meta-step trains a classifier with them, takes the hypergradient of the validation loss with
respect to all of them, and moves them by one step of Adam and a projection to the box (as an
option, to the ball of the paper too: their sum is at most R). Examples whose weight ends below a
threshold count as found.

Printed are how well that finds what was replaced, by exact hypergradients (`hg.Reversible()`,
and `hg.Direct()` to compare) and by approximate ones, and two simpler ways to find the same; and
the test accuracy of classifiers trained on what is left, on everything, and on what an oracle would
leave. Nothing is chosen by the test data, and nothing that trains or tunes sees the true labels of
the training examples. Written to `--out`: `result.jsonl`, three figures a seed, and folders of the
tunings' records and checkpoints; the same command goes on from them.

Examples:
    python -m experiments.hyper_cleaning --data mnist --data-dir FOLDER
    python -m experiments.hyper_cleaning --hidden 50 --l1-radius 250
"""

import dataclasses
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import hgrad_jax as hg
from experiments.common import environment, parse, script, write_json_line
from experiments.hyper_cleaning import report, tuning
from experiments.hyper_cleaning.accuracy import accuracies
from experiments.hyper_cleaning.config import Config
from experiments.hyper_cleaning.problem import load_data
from hgrad_jax.data import DataUnavailableError


def run_seed(config: Config, seed: int, console: Console) -> dict[str, Any]:
    """Cleans one corrupted data set in every way, writes its record and figures."""
    started, stamp = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    data = load_data(config, seed)
    is_corrupted = data.is_corrupted
    console.print(
        f"{config.data}, seed {seed}: tuning {len(is_corrupted)} weights, of examples of which "
        f"{is_corrupted.sum()} have wrong labels"
    )
    cleanings = {name: tuning.clean(config, data, seed, name) for name in tuning.adjoints(config)}
    exact = cleanings[tuning.EXACT]

    def found_by(cleaning: tuning.Cleaning) -> np.ndarray:
        return cleaning.weights[-1] < config.threshold

    accuracy, doubted = accuracies(config, data, found_by(exact), seed)
    result = {
        "experiment": "hyper_cleaning",
        "started": stamp,
        "environment": environment(),
        "seed": seed,
        "config": dataclasses.asdict(config),
        "num_corrupted": is_corrupted.sum(),
        "found": {
            name: score(found_by(cleaning), is_corrupted)
            | {
                "f1_at_zero": score(cleaning.weights[-1] <= 0, is_corrupted)["f1"],
                "valid_loss": cleaning.valid_loss[-1],
                **_compared(cleaning.hypergradient, exact.hypergradient),
                "seconds_per_meta_step": cleaning.seconds_per_meta_step,
                "temp_bytes": cleaning.temp_bytes,
                "is_restored": cleaning.is_restored,
            }
            for name, cleaning in cleanings.items()
        },
        "found_otherwise": {
            "sign of the first hypergradient": score(exact.hypergradient > 0, is_corrupted),
            "other than a classifier says": score(doubted, is_corrupted),
        },
        "accuracy": accuracy,
    }
    f1 = [score(weights < config.threshold, is_corrupted)["f1"] for weights in exact.weights]
    figures = {
        "progress": report.draw_progress(exact.valid_loss, np.asarray(f1)),
        "weights": report.draw_weights(exact.weights[-1], is_corrupted, config.threshold),
        "found": report.draw_found(
            np.asarray(data.train.inputs),
            np.asarray(data.train.labels),
            data.true_labels,
            np.flatnonzero(found_by(exact)),
        ),
    }
    figures_at = Path(config.out) / f"seed_{seed}"
    report.write(figures_at, figures)
    result["seconds"] = time.perf_counter() - started
    write_json_line(Path(config.out) / "result.jsonl", result)
    console.print(f"records and figures: {config.out}/result.jsonl, {figures_at}")
    return result


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the experiment that the command line asks for, and returns a result for each seed.

    Raises:
      SystemExit: after --help, or with a message on what is wrong: an option, the data, or a
        hypergradient that `hg.check` refuses.
    """
    config = parse(Config, argv, __doc__)
    console = Console()
    try:
        results = [run_seed(config, seed, console) for seed in config.seeds]
    except (DataUnavailableError, ValueError) as error:  # more examples than there are
        raise SystemExit(f"error: {error}") from error
    except (hg.HypergradientError, hg.CheckpointError) as error:
        raise SystemExit(f"error: {error}") from error
    report.print_tables(console, results)
    return results


def score(is_found: np.ndarray, is_corrupted: np.ndarray) -> dict[str, float]:
    """Returns how well the corrupted examples were found; 0 where nothing was.

    >>> score(np.array([True, True, False, False]), np.array([True, False, True, True]))
    {'f1': 0.4, 'precision': 0.5, 'recall': 0.3333333333333333, 'num_found': 2}
    """
    right, found = int(np.sum(is_found & is_corrupted)), int(np.sum(is_found))
    precision, recall = right / max(found, 1), right / max(int(np.sum(is_corrupted)), 1)
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"f1": f1, "precision": precision, "recall": recall, "num_found": found}


def _compared(hypergradient: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Returns the relative error and the cosine."""
    norm = float(np.linalg.norm(exact))
    size = float(np.linalg.norm(hypergradient)) * norm
    return {
        "relative_error": float(np.linalg.norm(hypergradient - exact)) / norm,
        "cosine": float(hypergradient @ exact) / size if size else float("nan"),
    }


if __name__ == "__main__":
    script(main)
