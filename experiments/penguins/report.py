"""The table and the figures of `penguins`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # not pyplot: it needs no display and keeps no global state

from hgrad_jax.show.text_table import aligned
from hgrad_jax.tools.files import write_figures


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
    write_figures(path.parent, {path.stem: figure}, dpi=130)
