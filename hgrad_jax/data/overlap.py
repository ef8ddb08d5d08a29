"""Examples that two parts of the data have in common."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def shared_examples(data: Any, other: Any) -> np.ndarray:
    """Returns which examples of `other` are in `data` too, bit for bit, inputs and labels.

    Found by a hash of each example on the host: 60,000 images take less than a second.

    Args:
      data: pytree of arrays [N, *shape].
      other: pytree of arrays [M, *shape]. Containers and the shapes of examples do not matter, so
        that an image is found among flattened ones, and one of the two may have more arrays, such
        as the examples' places: compared are those of the same dtypes and sizes of examples, in
        order, if that is all of one's arrays, and two or more where the other has more. Where it is
        not, or there is no common leading axis, no example is the same as another. Arrays 0, 1,
        ..., by which both number their examples, do not count.

    Returns:
      int [K, 2]: for each such example of `other`, in order, the first place in `data` and its own.

    >>> x = np.arange(6)
    >>> shared_examples((x[:4], x[:4]), (x[2:], x[2:])).tolist()
    [[2, 0], [3, 1]]
    >>> shared_examples((x[:4], x[:4], x[:4] + 7), {"inputs": x[2:], "labels": x[2:]}).tolist()
    [[2, 0], [3, 1]]
    """
    ours, theirs = _arrays(data), _arrays(other)
    if not _has_examples(ours) or not _has_examples(theirs):
        return np.zeros((0, 2), int)
    ours, theirs = _without_places(ours, theirs)
    ours, theirs = _among(ours, theirs), _among(theirs, ours)
    if not ours or len(ours) != len(theirs):
        return np.zeros((0, 2), int)
    places: dict[bytes, int] = {}
    for i, found in enumerate(_digests(ours)):
        places.setdefault(found, i)
    pairs = [(places[found], i) for i, found in enumerate(_digests(theirs)) if found in places]
    return np.asarray(pairs, int).reshape(-1, 2)


def require_disjoint(parts: Mapping[str, Any]) -> None:
    """Raises if two parts of the data share an example.

    Args:
      parts: by name, in the order in which the message names them.

    Raises:
      ValueError: they do; the message names the first one.
    """
    for (name, data), (other_name, other) in combinations(parts.items(), 2):
        pairs = shared_examples(data, other)
        if len(pairs):
            place, other_place = pairs[0].tolist()
            raise ValueError(
                f"{other_name} overlaps {name}: {len(pairs)} of its examples are in both, the "
                f"first is {other_name}'s {other_place} and {name}'s {place}; divide a data set "
                "with hgrad_jax.data.split, and drop the copies that "
                "hgrad_jax.data.shared_examples finds."
            )


def _arrays(data: Any) -> list[np.ndarray]:
    def plain(leaf: Any) -> np.ndarray:
        dtype = getattr(leaf, "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.ascontiguousarray(leaf) if np.ndim(leaf) else np.asarray(leaf)

    return [plain(leaf) for leaf in jax.tree.leaves(data)]


def _has_examples(arrays: list[np.ndarray]) -> bool:
    lengths = {x.shape[:1] for x in arrays}
    return len(lengths) == 1 and () not in lengths


def _without_places(
    arrays: list[np.ndarray], others: list[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the arrays but for 0, 1, ..., where both number their examples and have two more."""

    def rest(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [x for x in arrays if x.ndim > 1 or not np.array_equal(x, np.arange(len(x)))]

    ours, theirs = rest(arrays), rest(others)
    are_numbered = len(ours) < len(arrays) and len(theirs) < len(others)
    return (ours, theirs) if are_numbered and min(len(ours), len(theirs)) > 1 else (arrays, others)


def _among(arrays: list[np.ndarray], others: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the arrays themselves, or of more than others those of the others' kinds, in order.

    Returns:
      As many as there are others where that is possible. Nothing where a single array, which may
      be labels alone, would have to stand for an example.
    """
    if len(arrays) == len(others):
        is_alike = all(_kind(x) == _kind(y) for x, y in zip(arrays, others, strict=True))
        return arrays if is_alike else []
    if min(len(arrays), len(others)) < 2 or len(arrays) < len(others):
        return arrays
    rest = iter(arrays)
    return [x for y in others for x in _next_of_kind(rest, _kind(y))]


def _next_of_kind(arrays: Iterator[np.ndarray], kind: Any) -> list[np.ndarray]:
    return next(([x] for x in arrays if _kind(x) == kind), [])


def _kind(array: np.ndarray) -> Any:
    return array.dtype, math.prod(array.shape[1:])


def _digests(arrays: list[np.ndarray]) -> list[bytes]:
    found = [hashlib.blake2b(digest_size=16) for _ in arrays[0]]
    for array in arrays:
        for each, row in zip(found, array, strict=True):
            each.update(row.tobytes())
    return [each.digest() for each in found]
