"""What a sweep found: results by setting and seed, and how they are looked at."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.inputs.functions import is_more_better
from hgrad_jax.training import sweep_figures, sweep_table
from hgrad_jax.training.sweep_table import Summary, by_name, ranked, summary_of


class Best(NamedTuple):
    """The best setting of a sweep.

    Attributes:
      place: its index among the settings.
      setting: its hyperparameters, as they were given.
      mean: over its seeds that did not fail.
      spread: standard deviation over them; NaN of one alone.
      num_failed: how many seeds failed.
    """

    place: int
    setting: Any
    mean: float
    spread: float
    num_failed: int


class Sweep(NamedTuple):
    """Results of settings x seeds. `print` it for a table.

    A run has failed if one of its floating-point results is infinite or NaN. Means and spreads are
    over the runs that have not, and settings without failures come before those with some.

    Settings and results are called by their keys, joined by dots where nested: "valid.loss"; a
    result that is a single array is called "value".

    Attributes:
      settings: the hyperparameters of each setting, as given.
      results: what `run` returned, numpy arrays [settings, seeds, *shape].
      chunk_size: runs computed side by side in one call.
      num_devices: how many devices shared them.
    """

    settings: tuple[Any, ...]
    results: Any
    chunk_size: int
    num_devices: int

    def __str__(self) -> str:
        return self.table()

    @property
    def is_failed(self) -> np.ndarray:
        """Whether each run failed: bool [settings, seeds]."""
        leaves = [x for x in by_name(self.results).values() if jnp.issubdtype(x.dtype, jnp.inexact)]
        shape = jax.tree.leaves(self.results)[0].shape[:2]
        finite = [np.isfinite(x).reshape(*shape, -1).all(axis=2) for x in leaves]
        return ~np.logical_and.reduce([np.ones(shape, bool), *finite])

    def summary(self, name: str) -> Summary:
        """Returns mean and spread of a result over seeds, [settings, *shape], and failures.

        Raises:
          ValueError: there is no result of that name.
        """
        return summary_of(self._result(name), self.is_failed)

    def best(self, name: str, *, is_maximized: bool | None = None) -> Best:
        """Returns the setting whose result has the least mean, or the largest.

        Args:
          name: of a result that is one number a run.
          is_maximized: whether more is better; None for whether the name ends in "accuracy".

        Raises:
          ValueError: there is no such result, or every run failed.
        """
        found = summary_of(self._result(name, ndim=2), self.is_failed)
        place = int(ranked(found, is_more_better(name, is_maximized))[0])
        if not np.isfinite(found.mean[place]):
            raise ValueError(f"every run failed, so none has the best {name!r}.")
        mean, spread = float(found.mean[place]), float(found.spread[place])
        return Best(place, self.settings[place], mean, spread, int(found.num_failed[place]))

    def select(self, values: Mapping[str, Any]) -> "Sweep":
        """Returns the part of the sweep whose settings have these values.

        Raises:
          ValueError: there is no hyperparameter of that name, or no setting with those values.
        """
        keep = [
            i
            for i in range(len(self.settings))
            if all(np.array_equal(self.values(name)[i], v) for name, v in values.items())
        ]
        if not keep:
            raise ValueError(f"no setting has {dict(values)!r}.")
        results = jax.tree.map(lambda x: x[np.array(keep)], self.results)
        return self._replace(settings=tuple(self.settings[i] for i in keep), results=results)

    def values(self, name: str) -> list[Any]:
        """Returns a hyperparameter's value in every setting.

        Raises:
          ValueError: there is no hyperparameter of that name.
        """
        names = [by_name(setting) for setting in self.settings]
        if name not in names[0]:
            raise ValueError(f"settings have no {name!r}; they have {', '.join(names[0])}.")
        return [each[name] for each in names]

    def table(self, by: str | None = None, *, is_maximized: bool | None = None) -> str:
        """Returns a table of all settings, the best first and marked by a star.

        It shows mean and spread of the results that are one number a run, and how many seeds
        failed.

        Args:
          by: the result that orders them; None for the first one.
          is_maximized: whether more is better; None for whether the name ends in "accuracy".

        Raises:
          ValueError: there is no such result.
        """
        if by is not None:
            self._result(by, ndim=2)
        return sweep_table.text(
            [by_name(setting) for setting in self.settings],
            by_name(self.results),
            self.is_failed,
            by,
            is_maximized,
        )

    def plot_heat_map(
        self, x: str, y: str, value: str, *, is_maximized: bool | None = None, axes: Any = None
    ) -> Any:
        """Draws the mean of a result over two hyperparameters, and returns the matplotlib figure.

        The best cell has a frame; a cell whose runs all failed says so; one that has diverged, more
        than ten times as far from the best as what comes before it, is grey, beyond the colors.

        Args:
          x: hyperparameter of the columns.
          y: that of the rows.
          value: a result that is one number a run.
          is_maximized: whether more is better; None for whether the name ends in "accuracy".
          axes: a matplotlib axis to draw on; None for a new figure.

        Raises:
          ValueError: a name is unknown, or several settings fall into one cell: `select` some.
        """
        found = summary_of(self._result(value, ndim=2), self.is_failed)
        is_maximized = is_more_better(value, is_maximized)
        return sweep_figures.heat_map(
            {x: self.values(x), y: self.values(y)}, value, found, is_maximized, axes
        )

    def plot_curves(self, value: str, *, x: str | None = None, axes: Any = None) -> Any:
        """Draws a result's mean as a line in a band of its spread, and returns the figure.

        Args:
          value: with `x` None a result with one axis beside those of settings and seeds, such as a
            loss after each step: a line a setting. Else one number a run.
          x: the hyperparameter to draw against: a line for each setting of the others.
          axes: a matplotlib axis to draw on; None for a new figure.

        Raises:
          ValueError: a name is unknown, or the result has other axes.
        """
        found = summary_of(self._result(value, ndim=3 if x is None else 2), self.is_failed)
        if x is not None:
            self.values(x)
        settings = [by_name(setting) for setting in self.settings]
        return sweep_figures.curves(settings, x, value, found, axes)

    def to_json(self) -> str:
        """Returns settings and results as one line of JSON; null for what is infinite or NaN."""
        return json.dumps(
            {
                "settings": [_plain(by_name(setting)) for setting in self.settings],
                "results": _plain(by_name(self.results)),
                "num_failed": self.is_failed.sum(axis=1).tolist(),
                "chunk_size": self.chunk_size,
                "num_devices": self.num_devices,
            },
            allow_nan=False,
        )

    def _result(self, name: str, ndim: int | None = None) -> np.ndarray:
        results = by_name(self.results)
        if name not in results:
            raise ValueError(f"there is no result {name!r}; there are {', '.join(results)}.")
        if ndim is not None and results[name].ndim != ndim:
            shape = results[name].shape[2:]
            wanted = "one number" if ndim == 2 else "one axis of numbers"
            raise ValueError(f"result {name!r} has shape {shape} in each run, not {wanted}.")
        return results[name]


def _plain(named: Mapping[str, Any]) -> dict[str, Any]:
    def plain(x: Any) -> Any:
        if isinstance(x, list):
            return [plain(each) for each in x]
        return x if not isinstance(x, float) or np.isfinite(x) else None

    return {name: plain(np.asarray(x).tolist()) for name, x in named.items()}
