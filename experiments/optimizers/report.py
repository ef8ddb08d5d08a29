"""The tables and the figures of `optimizers`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # not pyplot: it needs no display and keeps no global state
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table


def print_table(console: Console, runs: Mapping[str, Any], title: str) -> None:
    """Prints where every training ended."""
    console.print(f"\n{title}")
    table = Table()
    table.add_column("", no_wrap=True)
    for column in ("train loss", "train acc.", "valid loss", "valid acc.", "best acc.", "s"):
        table.add_column(column, justify="right")
    for name, out in runs.items():
        metrics = out.history.metrics
        table.add_row(
            name,
            f"{metrics['train_loss'][-1]:.3f}",
            f"{metrics['train_accuracy'][-1]:.1%}",
            f"{metrics['valid_loss'][-1]:.3f}",
            f"{metrics['valid_accuracy'][-1]:.1%}",
            f"{metrics['valid_accuracy'].max():.1%}",
            f"{out.history.seconds[-1]:.1f}",
        )
    console.print(table)
    for name, out in runs.items():
        if bool(out.info.nonfinite):
            console.print(f"{name}: {out.reason}")


def draw(runs: Mapping[str, Any], title: str) -> Figure:
    """Returns a figure of the loss of every batch, and of both accuracies after every epoch."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    figure.suptitle(title)
    left, *others = figure.subplots(1, 3)
    window = 1
    for name, out in runs.items():
        epoch_length = out.history.steps_per_epoch
        window = max(epoch_length // 10, 1)
        epochs = np.arange(len(out.history.step_loss)) / epoch_length
        (line,) = left.plot(*averaged(epochs, out.history.step_loss, window), label=name)
        for axes, part in zip(others, ("train", "valid"), strict=True):
            accuracy = 100 * out.history.metrics[f"{part}_accuracy"]
            axes.plot(out.history.epoch, accuracy, ".-", color=line.get_color(), label=name)
    means = "" if window == 1 else f", means over {window} steps"
    left.set(xlabel="epoch", ylabel="cross-entropy [nats]", title=f"training loss{means}")
    for axes, part in zip(others, ("training", "validation"), strict=True):
        axes.set(xlabel="epoch", ylabel="accuracy [%]", title=f"{part} accuracy")
        axes.sharey(others[0])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    left.grid(alpha=0.3)
    if len(runs) > 1:
        others[-1].legend()
    return figure


def averaged(x: np.ndarray, y: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns means over consecutive windows, the last points that fill none left out.

    >>> averaged(np.arange(5.0), np.array([1.0, 3, 5, 7, 9]), 2)
    (array([0.5, 2.5]), array([2., 6.]))
    """
    count = len(x) // window
    return tuple(v[: count * window].reshape(count, window).mean(axis=1) for v in (x, y))
