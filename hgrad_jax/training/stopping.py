"""When training stops before its last epoch."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hgrad_jax.inputs.functions import is_more_better, is_number, positive_int
from hgrad_jax.types import Params


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Keeps the best parameters, and stops when they have not become better for a while.

    The parameters before the first step count as well.

    Attributes:
      metric: which metric is to improve, such as "valid_loss" or "valid_accuracy".
      patience: stops after so many epochs without an improvement; None never stops, and keeps the
        best parameters alone.
      is_maximized: whether more is better; None for whether the metric's name ends in "accuracy".
      min_change: an improvement is a change by more than this.
    """

    metric: str = "valid_loss"
    patience: int | None = 5
    is_maximized: bool | None = None
    min_change: float = 0.0

    def __post_init__(self) -> None:
        _check_metric(self.metric, self.is_maximized)
        if self.patience is not None:
            patience = positive_int("patience", self.patience, ", or None")
            object.__setattr__(self, "patience", patience)
        if not is_number(self.min_change) or not self.min_change >= 0:
            raise ValueError(f"min_change is {self.min_change!r}; it must not be negative.")

    def best_epoch(self, values: Sequence[float]) -> int:
        """Returns at which epoch the metric was best, of its values from epoch 0 on.

        >>> EarlyStopping(min_change=0.1).best_epoch([1.0, 0.5, 0.45, 0.3, 0.9])
        3
        """
        sign = -1 if is_more_better(self.metric, self.is_maximized) else 1
        best = 0
        for epoch, value in enumerate(values):
            if sign * (values[best] - value) > self.min_change:
                best = epoch
        return best


@dataclasses.dataclass(frozen=True)
class Target:
    """Stops as soon as a metric, evaluated after each epoch, has reached a value.

    Attributes:
      metric: which metric, such as "train_loss".
      value: what it is to reach: at most this, or at least, where more is better.
      is_maximized: whether more is better; None for whether the metric's name ends in "accuracy".
    """

    metric: str
    value: float
    is_maximized: bool | None = None

    def __post_init__(self) -> None:
        _check_metric(self.metric, self.is_maximized)
        if not is_number(self.value) or np.isnan(self.value):
            raise TypeError(f"value is {self.value!r}; it must be a number.")

    def is_reached(self, value: float) -> bool:
        """Returns whether this value of the metric is good enough.

        Both as float32, which metrics are: an accuracy of 7 / 10 is then below 0.7.

        >>> Target("accuracy", 0.7).is_reached(float(np.float32(0.7)))
        True
        """
        reached, goal = np.float32(value), np.float32(self.value)
        if is_more_better(self.metric, self.is_maximized):
            return bool(reached >= goal)
        return bool(reached <= goal)


class Best(NamedTuple):
    """The best parameters of a run, by its `EarlyStopping`.

    Attributes:
      params: trained so far.
      epoch: epochs after which they were found; 0 for the initial ones.
      value: of the metric.
    """

    params: Params
    epoch: int
    value: float


def _check_metric(metric: Any, is_maximized: Any) -> None:
    if not isinstance(metric, str):
        raise TypeError(f"metric is {metric!r}; it must be a name such as 'valid_loss'.")
    if is_maximized is not None and not isinstance(is_maximized, bool):
        raise TypeError(f"is_maximized is {is_maximized!r}; it must be True, False, or None.")


def validate(choice: Any, name: str, kind: type, metrics: Sequence[str]) -> None:
    """Raises if a choice is not of its kind or names a metric that is not evaluated.

    Raises:
      TypeError: it is something else, such as a number.
      ValueError: there is no such metric.
    """
    if choice is None:
        return
    if not isinstance(choice, kind):
        raise TypeError(f"{name} is {choice!r}; it must be an hg.{kind.__name__}(...) or None.")
    if choice.metric not in metrics:
        has = ", ".join(metrics) or "none: pass metrics="
        raise ValueError(f"{name} follows {choice.metric!r}; the metrics are {has}.")


def reason_to_stop(
    metrics: Mapping[str, Sequence[float]],
    epoch: int,
    num_epochs: int,
    early_stopping: EarlyStopping | None,
    target: Target | None,
) -> str | None:
    """Returns why training ends after an epoch, if it does.

    A function of the history alone: a run that is resumed stops where it would have.

    Args:
      metrics: values by name, from epoch 0 to this one.
      epoch: epochs done.
      num_epochs: how many there are to be.
      early_stopping: as `fit`.
      target: as `fit`.
    """
    if target is not None:
        value = metrics[target.metric][-1]
        if target.is_reached(value):
            return f"{target.metric} reached {np.float32(value):.4g} after epoch {epoch}"
    if early_stopping is not None and early_stopping.patience is not None:
        best = early_stopping.best_epoch(metrics[early_stopping.metric])
        if epoch - best >= early_stopping.patience:
            return f"{early_stopping.metric} has not improved since epoch {best}"
    return "all epochs are done" if epoch >= num_epochs else None
