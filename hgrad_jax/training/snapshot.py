"""What a checkpoint holds of a training, as named arrays and back."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.tools.digest import digest, plain
from hgrad_jax.types import Params, State


class Snapshot(NamedTuple):
    """What is written of a run.

    Attributes:
      state: after the epoch.
      best: the best parameters so far; None if they are not kept.
      metrics: values by name from epoch 0 on.
      step_loss: one array an epoch.
    """

    state: State
    best: Params | None
    metrics: dict[str, list[float]]
    step_loss: list[np.ndarray]


def digest_of(about: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """Returns a hash of a whole checkpoint."""
    said = json.dumps(about, sort_keys=True)
    return hashlib.sha256((said + digest(dict(arrays))).encode()).hexdigest()


def named_leaves(name: str, tree: Any) -> dict[str, np.ndarray]:
    """Returns the leaves by number; empty ones cannot be stored, nor need be."""
    leaves = map(plain, jax.tree.leaves(tree))
    return {f"{name}.{i}": leaf for i, leaf in enumerate(leaves) if leaf.size}


def restored(name: str, arrays: Mapping[str, Any], like: Any) -> Any:
    """Returns a tree like another with the leaves stored under a name, where it has its own."""

    def place(leaf: Any, stored: Any) -> Any:
        if stored is None:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = jax.device_put(np.asarray(stored), leaf.sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.device_put(np.asarray(stored, leaf.dtype), leaf.sharding)

    leaves, treedef = jax.tree.flatten(like)
    stored = [arrays.get(f"{name}.{i}") for i in range(len(leaves))]
    return jax.tree.unflatten(treedef, map(place, leaves, stored))
