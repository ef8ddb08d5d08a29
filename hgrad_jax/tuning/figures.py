"""The figures of a tuning. Matplotlib is imported when one is drawn."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from hgrad_jax.show.figures import new_axes, positive

MOST_PANELS, MOST_LINES = 24, 10


def of_value(
    meta_step: np.ndarray,
    num_steps: np.ndarray,
    value: np.ndarray,
    metrics: Mapping[str, np.ndarray],
) -> Any:
    """Draws the objective's mean in a band from the least to the greatest run, and the metrics.

    A metric has one panel for validation and test. Dotted lines are where the length of the runs
    changes.

    Args:
      meta_step: `[K]`.
      num_steps: `[K]`, the length of the runs.
      value: `[K, R]`.
      metrics: "valid_..." and "test_..." by name, `[K]` each.
    """
    panels = list(dict.fromkeys(name.partition("_")[2] for name in metrics))
    axes = np.ravel(np.asarray(new_axes(1 + len(panels)), dtype=object))
    _band(axes[0], meta_step, value.mean(axis=1), value.min(axis=1), value.max(axis=1))
    axes[0].set(ylabel="objective after training", title=f"{value.shape[1]} runs a meta-step")
    for ax, panel in zip(axes[1:], panels, strict=True):
        for part, label in (("valid", "validation"), ("test", "test")):
            if f"{part}_{panel}" in metrics:
                ax.plot(meta_step, metrics[f"{part}_{panel}"], ".-", label=label)
        ax.set(ylabel=panel.replace("_", " "))
        ax.legend()
    for place in np.flatnonzero(np.diff(num_steps)):
        for ax in axes:
            ax.axvline(meta_step[place] + 0.5, linestyle=":", linewidth=1, color="gray")
    return _finished(axes)


def of_norms(meta_step: np.ndarray, norm: np.ndarray, by_leaf: Mapping[str, np.ndarray]) -> Any:
    """Draws the Euclidean norm of the hypergradient, and of its parts, the largest ones.

    Args:
      meta_step: `[K]`.
      norm: `[K]`, of all.
      by_leaf: `[K]` each.
    """
    axes = new_axes()
    largest = sorted(by_leaf, key=lambda name: -np.nanmax(positive(by_leaf[name]), initial=0))
    for name in largest[:MOST_LINES]:
        axes.plot(meta_step, positive(by_leaf[name]), ".-", label=name)
    axes.plot(meta_step, positive(norm), "--", color="black", label="all")
    axes.set(yscale="log", ylabel="norm of the hypergradient")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _finished(np.array([axes]))


def of_hparams(meta_step: np.ndarray, hparams: Mapping[str, Mapping[str, np.ndarray]]) -> Any:
    """Draws each leaf's mean in a band from its least to its greatest number, a panel each.

    Of more than 24 leaves the first.

    Args:
      meta_step: `[K]`.
      hparams: "mean", "min" and "max" by leaf, `[K]` each.
    """
    from matplotlib.figure import Figure

    names = list(hparams)[:MOST_PANELS]
    columns = min(len(names), 4)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for ax, name in zip(axes, names, strict=False):
        found = hparams[name]
        _band(ax, meta_step, found["mean"], found["min"], found["max"])
        ax.set(title=name)
    for ax in axes[len(names) :]:
        ax.remove()
    if len(names) < len(hparams):
        figure.suptitle(f"The first {len(names)} of {len(hparams)} leaves")
    return _finished(axes[: len(names)])


def _band(ax: Any, x: np.ndarray, mean: np.ndarray, least: np.ndarray, greatest: np.ndarray) -> Any:
    ax.fill_between(x, least, greatest, alpha=0.25, linewidth=0)
    ax.plot(x, mean, ".-")


def _finished(axes: np.ndarray) -> Any:
    from matplotlib.ticker import MaxNLocator

    for ax in axes:
        ax.set(xlabel="meta-step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    return axes[0].figure
