"""The meta-steps of a tuning, one after another, on the host."""

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from hgrad_jax.check import HypergradientError, check
from hgrad_jax.inputs.functions import is_more_better
from hgrad_jax.many import placement, processes
from hgrad_jax.show.progress import progress_bar
from hgrad_jax.tools.files import write_figures
from hgrad_jax.training.folder import CheckpointError
from hgrad_jax.training.interruption import a_step
from hgrad_jax.training.measure import Measure
from hgrad_jax.training.snapshot import Snapshot
from hgrad_jax.training.stopping import EarlyStopping
from hgrad_jax.training.store import Store
from hgrad_jax.tuning.checks import VALUE
from hgrad_jax.tuning.history import Rows
from hgrad_jax.tuning.line import line_of
from hgrad_jax.tuning.policies import Skip, Stop
from hgrad_jax.tuning.program import Outcome, Program
from hgrad_jax.tuning.records import Lines, Records
from hgrad_jax.tuning.result import BestHparams, Tuned, TuningError
from hgrad_jax.types import BackwardInfo, Data, Hparams, Params


class Loop(NamedTuple):
    """A tuning that is ready to go.

    Attributes:
      lengths: of the runs in each meta-step.
      program: `program(length)`, compiled at its first call.
      parts: `parts(k) -> (train, valid)` of a meta-step.
      key: `key(k)`, from which a meta-step has all randomness; or None.
      params: initial parameters, where they are the same for all runs.
      measure: evaluates the metrics, their means over runs.
      metrics: the names.
      early_stopping: as `tune`.
      on_bad: as `tune`.
      mesh: of the devices, each of which has hyperparameters and data whole; None where JAX places
        them.
    """

    lengths: list[int]
    program: Callable[[int], Program]
    parts: Callable[[int], tuple[Data, Data]]
    key: Callable[[int], Any]
    params: Params | None
    measure: Measure
    metrics: list[str]
    early_stopping: EarlyStopping | None
    on_bad: Stop | Skip
    mesh: Mesh | None

    def to_the_end(
        self,
        hparams: Hparams,
        opt_state: Any,
        store: Store | None,
        records: Records | None,
        progress: bool | None,
    ) -> Tuned:
        """Takes the meta-steps that are left, from a checkpoint if there is one."""
        rows, best, resumed_at = Rows({}, []), hparams, None
        usable, is_any_usable = hparams, False
        saved = None if store is None else store.read((hparams, opt_state, usable), hparams)
        if saved is not None:
            hparams, opt_state, usable = saved.state
            is_any_usable = not all(saved.metrics["is_bad"])
            rows = Rows(saved.metrics, saved.step_loss)
            best = hparams if saved.best is None else saved.best
            resumed_at = rows.num_done
            self._require_the_same_lengths(rows)
        is_shared = self.mesh is not None and placement.is_shared_by_processes(self.mesh)
        is_writer = not is_shared or processes.is_first()
        lines = None
        if records is not None and store is not None:
            lines = Lines(records, store.run(), rows.num_done, is_shared)
        drawn = records if is_writer else None

        def fetch(tree: Any) -> Any:
            return tree if self.mesh is None else placement.fetched(tree)

        def tuned(reason: str) -> Tuned:
            history = rows.history(self.metrics)
            if drawn is not None and drawn.figures_every is not None and rows.num_done:
                write_figures(drawn.folder, history.plot())
            best_found = fetch(self._best(rows, best))
            return Tuned(fetch(hparams), fetch(opt_state), best_found, history, reason, resumed_at)

        is_shown = progress if is_writer else False
        with progress_bar(is_shown, "meta-step", len(self.lengths), rows.num_done) as update:
            while (reason := self._reason(rows)) is None:
                k = rows.num_done
                program, (train, valid) = self.program(self.lengths[k]), self.parts(k)
                with a_step() as is_cut:
                    begun = time.perf_counter()
                    found = jax.block_until_ready(
                        program.run(hparams, opt_state, self.params, train, valid, self.key(k))
                    )
                    seconds = time.perf_counter() - begun
                    found = found._replace(info=jax.device_get(found.info))
                    problem = _problem(found.info)
                    if problem is None:
                        usable, is_any_usable = hparams, True
                        problem = _problem_of_update(found)
                    rows.add(
                        {
                            "num_steps": self.lengths[k],
                            "seconds": seconds,
                            "is_bad": problem is not None,
                            "spread": np.nan,  # of one run
                            **self._measured(found, valid),
                            **jax.device_get(found.numbers),
                        },
                        np.asarray(found.value),
                    )
                    if self._best_at(rows) == k:
                        best = hparams
                    if lines is not None and records is not None:
                        whole = (hparams, found.gradient) if records.is_whole else None
                        lines.add(
                            line_of(rows, self.metrics, found, program.num_bytes, problem, whole)
                        )
                    if problem is not None:
                        if self._is_to_stop(rows):
                            reason = f"meta-step {k}: {problem}"
                            raise TuningError(
                                reason, tuned(reason), fetch(usable) if is_any_usable else None
                            )
                        # Seen by the caller of `tune`, who is above its two decorators.
                        warnings.warn(f"meta-step {k} is skipped: {problem}", RuntimeWarning, 5)
                    else:
                        hparams, opt_state = found.hparams, found.opt_state
                    update(self._caption(rows))
                    if store is not None and (
                        rows.num_done % store.every == 0 or is_cut() or self._reason(rows)
                    ):
                        kept = None if self.early_stopping is None else best
                        store.write(
                            rows.num_done, Snapshot((hparams, opt_state, usable), kept, *rows)
                        )
                    is_last = self._reason(rows) is not None  # those figures are drawn by `tuned`
                    if drawn is not None and drawn.is_to_draw(rows.num_done) and not is_last:
                        write_figures(drawn.folder, rows.history(self.metrics).plot())
        return tuned(reason)

    def _measured(self, found: Outcome, valid: Data) -> dict[str, float]:
        parts = {"valid": valid} if "valid" in self.measure.parts else {}
        return self.measure._replace(parts=self.measure.parts | parts)(found.params)

    def _require_the_same_lengths(self, rows: Rows) -> None:
        if rows.num_done > len(self.lengths):
            raise ValueError(
                f"num_meta_steps is {len(self.lengths)}, but the tuning in the folder has done "
                f"{rows.num_done} already; ask for at least as many, or name another folder."
            )
        for k, length in enumerate(rows.numbers["num_steps"]):
            if length != self.lengths[k]:
                raise CheckpointError(
                    f"the tuning in the folder is another, which differs in num_steps: "
                    f"{length:.0f} in meta-step {k}, where this one has {self.lengths[k]}; name "
                    "another folder, or delete this one to start anew."
                )

    def _reason(self, rows: Rows) -> str | None:
        """Returns why the tuning ends, if it does: a function of the history alone."""
        best, patience = self._best_at(rows), None
        if self.early_stopping is not None:
            patience = self.early_stopping.patience
            if best is not None and patience is not None and rows.num_done - 1 - best >= patience:
                return f"{self.early_stopping.metric} has not improved since meta-step {best}"
        return "all meta-steps are done" if rows.num_done >= len(self.lengths) else None

    def _best_at(self, rows: Rows) -> int | None:
        if self.early_stopping is None or not rows.num_done:
            return None
        choice = self.early_stopping
        worst = -np.inf if is_more_better(choice.metric, choice.is_maximized) else np.inf
        values = self._followed(rows)
        return self.early_stopping.best_epoch([v if np.isfinite(v) else worst for v in values])

    def _followed(self, rows: Rows) -> list[float]:
        assert self.early_stopping is not None
        if self.early_stopping.metric == VALUE:
            return [float(value.mean()) for value in rows.values]
        return rows.numbers[self.early_stopping.metric]

    def _best(self, rows: Rows, best: Hparams) -> BestHparams | None:
        at = self._best_at(rows)
        return None if at is None else BestHparams(best, at, self._followed(rows)[at])

    def _is_to_stop(self, rows: Rows) -> bool:
        if isinstance(self.on_bad, Stop):
            return True
        last = rows.numbers["is_bad"][-1 - self.on_bad.at_most :]
        return len(last) > self.on_bad.at_most and all(last)

    def _caption(self, rows: Rows) -> str:
        if rows.numbers["is_bad"][-1]:
            return "skipped"
        numbers = {name: found[-1] for name, found in rows.numbers.items()}
        metrics = "".join(f", {name} {numbers[name]:.3g}" for name in self.metrics)
        mean = rows.values[-1].mean()
        return f"value {mean:.4g}{metrics}, norm {numbers['norm']:.2g}, {numbers['seconds']:.2g} s"


def _problem(info: BackwardInfo) -> str | None:
    """Returns why the hypergradient cannot be used; None if it can."""
    try:
        check(info)
    except HypergradientError as error:
        return str(error)
    return None


def _problem_of_update(found: Outcome) -> str | None:
    """Returns why what the optimizer made cannot be used; None if it can."""
    if bool(found.is_finite):
        return None
    return (
        "the optimizer made hyperparameters or its own state infinite or NaN although the "
        "hypergradient is finite; lower its learning rate."
    )
