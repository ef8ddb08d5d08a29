"""`sweep`: settings x seeds as one compiled program, side by side.

Every run is the same pure function; `jax.vmap` puts runs beside each other on a device, and the
devices share them (`hgrad_jax.many.devices`). Small networks gain from it: one matrix product in
place of a hundred. Large ones keep a core busy by themselves, and gain from a device for each core:
`jax.config.update("jax_num_cpu_devices", os.cpu_count())` before JAX computes anything. In a
processor's cache few runs may be faster than many: try a smaller `memory`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hgrad_jax.inputs.functions import (
    is_number,
    require_arrays,
    require_function,
    require_hashable,
    traced,
)
from hgrad_jax.many.devices import RUNS, mesh_of, program_of
from hgrad_jax.many.placement import is_shared_by_processes, placed
from hgrad_jax.training.interruption import interruptible
from hgrad_jax.training.sweep_chunks import chunk_size
from hgrad_jax.training.sweep_result import Sweep
from hgrad_jax.types import Array, Data, Hparams

Run = Callable[[Hparams, Any, Data], Any]
"""`run(hparams, key, data) -> pytree of arrays`, pure."""

AXES = (0, 0, None)


def _what_is_kept(**settings: Any) -> str:
    return (
        "sweep was interrupted, and keeps nothing before it returns; call it with a part of the "
        "settings at a time, and keep what each call returns."
    )


@interruptible(_what_is_kept)
def sweep(
    run: Run,
    settings: Sequence[Hparams],
    data: Data = None,
    *,
    keys: Array | None = None,
    memory: float | None = None,
    batch_parts: int = 1,
    devices: Sequence[Any] | None = None,
) -> Sweep:
    """Runs every setting with every key in one compiled call, or in equal ones that fit the memory.

    Compiled once for a `run` (the same function object), a number of settings and keys, and shapes:
    other values of the same settings compile nothing. A run that fails is NaN by itself. The
    results equal those of `run` called by itself up to rounding, which a training that diverges
    makes larger.

    Args:
      run: `run(hparams, key, data) -> pytree of arrays`, pure: usually `unroll`, or
        `value_and_hypergradient`, and what is measured at its end.
      settings: the hyperparameters of each setting, trees of one structure and of the same shapes:
        `hg.grid(...)`, or a list. Among integers and floats for one hyperparameter all become
        floats.
      data: pytree of arrays, the same for all runs.
      keys: PRNG keys [seeds], as from `jax.random.split`; all settings get the same ones. None for
        one run a setting, whose key is None.
      memory: bytes that a call may hold on each device besides its inputs, as the compiler counts;
        None for all runs in one call. Finding how many runs fit takes two or three compilations,
        the first time.
      batch_parts: how many devices share the batches of a run, through `data_parallel` losses.
      devices: what the runs are shared among; None for all that JAX sees, in all processes.

    Returns:
      The Sweep: results [settings, seeds, *shape], on the host.

    Raises:
      TypeError: `run` is no function or cannot be hashed, a setting holds something other than
        numbers, `keys` are no keys or `devices` no devices, `run` needs a key or returns no real
        numbers, or the call is traced.
      ValueError: there are no settings, no keys, no devices or no results; settings differ in
        structure or shapes; `memory` is not positive, holds not even one run, or cannot be told by
        the backend.
      Interrupted: Ctrl-C or SIGTERM; nothing is kept.

    Example:
      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.heavy_ball(lambda params, hparams, batch, key: jnp.sum(jnp.cosh(params)))
      >>> def run(hparams, key, data):
      ...     start = jax.random.normal(key, (3,))
      ...     end = hg.unroll(hg.Run(rule, num_steps=10), start, hparams, data).params
      ...     return {"distance": jnp.max(jnp.abs(end))}
      >>> settings = hg.grid({"learning_rate": [0.1, 0.3], "momentum": [0.0, 0.5]})
      >>> found = hg.sweep(run, settings, keys=jax.random.split(jax.random.key(0), 5))
      >>> found.results["distance"].shape, found.best("distance").setting["learning_rate"]
      ((4, 5), 0.3)
    """
    if not callable(run):
        raise TypeError(f"run is {run!r}; it must be a function run(hparams, key, data).")
    call = "run(hparams, key, data)"
    require_function(run, call, "a pure function of one run that returns a pytree of arrays")
    require_hashable(run, "run")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((settings, data, keys))):
        raise TypeError("sweep compiles by itself and cannot run inside jit, grad or vmap.")
    stacked = _stacked(settings)
    require_arrays(data, "data")
    num_seeds = _num_keys(keys)
    if memory is not None and (not is_number(memory) or not memory > 0):
        raise ValueError(f"memory is {memory!r}; it must be a positive number of bytes, or None.")

    num_runs = len(settings) * num_seeds
    mesh = mesh_of(num_runs, devices, batch_parts)
    program = program_of(run, AXES, mesh, is_even=True)
    data = placed(data, mesh)

    def arguments(first, size):
        # The last call repeats the last run, so that all calls have the size that is compiled.
        place = np.minimum(np.arange(first, first + size), num_runs - 1)
        hparams = jax.tree.map(lambda x: x[place // num_seeds], stacked)
        args = hparams, None if keys is None else keys[place % num_seeds], data
        # Of one process alone, jit places them.
        return placed(args, mesh, AXES) if is_shared_by_processes(mesh) else args

    try:
        # The size that will be called, if it is known, so that nothing is traced twice.
        groups = mesh.shape[RUNS]
        size = groups if memory is not None else -(-num_runs // groups) * groups
        with traced("run"):
            made = jax.eval_shape(program, *arguments(0, size))
    except TypeError as error:
        if keys is None and "PRNG key" in str(error):
            raise TypeError(
                "keys is None, so that run's key is None, but run draws by it; pass keys="
                "jax.random.split(jax.random.key(0), num_seeds)."
            ) from error
        raise
    _require_results(made)

    def bytes_of(size):
        leaves, treedef = jax.tree.flatten(jax.eval_shape(lambda *args: args, *arguments(0, size)))
        return _bytes_of_call(program, treedef, tuple(leaves))

    size = chunk_size(bytes_of, num_runs=num_runs, num_devices=mesh.shape[RUNS], memory=memory)
    parts = [jax.device_get(program(*arguments(first, size))) for first in range(0, num_runs, size)]

    def joined(*leaves):
        whole = np.concatenate(leaves)[:num_runs]
        return whole.reshape(len(settings), num_seeds, *whole.shape[1:])

    return Sweep(tuple(settings), jax.tree.map(joined, *parts), size, mesh.size)


@functools.lru_cache(maxsize=128)  # lowering again takes longer than many a sweep
def _bytes_of_call(program: Any, treedef: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> int:
    """Returns what a call with such arguments holds on each device besides them."""
    lowered = program.lower(*jax.tree.unflatten(treedef, leaves))
    analysis = lowered.compile().memory_analysis()
    if analysis is None:
        raise ValueError(
            "memory is given, but this backend does not tell what a program takes; leave it out, "
            "or sweep parts of the settings."
        )
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def _require_results(made: Any) -> None:
    """Raises if a run returns something else than real numbers and truth values."""
    if not jax.tree.leaves(made):
        raise ValueError("run returned no array; return what is to be compared, such as a loss.")
    for path, leaf in jax.tree_util.tree_leaves_with_path(made):
        if not (jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool) or jnp.issubdtype(
            leaf.dtype, jnp.complexfloating
        ):
            raise TypeError(
                f"run returned {leaf.dtype} at {jax.tree_util.keystr(path) or 'its root'}; return "
                "real numbers, of a complex one its parts, of a key jax.random.key_data."
            )


def _stacked(settings: Sequence[Hparams]) -> Any:
    """Returns the settings as one tree of arrays [settings, *shape]."""
    is_text = isinstance(settings, str | bytes)
    if is_text or isinstance(settings, Mapping) or not isinstance(settings, Sequence):
        raise TypeError(
            f"settings is {type(settings).__name__}; give a list of hyperparameters, or hg.grid("
            "settings) if it maps names to values."
        )
    if not settings:
        raise ValueError("settings is empty; a sweep needs at least one setting.")
    first = jax.tree.structure(settings[0])
    if not first.num_leaves:
        raise ValueError("settings[0] is an empty tree; a setting holds hyperparameters.")
    arrays = [jax.tree_util.tree_map_with_path(_number, s) for s in settings]
    for i, tree in enumerate(arrays):
        if jax.tree.structure(tree) != first:
            raise ValueError(
                f"settings[{i}] has structure {jax.tree.structure(tree)}, but settings[0] has "
                f"{first}; all must be alike."
            )
        for (path, leaf), other in zip(
            jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(arrays[0]), strict=True
        ):
            if leaf.shape != other.shape:
                raise ValueError(
                    f"settings[{i}]{jax.tree_util.keystr(path)} has shape {leaf.shape}, but "
                    f"settings[0] has {other.shape} there; all must be alike."
                )
    # Kept on the host, where a call's part is taken; but in the precision of the device.
    return jax.tree.map(lambda *leaves: np.asarray(jnp.asarray(np.stack(leaves))), *arrays)


def _number(path: Any, leaf: Any) -> np.ndarray:
    array = None if isinstance(leaf, str | bytes) else np.asarray(leaf)
    if array is None or not jnp.issubdtype(array.dtype, jnp.number):
        raise TypeError(
            f"a setting has {leaf!r} at {jax.tree_util.keystr(path) or 'its root'}, which is no "
            "number; bind such choices into run."
        )
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if np.issubdtype(array.dtype, np.integer) and (array.astype(dtype) != array).any():
        raise ValueError(
            f"a setting has {leaf!r} at {jax.tree_util.keystr(path) or 'its root'}, beyond the "
            f"range of {dtype}; write smaller integers, or enable jax_enable_x64."
        )
    return array


def _num_keys(keys: Any) -> int:
    """Returns the number of seeds."""
    if keys is None:
        return 1
    dtype = getattr(keys, "dtype", None)
    is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not is_typed and dtype != np.uint32:  # raw keys are uint32 [seeds, words]
        raise TypeError(
            f"keys is {keys!r}, no PRNG keys; give jax.random.split(jax.random.key(0), num_seeds)."
        )
    if keys.ndim != (1 if is_typed else 2):
        raise ValueError(
            f"keys has shape {keys.shape}; it must be one axis of keys, as "
            "jax.random.split(key, num_seeds) returns it."
        )
    if not len(keys):
        raise ValueError("keys is empty; give at least one, or None for a run without a key.")
    return len(keys)
