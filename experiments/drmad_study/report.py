"""The tables and figures of the study of DrMAD, from its records alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # not pyplot: it needs no display and keeps no global state
from matplotlib.ticker import MaxNLocator

from experiments.drmad_study import back, paths
from hgrad_jax.show.text_table import aligned, in_bytes
from hgrad_jax.tools.files import write_figures

Tunings = dict[tuple[int, str, int], list[dict[str, Any]]]
"""The records of each tuning by (number of steps, whose signs it follows, seed)."""

APPROXIMATE = ("DrMAD", "DrMAD2")
COLORS = {"exact": "black", "DrMAD": "C0", "DrMAD2": "C1"}


def summary(found: Tunings) -> list[dict[str, Any]]:
    """Returns for each length and each that is followed what the records say, seed by seed.

    Cosines are means over the meta-steps, null where one of them is not finite; errors are those
    of the first meta-step and of the last.
    """
    rows = []
    for num_steps, follow in dict.fromkeys((n, f) for n, f, _ in found):
        mine = [records for key, records in found.items() if key[:2] == (num_steps, follow)]
        row: dict[str, Any] = {"num_steps": num_steps, "follow": follow, "num_seeds": len(mine)}
        row["num_meta_steps"] = min(map(len, mine))
        for measure in ("cosine", "sign_cosine"):
            row[measure] = {
                name: [float(np.mean(_curve(records, measure, name))) for records in mine]
                for name in APPROXIMATE
            }
            row[f"first_{measure}"] = {
                name: [float(_curve(records, measure, name)[0]) for records in mine]
                for name in APPROXIMATE
            }
        row["negative_share"] = {
            name: float(np.mean([_curve(records, "cosine", name) < 0 for records in mine]))
            for name in APPROXIMATE
        }
        row["norm_ratio"] = {
            name: [
                float(np.median(_curve(records, "norm", name) / _curve(records, "norm", "exact")))
                for records in mine
            ]
            for name in APPROXIMATE
        }
        for name in ("test_error", "valid_error", "test_loss", "value"):
            curves = [_curve(records, name) for records in mine]
            row[name] = {
                "before": [float(x[0]) for x in curves],
                "after": [float(x[-1]) for x in curves],
            }
        visited = [r["reverse_steps"]["DrMAD"] for records in mine for r in records]
        row["reverse_steps"] = [min(visited), max(visited)]
        row["is_restored"] = all(r["is_restored"] for records in mine for r in records)
        row["temp_bytes"] = mine[0][0]["temp_bytes"]
        row["seconds"] = {
            name: float(np.median([r["seconds"][name] for records in mine for r in records]))
            for name in COLORS
        }
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the summary as text: means over meta-steps, and mean +- spread over seeds."""
    shown = [["steps, following", "seeds", "DrMAD", "of signs", "DrMAD2", "of signs", "steps back"]]
    for row in rows:
        cells = [_spread(row[measure][name]) for name in APPROXIMATE for measure in _COSINES]
        visited = "{}-{}".format(*row["reverse_steps"])
        shown.append([_name(row), str(row["num_seeds"]), *cells, visited])
    lines = ["Cosines with the exact hypergradient, mean over meta-steps", *aligned(shown)]
    gains = [["steps, following", "validation loss", "", "test error", "", "restored"]]
    costs = [("seconds and temporaries", *COLORS)]
    for row in rows:
        ends = [
            _spread(row[name][when], form)
            for name, form in (("value", "{:.4f}"), ("test_error", "{:.2%}"))
            for when in ("before", "after")
        ]
        gains.append([_name(row), *ends, "yes" if row["is_restored"] else "no"])
        prices = [
            f"{row['seconds'][name]:.3g} s, {_bytes(row['temp_bytes'][name])}" for name in COLORS
        ]
        costs.append((_name(row), *prices))
    lines += ["", "At the first meta-step and at the last", *aligned(gains)]
    return "\n".join([*lines, "", "One hypergradient, training included", *aligned(costs)])


def back_table(rows: Mapping[int, Mapping[str, Any]]) -> str:
    """Returns what was found on the way back, a line for each length."""
    shown = [("steps", "meta-step", "undone", "predicted", "not restored", "first tenth")]
    for num_steps, row in rows.items():
        shown.append(
            (
                f"{num_steps:,}",
                str(row["meta_step"]),
                str(row["num_undone"]),
                str(row["budget"]),
                str(row["exact_mismatches"]),
                f"{row['first_share']:.0%}",
            )
        )
    lines = [
        "The way back: steps that floating point undoes to 1/8, numbers that exact arithmetic did",
        "not restore, and what the first tenth of the training adds to the hypergradient's norm",
    ]
    return "\n".join([*lines, *aligned(shown)])


def paths_table(row: Mapping[str, Any]) -> str:
    """Returns where the second runs ended."""
    shown = [("a second training with", "ends apart", "of the way")]
    for name, distance in row["final_distances"].items():
        shown.append((name, f"{distance:.3g}", f"{distance / row['length']:.0%}"))
    title = f"A conv net of {row['num_params']:,} weights, test error {row['test_error']:.1%}"
    return "\n".join([title, *aligned(shown)])


def draw_tuning(folder: Path, found: Tunings) -> None:
    """Writes `norms.png`, `cosines.png` and `errors.png`."""
    figures = {"norms": _by_follow(found, _norms, "norm of the hypergradient", is_log=True)}
    figures["cosines"] = _by_follow(found, _cosines, "cosine with the exact hypergradient")
    write_figures(folder, figures | {"errors": _errors(found)})


def draw_back(folder: Path, found: Mapping[int, dict[str, Any]]) -> None:
    """Writes `accumulated.png` and `reversal.png`, a panel for each length."""
    accumulated, undone = _panels(1, len(found)), _panels(1, len(found))
    for i, (num_steps, record) in enumerate(found.items()):
        where = f"{num_steps:,} steps, meta-step {record['meta_step']}"
        axes = accumulated[1][0, i]
        back.norms_of(record).plot(axes)
        axes.set_title(where)
        axes = undone[1][0, i]
        errors = back.errors_of(record)
        errors.plot(axes)
        axes.set_title(f"{where}: exactly, {errors.exact_mismatches} numbers differ")
        # What has parted grows beyond all bounds; the parting is what there is to see.
        axes.set_ylim(1e-9, 1e3)
        far = 3 * max(errors.budget, errors.num_undone if errors.parting_step else 0)
        axes.set_xlim(max(0, num_steps - far), num_steps)
        axes.legend(fontsize=8, loc="lower left")
    write_figures(folder, {"accumulated": accumulated[0], "reversal": undone[0]})


def draw_paths(folder: Path, record: dict[str, Any]) -> None:
    """Writes `paths.png` and `distances.png`."""
    figure, axes = _panels(1, 1)
    for name, each in paths.distances_of(record).items():
        axes[0, 0].plot(each.steps, each.distances, label=name, linewidth=1)
    axes[0, 0].axhline(
        record["length"], color="grey", linestyle=":", label="from start to end of the first"
    )
    axes[0, 0].set(
        xlabel="step of the second training",
        ylabel="Euclidean distance",
        title="Distance from where the first training ended",
    )
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].legend(fontsize=8)
    projected = paths.projections_of(record).plot()
    write_figures(folder, {"paths": projected, "distances": figure})


_COSINES = ("cosine", "sign_cosine")


def _by_follow(
    found: Tunings, curves: Callable[..., None], label: str, is_log: bool = False
) -> Figure:
    """Returns a figure with a column for each length and a row for each that is followed."""
    lengths = list(dict.fromkeys(n for n, _, _ in found))
    followed = list(dict.fromkeys(f for _, f, _ in found))
    figure, panels = _panels(len(followed), len(lengths), is_shared=not is_log)
    for i, follow in enumerate(followed):
        for j, num_steps in enumerate(lengths):
            axes = panels[i, j]
            curves(axes, [x for key, x in found.items() if key[:2] == (num_steps, follow)])
            axes.set_title(f"{num_steps:,} steps, following {follow}")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if is_log:
                axes.set_yscale("log")
            else:
                axes.axhline(0, color="grey", linewidth=0.5, zorder=0)
        panels[i, 0].set_ylabel(label)
    for axes in panels[-1]:
        axes.set_xlabel("meta-step")
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize=8)
    return figure


def _norms(axes: Any, mine: list[list[dict[str, Any]]]) -> None:
    for name, color in COLORS.items():
        _band(axes, [_curve(records, "norm", name) for records in mine], color, "-", name)


def _cosines(axes: Any, mine: list[list[dict[str, Any]]]) -> None:
    for name in APPROXIMATE:
        for measure, style, label in zip(_COSINES, ("-", "--"), ("", ", signs"), strict=True):
            curves = [_curve(records, measure, name) for records in mine]
            _band(axes, curves, COLORS[name], style, name + label)


def _errors(found: Tunings) -> Figure:
    """Returns validation loss over error rates, a column for each length."""
    lengths = list(dict.fromkeys(n for n, _, _ in found))
    figure, panels = _panels(2, len(lengths))
    for j, num_steps in enumerate(lengths):
        for follow in dict.fromkeys(f for n, f, _ in found if n == num_steps):
            mine = [x for key, x in found.items() if key[:2] == (num_steps, follow)]
            label, color = f"following {follow}", COLORS[follow]
            losses = [_curve(records, "value") for records in mine]
            _band(panels[0, j], losses, color, "-", label)
            for name, style in (("test", "-"), ("valid", "--")):
                rates = [100 * _curve(records, f"{name}_error") for records in mine]
                part = "validation" if name == "valid" else name
                is_filled = name == "test"
                _band(panels[1, j], rates, color, style, f"{part}, {label}", is_filled)
        panels[0, j].set_title(f"{num_steps:,} steps")
        panels[1, j].set_xlabel("meta-step")
        for axes in panels[:, j]:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0, 0].set_ylabel("validation loss [nats]")
    panels[1, 0].set_ylabel("error rate [%]")
    for axes in panels[:, -1]:
        axes.legend(fontsize=8)
    return figure


def _band(
    axes: Any,
    curves: list[np.ndarray],
    color: str,
    style: str,
    label: str,
    is_filled: bool = True,
) -> None:
    """Draws the mean over seeds, and what lies between the least and the greatest."""
    length = min(map(len, curves))
    values, x = np.stack([curve[:length] for curve in curves]), np.arange(length)
    marker = "." if style == "-" else None
    axes.plot(x, values.mean(axis=0), style, color=color, marker=marker, label=label, linewidth=1)
    if len(curves) > 1 and is_filled:
        axes.fill_between(
            x, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0
        )


def _curve(records: Sequence[Mapping[str, Any]], name: str, of: str | None = None) -> np.ndarray:
    """Returns a number of each meta-step; NaN where it was not finite."""
    values = [record[name] if of is None else record[name][of] for record in records]
    return np.array([math.nan if x is None else x for x in values], float)


def _panels(rows: int, columns: int, is_shared: bool = False) -> tuple[Figure, Any]:
    width = max(6.0, 4.2 * columns)
    figure = Figure(figsize=(width, 4.2 if rows == 1 else 3.2 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=is_shared)


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['num_steps']:,}, {row['follow']}"


def _spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    middle = form.format(np.mean(values))
    return middle if len(values) < 2 else f"{middle} +- {form.format(np.std(values, ddof=1))}"


def _bytes(size: int | None) -> str:
    return "unknown" if size is None else in_bytes(size)
