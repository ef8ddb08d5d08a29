"""What `fit` records of a run, as arrays, a table, a line of JSON and a figure."""

import json
from typing import Any, NamedTuple

import numpy as np

from hgrad_jax.show.text_table import aligned

PARTS = ("train", "valid")
SECONDS = "seconds"


class History(NamedTuple):
    """Metrics after every epoch, and the loss of every step. `print` it for a table.

    Attributes:
      epoch: int `[E + 1]`: 0, the initial parameters, to E.
      step: int `[E + 1]`, training steps taken by then.
      metrics: `{"train_loss": ..., "valid_loss": ..., ...}`, float `[E + 1]` each.
      step_loss: float `[T]`, the loss of each step's batch before the step; None if none was
        recorded. Where training broke, it goes on into the epoch that has no metrics any more.
      seconds: float `[E + 1]` of training and evaluation by then, compilation not counted; of a run
        that was resumed those of all its parts.
    """

    epoch: np.ndarray
    step: np.ndarray
    metrics: dict[str, np.ndarray]
    step_loss: np.ndarray | None
    seconds: np.ndarray

    def __str__(self) -> str:
        head = ("epoch", "step", *(name.replace("_", " ") for name in self.metrics), "s")
        columns = [
            [str(n) for n in self.epoch],
            [str(n) for n in self.step],
            *([f"{x:.4g}" for x in values] for values in self.metrics.values()),
            [f"{x:.1f}" for x in self.seconds],
        ]
        return "\n".join(aligned([head, *zip(*columns, strict=True)], left=()))

    def to_json(self) -> str:
        """Returns the history as one line of JSON; null for what is infinite or NaN."""

        def numbers(values: Any) -> list[Any]:
            return [x if np.isfinite(x) else None for x in np.asarray(values).tolist()]

        return json.dumps(
            {
                "epoch": numbers(self.epoch),
                "step": numbers(self.step),
                "metrics": {name: numbers(values) for name, values in self.metrics.items()},
                "step_loss": None if self.step_loss is None else numbers(self.step_loss),
                "seconds": numbers(self.seconds),
            }
        )

    def plot(self, axes: Any = None) -> Any:
        """Draws one panel a metric, training and validation in each; returns the figure.

        The loss of every step, if recorded, lies behind the panel of "loss".

        Args:
          axes: as many matplotlib axes as there are panels; None for a new figure.

        Raises:
          ValueError: nothing was recorded, or axes are more or fewer.
          TypeError: axes are none of matplotlib.
        """
        if not len(self.epoch) or (not self.metrics and self.step_loss is None):
            raise ValueError(
                "the history has neither metrics nor losses, so that there is nothing to draw; "
                "pass metrics= or loss= to fit."
            )
        from matplotlib.axes import Axes
        from matplotlib.figure import Figure

        panels = self.panels()
        if axes is None:
            figure = Figure(figsize=(5 * len(panels), 3.8), layout="constrained")
            axes = figure.subplots(1, len(panels), squeeze=False)[0]
        axes = np.ravel(np.asarray(axes, dtype=object))
        if not all(isinstance(ax, Axes) for ax in axes):
            raise TypeError(
                f"axes are {list(axes)!r}; pass matplotlib's, or None for a new figure."
            )
        if len(axes) != len(panels):
            raise ValueError(f"axes are {len(axes)}; there are {len(panels)} panels: {panels}.")
        for ax, panel in zip(axes, panels, strict=True):
            if panel == "loss" and self.step_loss is not None:
                steps = np.arange(len(self.step_loss)) / max(self.steps_per_epoch, 1)
                label = "each step's batch"
                ax.plot(steps, self.step_loss, color="0.8", linewidth=0.8, label=label)
            for part in PARTS:
                if f"{part}_{panel}" in self.metrics:
                    values = self.metrics[f"{part}_{panel}"]
                    ax.plot(self.epoch, values, ".-", label={"valid": "validation"}.get(part, part))
            ax.set(xlabel="epoch", ylabel=panel.replace("_", " "))
            if ax.lines:
                ax.legend()
        return axes[0].figure

    def panels(self) -> list[str]:
        """Returns the names of the metrics without their parts, in order, "loss" if of steps."""
        names = [name.partition("_")[2] for name in self.metrics]
        return list(dict.fromkeys(names)) or ["loss"]

    @property
    def steps_per_epoch(self) -> int:
        """Steps between two epochs; all of them if there is none."""
        if len(self.step) > 1:
            return int(self.step[1])
        return 0 if self.step_loss is None else len(self.step_loss)


class Rows(NamedTuple):
    """A history as it grows.

    Attributes:
      metrics: values so far by name, "seconds" among them.
      step_loss: one array an epoch; empty if none is recorded.
    """

    metrics: dict[str, list[float]]
    step_loss: list[np.ndarray]

    def add(self, metrics: dict[str, float], seconds: float) -> None:
        """Appends the metrics after an epoch."""
        for name, value in ({SECONDS: seconds} | metrics).items():
            self.metrics.setdefault(name, []).append(value)

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.metrics[SECONDS]) - 1

    def history(self, steps_per_epoch: int) -> History:
        """Returns the history so far."""
        epoch = np.arange(self.epoch + 1)
        metrics = {name: np.asarray(values) for name, values in self.metrics.items()}
        seconds = metrics.pop(SECONDS)
        step_loss = np.concatenate(self.step_loss) if self.step_loss else None
        return History(epoch, epoch * steps_per_epoch, metrics, step_loss, seconds)
