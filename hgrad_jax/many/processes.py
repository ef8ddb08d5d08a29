"""What several processes of one program (`jax.distributed`) do together on the host.

Each function is a meeting: all processes must call it, in the same order. In a program of one
process it costs nothing.
"""

import pickle
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from hgrad_jax.tools.digest import digest

T = TypeVar("T")


def is_first() -> bool:
    """Returns whether this is the process that writes files and shows progress."""
    return jax.process_index() == 0


def from_first(function: Callable[[], T], is_shared: bool = True) -> T:
    """Returns what the first process finds, in all of them; what it raises, all raise.

    Args:
      function: called in the first process alone; returns a pytree of numpy arrays and what else
        can be pickled.
      is_shared: whether the processes do this together; if not, each finds its own.
    """
    if not is_shared or jax.process_count() == 1:
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


def require_same(trees: Mapping[str, Any]) -> None:
    """Raises, in all processes, if they have different arrays.

    Args:
      trees: pytrees of arrays or of text by name, the same names in all processes.

    Raises:
      ValueError: they have.
    """
    if jax.process_count() == 1:
        return
    hashes = [np.frombuffer(bytes.fromhex(digest(tree)), np.uint8) for tree in trees.values()]
    found = np.asarray(multihost_utils.process_allgather(np.stack(hashes)))
    differ = [name for i, name in enumerate(trees) if (found[:, i] != found[0, i]).any()]
    if differ:
        raise ValueError(
            f"{', '.join(differ)} differ between the processes, but all of them must make the same "
            "calls with the same values: use the same seeds and data in all of them; over_devices, "
            "sweep and tune take devices=jax.local_devices() where each is to compute its own."
        )
