"""Means and spreads over runs of different seeds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.inputs.arguments import narrow
from hgrad_jax.inputs.functions import is_array


class Moments(NamedTuple):
    """Mean and spread over runs.

    Attributes:
      mean: tree of arrays without the axis of runs.
      spread: the same, standard deviations with n - 1; NaN of one run.
    """

    mean: Any
    spread: Any


def mean_and_spread(tree: Any, axis: int = 0) -> Moments:
    """Returns mean and standard deviation over an axis of every array: the runs, one a seed.

    A run that failed is NaN, and so are mean and spread then; `Sweep.summary` leaves it out.

    Args:
      tree: pytree of floating-point arrays: hypergradients, say, `found.hparams` under `vmap`.
      axis: that of the runs.

    Raises:
      TypeError: a leaf is no array, or `axis` no int.
      ValueError: an array has no such axis, or no run.

    >>> mean_and_spread({"rate": jnp.array([[1.0, 2.0], [3.0, 2.0]])})
    Moments(mean={'rate': Array([2., 2.], dtype=float32)},
            spread={'rate': Array([1.4142135, 0.       ], dtype=float32)})
    """
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(f"axis is {axis!r}; it must be an int, the axis of the runs.")
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if not is_array(x):
            where = "tree" + jax.tree_util.keystr(path)
            raise TypeError(f"{where} is {x!r}; it must be an array with an axis of runs.")
    arrays = jax.tree.map(lambda x: jnp.asarray(narrow(x)), tree)
    for path, x in jax.tree_util.tree_leaves_with_path(arrays):
        if not -x.ndim <= axis < x.ndim or not x.shape[axis]:
            raise ValueError(
                f"axis is {axis}, but tree{jax.tree_util.keystr(path)} has the shape {x.shape}; "
                "name the axis of the runs, of which there is at least one."
            )

    def mean(x: Any) -> Any:
        return jnp.mean(x, axis=axis)

    def spread(x: Any) -> Any:
        if x.shape[axis] == 1:  # made by numpy: jax_debug_nans refuses what JAX computes
            return jax.device_put(np.full(mean(x).shape, np.nan, x.dtype))
        return jnp.std(x, axis=axis, ddof=1)

    return Moments(jax.tree.map(mean, arrays), jax.tree.map(spread, arrays))
