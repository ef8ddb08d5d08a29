"""`grid`: every combination of the values of some hyperparameters."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np


def grid(values: Mapping[str, Iterable[Any]]) -> tuple[dict[str, Any], ...]:
    """Returns every combination of the values, the last name's running fastest.

    A setting is a dict, as good as one written by hand: add to it, leave some out, join two grids
    with +.

    Args:
      values: for each name what it is to be: numbers, or arrays of one shape.

    Raises:
      TypeError: `values` is not a mapping, or a name has a single number or a string.
      ValueError: there is no name, or one without a value.

    >>> grid({"learning_rate": [0.1, 0.2], "momentum": [0.0, 0.9]})[1:3]
    ({'learning_rate': 0.1, 'momentum': 0.9}, {'learning_rate': 0.2, 'momentum': 0.0})
    """
    if not isinstance(values, Mapping):
        raise TypeError(
            f"values is {values!r}; a grid is made from a mapping of names to values, as in "
            'hg.grid({"learning_rate": [0.1, 0.2]}).'
        )
    if not values:
        raise ValueError("values is empty; a grid needs at least one hyperparameter.")
    axes = {name: _listed(name, axis) for name, axis in values.items()}
    return tuple(dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values()))


def _listed(name: str, axis: Any) -> list[Any]:
    is_list = isinstance(axis, Iterable) and not isinstance(axis, str | bytes | Mapping)
    if not is_list or (isinstance(axis, np.ndarray | jax.Array) and axis.ndim == 0):
        raise TypeError(f"values[{name!r}] is {axis!r}; give a list of values, if only of one.")
    listed = list(axis)
    if not listed:
        raise ValueError(f"values[{name!r}] is empty, and with it the grid; give it a value.")
    return listed
