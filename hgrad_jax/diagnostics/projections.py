"""`projections`: a training path on random coordinates and on its principal components.

Figures 2.1 and 2.2 of St. Jules (2017): single coordinates drawn at random move erratically where
the first principal components (Gallagher and Downs 1997) look smooth, and both are far from the
straight line that DrMAD assumes.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from hgrad_jax.diagnostics.path import path_of, require_count
from hgrad_jax.inputs.arguments import taken
from hgrad_jax.run import Run
from hgrad_jax.show.figures import new_axes
from hgrad_jax.tools.vectors import layout
from hgrad_jax.types import Array, Data, Hparams, Params


class Projections(NamedTuple):
    """A path seen from few sides.

    Attributes:
      steps: before which steps, int `[K]`, from 0 to T.
      names: of the random coordinates, as in "params['w'][3, 0]".
      coordinates: their values, `[K, num_random]`.
      components: the path, less its mean, along its principal components, float64
        `[K, num_components]`; signed so that the path ends on the positive side of its start.
      explained_variance: fraction of the path's variance along each component, decreasing, float64
        `[num_components]`; zeros if nothing moved.
    """

    steps: np.ndarray
    names: tuple[str, ...]
    coordinates: np.ndarray
    components: np.ndarray
    explained_variance: np.ndarray

    def plot(self, axes: Any = None) -> Any:
        """Draws the path, and returns the matplotlib figure.

        Left the changes of the random coordinates against the step; then the first two of them
        against each other, and the first two components, with a green dot at the start and a red
        one at the end. Where there is only one, it is drawn against the step.

        Args:
          axes: three matplotlib axes to draw on; None for a new figure.
        """
        left, middle, right = new_axes(3) if axes is None else axes
        for name, values in zip(self.names, self.coordinates.T, strict=True):
            left.plot(self.steps, values - values[0], label=name, linewidth=1)
        left.set(xlabel="step t", ylabel="change since step 0", title="Random coordinates")
        left.legend()
        shares = [
            f"component {i + 1} ({100 * share:.3g} % of the variance)"
            for i, share in enumerate(self.explained_variance)
        ]
        self._draw_pair(middle, self.coordinates, self.names, "Two random coordinates")
        self._draw_pair(right, self.components, shares, "Principal components")
        return left.figure

    def _draw_pair(self, ax: Any, columns: np.ndarray, labels: Any, title: str) -> None:
        if columns.shape[1] == 1:
            x, y, labels = self.steps, columns[:, 0], ("step t", labels[0])
        else:
            x, y = columns[:, 0], columns[:, 1]
        ax.plot(x, y, color="grey", linewidth=1)
        ax.plot(x[0], y[0], "o", color="tab:green", label="start")
        ax.plot(x[-1], y[-1], "o", color="tab:red", label="end")
        ax.set(xlabel=labels[0], ylabel=labels[1], title=title)
        ax.legend()


def projections(
    run: Run,
    params: Params,
    hparams: Hparams,
    data: Data,
    *,
    key: Array | None = None,
    num_random: int = 2,
    num_components: int = 2,
    every: int = 1,
    coordinate_key: Array | None = None,
) -> Projections:
    """Returns a run's path of N parameters on random coordinates and on principal components.

    Memory: K = T / every states on the device, and the K points in float64 on the host. Time: the
    run, compiled, and a K x K (or N x N, if smaller) eigenvalue problem on the host: for long runs,
    choose `every` such that K is some hundreds. Reads values, so call it outside `jit`.

    Args:
      run: as `unroll`.
      params: as `unroll`.
      hparams: as `unroll`.
      data: as `unroll`.
      key: as `unroll`.
      num_random: how many single coordinates are drawn, 1 to N, without replacement.
      num_components: 1 to min(N, K - 1).
      every: at how many steps' distance the path is kept, 1 to T.
      coordinate_key: PRNG key that the coordinates are drawn with; None for `jax.random.key(0)`.

    Raises:
      ValueError: a count is out of range, or the path is infinite or NaN; else as `unroll`.
      TypeError: as `unroll`.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.sgd(lambda params, hparams, batch, key: jnp.sum(params["w"] ** 2) / 2)
      >>> start, hparams = {"w": jnp.arange(1.0, 5.0)}, {"learning_rate": 0.1}
      >>> found = hg.projections(hg.Run(rule, num_steps=20), start, hparams, None, every=8)
      >>> found.steps.tolist(), found.components.shape
      ([0, 8, 16, 20], (4, 2))

      All coordinates shrink alike, so the path is a straight line:

      >>> print(f"{found.explained_variance[0]:.6f}")
      1.000000
      >>> figure = found.plot()
    """
    taken(coordinate_key=coordinate_key)
    path = path_of(run, params, hparams, data, key=key, every=every)
    visited = jax.vmap(run.transition.params)(path.states)
    leaves = [np.asarray(x) for x in jax.tree.leaves(visited)]
    points = np.concatenate([x.reshape(len(x), -1).astype(np.float64) for x in leaves], axis=1)
    num_points, size = points.shape
    require_count("num_random", num_random, 1, size, "the number of parameters")
    most = min(size, num_points - 1)
    require_count("num_components", num_components, 1, most, "which determine such a path")
    if not np.isfinite(points).all():
        raise ValueError(
            "the path is infinite or NaN; lower the learning rate, or look for the loss that does "
            "not stay finite, or for params and hparams that are not."
        )

    drawing_key = jax.random.key(0) if coordinate_key is None else coordinate_key
    drawn = np.asarray(jax.random.choice(drawing_key, size, (num_random,), replace=False))
    components, explained = _principal(points - points.mean(axis=0), num_components)
    names = _names(jax.tree.map(lambda x: x[0], visited), drawn)
    return Projections(path.steps, names, points[:, drawn], components, explained)


def _principal(centred: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first principal components of points `[K, N]`, and what they explain."""
    num_points, size = centred.shape
    # The smaller of the two matrices of products: both have the same eigenvalues.
    if num_points <= size:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        along = vectors * np.sqrt(np.maximum(values, 0))
    else:
        values, directions = np.linalg.eigh(centred.T @ centred)
        along = centred @ directions
    order = np.argsort(values)[::-1][:count]
    components, total = along[:, order], np.sum(np.square(centred))
    components = components * np.where(components[-1] < components[0], -1, 1)
    explained = np.maximum(values[order], 0) / (total if total > 0 else 1)
    return components, explained


def _names(params: Params, drawn: np.ndarray) -> tuple[str, ...]:
    """Returns what the drawn numbers of the flattened parameters are called."""
    keys = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    paths = ["params" + jax.tree_util.keystr(key) for key in keys]
    shapes = layout(params).shapes
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    names = []
    for i in drawn:
        leaf = int(np.searchsorted(ends, i, side="right"))
        shape = shapes[leaf]
        position = np.unravel_index(int(i) - (ends[leaf] - int(np.prod(shape))), shape)
        names.append(paths[leaf] + (str([int(j) for j in position]) if shape else ""))
    return tuple(names)
