"""What `tune` returns."""

from typing import Any, NamedTuple

from hgrad_jax.check import HypergradientError
from hgrad_jax.tuning.history import TuningHistory
from hgrad_jax.types import Hparams


class BestHparams(NamedTuple):
    """The best hyperparameters of a tuning, by its `EarlyStopping`.

    Attributes:
      hparams: those that the runs of that meta-step used.
      meta_step: the meta-step, before whose update they were.
      value: of the metric.
    """

    hparams: Hparams
    meta_step: int
    value: float


class Tuned(NamedTuple):
    """The end of a tuning.

    Attributes:
      hparams: after the last meta-step; no run has used them yet.
      opt_state: the optimizer's state then.
      best: the best hyperparameters, by `early_stopping`; None without it.
      history: what was found on the way.
      reason: why the tuning ended, in a few words.
      resumed_at: meta-steps that the checkpoint had which this call went on from; None if it began
        anew.
    """

    hparams: Hparams
    opt_state: Any
    best: BestHparams | None
    history: TuningHistory
    reason: str
    resumed_at: int | None


class TuningError(HypergradientError):
    """A tuning was stopped by a hypergradient that could not be used; the message says why.

    Started again with the same records, the same tuning stops there again. With the cause corrected
    it is another one: start it from `usable`, in another folder.

    Attributes:
      tuned: what was tuned before. Its hyperparameters are those that the tuning stopped at:
        finite, but maybe such that no training stands them.
      usable: the last hyperparameters whose hypergradient could be used; None if there are none.
    """

    def __init__(self, message: str, tuned: Tuned, usable: Hparams | None = None) -> None:
        super().__init__(message)
        self.tuned: Tuned = tuned
        self.usable: Hparams | None = usable

    def __reduce__(self) -> Any:
        # From one process to another.
        return type(self), (str(self), self.tuned, self.usable)
