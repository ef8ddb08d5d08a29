"""Checks of what `tune` is given, on the host, before anything is compiled."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.data.examples import validate_finite
from hgrad_jax.data.overlap import require_disjoint
from hgrad_jax.inputs.arguments import steps
from hgrad_jax.inputs.functions import require_function
from hgrad_jax.run import Run
from hgrad_jax.runs import validate
from hgrad_jax.training import stopping
from hgrad_jax.training.stopping import EarlyStopping
from hgrad_jax.tuning.meta_step import expanded, require_optimizer
from hgrad_jax.tuning.policies import Skip, Stop
from hgrad_jax.tuning.records import Records
from hgrad_jax.tuning.splits import require_alike
from hgrad_jax.types import Data, Hparams

VALUE = "value"


def require_choices(optimizer: Any, on_bad: Any, records: Any) -> None:
    """Raises if a choice is not of its kind.

    Raises:
      TypeError: it is something else.
    """
    require_optimizer(optimizer)
    if not isinstance(on_bad, Stop | Skip):
        raise TypeError(f"on_bad is {on_bad!r}; it must be hg.Stop() or hg.Skip().")
    if records is not None and not isinstance(records, Records):
        raise TypeError(f"records is {records!r}; it must be an hg.Records(folder) or None.")


def require_tuned(hparams: Hparams) -> None:
    """Raises if there is nothing to tune.

    Raises:
      ValueError: there is not.
    """
    if not jax.tree.leaves(hparams):
        raise ValueError("hparams is an empty tree; there is nothing to tune.")


def require_key(key: Any, params: Any, num_runs: int, fresh_splits: bool) -> None:
    """Raises if something random has no key, or initial parameters come from no function of one.

    Raises:
      ValueError: it has none.
      TypeError: they do.
    """
    if key is None and (num_runs > 1 or fresh_splits or callable(params)):
        raise ValueError(
            "key is None, but several runs, fresh splits and random initial parameters (params "
            "that is a function) need one; pass key=jax.random.key(0)."
        )
    if callable(params):
        require_function(params, "params(key)", "a function of a key, or parameters")


def require_finite_start(tree: Any, name: str) -> None:
    """Raises if a tuning would start from numbers that are infinite or NaN.

    Raises:
      ValueError: it would.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        numbers = np.asarray(leaf)
        is_wrong = ~np.isfinite(numbers.astype(np.float64))
        if is_wrong.any():
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has {is_wrong.sum()} numbers that are "
                f"infinite or NaN, the first is {numbers[is_wrong].flat[0]}; a tuning starts from "
                "finite ones."
            )


def require_data(
    data: Data, outer_data: Data, test_data: Data, metrics: Any, fresh_splits: bool
) -> None:
    """Raises if the parts of the data are not finite, overlap, or are of no use.

    Raises:
      ValueError: they do, or are not.
    """
    parts = {"data": data, "outer_data": outer_data, "test_data": test_data}
    for name, part in parts.items():
        validate_finite(part, name)
    if metrics is None and test_data is not None:
        raise ValueError(
            "test_data is given, but metrics is None, and nothing would look at it; pass metrics= "
            "(hgrad_jax.models.classification_metrics(model) makes some)."
        )
    if metrics is not None and outer_data is None and test_data is None:
        raise ValueError(
            "metrics is given, but neither outer_data nor test_data, to evaluate it on."
        )
    require_disjoint(parts)
    if fresh_splits:
        require_alike(data, outer_data)


def lengths_of(
    run: Run, lengths: Any, num_meta_steps: int, hparams: Hparams, run_hparams: Any
) -> list[int]:
    """Returns the length of the runs in each meta-step.

    Raises:
      ValueError, TypeError: one is no positive int, or does not fit the schedules.
    """
    found = [run.num_steps] * num_meta_steps
    if lengths is not None:
        require_function(lengths, "lengths(meta_step)", "a function that returns an int, or None")
        found = [steps(f"lengths({k})", lengths(k)) for k in range(num_meta_steps)]
    for length in dict.fromkeys(found):
        require_fit(run, length, hparams, run_hparams)
    return found


def require_fit(run: Run, num_steps: int, hparams: Hparams, run_hparams: Any) -> None:
    """Raises if the hyperparameters do not fit runs of a length.

    Raises:
      ValueError, TypeError: they do not.
    """
    of_run = hparams
    if run_hparams is not None:
        call = "run_hparams(hparams, num_steps)"
        require_function(run_hparams, call, "a function, or None")
        of_run = jax.eval_shape(lambda h: expanded(run_hparams, h, num_steps), hparams)
    validate.schedules(of_run, run.hparams_axes, num_steps)


def require_stable(before: Any, after: Any) -> None:
    """Raises if a meta-step changes shapes or dtypes of the optimizer's state, or its structure.

    Raises:
      ValueError: it does.
    """

    def kinds(tree: Any) -> list[str]:
        return [
            f"{jax.tree_util.keystr(path)}: {jnp.result_type(x)}{list(jnp.shape(x))}"
            for path, x in jax.tree_util.tree_leaves_with_path(tree)
        ]

    if kinds(before) != kinds(after):
        new = next((x for x in kinds(after) if x not in kinds(before)), "a leaf less")
        raise ValueError(
            f"optimizer.update changes the kind of hyperparameters or of its own state ({new}); "
            "a step must keep structure, shapes and dtypes."
        )


def require_early_stopping(choice: EarlyStopping | None, metrics: Sequence[str]) -> None:
    """Raises if early stopping follows the test data, or nothing there is.

    Raises:
      TypeError: it is something else.
      ValueError: it does.
    """
    followed = [VALUE, *(name for name in metrics if not name.startswith("test_"))]
    if isinstance(choice, EarlyStopping) and choice.metric in set(metrics).difference(followed):
        raise ValueError(
            f"early_stopping follows {choice.metric!r}, but the test data must not choose "
            f"hyperparameters; follow {VALUE!r} or a metric of the validation data."
        )
    stopping.validate(choice, "early_stopping", EarlyStopping, followed)
