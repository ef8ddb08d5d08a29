"""Runs shared among devices: `jax.vmap` on each, `jax.shard_map` over all.

The devices are a mesh of two axes, the groups that share the runs and, in each group, those that
share the batches of a run through `data_parallel` losses. Runs do not talk to each other, so a run
has the same bits wherever it is computed, with as many others beside it.

In a program of several processes (`jax.distributed`) the devices are those of all of them. Every
process makes the same calls with the same values, and every process gets all results.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Part

from hgrad_jax.inputs.functions import (
    as_int,
    positive_int,
    require_function,
    require_hashable,
    traced,
)
from hgrad_jax.many.data_parallel import BATCH_PARTS
from hgrad_jax.many.placement import RUNS, everywhere, is_shared_by_processes, placed

Axes = tuple[int | None, ...] | int | None
"""0 or None for each argument, or one for all."""


def over_devices(
    function: Callable[..., Any],
    in_axes: Axes = 0,
    *,
    batch_parts: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Callable[..., Any]:
    """Returns `jax.vmap(function, in_axes)` whose runs are shared among devices.

    Compiled once for a function, axes, devices and shapes, and shared with every later call of
    `over_devices` for them. Under `jit` it is part of that program. Runs that the devices cannot
    share equally are filled up with copies of the last, whose results are dropped.

    Args:
      function: pure, from pytrees of arrays to a pytree of arrays: `unroll`, say, or
        `value_and_hypergradient`.
      in_axes: 0 for each argument whose leading axis is the runs, None for those that are the same
        for all; or one for all arguments. None for all is one run, for devices that share its
        batches.
      batch_parts: how many devices share the batches of a run, through `data_parallel` losses.
        None for 1; for a single run, all.
      devices: what the runs are shared among, a multiple of `batch_parts`; None for all that JAX
        sees, in all processes.

    Returns:
      A function of such arguments, by position. Its results have a leading axis of runs.

    Raises:
      TypeError: `function` is none or cannot be hashed, `in_axes` has something other than 0 and
        None, or `devices` has something other than devices.
      ValueError: the devices are no multiple of `batch_parts`. When it is called: arguments have
        different numbers of runs, or differ between processes.

    Example:
      Hypergradients of two settings with three seeds, and their mean over seeds:

      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.heavy_ball(lambda params, hparams, batch, key: jnp.sum(jnp.cosh(params)))
      >>> run = hg.Run(rule, num_steps=5, adjoint=hg.Reversible())
      >>> def hypergradient(rate, key):
      ...     hparams = {"learning_rate": rate, "momentum": 0.5}
      ...     start = jax.random.normal(key, (3,))
      ...     found = hg.value_and_hypergradient(
      ...         lambda params, hparams, data: jnp.sum(params**2), run, start, hparams, None
      ...     )
      ...     return found.hparams, found.info
      >>> rates, keys = jnp.array([0.1, 0.2]), jax.random.split(jax.random.key(0), 3)
      >>> rates, keys = jnp.repeat(rates, 3), jnp.tile(keys, 2)  # six runs
      >>> hypergradients, info = hg.over_devices(hypergradient)(rates, keys)
      >>> bool(hg.check(info).is_restored.all())
      True
      >>> by_setting = hypergradients["learning_rate"].reshape(2, 3)
      >>> hg.mean_and_spread(by_setting, axis=1).mean.shape
      (2,)
    """
    if not callable(function):
        raise TypeError(f"function is {function!r}; it must be a function of arrays.")
    require_hashable(function, "function")
    axes = in_axes if isinstance(in_axes, tuple) else (in_axes,)
    if any(axis is not None and as_int(axis) != 0 for axis in axes):
        raise TypeError(f"in_axes is {in_axes!r}; give 0 or None for each argument, or for all.")
    if batch_parts is None:
        is_one = all(axis is None for axis in axes)
        batch_parts = len(_devices(devices)) if is_one else 1
    mesh_of(1, devices, batch_parts)  # raises what is to be raised

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        of_args = axes if isinstance(in_axes, tuple) else axes * len(args)
        num_runs = _num_runs(args, of_args)
        required = ", ".join(f"args_{i}" for i in range(len(args)))
        require_function(function, f"function({required})", "a function of as many arrays")
        mesh = mesh_of(1 if num_runs is None else num_runs, devices, batch_parts)
        is_even = num_runs is None or num_runs % mesh.shape[RUNS] == 0
        if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args)):
            args = placed(args, mesh, of_args if is_even else None)
        with traced("function"):
            return program_of(function, of_args, mesh, is_even)(*args)

    return call


def mesh_of(num_runs: int, devices: Sequence[Any] | None, batch_parts: int) -> Mesh:
    """Returns the mesh [groups, batch_parts] for so many runs.

    No more groups than runs, but in several processes all devices of all: a process without any
    could not take part.

    Raises:
      TypeError: `devices` has something other than devices.
      ValueError: there are no devices, or they are no multiple of `batch_parts`.
    """
    batch_parts = positive_int("batch_parts", batch_parts)
    chosen = np.array(_devices(devices), dtype=object)
    if chosen.size % batch_parts:
        raise ValueError(
            f"batch_parts is {batch_parts}, but there are {chosen.size} devices, which do not "
            f"make groups of {batch_parts}; choose a divisor, or name the devices to use."
        )
    groups = chosen.reshape(-1, batch_parts)
    if len({device.process_index for device in chosen}) == 1:
        groups = groups[:num_runs]
    return Mesh(groups, (RUNS, BATCH_PARTS))


def spread(function: Callable[..., Any], axes: tuple[int | None, ...], mesh: Mesh) -> Any:
    """Returns the vmapped function whose runs are shared among the groups of a mesh, to be traced.

    Args:
      function: of as many arguments as there are axes.
      axes: 0 or None for each argument; all None for a single run.
      mesh: as `mesh_of` returns it.
    """
    is_one = all(axis is None for axis in axes)

    def side_by_side(*args: Any) -> Any:
        if _num_runs(args, axes) != 1:
            return jax.vmap(function, in_axes=axes)(*args)
        # One by itself: vmap would make selects of conditionals.
        own = [
            arg if axis is None else jax.tree.map(lambda x: x[0], arg)
            for arg, axis in zip(args, axes, strict=True)
        ]
        return jax.tree.map(lambda x: jnp.asarray(x)[None], function(*own))

    whole = jax.shard_map(
        function if is_one else side_by_side,
        mesh=mesh,
        in_specs=tuple(Part() if axis is None else Part(RUNS) for axis in axes),
        out_specs=Part() if is_one else Part(RUNS),
        # Nothing is exchanged between runs, and what is exchanged within one comes back alike on
        # all devices; and the check refuses conditionals that return constants in one branch, as
        # the isolation of exact arithmetic does.
        check_vma=False,
    )
    if is_one:
        return whole

    def padded(*args: Any) -> Any:
        num_runs = _num_runs(args, axes)
        assert num_runs is not None
        more = -num_runs % mesh.shape[RUNS]
        if not more:
            return whole(*args)
        place = np.minimum(np.arange(num_runs + more), num_runs - 1)
        filled = [
            arg if axis is None else jax.tree.map(lambda x: jnp.asarray(x)[place], arg)
            for arg, axis in zip(args, axes, strict=True)
        ]
        return jax.tree.map(lambda x: x[:num_runs], whole(*filled))

    return padded


@functools.lru_cache(maxsize=32)  # a jitted function keeps its programs, so the function is kept
def program_of(
    function: Callable[..., Any], axes: tuple[int | None, ...], mesh: Mesh, is_even: bool
) -> Any:
    """Returns `spread(function, axes, mesh)` jitted, for arguments that are `placed` so.

    Args:
      function: as `spread`.
      axes: as `spread`.
      mesh: as `spread`.
      is_even: whether the groups share the runs equally.
    """
    each, same = NamedSharding(mesh, Part(RUNS)), everywhere(mesh)
    is_each = [is_even and axis is not None for axis in axes]
    own_out = each if any(is_each) else None
    return jax.jit(
        spread(function, axes, mesh),
        in_shardings=tuple(each if is_shared else same for is_shared in is_each),
        # A process sees no more of an array than its own devices have.
        out_shardings=same if is_shared_by_processes(mesh) else own_out,
    )


def _devices(devices: Sequence[Any] | None) -> list[Any]:
    """Returns the devices, those that JAX sees if none are given."""
    if devices is None:
        return jax.devices()
    is_several = isinstance(devices, Sequence | np.ndarray) and not isinstance(devices, str)
    if not is_several or not all(isinstance(device, jax.Device) for device in devices):
        raise TypeError(
            f"devices is {devices!r}; give a list of JAX's devices, such as jax.devices()[:2], or "
            "leave it out for all that JAX sees."
        )
    if not len(devices):
        raise ValueError("devices is empty; leave it out for all that JAX sees.")
    return list(devices)


def _num_runs(args: Sequence[Any], axes: tuple[int | None, ...]) -> int | None:
    if len(args) != len(axes):
        raise ValueError(
            f"in_axes has {len(axes)} entries, but the function is called with {len(args)} "
            "arguments; give 0 or None for each."
        )
    numbers = {
        f"argument {i}{jax.tree_util.keystr(path)}": jnp.shape(leaf)[:1]
        for i, (arg, axis) in enumerate(zip(args, axes, strict=True))
        if axis is not None
        for path, leaf in jax.tree_util.tree_leaves_with_path(arg)
    }
    if all(axis is None for axis in axes):
        return None
    if len(set(numbers.values())) != 1 or set(numbers.values()) <= {(), (0,)}:
        listed = ", ".join(f"{name} {list(n)}" for name, n in numbers.items())
        raise ValueError(
            "arguments with in_axes 0 must have one leading axis, the runs, in common: got "
            f"{listed or 'no array'}; give None for those that are the same for all runs."
        )
    return next(iter(numbers.values()))[0]
