"""Where arrays are: shared among devices, on all of them, or on the host."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Part

from hgrad_jax.many import processes

RUNS = "runs"


def placed(tree: Any, mesh: Mesh, axes: tuple[int | None, ...] | None = None) -> Any:
    """Returns the tree's arrays on the devices of a mesh.

    Args:
      tree: pytree of arrays.
      mesh: as `mesh_of` returns it.
      axes: 0 for each entry of the tuple `tree` whose runs the groups share; None for every array
        whole on each device.

    Raises:
      ValueError: the processes of the mesh have different ones.
    """
    if axes is None:
        return _put(tree, everywhere(mesh), mesh)
    return tuple(
        _put(part, NamedSharding(mesh, Part() if axis is None else Part(RUNS)), mesh)
        for part, axis in zip(tree, axes, strict=True)
    )


def everywhere(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device has whole."""
    return NamedSharding(mesh, Part())


def by_runs(mesh: Mesh, num_runs: int) -> NamedSharding:
    """Returns the sharding of arrays [runs, ...]; whole where the groups cannot share equally."""
    return NamedSharding(mesh, Part() if num_runs % mesh.shape[RUNS] else Part(RUNS))


def replicated(tree: Any, mesh: Mesh) -> Any:
    """Returns traced arrays whole on every device: what follows is computed alike on all."""
    return jax.lax.with_sharding_constraint(tree, everywhere(mesh))


def fetched(tree: Any) -> Any:
    """Returns replicated arrays as ordinary ones, of this process and on its default device."""

    def one(x: Any) -> Any:
        if not isinstance(x, jax.Array):
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = jnp.asarray(np.asarray(jax.random.key_data(x)))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        return jnp.asarray(np.asarray(x))

    return jax.tree.map(one, tree)


def is_shared_by_processes(mesh: Mesh) -> bool:
    """Returns whether some of the mesh's devices belong to another process."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


def _put(tree: Any, sharding: NamedSharding, mesh: Mesh) -> Any:
    if not is_shared_by_processes(mesh):
        return jax.device_put(jax.tree.map(jnp.asarray, tree), sharding)
    leaves, treedef = jax.tree.flatten(tree)
    is_there = [isinstance(x, jax.Array) and not x.is_fully_addressable for x in leaves]
    local = [x for x, is_global in zip(leaves, is_there, strict=True) if not is_global]
    processes.require_same({"the arguments": local})
    return jax.tree.unflatten(
        treedef,
        [
            x if is_global else _global(x, sharding)
            for x, is_global in zip(leaves, is_there, strict=True)
        ],
    )


def _global(x: Any, sharding: NamedSharding) -> jax.Array:
    """Returns an array of all processes, each of which has the same."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _global(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    whole = np.asarray(jnp.asarray(x))
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
