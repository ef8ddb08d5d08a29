"""`tune` takes meta-steps on the host: records, figures, stopping, checkpoints.

Each meta-step is one call of a compiled `meta_step`; a length of the runs is compiled once.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import Mesh

from hgrad_jax.hypergradient import Objective
from hgrad_jax.inputs.arguments import taken
from hgrad_jax.inputs.functions import positive_int, require_arrays
from hgrad_jax.many import devices as on
from hgrad_jax.many import processes
from hgrad_jax.many.placement import by_runs, everywhere, is_shared_by_processes, placed, replicated
from hgrad_jax.run import Run, require_run
from hgrad_jax.runs import validate
from hgrad_jax.tools.digest import digest
from hgrad_jax.tools.trees import strong
from hgrad_jax.training.folder import last_checkpoint
from hgrad_jax.training.interruption import interruptible
from hgrad_jax.training.measure import Measure, require_metrics
from hgrad_jax.training.stopping import EarlyStopping
from hgrad_jax.training.store import Store
from hgrad_jax.tuning import checks
from hgrad_jax.tuning.loop import Loop, Tuned
from hgrad_jax.tuning.meta_step import RunHparams, meta_step
from hgrad_jax.tuning.policies import Skip, Stop
from hgrad_jax.tuning.program import Outcome, Program, compiled, outcome
from hgrad_jax.tuning.records import Records
from hgrad_jax.tuning.seeds import RUNS_ROLE, SPLIT_ROLE, meta_step_key
from hgrad_jax.tuning.splits import resplit
from hgrad_jax.types import Array, Data, Hparams, Params


def _how_to_go_on(records: Any = None, **others: Any) -> str:
    if not isinstance(records, Records):
        return (
            "tune was interrupted, and keeps nothing without a folder; pass records=hg.Records("
            "folder), and the same call goes on where it was interrupted."
        )
    done = last_checkpoint(Path(records.checkpoints().folder))
    if done is None:
        return f"tune was interrupted before it had kept anything in {records.folder}; begin anew."
    return (
        f"tune was interrupted; {done} meta-steps are kept in {records.folder}, and the same call "
        "with that folder goes on from there."
    )


@interruptible(_how_to_go_on)
@jax.disable_jit(False)  # which is for what is called: this compiles ahead
def tune(
    objective: Objective,
    run: Run,
    params: Params | Callable[[Array], Params],
    hparams: Hparams,
    data: Data,
    outer_data: Data = None,
    test_data: Data = None,
    *,
    num_meta_steps: int,
    optimizer: optax.GradientTransformation,
    key: Array | None = None,
    num_runs: int = 1,
    fresh_seeds: bool = True,
    fresh_splits: bool = False,
    run_hparams: RunHparams | None = None,
    lengths: Callable[[int], int] | None = None,
    metrics: Callable[..., Mapping[str, Any]] | None = None,
    metrics_args: tuple[Any, ...] = (),
    early_stopping: EarlyStopping | None = None,
    on_bad: Stop | Skip = Stop(),
    records: Records | None = None,
    progress: bool | None = None,
    batch_parts: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Tuned:
    """Tunes hyperparameters by their hypergradients, and records how it went.

    A meta-step is `meta_step`: trainings, the mean hypergradient of their objective, an update. No
    gradient is ever taken of anything that has seen `test_data`: the program that differentiates
    does not get it, and a test example among the others is refused.

    The runs are shared among devices; their hypergradients are gathered before the mean is taken,
    whose order is that of one device. In a program of several processes all of them make the same
    call, each gets the result, and the first one writes the records.

    Args:
      objective: `objective(params, hparams, outer_data) -> scalar` of the trained parameters and of
        the hyperparameters of the run.
      run: as `unroll`; its `hparams_axes` are of the hyperparameters of a run.
      params: initial parameters, or `params(key)`, a function that makes those of a run.
      hparams: what is tuned, a pytree of floating-point arrays.
      data: as `unroll`: the training set.
      outer_data: pytree of arrays for the objective: the validation set.
      test_data: what the metrics are evaluated on besides; None for none.
      num_meta_steps: how many at most, a positive int.
      optimizer: of the hyperparameters, any optax transformation, such as `sign_descent`,
        `nonnegative_adam` or `optax.adam`.
      key: PRNG key; meta-step k uses `fold_in(fold_in(key, role), k)`, with a role for the runs
        and one for the split. None where nothing is random.
      num_runs: how many runs of different seeds are side by side in a meta-step.
      fresh_seeds: whether initial parameters, batches and dropout differ from meta-step to
        meta-step; else all have those of the first.
      fresh_splits: whether each meta-step divides `data` and `outer_data` anew into parts of the
        same sizes (`tuning.splits.resplit`).
      run_hparams: `run_hparams(hparams, num_steps) -> hparams` of a run, differentiable: expands
        windows to schedules, or logarithms to rates. None where a run uses what is tuned.
      lengths: `lengths(meta_step) -> T`, where the runs grow; None for `run.num_steps` in all. Each
        length is compiled once; schedules must then come from `run_hparams`.
      metrics: `metrics(params, data, *metrics_args) -> {name: scalar}`, pure, evaluated on the
        validation and test data as valid_<name> and test_<name>, means over runs; None for none.
      metrics_args: pytrees that `metrics` needs besides.
      early_stopping: which metric decides what is best and when to stop: "value", the objective, or
        one of the validation data; epochs are meta-steps. One of the test data is refused.
      on_bad: `Stop()` or `Skip()`: what happens to a hypergradient that `check` refuses.
      records: where to write records, figures and checkpoints, and to go on from; None for none.
      progress: whether to show a bar on standard error; None for whether that is a terminal.
      batch_parts: how many devices share the batches of a run, where its loss is `data_parallel`;
        None where it is not.
      devices: what the runs are shared among, a multiple of `batch_parts`; None for all that JAX
        sees, in all processes.

    Returns:
      A `Tuned`.

    Raises:
      ValueError, TypeError: on inputs that do not fit together or are not finite, or parts of the
        data that share examples, before any step.
      TuningError: a hypergradient could not be used, as `on_bad` says; the error has the last
        hyperparameters whose could.
      CheckpointError: what is in the folder is damaged, or of another tuning; another process uses
        it; or it cannot be written.
      Interrupted: Ctrl-C or SIGTERM; the meta-step then being taken is finished and kept. A second
        one ends at once.

    Example:
      A learning rate for each of three windows of a training that grows:

      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return jnp.mean((batch[0] @ params - batch[1]) ** 2)
      >>> x = jax.random.normal(jax.random.key(0), (60, 4))
      >>> y = x @ jnp.arange(4.0)
      >>> def run_hparams(hparams, num_steps):
      ...     rate = hg.hyper.over_windows(jnp.exp(hparams["log_rate"]), num_steps)
      ...     return {"learning_rate": rate, "momentum": jnp.float32(0.75)}
      >>> axes = {"learning_rate": 0, "momentum": None}
      >>> run = hg.Run(hg.heavy_ball(loss), num_steps=10, hparams_axes=axes)
      >>> out = hg.tune(
      ...     lambda params, hparams, valid: loss(params, hparams, valid, None),
      ...     run, lambda key: jax.random.normal(key, (4,)), {"log_rate": jnp.full(3, -4.0)},
      ...     (x[:30], y[:30]), (x[30:], y[30:]), num_meta_steps=8, num_runs=2,
      ...     lengths=lambda meta_step: 5 if meta_step < 4 else 10, run_hparams=run_hparams,
      ...     optimizer=hg.sign_descent(0.2), key=jax.random.key(1),
      ... )
      >>> out.history.value.shape, bool(out.history.value[-1].mean() < out.history.value[0].mean())
      ((8, 2), True)
    """
    given = (params, hparams, data, outer_data, test_data, key, metrics_args)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(given)):
        raise TypeError("tune cannot run inside jit, grad or vmap; hg.meta_steps is for that.")
    num_meta_steps = positive_int("num_meta_steps", num_meta_steps)
    num_runs = positive_int("num_runs", num_runs)
    fresh_seeds, fresh_splits, progress, key = taken(
        fresh_seeds=fresh_seeds, fresh_splits=fresh_splits, progress=progress, key=key
    )
    checks.require_choices(optimizer, on_bad, records)
    require_metrics(metrics, metrics_args)
    require_run(run)
    checks.require_key(key, params, num_runs, fresh_splits)
    for name, part in (("data", data), ("outer_data", outer_data), ("test_data", test_data)):
        require_arrays(part, name)
    # Here once for all meta-steps; of strong types, as a compiled step returns them.
    given = jax.tree.map(jnp.asarray, (data, outer_data, test_data, metrics_args))
    data, outer_data, test_data, metrics_args = given
    checks.require_data(data, outer_data, test_data, metrics, fresh_splits)
    hparams = strong(validate.floating(hparams, "hparams"))
    checks.require_tuned(hparams)
    checks.require_finite_start(hparams, "hparams")
    all_lengths = checks.lengths_of(run, lengths, num_meta_steps, hparams, run_hparams)
    opt_state = strong(optimizer.init(hparams))
    start = None if callable(params) else validate.floating(params, "params")
    checks.require_finite_start(start, "params")
    mesh = on.mesh_of(num_runs, devices, 1 if batch_parts is None else batch_parts)
    if mesh.size == 1 and devices is None and batch_parts is None:
        mesh = None  # as JAX places it
    here = (lambda tree: tree) if mesh is None else functools.partial(placed, mesh=mesh)
    given = (hparams, opt_state, start, data, outer_data, test_data, metrics_args)
    hparams, opt_state, start, data, outer_data, test_data, metrics_args = here(given)

    def parts(k: int) -> tuple[Data, Data]:
        if not fresh_splits:
            return data, outer_data
        return _resplit(data, outer_data, here(meta_step_key(key, SPLIT_ROLE, k)))

    def run_key(k: int) -> Array | None:
        return here(meta_step_key(key, RUNS_ROLE, k if fresh_seeds else 0))

    def one(length, hparams, opt_state, start, data, outer_data, key):
        step = meta_step(
            objective,
            dataclasses.replace(run, num_steps=length),
            params if start is None else start,
            hparams,
            data,
            outer_data,
            optimizer=optimizer,
            opt_state=opt_state,
            key=key,
            num_runs=num_runs,
            run_hparams=run_hparams,
            batch_parts=batch_parts,
            devices=None if mesh is None else list(mesh.devices.flat),
        )
        checks.require_stable((hparams, opt_state), (step.hparams, step.opt_state))
        return outcome(step, hparams, opt_state, has_params=metrics is not None)

    @functools.cache
    def lowered(length):
        args = (hparams, opt_state, start, data, outer_data, run_key(0))
        return _jitted(functools.partial(one, length), mesh, num_runs).lower(*args)

    first = lowered(all_lengths[0])
    if run.hparams_axes is None:
        # A later length at which `unroll` would refuse a constant of as many rows is traced now.
        rows = {jnp.shape(x)[0] for x in jax.tree.leaves(hparams) if jnp.ndim(x)}
        for length in rows.intersection(all_lengths[1:]).difference(all_lengths[:1]):
            lowered(length)
    after = first.out_info

    @functools.cache
    def program(length: int) -> Program:
        return compiled(lowered(length))

    measured = {"valid": outer_data, "test": test_data} if metrics is not None else {}
    measure = Measure(
        metrics and jax.jit(_mean_over_runs(metrics, mesh)),
        {name: part for name, part in measured.items() if part is not None},
        metrics_args,
    )
    names = measure.names(after.params)
    checks.require_early_stopping(early_stopping, names)
    loop = Loop(
        all_lengths, program, parts, run_key, start, measure, names, early_stopping, on_bad, mesh
    )
    is_shared = mesh is not None and is_shared_by_processes(mesh)
    if records is None and not is_shared:
        return loop.to_the_end(hparams, opt_state, None, None, progress)
    fingerprint = {
        "hparams": digest(hparams),
        "optimizer": digest(opt_state),
        "params": digest(start),
        "key": digest(key),
        "data": digest(data),
        "outer_data": digest(outer_data),
        "test_data": digest(test_data),
        "metrics' data": digest(metrics_args),
        "num_runs": str(num_runs),
        "fresh_seeds": str(bool(fresh_seeds)),
        "fresh_splits": str(bool(fresh_splits)),
        "the format of checkpoints": "3",
        "early_stopping": str(early_stopping),
        "on_bad": str(on_bad),
        "program (objective, run, loss, optimizer, JAX's version)": (_hash(first)),
        "metrics": ", ".join(names) + " ".join(map(_hash, measure.lowered(after.params))),
    }
    if mesh is not None:
        fingerprint["devices"] = str(mesh.devices.shape)
    if records is None:
        processes.require_same(fingerprint)
        return loop.to_the_end(hparams, opt_state, None, None, progress)
    with Store(records.checkpoints(), fingerprint, is_shared) as store:
        return loop.to_the_end(hparams, opt_state, store, records, progress)


_resplit = jax.jit(resplit)


def _jitted(function: Callable[..., Outcome], mesh: Mesh | None, num_runs: int) -> Any:
    """Returns a meta-step jitted; what it takes and returns is whole on every device."""
    if mesh is None:
        return jax.jit(function)
    same = everywhere(mesh)
    shardings: Any = [same] * len(Outcome._fields)
    out = Outcome(*shardings)._replace(params=by_runs(mesh, num_runs))
    return jax.jit(function, in_shardings=same, out_shardings=out)


def _mean_over_runs(
    metrics: Callable[..., Mapping[str, Any]], mesh: Mesh | None
) -> Callable[..., Any]:
    def mean(params: Params, data: Data, *args: Any) -> Any:
        axes = (0, *[None] * (1 + len(args)))
        if mesh is None:
            found = jax.vmap(metrics, in_axes=axes)(params, data, *args)
        else:
            found = replicated(on.spread(metrics, axes, mesh)(params, data, *args), mesh)
        means = jax.tree.map(lambda x: jnp.mean(x, axis=0), found)
        return means if mesh is None else replicated(means, mesh)

    return mean


def _hash(lowered: Any) -> str:
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()
