"""What several processes of one program (`jax.distributed`) do together on the host.

Each function is a meeting: all processes must call it, in the same order. In a program of one
process it costs nothing.
"""

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from hgrad_jax.digest import digest

T = TypeVar("T")


def is_first() -> bool:
    """Returns whether this is the process that writes files and shows progress."""
    return jax.process_index() == 0


def from_first(function: Callable[[], T]) -> T:
    """Returns what the first process finds, in all of them; what it raises, all raise.

    Args:
      function: called in the first process alone; returns a pytree of numpy arrays and what else
        can be pickled.
    """
    if jax.process_count() == 1:
        return function()
    found: tuple[Any, Exception | None] = (None, None)
    if is_first():
        try:
            found = (function(), None)
        except Exception as error:  # whatever it is, the others must not wait for ever
            found = (None, error)
    sent = np.frombuffer(pickle.dumps(found), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(sent.size)))
    padded = sent if is_first() else np.zeros(size, np.uint8)
    value, error = pickle.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())
    if error is not None:
        raise error
    return value


def require_same(tree: Any, what: str) -> None:
    """Raises, in all processes, if they have different arrays.

    Args:
      tree: pytree of arrays.
      what: how the message calls them.

    Raises:
      ValueError: they have.
    """
    if jax.process_count() == 1:
        return
    mine = np.frombuffer(digest(tree).encode(), np.uint8)
    theirs = np.asarray(multihost_utils.process_allgather(mine))
    if (theirs != theirs[0]).any():
        raise ValueError(
            f"{what} differ between the processes, but all of them must make the same calls with "
            "the same values; use the same seeds and data in all, or "
            "devices=jax.local_devices() where each is to compute something of its own."
        )
