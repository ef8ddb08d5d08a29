"""The table and the figures of `tune_digits`."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: it needs no display and keeps no global state
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table

from hgrad_jax.tools.files import write_figures


def print_table(console: Console, result: dict[str, Any], num_runs: int) -> None:
    """Prints what was gained, and what a meta-step cost."""
    console.print(f"\nMean over {num_runs} seeds that were not tuned on")
    gains = Table()
    for column in ("", "before", "after"):
        gains.add_column(column, justify="right" if column else "left")
    for name in ("validation_loss", "validation_error", "test_loss", "test_error"):
        shown = "{:.2%}" if name.endswith("error") else "{:.4f}"
        means = (np.mean(result[when][name]) for when in ("before", "after"))
        gains.add_row(name.replace("_", " "), *(shown.format(mean) for mean in means))
    console.print(gains)

    console.print(f"\nOne meta-step: {num_runs} hypergradients side by side")
    costs = Table(show_header=False)
    costs.add_column()
    costs.add_column(justify="right")
    temp_bytes = result["temp_bytes"]
    for name, value in (
        ("hyperparameters", f"{result['num_hparams']}"),
        ("seconds", f"{result['seconds_per_meta_step']:.2f}"),
        ("temporary bytes", "unknown" if temp_bytes is None else f"{temp_bytes:,}"),
        ("bits per parameter and step", f"{result['bits_per_step']:.3f}"),
        ("log2(1 / decay), the least", f"{result['entropy_per_step']:.3f}"),
        ("restored bit for bit", "yes" if result["is_restored"] else "no"),
        ("seconds in all", f"{result['seconds']:.1f}"),
    ):
        costs.add_row(name, value)
    console.print(costs)


def draw(folder: Path, losses: np.ndarray, first: dict[str, Any], last: dict[str, Any]) -> None:
    """Writes `validation_loss.png`, `learning_rate.png` and `regularization.png`.

    Args:
      folder: where to.
      losses: on the validation data, [meta-steps, runs].
      first: hyperparameters before the tuning.
      last: hyperparameters after it.
    """
    first, last = jax.device_get((first, last))
    figures = {
        "validation_loss": _validation_loss(losses),
        "learning_rate": _learning_rate(first, last),
        "regularization": _regularization(first, last),
    }
    write_figures(folder, figures, dpi=120)


def _validation_loss(losses: np.ndarray) -> Figure:
    x = np.arange(len(losses))
    figure, axes = _one()
    axes.fill_between(x, losses.min(1), losses.max(1), alpha=0.25, label="least to greatest run")
    axes.plot(x, losses.mean(1), marker="o", markersize=4, label="mean of the runs")
    axes.set(xlabel="meta-step", ylabel="validation loss after training [nats]")
    axes.set_title(f"Tuning by exact hypergradients, {losses.shape[1]} fresh seeds a meta-step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


def _learning_rate(first: dict[str, Any], last: dict[str, Any]) -> Figure:
    figure, axes = _one()
    axes.plot(np.exp(last["log_learning_rate"]), label="after the tuning")
    axes.plot(np.exp(first["log_learning_rate"]), "--", color="black", label="before the tuning")
    axes.set(xlabel="training step", ylabel="learning rate", ylim=(0, None))
    before, after = (1 / (1 + np.exp(-h["logit_momentum"])) for h in (first, last))
    axes.set_title(f"Learning rate of each step (momentum: {before:.3f}, then {after:.3f})")
    axes.legend()
    return figure


def _regularization(first: dict[str, Any], last: dict[str, Any]) -> Figure:
    """One panel a layer: the first as an image if its inputs are one, the others sorted."""
    layers = sorted(last["log_l2"])
    figure = Figure(figsize=(4.2 * len(layers), 3.8), layout="constrained")
    figure.suptitle("L2 coefficient of the weights out of each unit")
    for axes, layer in zip(np.ravel(figure.subplots(1, len(layers))), layers, strict=True):
        coefficients, before = np.exp(last["log_l2"][layer]), np.exp(first["log_l2"][layer][0])
        side = math.isqrt(coefficients.size)
        if layer == layers[0] and side**2 == coefficients.size:
            logs = np.log10(coefficients).reshape(side, side)
            image = axes.imshow(logs)
            figure.colorbar(image, ax=axes, label="log10 of the coefficient", shrink=0.85)
            axes.set(xlabel="pixel column", ylabel="pixel row")
            axes.set_title(f"{layer}: pixels (before: {np.log10(before):.1f})")
            continue
        axes.semilogy(np.sort(coefficients), ".", label="after the tuning")
        axes.axhline(before, color="black", linestyle="--", label="before the tuning")
        axes.set(xlabel="hidden unit, sorted", ylabel="coefficient")
        axes.set_title(f"{layer}: hidden units")
        axes.legend()
    return figure


def _one() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    return figure, figure.subplots()
