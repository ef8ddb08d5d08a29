"""Batches of two kinds: what a step trains on, and what it judges its hyperparameters by.

An online method that looks at a validation loss is given a `Batches` at every step. `paired` and
`periods` make batch functions that return one, from a batch function for each kind; the data are
then the pair (training data, validation data).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.functions import positive_int, require_function
from hgrad_jax.types import Array, Batch, BatchFn, Data

VALID_ROLE = 1


class Batches(NamedTuple):
    """What an online method with a validation loss gets as its batch.

    Attributes:
      train: the training batch; for `adaptive` a `Period`.
      valid: the validation batch.
    """

    train: Any
    valid: Batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Period:
    """The training batches of a period's elementary steps, made one by one when they are asked for.

    Attributes:
      data: the training data.
      t: int32 scalar, the period.
      key: PRNG key of the period, or None.
      batch_fn: `batch_fn(data, step, key)`, or None for all of the data.
      every: elementary steps in a period.
    """

    data: Data
    t: Array
    key: Array | None
    batch_fn: BatchFn | None = dataclasses.field(metadata={"static": True})
    every: int = dataclasses.field(metadata={"static": True})

    def at(self, i: Array) -> Batch:
        """Returns the batch of the period's step i, 0 <= i < every."""
        return _batch(self.batch_fn, self.data, self.t * self.every + i, folded(self.key, i))


def paired(batch_fn: BatchFn | None = None, valid_batch_fn: BatchFn | None = None) -> BatchFn:
    """Returns a batch function whose batch is a `Batches`, of data that are a pair.

    The training batches are those that `batch_fn` alone would make: the same steps, the same keys.

    Args:
      batch_fn: `batch_fn(train_data, t, key)`; None hands over all of the training data.
      valid_batch_fn: `valid_batch_fn(valid_data, t, key)`; None hands over all validation data.

    Raises:
      TypeError: one of them is no such function.
      ValueError: at the first step, the data are no pair.

    >>> from hgrad_jax.data import minibatches
    >>> batch_fn = paired(minibatches(2))
    >>> batch_fn((jnp.arange(6), jnp.arange(3)), 1, None)
    Batches(train=Array([2, 3], dtype=int32), valid=Array([0, 1, 2], dtype=int32))
    """
    _require(batch_fn, valid_batch_fn)
    return _Paired(batch_fn, valid_batch_fn)


def periods(
    batch_fn: BatchFn | None = None, valid_batch_fn: BatchFn | None = None, *, every: int
) -> BatchFn:
    """Returns a batch function for `adaptive`: the batches of a period, and one to judge it.

    Period t has the elementary steps t * every to (t + 1) * every - 1, by which `batch_fn` is
    called; each has a key of its own. Training batches are made one at a time.

    Args:
      batch_fn: `batch_fn(train_data, step, key)`; None hands over all of the training data.
      valid_batch_fn: `valid_batch_fn(valid_data, t, key)`; None hands over all validation data.
      every: elementary steps in a period, a positive int.

    Raises:
      TypeError: one of them is no such function.
      ValueError: `every` is no positive int; at the first step, the data are no pair.

    >>> from hgrad_jax.data import minibatches
    >>> batches = periods(minibatches(2), every=3)((jnp.arange(10), jnp.arange(1)), 1, None)
    >>> [batches.train.at(i).tolist() for i in range(3)]
    [[6, 7], [8, 9], [0, 1]]
    """
    _require(batch_fn, valid_batch_fn)
    return _Periods(batch_fn, valid_batch_fn, positive_int("every", every))


@dataclasses.dataclass(frozen=True)
class _Paired:
    batch_fn: BatchFn | None
    valid_batch_fn: BatchFn | None

    def __call__(self, data: Data, t: Array, key: Array | None) -> Batches:
        train, valid = _parts(data)
        valid_key = folded(key, VALID_ROLE)
        return Batches(
            _batch(self.batch_fn, train, t, key), _batch(self.valid_batch_fn, valid, t, valid_key)
        )

    def training(self, data: Data) -> tuple[Data, BatchFn | None, int]:
        """Returns the training data, their batch function, and how many batches a step has."""
        return _parts(data)[0], self.batch_fn, 1


@dataclasses.dataclass(frozen=True)
class _Periods:
    batch_fn: BatchFn | None
    valid_batch_fn: BatchFn | None
    every: int

    def __call__(self, data: Data, t: Array, key: Array | None) -> Batches:
        train, valid = _parts(data)
        period = Period(train, jnp.int32(t), key, self.batch_fn, self.every)
        valid_key = folded(key, self.every)
        return Batches(period, _batch(self.valid_batch_fn, valid, t, valid_key))

    def training(self, data: Data) -> tuple[Data, BatchFn | None, int]:
        """Returns the training data, their batch function, and how many batches a step has."""
        return _parts(data)[0], self.batch_fn, self.every


def split(batch: Any) -> tuple[Batch, Batch]:
    """Returns both batches of a `Batches`.

    Raises:
      TypeError: it is none.
    """
    if not isinstance(batch, Batches):
        raise TypeError(
            f"batch is a {type(batch).__name__}, but valid_loss needs a training and a validation "
            "batch; pass batch_fn=hg.online.paired(batch_fn, valid_batch_fn), or "
            "hg.online.periods(...) for adaptive, and data=(train, valid)."
        )
    return batch.train, batch.valid


def split_step(batch: Any) -> tuple[Batch, Batch]:
    """Returns both batches of a `Batches` whose training batch is of one step.

    Raises:
      TypeError: it is none, or has those of a period.
    """
    train, valid = split(batch)
    if isinstance(train, Period):
        raise TypeError(
            "the training batch is a Period, which only adaptive takes; pass "
            "batch_fn=hg.online.paired(batch_fn, valid_batch_fn)."
        )
    return train, valid


def folded(key: Array | None, role: Any) -> Array | None:
    """Returns the key of a role, None for None."""
    return None if key is None else jax.random.fold_in(key, role)


def _batch(batch_fn: BatchFn | None, data: Data, t: Array, key: Array | None) -> Batch:
    return data if batch_fn is None else batch_fn(data, t, key)


def _parts(data: Any) -> tuple[Data, Data]:
    # A Dataset is a pair too, but of inputs and labels.
    if not isinstance(data, tuple | list) or len(data) != 2 or hasattr(data, "_fields"):
        raise ValueError(
            f"data is a {type(data).__name__}, but batches of training and validation data are "
            "made from a pair; pass data=(train, valid)."
        )
    return data[0], data[1]


def _require(batch_fn: Any, valid_batch_fn: Any) -> None:
    way_out = "hgrad_jax.data.minibatches(batch_size), say, or None for all of the data"
    for name, function in (("batch_fn", batch_fn), ("valid_batch_fn", valid_batch_fn)):
        if function is not None:
            require_function(function, f"{name}(data, t, key)", way_out)
