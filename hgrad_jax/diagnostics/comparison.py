"""What `compare` returns: how far hypergradients are apart, and what they cost, as a table."""

import json
from typing import Any, NamedTuple

import numpy as np

from hgrad_jax.show.text_table import aligned


class Row(NamedTuple):
    """One adjoint's hypergradient beside the reference's; None where there is none.

    Attributes:
      name: what the adjoint is called.
      value: the objective.
      norm: Euclidean norm of the hypergradient.
      cosine: of the angle to the reference, -1 to 1.
      sign_cosine: of the angle between the vectors of signs.
      relative_error: |h - reference| / |reference|.
      seconds: of the fastest repeat, compilation not counted.
      temp_bytes: temporaries of the compiled program; None where the backend does not tell.
      problem: why there is no hypergradient, or what `hg.check` says of it; None if all is well.
    """

    name: str
    value: float | None
    norm: float | None
    cosine: float | None
    sign_cosine: float | None
    relative_error: float | None
    seconds: float | None
    temp_bytes: int | None
    problem: str | None


class Comparison(NamedTuple):
    """What `compare` found; `print` it for a table.

    Attributes:
      rows: one per adjoint, in the order given, the reference first.
      num_hparams: length of the hypergradient.
      num_steps: T.
    """

    rows: tuple[Row, ...]
    num_hparams: int
    num_steps: int

    def __str__(self) -> str:
        head = ("adjoint", "value", "norm", "cosine", "of signs", "rel. error", "s", "MB")
        lines = aligned([head, *(_cells(row) for row in self.rows)])
        notes = [f"{row.name}: {row.problem}" for row in self.rows if row.problem]
        title = f"{self.num_hparams} hyperparameters, {self.num_steps} steps"
        return "\n".join([title, *lines, *notes])

    def to_json(self) -> str:
        """Returns the rows as one line of JSON; null for what is None, infinite or NaN."""
        rows = [
            {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}
            for row in (row._asdict() for row in self.rows)
        ]
        return json.dumps(self._asdict() | {"rows": rows})

    def plot(self, axes: Any = None) -> Any:
        """Draws cosine against bytes and against seconds, and returns the matplotlib figure.

        Args:
          axes: two matplotlib axes to draw on; None for a new figure.
        """
        from matplotlib.figure import Figure

        if axes is None:
            axes = Figure(figsize=(12, 4), layout="constrained").subplots(1, 2)
        left, right = axes
        for i, row in enumerate(self.rows):
            if row.cosine is None or row.temp_bytes is None:
                continue
            for ax, cost in ((left, row.temp_bytes / 1e6), (right, row.seconds)):
                # Another marker where the ten colours begin again.
                marker = "os^Dv"[i // 10 % 5]
                ax.plot(cost, row.cosine, marker, color=f"C{i % 10}", label=row.name)
        for ax, label in ((left, "compiled temporaries, MB"), (right, "seconds")):
            ax.set(xscale="log", xlabel=label, ylabel="cosine with the reference")
            ax.tick_params(axis="x", which="minor", labelbottom=False)
            ax.axhline(1, color="grey", linewidth=0.5, zorder=0)
        right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        return left.figure


def _cells(row: Row) -> tuple[str, ...]:
    def number(x: float | None, form: str) -> str:
        return "-" if x is None else format(x, form)

    return (
        row.name,
        number(row.value, ".5g"),
        number(row.norm, ".4g"),
        number(row.cosine, ".4f"),
        number(row.sign_cosine, ".4f"),
        number(row.relative_error, ".1e"),
        number(row.seconds, ".3g"),
        number(None if row.temp_bytes is None else row.temp_bytes / 1e6, ".3g"),
    )
