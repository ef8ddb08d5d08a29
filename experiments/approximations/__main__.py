"""How good are approximate hypergradients, and what does an exact one cost instead?

The study of St. Jules (2017, section 3.1), widened: a network whose weights are exp(s) * z is
trained in z with momentum and an L2 penalty on z, and the hypergradient of the validation loss with
respect to s, one scale for every weight, is computed by DrMAD and its successors, by truncation,
implicitly, along waypoints, and exactly. Printed is a table for each number of steps; written are a
line of JSON each and one figure: the cosine with the exact hypergradient against compiled memory,
so that one sees which method is dominated by which.

Examples:
    python -m experiments.approximations --data mnist --data-dir FOLDER
    python -m experiments.approximations --num-steps 2000 20000
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

import hgrad_jax as hg
from experiments import rescaled_mlp
from experiments.common import environment, option, parse, script, write_json_line
from hgrad_jax.data import DataUnavailableError, minibatches
from hgrad_jax.tools.files import write_figures

LOG_PENALTY = -7.0


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained and for how long, and where the results go."""

    data: str = option("digits", "training and validation images", tuple(rescaled_mlp.SIZES))
    data_dir: str | None = option(None, "folder with MNIST's original files")
    num_steps: tuple[int, ...] = option((200, 2000), "lengths of training, a table each")
    waypoints: tuple[int, ...] = option(
        (20, 50, 100, 200, 1000, 2000), "how many; used where they are 1 to 10 % of the steps"
    )
    learning_rate: float = option(0.06, "of momentum, in (0, 1)")
    momentum: float = option(0.95, "decay of the velocity, in (0, 1)")
    batch_size: int = option(250, "examples a step")
    seed: int = option(0, "chooses split and initial weights")
    out: str = option("results/approximations", "folder for results.jsonl and cosines.png")

    def __post_init__(self):
        for num_steps in self.num_steps:
            if num_steps < 20:
                raise ValueError(f"num_steps is {num_steps}; the study starts at 20.")
        if min(self.waypoints) < 2:
            raise ValueError(f"waypoints is {min(self.waypoints)}; a path has two ends.")


def adjoints(config: Config, num_steps: int) -> Mapping[str, hg.Adjoint]:
    """Returns what is compared, by short names; the first is the reference."""
    counts = [count for count in config.waypoints if count <= num_steps / 10 <= 10 * count]
    # As many as undoing in float32 can bridge: 20 of 23 bits, at 3 log2(1 / decay) a step.
    bridged = 20 / (-3 * math.log2(config.momentum))
    enough = min(num_steps, math.ceil(num_steps / bridged)) + 1
    few = sorted({max(2, enough // 4), max(2, enough // 2), enough})
    return {
        "Reversible": hg.Reversible(smallest_decay=config.momentum),
        "Checkpointed": hg.Checkpointed(),
        "DrMAD": hg.DrMAD(),
        "DrMAD, 10 x displacement": hg.DrMAD(hg.EarlyDisplacement(factor=10)),
        "DrMAD2": hg.DrMAD2(),
        "Truncated, last tenth": hg.Truncated(num_steps // 10),
        "Implicit": hg.Implicit(
            solver=hg.ConjugateGradient(max_steps=100, damping=0.1),
            batches=min(20, num_steps),
            stationarity_tolerance=math.inf,
        ),
        **{f"{count} waypoints": hg.Waypoints(count) for count in counts},
        **{
            f"{count} waypoints, equal bending": hg.Waypoints(
                count, placement=hg.EqualArcLength(order=2)
            )
            for count in counts
        },
        **{f"{count} waypoints, undone": hg.Waypoints(count, undone_steps=None) for count in few},
    }


def study(config: Config, num_steps: int) -> hg.Comparison:
    """Returns the comparison for one length of training.

    Raises:
      DataUnavailableError: MNIST is not there.
    """
    images = rescaled_mlp.load_images(config.data, config.data_dir, config.seed)
    model = rescaled_mlp.make_model()
    params = rescaled_mlp.initial_params(model, images, config.seed)
    rule = hg.momentum(
        rescaled_mlp.training_loss(model, LOG_PENALTY),
        learning_rate=config.learning_rate,
        momentum=config.momentum,
    )
    return hg.compare(
        rescaled_mlp.validation_loss(model),
        hg.Run(rule, num_steps=num_steps, batch_fn=minibatches(config.batch_size)),
        params,
        jax.tree.map(jnp.zeros_like, params),
        images.train,
        images.valid,
        adjoints=adjoints(config, num_steps),
        repeats=1 if num_steps < 10_000 else 0,
    )


def draw(comparisons: Sequence[hg.Comparison], path: Path) -> None:
    """Writes the figure: cosines against bytes, a panel for each length of training."""
    figure = Figure(figsize=(4.5 * len(comparisons) + 2.5, 4.5), layout="constrained")
    panels = figure.subplots(1, len(comparisons), squeeze=False, sharey=True)[0]
    lines: dict[str, Any] = {}
    for axes, comparison in zip(panels, comparisons, strict=True):
        groups: dict[str, list[tuple[float, float]]] = {}
        for row in comparison.rows:
            if row.cosine is None or not math.isfinite(row.cosine) or row.temp_bytes is None:
                continue
            number, _, rest = row.name.partition(" ")
            name = rest if number.isdecimal() else row.name
            groups.setdefault(name, []).append((row.temp_bytes / 1e6, row.cosine))
        for name, points in groups.items():
            # The same colour in every panel; single points stand out from the curves.
            color = f"C{len(lines)}" if name not in lines else lines[name].get_color()
            marker = "o" if "waypoints" in name else "D"
            (line,) = axes.plot(
                *zip(*sorted(points), strict=True), "-", marker=marker, markersize=5, color=color
            )
            lines.setdefault(name, line)
        axes.axhline(1, color="grey", linewidth=0.5, zorder=0)
        axes.set(
            xscale="log",
            xlabel="compiled temporaries, MB",
            title=f"{comparison.num_steps:,} steps, {comparison.num_hparams:,} hyperparameters",
        )
    panels[0].set_ylabel("cosine with the exact hypergradient")
    figure.legend(list(lines.values()), list(lines), fontsize=8, loc="outside right center")
    write_figures(path.parent, {path.stem: figure}, dpi=150)


def main(argv: Sequence[str] | None = None) -> list[hg.Comparison]:
    """Runs the study that the command line asks for, and returns its tables.

    Raises:
      SystemExit: after --help, or with a message on what is wrong: an option, or the data.
    """
    config = parse(Config, argv, __doc__)
    found = []
    try:
        for num_steps in config.num_steps:
            found.append(study(config, num_steps))
            print(found[-1], end="\n\n", flush=True)
            write_json_line(
                Path(config.out) / "results.jsonl",
                {
                    "experiment": "approximations",
                    "environment": environment(),
                    "config": dataclasses.asdict(config),
                    "num_steps": num_steps,
                    "rows": [row._asdict() for row in found[-1].rows],
                },
            )
            draw(found, Path(config.out) / "cosines.png")
    except DataUnavailableError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"results: {Path(config.out) / 'results.jsonl'}, {Path(config.out) / 'cosines.png'}")
    return found


if __name__ == "__main__":
    script(main)
