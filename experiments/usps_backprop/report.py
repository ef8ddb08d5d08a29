"""The table and the figures of `usps_backprop`."""

import math
from pathlib import Path

from matplotlib.figure import Figure  # not pyplot: it needs no display and keeps no global state

import hgrad_jax as hg
from experiments.usps_backprop.problem import NUM_CLASSES
from hgrad_jax.show.text_table import aligned
from hgrad_jax.tools.files import write_figures

PARTS = ("train", "validation", "test")
MEASURES = ("loss", "classification_loss", "error")


def table(found: hg.Sweep) -> str:
    """Returns loss, classification loss and error on the three parts for each setting."""
    head = ["rate", "momentum", "decay", "steps"]
    over = [""] * len(head)
    for part in PARTS:
        over += [part, "", ""]
        head += ["loss", "class. loss", "error"]
    best = found.best("validation.classification_loss").place
    rows = []
    for i, setting in enumerate(found.settings):
        row = [f"{value:g}" for value in setting.values()] + [str(found.results["steps"][i, 0])]
        for part in PARTS:
            measured = [found.results[part][name][i, 0] for name in MEASURES]
            *losses, error = measured
            row += [f"{x:.4f}" if x < 1e4 else f"{x:.2e}" for x in losses] + [f"{error:.2%}"]
        rows.append([*row, "least validation loss" if i == best else ""])
    return "\n".join(aligned([[*over, ""], [*head, ""], *rows], left=(-1,)))


def draw(found: hg.Sweep, out: Path) -> list[Path]:
    """Writes `heat_map.png` and `curves.png`, both for each weight decay, and returns where."""
    decays = sorted(set(found.values("weight_decay")))
    names = [f"_weight_decay_{x:g}" for x in decays] if len(decays) > 1 else [""]
    return [
        path
        for decay, name in zip(decays, names, strict=True)
        for path in _draw_one(found.select({"weight_decay": decay}), out, name)
    ]


def _draw_one(part: hg.Sweep, out: Path, name_of_part: str) -> list[Path]:
    paths = [out / f"{name}{name_of_part}.png" for name in ("heat_map", "curves")]
    figure = Figure(
        figsize=(8, 1.6 + 0.8 * len(set(part.values("momentum")))), layout="constrained"
    )
    axes = figure.subplots()
    part.plot_heat_map("learning_rate", "momentum", "validation.classification_loss", axes=axes)
    write_figures(out, {paths[0].stem: figure}, dpi=150)

    figure = Figure(figsize=(13, 5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("train", "validation"), strict=True):
        part.plot_curves(f"path.{name}", axes=axes)
        chance = math.log(NUM_CLASSES)
        axes.set(ylim=(0, 1.2 * chance), ylabel="classification loss in nats", title=name)
        if name == "train":
            axes.get_legend().remove()
    write_figures(out, {paths[1].stem: figure}, dpi=150)
    return paths
