"""Metrics evaluated on the parts of the data."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from hgrad_jax.inputs.functions import require_function, require_hashable, traced
from hgrad_jax.types import Data, Params


class Measure(NamedTuple):
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
            with traced("metrics"):
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


def require_metrics(metrics: Any, metrics_args: Any) -> None:
    """Raises if metrics are no function of parameters, data and `metrics_args`, or None.

    Raises:
      TypeError: they are not, or `metrics_args` is no tuple.
    """
    if not isinstance(metrics_args, tuple) or hasattr(metrics_args, "_fields"):
        raise TypeError(
            f"metrics_args is a {type(metrics_args).__name__}; it must be a tuple of what metrics "
            "takes besides, such as (train.inputs,)."
        )
    if metrics is not None:
        more = "".join(f", args_{i}" for i in range(len(metrics_args)))
        call = f"metrics(params, data{more})"
        way_out = "hgrad_jax.models.classification_metrics(model), say, and as metrics_args what "
        require_function(metrics, call, way_out + "it takes besides")
        require_hashable(metrics, "metrics")


def finite_at_start(metrics: dict[str, float]) -> dict[str, float]:
    """Returns the metrics of the initial parameters, and raises if one is infinite or NaN."""
    for name, value in metrics.items():
        if not np.isfinite(value):
            raise ValueError(
                f"{name} is {value} at the initial parameters; look for labels that are no class "
                "(hgrad_jax.data.validate_examples finds them) and for params that are not finite "
                "or too large."
            )
    return metrics
