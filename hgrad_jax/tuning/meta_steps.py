"""A whole tuning as one pure function: `meta_step` under `lax.scan`.

What it does not do, and `tune` does: records, metrics, stopping, lengths that grow, and looking for
examples that are in two parts of the data. In exchange it runs under `jit` and `vmap`, so that many
tunings are side by side: of other first hyperparameters, other learning rates of the optimizer,
other seeds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hgrad_jax.check import checkable, refuse
from hgrad_jax.hypergradient import Objective
from hgrad_jax.inputs.arguments import prng_key, taken
from hgrad_jax.inputs.functions import positive_int
from hgrad_jax.run import Run, require_run
from hgrad_jax.runs import validate
from hgrad_jax.runs.trajectory import all_finite
from hgrad_jax.tools.trees import strong
from hgrad_jax.tuning import checks
from hgrad_jax.tuning.meta_step import RunHparams, meta_step, require_optimizer
from hgrad_jax.tuning.seeds import RUNS_ROLE, SPLIT_ROLE, meta_step_key
from hgrad_jax.tuning.splits import resplit
from hgrad_jax.types import Array, BackwardInfo, Data, Hparams, Params


def _require_finite(steps: Any) -> None:
    refuse(
        not all(np.isfinite(np.asarray(x, float)).all() for x in jax.tree.leaves(steps.hparams)),
        "the optimizer made hyperparameters infinite or NaN although all hypergradients are finite",
        "lower its learning rate",
    )


@checkable(also=_require_finite)
class MetaSteps(NamedTuple):
    """A tuning of K meta-steps, each of R runs.

    Attributes:
      hparams: after the last meta-step; NaN if a hypergradient could not be used.
      opt_state: the optimizer's state after the last.
      path: like the hyperparameters, before each meta-step: leading axis `[K]`.
      value: `[K, R]`, the objective of each run.
      gradient: like the hyperparameters, the mean hypergradient of each meta-step: `[K, ...]`.
      info: the BackwardInfo of each run, leading axes `[K, R]`; outside `jit`, `hg.check(info)`
        raises if anything went wrong.
    """

    hparams: Hparams
    opt_state: Any
    path: Hparams
    value: Array
    gradient: Hparams
    info: BackwardInfo


def meta_steps(
    objective: Objective,
    run: Run,
    params: Params | Callable[[Array], Params],
    hparams: Hparams,
    data: Data,
    outer_data: Data = None,
    *,
    num_meta_steps: int,
    optimizer: optax.GradientTransformation,
    key: Array | None = None,
    num_runs: int = 1,
    fresh_seeds: bool = True,
    fresh_splits: bool = False,
    run_hparams: RunHparams | None = None,
) -> MetaSteps:
    """Tunes hyperparameters as `tune` does, with the same seeds, as a pure function.

    It runs under `jit` and `vmap`, and in a `run` for `sweep` and `over_devices`. One meta-step is
    compiled, whatever their number. For `sweep`, return what is to be compared, such as
    `{"value": out.value[-1].mean()}`: of a MetaSteps, tables would show and order the tuned
    hyperparameters only. A hypergradient that is not finite makes the hyperparameters
    NaN from there on, whatever the optimizer would make of it, so that a tuning that failed cannot
    be taken for one that did not; the others of a `vmap` go on.

    Args:
      objective: as `tune`.
      run: as `meta_step`.
      params: as `tune`.
      hparams: what the tuning starts from, a pytree of floating-point arrays.
      data: as `unroll`.
      outer_data: as `meta_step`.
      num_meta_steps: K, a positive int.
      optimizer: any optax transformation. Its own settings may be traced: build it inside the
        function that is mapped.
      key: as `tune`.
      num_runs: R, how many runs are side by side in a meta-step.
      fresh_seeds: as `tune`.
      fresh_splits: as `tune`.
      run_hparams: as `tune`.

    Returns:
      The MetaSteps. Its flags are not read here.

    Raises:
      ValueError, TypeError: on inputs that do not fit together.

    Example:
      Three tunings side by side, each of two runs, from other learning rates:

      >>> import jax, jax.numpy as jnp, optax, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return jnp.sum((params - 3.0) ** 2)
      >>> def tuning(learning_rate):
      ...     return hg.meta_steps(
      ...         lambda params, hparams, valid: loss(params, hparams, valid, None),
      ...         hg.Run(hg.sgd(loss), num_steps=5), lambda key: jax.random.normal(key, (2,)),
      ...         {"learning_rate": learning_rate}, None, num_meta_steps=10, num_runs=2,
      ...         optimizer=hg.sign_descent(0.01), key=jax.random.key(0),
      ...     )
      >>> out = jax.jit(jax.vmap(tuning))(jnp.array([0.05, 0.1, 0.2]))
      >>> out.hparams["learning_rate"].round(3), hg.check(out.info).is_finite.shape
      (Array([0.15, 0.2 , 0.3 ], dtype=float32), (3, 10, 2))
    """
    num_meta_steps = positive_int("num_meta_steps", num_meta_steps)
    num_runs = positive_int("num_runs", num_runs)
    fresh_seeds, fresh_splits = taken(fresh_seeds=fresh_seeds, fresh_splits=fresh_splits)
    require_run(run)
    prng_key("key", key)
    require_optimizer(optimizer)
    hparams = strong(validate.floating(hparams, "hparams"))
    checks.require_tuned(hparams)
    checks.require_fit(run, run.num_steps, hparams, run_hparams)
    checks.require_key(key, params, num_runs, fresh_splits)

    def step(carry: tuple[Hparams, Any], k: Array) -> tuple[tuple[Hparams, Any], Any]:
        hparams, opt_state = carry
        parts = data, outer_data
        if fresh_splits and (split_key := meta_step_key(key, SPLIT_ROLE, k)) is not None:
            parts = resplit(data, outer_data, split_key)
        tried = meta_step(
            objective,
            run,
            params,
            hparams,
            *parts,
            optimizer=optimizer,
            opt_state=opt_state,
            key=meta_step_key(key, RUNS_ROLE, k if fresh_seeds else 0),
            num_runs=num_runs,
            run_hparams=run_hparams,
        )
        # An optimizer may make numbers of a NaN, and go on as if nothing had happened.
        is_sound = all_finite((hparams, tried.gradient))
        after = jax.tree.map(lambda x: jnp.where(is_sound, x, jnp.nan), tried.hparams)
        found = tried.found
        checks.require_stable(carry, (after, tried.opt_state))
        return (after, tried.opt_state), (
            hparams,
            found.value,
            tried.gradient,
            found.info,
        )

    start = hparams, strong(optimizer.init(hparams))
    end, (path, value, gradient, info) = jax.lax.scan(step, start, jnp.arange(num_meta_steps))
    return MetaSteps(*end, path, value, gradient, info)
