"""What `tune` records of every meta-step, as arrays, a table and figures."""

from typing import Any, NamedTuple

import numpy as np

from hgrad_jax.show.text_table import aligned
from hgrad_jax.tuning import figures

SUMMARIES = ("mean", "std", "min", "max", "norm")
"""Of a leaf's hyperparameters before the step, but norm, which is of its mean hypergradient."""


class TuningHistory(NamedTuple):
    """What was found in each of K meta-steps, at the hyperparameters before it. `print` it.

    Attributes:
      meta_step: int `[K]`, counted from 0.
      num_steps: int `[K]`, the length of the runs.
      value: float `[K, R]`, the objective of each run.
      metrics: by name, "valid_..." and "test_...": float `[K]`, means over runs.
      norm: float `[K]`, Euclidean norm of the mean hypergradient.
      spread: float `[K]`, root of the summed variances of its entries over runs; NaN of one run.
      hparams: by leaf, a dict of float `[K]`: "mean", "std", "min" and "max" of its numbers, and
        "norm", that of its mean hypergradient.
      seconds: float `[K]`, compilation not counted.
      is_bad: bool `[K]`, whether the hypergradient could not be used.
    """

    meta_step: np.ndarray
    num_steps: np.ndarray
    value: np.ndarray
    metrics: dict[str, np.ndarray]
    norm: np.ndarray
    spread: np.ndarray
    hparams: dict[str, dict[str, np.ndarray]]
    seconds: np.ndarray
    is_bad: np.ndarray

    def __str__(self) -> str:
        names = (name.replace("_", " ") for name in self.metrics)
        head = ("meta-step", "steps", "value", *names, "norm", "s", "")
        columns = [
            [str(n) for n in self.meta_step],
            [str(n) for n in self.num_steps],
            [f"{x:.4g}" for x in self.value.mean(axis=1)],
            *([f"{x:.4g}" for x in values] for values in self.metrics.values()),
            [f"{x:.3g}" for x in self.norm],
            [f"{x:.3g}" for x in self.seconds],
            ["BAD" if is_bad else "" for is_bad in self.is_bad],
        ]
        return "\n".join(aligned([head, *zip(*columns, strict=True)], left=()))

    def plot(self) -> dict[str, Any]:
        """Returns matplotlib figures by name: "value", "hypergradient" and "hparams".

        Raises:
          ValueError: there is no meta-step.
        """
        if not len(self.meta_step):
            raise ValueError("the history has no meta-step, so that there is nothing to draw.")
        return {
            "value": figures.of_value(self.meta_step, self.num_steps, self.value, self.metrics),
            "hypergradient": figures.of_norms(
                self.meta_step,
                self.norm,
                {name: found["norm"] for name, found in self.hparams.items()},
            ),
            "hparams": figures.of_hparams(self.meta_step, self.hparams),
        }


class Rows(NamedTuple):
    """A history as it grows: numbers by name, as a checkpoint holds them.

    Attributes:
      numbers: a list of K each: "num_steps", "norm", "spread", "seconds", "is_bad", the metrics,
        and "mean/LEAF" and so on for each of SUMMARIES.
      values: one array `[R]` a meta-step.
    """

    numbers: dict[str, list[float]]
    values: list[np.ndarray]

    def add(self, numbers: dict[str, float], values: np.ndarray) -> None:
        """Appends a meta-step."""
        for name, number in numbers.items():
            self.numbers.setdefault(name, []).append(float(number))
        self.values.append(values)

    @property
    def num_done(self) -> int:
        """How many meta-steps there are."""
        return len(self.values)

    def history(self, metrics: list[str]) -> TuningHistory:
        """Returns the history so far.

        Args:
          metrics: their names.
        """

        def array(name: str) -> np.ndarray:
            return np.asarray(self.numbers.get(name, []), float)

        leaves = [name.partition("/")[2] for name in self.numbers if name.startswith("mean/")]
        return TuningHistory(
            np.arange(self.num_done),
            array("num_steps").astype(int),
            np.stack(self.values) if self.values else np.zeros((0, 1)),
            {name: array(name) for name in metrics},
            array("norm"),
            array("spread"),
            {leaf: {kind: array(f"{kind}/{leaf}") for kind in SUMMARIES} for leaf in leaves},
            array("seconds"),
            array("is_bad").astype(bool),
        )
