"""The tables and the figures of `forward_reverse`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # not pyplot: it needs no display and keeps no global state
from matplotlib.ticker import MaxNLocator

from hgrad_jax.show.text_table import aligned, in_bytes

Record = dict[str, Any]

MARKS = {
    "forward": ("o", 11),
    "reverse": ("x", 7),
    "checkpointed": ("+", 11),
    "reversible": ("s", 15),
}
WANTED = 1e-5
PARTS = {"train": "training", "valid": "validation", "test": "test"}


def table(records: Sequence[Record]) -> str:
    """Returns what was found and what it cost, a column for each mode, and the real-time run."""
    found, online = _apart(records)
    rows = []
    for k in dict.fromkeys(record["meta_step"] for record in found):
        here = [record for record in found if record["meta_step"] == k]
        values = here[0]["hparams"]
        worst = [max(record["relative_difference"][name] for record in here) for name in values]
        above, below = [""] * (len(PARTS) + 1), [""] * 3
        columns = [
            [f"meta-step {k}"]
            + [f"{title} accuracy" for title in PARTS.values()]
            + ["validation error"]
            + [f"d / d {name}" for name in values]
            + ["seconds", "CPU seconds", "temporaries, MB"],
            ["at", *above, *(f"{value:.6g}" for value in values.values()), *below],
            *map(_column, here),
            ["rel. diff.", *above, *(f"{x:.1e}" for x in worst), *below],
        ]
        rows += [*zip(*columns, strict=True), [""] * len(columns)]
    lines = aligned(rows)
    if online is not None:
        lines += _real_time_table(online)
    return "\n".join(lines)


def _column(record: Record) -> list[str]:
    return [
        record["mode"],
        *(f"{record['accuracy'][part]:.2%}" for part in PARTS),
        f"{record['validation_error']:.6f}",
        *(f"{value:.7g}" for value in record["hypergradient"].values()),
        f"{record['seconds']:.2f}",
        f"{record['cpu_seconds']:.2f}",
        _megabytes(record["temp_bytes"]),
    ]


def _real_time_table(record: Record) -> list[str]:
    names = ("learned", "kept")
    runs = [record[name] for name in names]
    steps = len(record["learned"]["path"]["validation_error"])
    rows = [[f"real time, {steps} steps", *names]]
    for part, title in PARTS.items():
        rows.append([f"{title} accuracy", *(f"{run['accuracy'][part]:.2%}" for run in runs)])
    rows.append(["validation error", *(f"{run['validation_error']:.6f}" for run in runs)])
    for name, path in record["learned"]["path"]["hparams"].items():
        rows += [[f"{each} at the end", f"{x[-1]:.6g}", ""] for each, x in _curves(name, path)]
    for key, title in (("seconds", "seconds"), ("cpu_seconds", "CPU seconds")):
        rows.append([title, *(f"{run[key]:.2f}" for run in runs)])
    rows.append(["temporaries, MB", *(_megabytes(run["temp_bytes"]) for run in runs)])
    return aligned(rows)


def draw(records: Sequence[Record], title: str, eps: float) -> dict[str, Figure]:
    """Returns figures by name: hypergradients, differences, costs, and real_time if there is one.

    Args:
      records: of all meta-steps and modes.
      title: of each figure.
      eps: of the numbers computed with; differences below a hundredth of it are drawn there.
    """
    found, online = _apart(records)
    modes: dict[str, list[Record]] = {}
    for record in found:
        modes.setdefault(record["mode"], []).append(record)
    figures = {
        "hypergradients": _hypergradients(modes, title),
        "differences": _differences(modes, title, eps),
        "costs": _costs(modes, title),
    }
    if online is not None:
        figures["real_time"] = _real_time(online, title)
    return figures


def _hypergradients(modes: dict[str, list[Record]], title: str) -> Figure:
    names = list(next(iter(modes.values()))[0]["hypergradient"])
    columns = -(-len(names) // 2)
    figure = Figure(figsize=(3.2 * columns + 1.6, 5.6), layout="constrained")
    figure.suptitle(f"hypergradients: {title}")
    panels = np.ravel(figure.subplots(2, columns, sharex=True))
    for axes, name in zip(panels, names, strict=False):
        for mode, each in modes.items():
            marker, size = MARKS[mode]
            axes.plot(
                [record["meta_step"] for record in each],
                [record["hypergradient"][name] for record in each],
                marker,
                markersize=size,
                fillstyle="none",
                label=mode,
            )
        axes.set_title(f"d / d {name}")
        axes.margins(0.15)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels[len(names) :]:
        axes.axis("off")
    for axes in panels[-columns:]:
        axes.set_xlabel("meta-step")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", labelspacing=1.2)
    return figure


def _differences(modes: dict[str, list[Record]], title: str, eps: float) -> Figure:
    """A panel for each mode but the one that the others are compared with."""
    others = {m: each for m, each in modes.items() if any(_differences_of(each))} or modes
    figure = Figure(figsize=(4 * len(others) + 1.8, 4), layout="constrained")
    figure.suptitle(f"relative differences from reverse: {title}")
    panels = figure.subplots(1, len(others), sharey=True, squeeze=False)[0]
    least = eps / 100
    for axes, (mode, each) in zip(panels, others.items(), strict=True):
        for i, name in enumerate(each[0]["relative_difference"]):
            values = [max(record["relative_difference"][name], least) for record in each]
            steps = [record["meta_step"] for record in each]
            axes.plot(steps, values, "o-", markersize=4, color=f"C{i}", label=name)
        axes.axhline(WANTED, color="grey", linestyle="--", linewidth=1)
        axes.set(xlabel="meta-step", yscale="log", title=mode)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel(f"relative difference (0 drawn at {least:.0e})")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def _costs(modes: dict[str, list[Record]], title: str) -> Figure:
    figure = Figure(figsize=(11, 4), layout="constrained")
    figure.suptitle(f"one hypergradient: {title}")
    left, right = figure.subplots(1, 2)
    places = np.arange(len(modes))
    least = {
        key: np.array([min(record[key] for record in each) for each in modes.values()])
        for key in ("seconds", "cpu_seconds")
    }
    unit, factor = ("seconds", 1) if max(map(np.max, least.values())) >= 1 else ("ms", 1000)
    for offset, key, label in ((-0.2, "seconds", "wall clock"), (0.2, "cpu_seconds", "CPU")):
        bars = left.bar(places + offset, factor * least[key], 0.4, label=label)
        left.bar_label(bars, [f"{factor * x:.3g}" for x in least[key]], fontsize=8)
    left.set(ylabel=f"{unit}, the least of the meta-steps")
    left.legend()
    temp_bytes = [each[0]["temp_bytes"] for each in modes.values()]
    megabytes = np.array([np.nan if x is None else x / 1e6 for x in temp_bytes])
    bars = right.bar(places, megabytes, 0.6, color="C2")
    shown = ["unknown" if x is None else in_bytes(x) for x in temp_bytes]
    right.bar_label(bars, shown, fontsize=8)
    right.set(ylabel="compiled temporaries, MB")
    known = megabytes[megabytes > 0]
    if known.size and known.max() > 10 * known.min():
        decades = np.floor(np.log10(known.min())), np.ceil(np.log10(1.3 * known.max()))
        right.set(yscale="log", ylim=[10.0**x for x in decades])
    for axes in (left, right):
        axes.set_xticks(places, list(modes))
    left.margins(y=0.25)  # room for the legend
    right.margins(y=0.1)
    return figure


def _real_time(record: Record, title: str) -> Figure:
    path = record["learned"]["path"]
    steps = np.arange(1, len(path["validation_error"]) + 1)
    figure = Figure(figsize=(13, 6.6), layout="constrained")
    figure.suptitle(f"hyperparameters learned in real time: {title}")
    panels = np.ravel(figure.subplots(2, 3, sharex=True))
    for axes, (name, values) in zip(panels, path["hparams"].items(), strict=False):
        for label, curve in _curves(name, values):
            axes.plot(steps, curve, label=label)
        axes.set_title(name)
        if np.ndim(values) > 1:
            axes.legend()
    for name, values in path["hypergradient"].items():
        for label, curve in _curves(name, values):
            shown = np.where(curve == 0, np.nan, np.abs(curve))  # zero before the first
            panels[4].plot(steps, shown, label=label, linewidth=1)
    panels[4].set(yscale="log", title="size of the hypergradients")
    panels[4].legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    for name in ("learned", "kept"):
        panels[5].plot(steps, record[name]["path"]["validation_error"], label=name)
    panels[5].set(title="validation error, at most 1,000 images")
    panels[5].legend()
    for axes in panels[3:]:
        axes.set_xlabel("training step")
    return figure


def _apart(records: Sequence[Record]) -> tuple[list[Record], Record | None]:
    """Returns the records of hypergradients, and that of the real-time run."""
    online = [record for record in records if record["mode"] == "real time"]
    return [r for r in records if r["mode"] != "real time"], online[0] if online else None


def _curves(name: str, path: Any) -> list[tuple[str, np.ndarray]]:
    """Returns the curves of a hyperparameter `[T]`, or of several `[T, layers]`, with labels."""
    values = np.asarray(path)
    if values.ndim == 1:
        return [(name, values)]
    return [(f"{name}_{i}", values[:, i]) for i in range(values.shape[1])]


def _differences_of(each: Sequence[Record]) -> list[float]:
    return [x for record in each for x in record["relative_difference"].values()]


def _megabytes(temp_bytes: int | None) -> str:
    return "unknown" if temp_bytes is None else f"{temp_bytes / 1e6:.1f}"
