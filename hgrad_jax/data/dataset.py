"""Labelled examples as numpy arrays, and their division into parts.

Everything here is host code: what it returns goes into a jitted function as an argument.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from hgrad_jax.inputs.functions import as_int, is_number

T = TypeVar("T")


class Dataset(NamedTuple):
    """Examples and their classes, a pytree with a common leading axis.

    Attributes:
      inputs: float32 [N, *shape].
      labels: int32 [N], the class of each example, counted from 0.
    """

    inputs: np.ndarray
    labels: np.ndarray


class Splits(NamedTuple):
    """A data set's training and test part.

    Attributes:
      train: what to learn from; divide it again with `split` for a validation part.
      test: what to report on.
    """

    train: Dataset
    test: Dataset


def num_examples(data: Any, name: str = "data") -> int:
    """Returns N, the common length of the leading axis of all arrays in `data`.

    Args:
      data: pytree of arrays [N, *shape].
      name: what a message calls them.

    Returns:
      N as a Python integer: it is static under `jax.jit`.

    Raises:
      ValueError: there is no array, an array is a scalar, the leading axes differ, or they are
        empty.

    >>> num_examples({"inputs": np.zeros((5, 2)), "labels": np.zeros(5)})
    5
    """
    shapes = {
        name + jax.tree_util.keystr(path): np.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(data)
    }
    if not shapes:
        raise ValueError(
            f"{name} holds no array: pass a pytree of arrays with a common leading axis."
        )
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) > 1 or () in lengths:
        listed = ", ".join(f"{where} {list(shape)}" for where, shape in shapes.items())
        raise ValueError(
            f"{name} must have one leading axis, the examples, in common: got {listed}."
        )
    (length,) = lengths.pop()
    if length == 0:
        raise ValueError(f"{name} has no examples: its arrays have a leading axis of length 0.")
    return length


def split(data: T, sizes: Sequence[int] | Sequence[float], *, seed: int) -> tuple[T, ...]:
    """Returns disjoint parts of `data`, drawn at random.

    The parts are consecutive pieces of one permutation of the examples, so they depend on `seed`
    and N alone, on every platform and with every version of numpy.

    Args:
      data: pytree of numpy arrays [N, *shape], for instance a `Dataset`.
      sizes: examples per part, integers of sum at most N; or fractions of N in (0, 1], floats of
        sum at most 1, rounded so that fractions of sum 1 leave no example out.
      seed: chooses the permutation, 0 <= seed < 2**32.

    Returns:
      One pytree like `data` for each size.

    Raises:
      ValueError: the seed is out of range, a size is not positive, sizes mix integers and
        fractions, or their sum is too large.

    >>> train, valid = split(Dataset(np.eye(10), np.arange(10)), (0.8, 0.2), seed=0)
    >>> train.labels.shape, valid.labels.shape
    ((8,), (2,))
    """
    n = num_examples(data)
    if (found := as_int(seed)) is None or not 0 <= found < 2**32:
        raise ValueError(f"seed is {seed!r}; it must be an int with 0 <= seed < 2**32.")
    ends = _ends(sizes, n)
    # RandomState's stream is frozen (NEP 19); that of numpy's Generator may change.
    order = np.random.RandomState(found).permutation(n)
    parts = np.split(order, ends)[: len(ends)]
    return tuple(jax.tree.map(lambda x, part=part: x[part], data) for part in parts)


def _ends(sizes: Sequence[int] | Sequence[float], n: int) -> np.ndarray:
    """Returns where each part ends in the permutation."""
    is_sequence = isinstance(sizes, Sequence | np.ndarray) and not isinstance(sizes, str | bytes)
    if not is_sequence or not all(map(is_number, sizes)):
        raise ValueError(
            f"sizes is {sizes!r}; it must be a sequence of numbers of examples, such as "
            "(1000, 500), or of fractions, (0.8, 0.2)."
        )
    kinds = {isinstance(size, (int, np.integer)) for size in sizes}
    if len(kinds) != 1:
        raise ValueError(f"sizes must be all integers or all fractions: got {sizes!r}.")
    if any(size <= 0 for size in sizes):
        raise ValueError(f"sizes must be positive: got {sizes!r}.")
    total = np.cumsum(sizes)
    if kinds == {True}:
        if total[-1] > n:
            raise ValueError(f"sizes {sizes!r} sum to {total[-1]}, but there are {n} examples.")
        return total
    if total[-1] > 1 + 1e-9:
        raise ValueError(f"the fractions {sizes!r} sum to {total[-1]:g}, which is more than 1.")
    return np.rint(np.minimum(total, 1) * n).astype(int)
