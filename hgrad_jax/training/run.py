"""The epochs of a training, one after another, on the host."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from hgrad_jax.check import checkable
from hgrad_jax.runs.trajectory import Inputs, Trajectory
from hgrad_jax.show.progress import caption, progress_bar
from hgrad_jax.training import stopping
from hgrad_jax.training.epoch import EpochEnd
from hgrad_jax.training.history import SECONDS, History, Rows
from hgrad_jax.training.interruption import a_step
from hgrad_jax.training.measure import Measure, finite_at_start
from hgrad_jax.training.snapshot import Snapshot
from hgrad_jax.training.stopping import Best, EarlyStopping, Target
from hgrad_jax.training.store import Store
from hgrad_jax.types import Params, RunInfo, State


@checkable()
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


class Run(NamedTuple):
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
    measure: Measure
    num_epochs: int
    early_stopping: EarlyStopping | None
    target: Target | None

    def to_the_end(self, state: State, store: Store | None, progress: bool | None) -> Fit:
        """Runs the epochs that are left, from a checkpoint if there is one."""
        params_of, length = self.trajectory.transition.params, self.trajectory.num_steps
        saved = None if store is None else store.read(state, params_of(state))
        if saved is None:
            rows, best = Rows({}, []), params_of(state)
            rows.add(finite_at_start(self.measure(params_of(state))), 0.0)
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
        with progress_bar(progress, "epoch", self.num_epochs, epoch) as update:
            while (reason := self._reason(rows)) is None:
                with a_step() as is_last:
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
                    update(caption(found, length / (now - epoch_begun)))
                    if store is not None and (
                        epoch % store.every == 0 or is_last() or self._reason(rows)
                    ):
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


def _broken(
    epoch: int, length: int, step_loss: np.ndarray | None, metrics: dict[str, float]
) -> tuple[str, int]:
    """Returns why training ends, and at which step it broke, -1 if that is not known."""
    kept = f"the state after epoch {epoch} is kept"
    for name, value in metrics.items():
        if not np.isfinite(value):
            return f"{name} became {value} in epoch {epoch + 1}; {kept}", -1
    if step_loss is None or np.isfinite(step_loss).all():
        why = "a learning rate too large, or a label that is no class"
        return f"the training became infinite or NaN in epoch {epoch + 1} ({why}); {kept}", -1
    step = epoch * length + int(np.argmin(np.isfinite(step_loss)))
    return f"the loss became {step_loss[step % length]} at step {step}; {kept}", step


def _info(damaged_at: int, num_steps: int) -> RunInfo:
    no = jnp.zeros((), bool)
    is_damaged = jnp.asarray(damaged_at != num_steps)
    return RunInfo(no, is_damaged, jnp.int32(damaged_at), no, no, {}, {})
