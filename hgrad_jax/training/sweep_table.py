"""A sweep in numbers: names, means over seeds, ranks, and the table."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hgrad_jax.inputs.functions import is_more_better
from hgrad_jax.show.text_table import aligned


class Summary(NamedTuple):
    """A result over the seeds of each setting that did not fail.

    Attributes:
      mean: [settings, *shape]; NaN where all failed.
      spread: standard deviation, with n - 1; NaN where fewer than two did not fail.
      num_failed: [settings], how many seeds failed.
    """

    mean: np.ndarray
    spread: np.ndarray
    num_failed: np.ndarray


def by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their keys joined by dots; "value" for a leaf by itself.

    >>> by_name({"rate": 0.1, "layers": [1, 2]})
    {'layers.0': 1, 'layers.1': 2, 'rate': 0.1}
    """
    named = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator=".") or "value": x for path, x in named
    }


def summary_of(values: np.ndarray, is_failed: np.ndarray) -> Summary:
    """Returns mean and spread over the seeds that did not fail.

    Args:
      values: [settings, seeds, *shape].
      is_failed: [settings, seeds].
    """
    counted = ~is_failed.reshape(*is_failed.shape, *[1] * (values.ndim - 2))
    num = counted.sum(axis=1)
    known = np.where(counted, values, 0).astype(np.float64)
    mean = np.where(num > 0, known.sum(axis=1) / np.maximum(num, 1), np.nan)
    square = np.where(counted, (known - mean[:, None]) ** 2, 0).sum(axis=1)
    spread = np.where(num > 1, np.sqrt(square / np.maximum(num - 1, 1)), np.nan)
    return Summary(mean, spread, is_failed.sum(axis=1))


def ranked(found: Summary, is_maximized: bool) -> np.ndarray:
    """Returns the settings' indices, the best first; those with fewer failures before all others.

    Args:
      found: of a result that is one number a run.
      is_maximized: whether more is better.
    """
    key = -found.mean if is_maximized else found.mean
    return np.lexsort((np.where(np.isnan(key), np.inf, key), found.num_failed))


def text(
    settings: Sequence[Mapping[str, Any]],
    results: Mapping[str, np.ndarray],
    is_failed: np.ndarray,
    by: str | None,
    is_maximized: bool | None,
) -> str:
    """Returns the table.

    Args:
      settings: values by name.
      results: [settings, seeds, *shape] by name.
      is_failed: [settings, seeds].
      by: the result that orders the rows; None for the first that is one number a run.
      is_maximized: whether more is better; None for whether the name ends in "accuracy".
    """
    num_settings, num_seeds = is_failed.shape
    found = {name: summary_of(x, is_failed) for name, x in results.items() if x.ndim == 2}
    by = next(iter(found), None) if by is None else by
    order, title = np.arange(num_settings), f"{num_settings} settings x {num_seeds} seeds"
    is_marked = False
    if by is not None:
        is_maximized = is_more_better(by, is_maximized)
        order = ranked(found[by], is_maximized)
        extreme = "largest" if is_maximized else "least"
        title += f", the {extreme} {by} first"
        is_marked = bool(np.isfinite(found[by].mean[order[0]]))
    head = ["", *settings[0], *found, "failed"]
    rows = [
        [
            f"{i}*" if is_marked and i == order[0] else f"{i} ",
            *(written(value) for value in settings[i].values()),
            *(_cell(float(each.mean[i]), float(each.spread[i])) for each in found.values()),
            f"{is_failed[i].sum()} of {num_seeds}",
        ]
        for i in order
    ]
    return "\n".join([title, *aligned([head, *rows], left=())])


def written(value: Any) -> str:
    """Returns a hyperparameter's value as short as it can be told; of an array, the shape.

    >>> written(0.1), written(np.zeros(3))
    ('0.1', '[3]')
    """
    array = np.asarray(value)
    return str(list(array.shape)) if array.ndim else f"{array.item():.6g}"


def _cell(mean: float, spread: float) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.4g}" if np.isnan(spread) else f"{mean:.4g} ± {spread:.1g}"
