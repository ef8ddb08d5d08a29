"""A derivative under test set against references: differences, and forward mode.

Of each leaf some numbers are drawn, and the derivative by each is compared with the central
difference. Apart from this <gradient, v>, with v random signs in one leaf, is compared with the
forward-mode derivative along v: that covers every number of the leaf, but not a hand-written rule
that forward and reverse mode share.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.diagnostics.differences import (
    Differences,
    best_differences,
    precision,
    second_opinion,
)
from hgrad_jax.diagnostics.gradient_report import Entry
from hgrad_jax.tools.vectors import layout, ravel, unravel
from hgrad_jax.types import Array


class Compared(NamedTuple):
    """What was compared, as `GradientReport` has it."""

    entries: tuple[Entry, ...]
    directions: tuple[Entry, ...]
    why_no_directions: str | None
    epsilon: float


class _Tested(NamedTuple):
    """A function of a vector, and the derivative under test.

    Attributes:
      function: `function(x, rest) -> scalar`.
      rest: arrays that are not differentiated.
      x: where it is differentiated, `[N]`.
      gradient: the derivative under test, `[N]`.
      paths: name of each leaf.
      shapes: shape of each leaf.
      starts: where each leaf begins in the vector, and the end.
      tolerance: the greatest relative error that is not wrong.
      epsilon: of the narrowest floats that the function computes.
    """

    function: Callable[[Array, Any], Array]
    rest: Any
    x: np.ndarray
    gradient: np.ndarray
    paths: list[str]
    shapes: tuple[tuple[int, ...], ...]
    starts: np.ndarray
    tolerance: float
    epsilon: float

    @property
    def is_double(self) -> bool:
        """Whether all of the function computes in float64."""
        return self.epsilon <= np.finfo(np.float64).eps


def compared(
    function: Callable[[Any, Any], Array],
    tree: dict[str, Any],
    gradient: dict[str, Any],
    rest: Any,
    *,
    num_samples: int,
    step: float,
    tolerance: float,
    seed: int,
) -> Compared:
    """Returns the comparison.

    Run it in float64, under `jax.enable_x64(True)`.

    Args:
      function: `function(tree, rest) -> scalar`.
      tree: where, float64 arrays; its keys begin the names of the leaves.
      gradient: the derivative under test, like `tree`.
      rest: arrays that are not differentiated.
      num_samples: how many numbers of each leaf are compared with differences.
      step: h.
      tolerance: the greatest relative error that is not wrong.
      seed: chooses the numbers and the directions.
    """
    like = layout(tree)
    paths = [
        path[0].key + jax.tree_util.keystr(path[1:])
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    sizes = [int(np.prod(shape)) for shape in like.shapes]

    def of_vector(x, rest):
        return function(unravel(x, like), rest)

    x = ravel(tree, like)
    tested = _Tested(
        of_vector,
        rest,
        np.asarray(x),
        np.asarray(ravel(gradient, like)),
        paths,
        like.shapes,
        np.cumsum([0, *sizes]),
        tolerance,
        precision(of_vector, x, rest),
    )
    random = np.random.default_rng(seed)
    drawn = [np.sort(random.choice(n, min(num_samples, n), replace=False)) for n in sizes]
    signs = random.choice([-1.0, 1.0], like.size)
    return Compared(_entries(tested, drawn, step), *_directions(tested, signs), tested.epsilon)


def _entries(tested: _Tested, drawn: list[np.ndarray], step: float) -> tuple[Entry, ...]:
    """Returns a comparison with differences for each number drawn."""
    owners = np.repeat(np.arange(len(drawn)), [len(indices) for indices in drawn])
    indices = np.concatenate(drawn)
    numbers = tested.starts[owners] + indices
    gradient, tolerance = tested.gradient[numbers], tested.tolerance

    def scales_of(found):
        floor = found.rounding / tolerance if tested.is_double else np.zeros(len(numbers))
        return _scales(gradient, found.derivative, owners, floor)

    def is_enough(found):
        return found.uncertainty <= tolerance * scales_of(found)

    found = best_differences(
        tested.function,
        tested.x,
        tested.rest,
        numbers,
        step=step,
        epsilon=tested.epsilon,
        is_enough=is_enough,
    )

    def entries(found):
        scales = scales_of(found)
        return tuple(
            _entry(
                tested,
                tested.paths[owner],
                tuple(int(k) for k in np.unravel_index(indices[i], tested.shapes[owner])),
                (gradient[i], found.derivative[i], found.uncertainty[i]),
                float(found.step[i]),
                float(scales[i]),
            )
            for i, owner in enumerate(owners)
        )

    judged = entries(found)
    suspects = np.flatnonzero([entry.is_wrong for entry in judged])
    if not suspects.size:
        return judged
    again = second_opinion(
        tested.function,
        tested.x,
        tested.rest,
        numbers[suspects],
        Differences(*(part[suspects] for part in found)),
        step=step,
        epsilon=tested.epsilon,
    )
    found.uncertainty[suspects] = again.uncertainty
    return entries(found)


def _directions(tested: _Tested, signs: np.ndarray) -> tuple[tuple[Entry, ...], str | None]:
    """Returns a comparison with forward mode for each leaf, or why there is none."""

    @jax.jit
    def forward(x, signs, rest):
        def along(start_and_end):
            start, end = start_and_end
            i = jnp.arange(x.size)
            v = jnp.where((i >= start) & (i < end), signs, 0.0)
            return jax.jvp(lambda x: tested.function(x, rest), (x,), (v,))

        return jax.lax.map(along, (tested.starts[:-1], tested.starts[1:]))

    try:
        values, derivatives = forward(tested.x, signs, tested.rest)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        return (), "a custom_vjp is on the way, which has none"
    entries = []
    for i, path in enumerate(tested.paths):
        leaf = slice(tested.starts[i], tested.starts[i + 1])
        product, derivative = float(tested.gradient[leaf] @ signs[leaf]), float(derivatives[i])
        norm = float(np.linalg.norm(tested.gradient[leaf]))
        noise = 100 * tested.epsilon * abs(float(values[i]))
        scale = max(abs(product), abs(derivative), norm)
        if tested.is_double:
            scale = max(scale, noise / tested.tolerance)
        entries.append(_entry(tested, path, None, (product, derivative, noise), None, scale))
    return tuple(entries), None


def _entry(
    tested: _Tested,
    path: str,
    position: tuple[int, ...] | None,
    numbers: tuple[Any, Any, Any],
    step: float | None,
    scale: float,
) -> Entry:
    gradient, reference, uncertainty = (float(x) for x in numbers)
    error = abs(gradient - reference)
    relative = error / scale if scale and np.isfinite(error) else 0.0 if error == 0 else np.inf
    is_close = relative <= tested.tolerance
    # A reference that is not a number says nothing; a gradient that is none is wrong.
    is_explained = error <= tested.tolerance * scale + uncertainty or not np.isfinite(reference)
    is_wrong = not np.isfinite(gradient) or not is_explained
    values = (gradient, reference, uncertainty, relative)
    return Entry(path, position, *values, step, bool(is_wrong), not is_wrong and not is_close)


def _scales(
    gradient: np.ndarray, derivative: np.ndarray, owners: np.ndarray, floor: np.ndarray
) -> np.ndarray:
    """Returns what errors are relative to: the size, where tiny 1e-3 of the leaf's largest.

    Where all of the leaf is tiny, then the floor: so much that an error of rounding is within the
    tolerance. A function that computes in less than float64 inside has none: rounding there is no
    tiny number, below which errors would pass.
    """
    sizes = np.fmax(np.abs(gradient), np.abs(derivative))
    sizes = np.where(np.isfinite(sizes), sizes, 0)
    largest = np.zeros(owners.max() + 1)
    np.maximum.at(largest, owners, sizes)
    floor = np.where(np.isfinite(floor), floor, 0)
    return np.maximum(np.maximum(sizes, 1e-3 * largest[owners]), floor)
