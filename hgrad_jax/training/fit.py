"""`fit` trains for epochs, on the host: metrics, stopping, a progress bar, checkpoints.

Each epoch is one call of one compiled scan. `unroll` is the same training as one program, to be
differentiated.
"""

import functools
import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hgrad_jax import validate
from hgrad_jax.adjoints.direct import Direct
from hgrad_jax.data.dataset import num_examples
from hgrad_jax.data.examples import validate_finite
from hgrad_jax.training import stopping
from hgrad_jax.training.checkpoints import Checkpoints, Snapshot, Store, digest
from hgrad_jax.training.epoch import EpochEnd, EpochHparams, in_epoch, recording, run_epoch, start
from hgrad_jax.training.history import SECONDS, History, Rows
from hgrad_jax.training.progress import progress_bar
from hgrad_jax.training.stopping import Best, EarlyStopping, Target
from hgrad_jax.trajectory import Inputs, Trajectory, inputs
from hgrad_jax.types import BatchFn, Data, Hparams, Loss, Params, RunInfo, State, Transition

Metrics = Callable[..., Mapping[str, Any]]
"""`metrics(params, data, *metrics_args) -> {name: scalar}`, pure."""


class Fit(NamedTuple):
    """The end of a training.

    Attributes:
      params: after the last epoch that was all finite.
      state: the rule's state then.
      best: the best parameters, by `early_stopping`; None without it.
      history: metrics and losses on the way.
      reason: why training ended, in a few words.
      info: whether the training stayed finite; `check(out.info)` raises if it did not.
      resumed_at: the epoch of the checkpoint that this call went on from; None if it began anew.
    """

    params: Params
    state: State
    best: Best | None
    history: History
    reason: str
    info: RunInfo
    resumed_at: int | None


def fit(
    transition: Transition,
    params: Params,
    hparams: Hparams,
    train: Data,
    valid: Data = None,
    *,
    num_epochs: int,
    steps_per_epoch: int | None = None,
    key: jax.Array | None = None,
    batch_fn: BatchFn | None = None,
    hparams_axes: Any = None,
    epoch_hparams: EpochHparams | None = None,
    loss: Loss | None = None,
    metrics: Metrics | None = None,
    metrics_args: tuple[Any, ...] = (),
    train_sample: Data = None,
    early_stopping: EarlyStopping | None = None,
    target: Target | None = None,
    checkpoints: Checkpoints | None = None,
    progress: bool | None = None,
) -> Fit:
    """Trains for some epochs, and records how it went.

    The steps are those of `unroll` with `num_steps` the product of epochs and steps, and the same
    keys. An epoch is compiled once. The state before an epoch is kept until its end, so that a
    training that becomes infinite or NaN still returns the last good one: two states of memory.

    Args:
      transition: any rule.
      params: initial parameters, a pytree of floating-point arrays.
      hparams: hyperparameters, a pytree of floating-point arrays.
      train: pytree of arrays that batches are made from.
      valid: what the metrics are evaluated on besides; None for the training data alone.
      num_epochs: how many epochs at most, a positive int.
      steps_per_epoch: an epoch's length, after which metrics are evaluated; any positive int. None
        for as many steps as `train` has whole batches of `batch_fn`, and 1 where that has no
        `batch_size`.
      key: as `unroll`.
      batch_fn: as `unroll`.
      hparams_axes: as `unroll`; a schedule has one value for each step of all epochs.
      epoch_hparams: `epoch_hparams(hparams, epoch) -> hparams`, pure: what the steps of an epoch,
        an int32 scalar counted from 0, use in place of what is given. For decay per epoch.
      loss: the loss that the rule was made with, to record it for every step's batch, which costs
        next to nothing without dropout and part of a forward pass with it; None not to.
      metrics: `metrics(params, data, *metrics_args) -> {name: scalar}`, pure, evaluated before
        training and after each epoch as train_<name> and valid_<name>; None for none. They must
        stay finite.
      metrics_args: pytrees that `metrics` needs besides, such as the training inputs for batch
        normalization.
      train_sample: what the training metrics are evaluated on; None for all of `train`.
      early_stopping: which metric decides what is best and when to stop.
      target: which metric stops the training when it is good enough.
      checkpoints: where to write them, and to go on from the last one; None for none.
      progress: whether to show a bar on standard error; None for whether that is a terminal.

    Returns:
      A `Fit`. A training that became infinite or NaN ends early, and `info` tells.

    Raises:
      ValueError, TypeError: on inputs that do not fit together or are not finite, before any step.
      CheckpointError: the last checkpoint is damaged, or of another run.

    Example:
      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> from hgrad_jax.data import load, shuffled
      >>> from hgrad_jax.models import MLP, classification_loss, classification_metrics
      >>> train, test = load("digits")
      >>> model = MLP((20, 10))
      >>> params = model.init(jax.random.key(0), train.inputs[:1], train=False)["params"]
      >>> loss = classification_loss(model)
      >>> out = hg.fit(
      ...     hg.adam(loss), params, {"learning_rate": 1e-2}, train, test, num_epochs=3,
      ...     batch_fn=shuffled(100, seed=0), loss=loss, metrics=classification_metrics(model),
      ...     epoch_hparams=lambda h, epoch: {"learning_rate": h["learning_rate"] * 0.9**epoch},
      ... )
      >>> out.history.step_loss.shape, bool(out.history.metrics["valid_accuracy"][-1] > 0.8)
      ((42,), True)
    """
    _refuse_traced(params, hparams, train, valid, metrics_args, train_sample, key)
    if num_epochs is True or not isinstance(num_epochs, int) or num_epochs < 1:
        raise ValueError(f"num_epochs is {num_epochs!r}; it must be a positive int.")
    validate.adjoint_serves(Direct(), transition)
    _refuse_data(train, valid, train_sample, metrics)
    length = _length_of_epoch(steps_per_epoch, train, batch_fn)

    if num_epochs * length >= 2**31:
        raise ValueError(f"num_epochs * steps_per_epoch is {num_epochs * length}, not below 2**31.")

    is_schedule = validate.schedules(hparams, hparams_axes, num_epochs * length)
    trajectory = Trajectory(
        transition if loss is None else recording(transition, loss),
        length,
        batch_fn,
        is_schedule,
        jax.tree.structure(hparams),
        None if loss is None else lambda state, data: state.loss,
    )
    params = validate.floating(params, "params")
    hparams = validate.floating(hparams, "hparams")
    # Here once for all epochs, and once on the device where the same data serve twice.
    train, valid, train_sample, metrics_args = jax.tree.map(
        jnp.asarray, (train, valid, train_sample, metrics_args)
    )
    parts = {"train": train if train_sample is None else train_sample, "valid": valid}
    parts = {name: data for name, data in parts.items() if metrics and data is not None}
    given = inputs(trajectory, hparams, train, key)
    first = in_epoch(trajectory, epoch_hparams, jnp.int32(0))
    validate.step(first, params, given)
    measure = _Measure(metrics and jax.jit(metrics), parts, metrics_args)
    names = measure.names(params)
    stopping.validate(early_stopping, "early_stopping", EarlyStopping, names)
    stopping.validate(target, "target", Target, names)

    state = jax.jit(functools.partial(start, first))(params, given)
    lowered = jax.jit(functools.partial(run_epoch, trajectory, epoch_hparams)).lower(
        state, given, jnp.int32(0)
    )
    run = _Run(trajectory, given, lowered.compile(), measure, num_epochs, early_stopping, target)
    if checkpoints is None:
        return run.to_the_end(state, None, progress)
    fingerprint = {
        "params": digest(params),
        "hparams": digest((given.constants, given.schedules)),
        "key": digest(key),
        "train": digest(train),
        "metrics' data": digest((parts, metrics_args)),
        "steps_per_epoch": str(length),
        "early_stopping": str(early_stopping),
        "target": str(target),
        "program (the rule, its loss, batch_fn, epoch_hparams, or JAX's version)": _hash(lowered),
        "metrics": ", ".join(names) + " ".join(map(_hash, measure.lowered(params))),
    }
    with Store(checkpoints, fingerprint) as store:
        return run.to_the_end(state, store, progress)


class _Measure(NamedTuple):
    """Evaluates metrics on the parts of the data.

    Attributes:
      metrics: as `fit`.
      parts: data by their name.
      args: `metrics_args`.
    """

    metrics: Any
    parts: dict[str, Data]
    args: tuple[Any, ...]

    def names(self, params: Params) -> list[str]:
        """Returns what is evaluated, and raises if it is not scalars by name."""
        names = []
        for part, data in self.parts.items():
            found = jax.eval_shape(self.metrics, params, data, *self.args)
            if not isinstance(found, Mapping) or any(
                getattr(x, "shape", None) != () for x in found.values()
            ):
                raise ValueError(
                    f"metrics returned {found!r}; it must return a dict of scalars by name."
                )
            names += [f"{part}_{name}" for name in found]
        return names

    def __call__(self, params: Params) -> dict[str, float]:
        """Returns the metrics of all parts."""
        found = {part: self.metrics(params, x, *self.args) for part, x in self.parts.items()}
        return {
            f"{part}_{name}": float(value)
            for part, values in jax.device_get(found).items()
            for name, value in values.items()
        }

    def lowered(self, params: Params) -> list[Any]:
        """Returns the programs."""
        return [self.metrics.lower(params, x, *self.args) for x in self.parts.values()]


class _Run(NamedTuple):
    """A training that is ready to go.

    Attributes:
      trajectory: of an epoch.
      given: of the whole run.
      run_epoch: the compiled `epoch.run_epoch`.
      measure: evaluates the metrics.
      num_epochs, early_stopping, target: as `fit`.
    """

    trajectory: Trajectory
    given: Inputs
    run_epoch: Callable[[State, Inputs, Any], EpochEnd]
    measure: _Measure
    num_epochs: int
    early_stopping: EarlyStopping | None
    target: Target | None

    def to_the_end(self, state: State, store: Store | None, progress: bool | None) -> Fit:
        """Runs the epochs that are left, from a checkpoint if there is one."""
        params_of, length = self.trajectory.transition.params, self.trajectory.num_steps
        saved = None if store is None else store.read(state, params_of(state))
        if saved is None:
            rows, best = Rows({}, []), params_of(state)
            rows.add(_finite_at_start(self.measure(params_of(state))), 0.0)
        else:
            state, best, rows = saved.state, saved.best, Rows(saved.metrics, saved.step_loss)
        begun = time.perf_counter() - rows.metrics[SECONDS][-1]
        epoch = resumed_at = rows.epoch
        if epoch > self.num_epochs:
            raise ValueError(
                f"num_epochs is {self.num_epochs}, but the run in the folder of checkpoints has "
                f"done {epoch} already; ask for at least as many, or name another folder."
            )

        damaged_at = length * self.num_epochs
        with progress_bar(progress, self.num_epochs, epoch) as update:
            while (reason := self._reason(rows)) is None:
                epoch_begun = time.perf_counter()
                end = self.run_epoch(state, self.given, np.int32(epoch))
                step_loss = None if end.step_loss is None else np.asarray(end.step_loss)
                is_finite = bool(end.is_finite)
                if step_loss is not None:
                    rows.step_loss.append(step_loss)
                found = self.measure(params_of(end.state)) if is_finite else {}
                if not (is_finite and np.isfinite(list(found.values())).all()):
                    reason, damaged_at = _broken(epoch, length, step_loss, found)
                    break
                state, epoch = end.state, epoch + 1
                now = time.perf_counter()
                rows.add(found, now - begun)
                if self._best_epoch(rows) == epoch:
                    best = params_of(state)
                update(found, length / (now - epoch_begun))
                if store is not None and (epoch % store.every == 0 or self._reason(rows)):
                    is_kept = self.early_stopping is not None
                    store.write(epoch, Snapshot(state, best if is_kept else None, *rows))

        best_epoch = self._best_epoch(rows)
        return Fit(
            params_of(state),
            state if self.trajectory.record is None else state.state,
            None
            if best_epoch is None or self.early_stopping is None
            else Best(best, best_epoch, rows.metrics[self.early_stopping.metric][best_epoch]),
            rows.history(length),
            reason,
            _info(damaged_at, length * self.num_epochs),
            None if saved is None else resumed_at,
        )

    def _reason(self, rows: Rows) -> str | None:
        return stopping.reason_to_stop(
            rows.metrics, rows.epoch, self.num_epochs, self.early_stopping, self.target
        )

    def _best_epoch(self, rows: Rows) -> int | None:
        if self.early_stopping is None:
            return None
        return self.early_stopping.best_epoch(rows.metrics[self.early_stopping.metric])


def _refuse_traced(*trees: Any) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees)):
        raise TypeError("fit cannot run inside jit, grad or vmap; hg.unroll is for that.")


def _refuse_data(train: Data, valid: Data, train_sample: Data, metrics: Any) -> None:
    for name, data in (("train", train), ("valid", valid), ("train_sample", train_sample)):
        validate_finite(data, name)
        if metrics is None and data is not None and name != "train":
            raise ValueError(
                f"{name} is given, but metrics is None, and nothing would look at it; pass "
                "metrics= (hgrad_jax.models.classification_metrics(model) makes some)."
            )


def _length_of_epoch(steps_per_epoch: Any, train: Data, batch_fn: Any) -> int:
    if steps_per_epoch is None:
        size = getattr(batch_fn, "batch_size", None)
        # A batch larger than the data is refused by the batch function, in its own words.
        return 1 if size is None else max(num_examples(train) // size, 1)
    is_int = isinstance(steps_per_epoch, int) and not isinstance(steps_per_epoch, bool)
    if not is_int or steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch is {steps_per_epoch!r}; it must be a positive int.")
    return steps_per_epoch


def _finite_at_start(metrics: dict[str, float]) -> dict[str, float]:
    for name, value in metrics.items():
        if not np.isfinite(value):
            raise ValueError(
                f"{name} is {value} at the initial parameters; look for labels that are no class "
                "(hgrad_jax.data.validate_examples finds them) and for parameters that are not "
                "finite or too large."
            )
    return metrics


def _broken(
    epoch: int, length: int, step_loss: np.ndarray | None, metrics: dict[str, float]
) -> tuple[str, int]:
    """Returns why training ends, and at which step it broke, -1 if that is not known."""
    kept = f"the state after epoch {epoch} is kept"
    for name, value in metrics.items():
        if not np.isfinite(value):
            return f"{name} became {value} in epoch {epoch + 1}; {kept}", -1
    if step_loss is None or np.isfinite(step_loss).all():
        return f"the training became infinite or NaN in epoch {epoch + 1}; {kept}", -1
    step = epoch * length + int(np.argmin(np.isfinite(step_loss)))
    return f"the loss became {step_loss[step % length]} at step {step}; {kept}", step


def _info(damaged_at: int, num_steps: int) -> RunInfo:
    no = jnp.zeros((), bool)
    is_damaged = jnp.asarray(damaged_at != num_steps)
    return RunInfo(no, is_damaged, jnp.int32(damaged_at), no, no, {}, {})


def _hash(lowered: Any) -> str:
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()
