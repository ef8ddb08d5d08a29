"""A sweep in pictures: heat maps over two hyperparameters, and curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hgrad_jax.show.figures import new_axes
from hgrad_jax.training.sweep_table import Summary, ranked, written


def heat_map(
    values: Mapping[str, Sequence[Any]],
    value: str,
    found: Summary,
    is_maximized: bool,
    axes: Any = None,
) -> Any:
    """Draws means over two hyperparameters.

    Means that have diverged are grey, so that the colors tell the others apart; cells whose runs
    all failed say so, and those that no setting has are empty.

    Args:
      values: of every setting, by name: first the columns' hyperparameter, then the rows'.
      value: what is drawn.
      found: of a result that is one number a run.
      is_maximized: whether more is better.
      axes: where to draw; None for a new figure.
    """
    if len(values) != 2:
        raise ValueError(f"x and y are both {next(iter(values))!r}; a map has two axes.")
    x, y = values
    of_x, of_y = (_numbers(name, of) for name, of in values.items())
    columns, rows = sorted(set(of_x)), sorted(set(of_y))
    cells = np.full((len(rows), len(columns)), np.nan)
    place = [(rows.index(b), columns.index(a)) for a, b in zip(of_x, of_y, strict=True)]
    if len(set(place)) < len(place):
        raise ValueError(
            f"several settings have the same {x} and {y}; select some of the sweep by their other "
            "hyperparameters: sweep.select({name: value})."
        )
    for at, mean in zip(place, found.mean, strict=True):
        cells[at] = mean

    axes = new_axes() if axes is None else axes
    low, high = _color_range(found.mean, is_maximized)
    image = axes.imshow(cells, origin="lower", vmin=low, vmax=high, aspect="auto")
    from matplotlib import colormaps

    colors = colormaps["viridis" if is_maximized else "viridis_r"]
    image.set_cmap(colors.with_extremes(under="lightgrey", over="lightgrey"))
    has_diverged = np.zeros(cells.shape, bool) if low is None else (cells < low) | (cells > high)
    beyond = "neither" if not has_diverged.any() else "min" if is_maximized else "max"
    axes.figure.colorbar(image, ax=axes, label=value, extend=beyond)
    axes.set_xticks(range(len(columns)), [written(v) for v in columns])
    axes.set_yticks(range(len(rows)), [written(v) for v in rows])
    axes.set(xlabel=x, ylabel=y)
    for (i, j), mean in np.ndenumerate(cells):
        if not np.isnan(mean):
            red, green, blue, _ = image.cmap(image.norm(mean))
            is_dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            ink = "white" if is_dark else "black"
            shown = f"{mean:.3g}" + "\ndiverged" * bool(has_diverged[i, j])
            axes.text(j, i, shown, ha="center", va="center", color=ink, fontsize=8)
        elif (i, j) in place:
            axes.text(j, i, "failed", ha="center", va="center", color="grey", fontsize=8)
    best = ranked(found, is_maximized)[0]
    if np.isfinite(found.mean[best]):
        from matplotlib.patches import Rectangle

        i, j = place[best]
        frame = Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, fill=False, edgecolor="red", lw=2)
        axes.add_patch(frame)
    return axes.figure


def _color_range(means: np.ndarray, is_maximized: bool) -> tuple[float | None, float | None]:
    """Returns the ends of a range: the best, and the worst that has not diverged.

    Among the worse half, those have from the first on that is more than ten times as far from the
    best as the one before it, and as the best is from zero.

    >>> _color_range(np.array([1.0, 1.5, 2.0, 9.0, 1e9, np.nan]), is_maximized=False)
    (1.0, 9.0)
    >>> _color_range(np.array([0.3, 0.3001, 0.35, 0.36]), is_maximized=False)
    (0.3, 0.36)
    """
    known = np.sort(means[np.isfinite(means)])
    if not known.size:
        return None, None
    known = known[::-1] if is_maximized else known
    distances = np.abs(known - known[0])
    for i in range((len(known) + 1) // 2, len(known)):
        if distances[i - 1] and 10 * max(distances[i - 1], abs(known[0])) < distances[i]:
            known = known[:i]
            break
    return float(known.min()), float(known.max())


def curves(
    settings: Sequence[Mapping[str, Any]],
    x: str | None,
    value: str,
    found: Summary,
    axes: Any = None,
) -> Any:
    """Draws means in bands of plus and minus the spread.

    Args:
      settings: values by name.
      x: hyperparameter to draw against; None for the result's own axis.
      value: what is drawn.
      found: mean [settings, T], or with `x` [settings].
      axes: where to draw; None for a new figure.
    """
    axes = new_axes() if axes is None else axes
    varied = [
        name
        for name in settings[0]
        if any(not np.array_equal(s[name], settings[0][name]) for s in settings)
    ]
    lines: dict[str, list[int]] = {}
    for i, setting in enumerate(settings):
        label = ", ".join(f"{name} {written(setting[name])}" for name in varied if name != x)
        lines.setdefault(label if x is not None or label else f"setting {i}", []).append(i)
    for number, (label, members) in enumerate(lines.items()):
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3]}
        if x is None:
            for i in members:
                _line(axes, np.arange(found.mean.shape[1]), found.mean[i], found.spread[i], style)
        else:
            at = np.array(_numbers(x, [settings[i][x] for i in members]))
            order = np.array(members)[np.argsort(at)]
            _line(axes, np.sort(at), found.mean[order], found.spread[order], style, "o")
        axes.lines[-1].set_label(label)
    axes.set(xlabel="step" if x is None else x, ylabel=value)
    at = axes.lines[0].get_xdata()
    if x is not None and min(at) > 0 and max(at) >= 30 * min(at):
        axes.set_xscale("log")
    if x is None:
        axes.xaxis.get_major_locator().set_params(integer=True)
    if any(lines):
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return axes.figure


def _line(
    axes: Any,
    at: np.ndarray,
    mean: np.ndarray,
    spread: np.ndarray,
    style: dict[str, Any],
    marker: str = "",
) -> None:
    axes.fill_between(at, mean - spread, mean + spread, alpha=0.2, color=style["color"], lw=0)
    axes.plot(at, mean, marker=marker, markersize=4, **style)


def _numbers(name: str, values: Sequence[Any]) -> list[float]:
    if any(np.ndim(value) for value in values):
        raise ValueError(f"{name} is an array in every setting; an axis needs numbers.")
    return [float(value) for value in values]
