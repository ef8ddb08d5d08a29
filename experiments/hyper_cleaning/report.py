"""The tables and the figures of `hyper_cleaning`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # not pyplot: it needs no display and keeps no global state
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table

from hgrad_jax.tools.files import write_figures

ROWS, COLUMNS = 4, 10
NOTHING, WITH_VALIDATION = "none", ", with validation"


def print_tables(console: Console, results: Sequence[dict[str, Any]]) -> None:
    """Prints means over seeds: what was found, what that cost, and what it is good for."""
    first, is_one = results[0], len(results) == 1
    seeds = f"seed {first['seed']}" if is_one else f"means of {len(results)} seeds"
    console.print(f"\nFound, of {first['num_corrupted']} wrong labels ({seeds})")
    found = _table("", "F1", "precision", "recall", "found")
    for kind in ("found", "found_otherwise"):
        for name in first[kind]:
            rows = [result[kind][name] for result in results]
            shown = (f"{_mean(rows, key):.3f}" for key in ("f1", "precision", "recall"))
            found.add_row(name, *shown, f"{_mean(rows, 'num_found'):.0f}")
    console.print(found)

    console.print("\nThe first hypergradient beside the first row's, and a meta-step's cost")
    costs = _table("", "relative error", "cosine", "seconds", "MB")
    for name in first["found"]:
        rows = [result["found"][name] for result in results]
        costs.add_row(
            name,
            f"{_mean(rows, 'relative_error'):.1e}",
            f"{_mean(rows, 'cosine'):.4f}",
            f"{_mean(rows, 'seconds_per_meta_step'):.2f}",
            "?" if rows[0]["temp_bytes"] is None else f"{_mean(rows, 'temp_bytes') / 1e6:.1f}",
        )
    console.print(costs)

    console.print(f"\nTest accuracy after training on some of the examples ({seeds})")
    accuracy = _table("", "examples", "alone", "with validation")
    for name in (NOTHING, *(x for x in first["accuracy"] if not x.endswith(WITH_VALIDATION))):
        alone = [result["accuracy"].get(name) for result in results]
        with_others = [result["accuracy"].get(name + WITH_VALIDATION) for result in results]
        count = "" if None in alone else f"{_mean(alone, 'num_examples'):.0f}"
        accuracy.add_row(name, count, _accuracy(alone), _accuracy(with_others))
    console.print(accuracy)


def _accuracy(rows: Sequence[Any]) -> str:
    """Returns the mean, and the range where there are several."""
    if None in rows:
        return ""
    values = [row["test_accuracy"] for row in rows]
    if len(rows) == 1:
        return f"{values[0]:.2%}"
    return f"{np.mean(values):.1%} ({100 * min(values):.1f}-{100 * max(values):.1f})"


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    return table


def draw_progress(valid_loss: np.ndarray, f1: np.ndarray) -> Figure:
    """Returns a figure of both, meta-step by meta-step.

    Args:
      valid_loss: before every meta-step, [K].
      f1: likewise, and after the last, [K + 1].
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    (loss,) = left.plot(valid_loss, ".-", color="C0", label="validation loss")
    (found,) = right.plot(f1, ".-", color="C1", label="F1 of wrong labels found")
    left.set(xlabel="meta-steps done", ylabel="validation loss [nats]")
    right.set(ylabel="F1", ylim=(-0.02, 1.02))
    left.set_title(f"F1 ends at {f1[-1]:.3f}")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(handles=[loss, found], loc="center right")
    return figure


def draw_weights(weights: np.ndarray, is_corrupted: np.ndarray, threshold: float) -> Figure:
    """Returns a histogram of weights [N] where labels are right, and where they are wrong."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    both = [weights[~is_corrupted], weights[is_corrupted]]
    labels = [f"right label ({len(both[0])})", f"wrong label ({len(both[1])})"]
    axes.hist(both, bins=np.linspace(0, 1, 21).tolist(), label=labels)
    axes.axvline(threshold, color="black", linestyle="--", label="found below")
    axes.set(xlabel="weight after the tuning", ylabel="training examples", yscale="log")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def draw_found(
    inputs: np.ndarray, given: np.ndarray, true: np.ndarray, places: np.ndarray
) -> Figure:
    """Returns a grid of examples that were found, with both labels; false alarms are red.

    Args:
      inputs: images [N, *shape], grey and square.
      given: labels [N].
      true: labels [N].
      places: which were found; as many of the first ones as the grid has room for.
    """
    figure = Figure(figsize=(1.1 * COLUMNS, 1.5 * ROWS + 0.5), layout="constrained")
    places = places[: ROWS * COLUMNS]
    wrong = int(np.sum(given[places] != true[places]))
    figure.suptitle(f"The first {len(places)} examples found: {wrong} have a wrong label")
    panels = np.ravel(figure.subplots(ROWS, COLUMNS))
    side = math.isqrt(math.prod(inputs.shape[1:]))
    for axes in panels:
        axes.set_axis_off()
    for axes, i in zip(panels, places, strict=False):
        axes.imshow(inputs[i].reshape(side, side), cmap="gray_r")
        color = "black" if given[i] != true[i] else "red"
        axes.set_title(f"given {given[i]}\ntrue {true[i]}", fontsize=9, color=color)
    return figure


def write(folder: Path, figures: Mapping[str, Figure]) -> None:
    """Writes each figure as NAME.png, whole."""
    write_figures(folder, figures, dpi=120)


def _mean(rows: Sequence[Mapping[str, float]], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))
