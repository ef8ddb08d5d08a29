"""`value_and_hypergradient`: an objective of the trained parameters, with all its gradients.

With the trained parameters w(theta_0, lambda) and the objective E(w, lambda), the hypergradient is

    dE/dlambda = (dw/dlambda)^T grad_w E + grad_lambda E,

the sum of what comes through the training and of the direct dependence. What this does not do: the
outer step, which is the user's (an optax optimizer), and reading the flags, which is `hg.check`'s.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.functions import require_arrays, require_function, traced
from hgrad_jax.run import Run, require_run, trajectory_of
from hgrad_jax.runs import validate
from hgrad_jax.runs.trajectory import Trajectory, all_finite, first_state, inputs
from hgrad_jax.types import (
    Array,
    BackwardInfo,
    Data,
    Hparams,
    Params,
    Unrolled,
)
from hgrad_jax.unroll import vjp

Objective = Callable[[Params, Hparams, Data], Array]
"""`objective(trained params, hparams, outer_data) -> scalar`."""


class Hypergradient(NamedTuple):
    """An outer objective and its gradients. NaN where the run could not be differentiated.

    Attributes:
      value: floating-point scalar, the objective.
      hparams: like the hyperparameters, the gradient through the training plus the direct one.
      params: like the initial parameters, the gradient with respect to them; None with
        `ForwardMode()`.
      unrolled: the Unrolled, whose `params` the objective was evaluated at.
      info: the BackwardInfo; outside `jit`, `hg.check(info)` raises if anything went wrong.
    """

    value: Array
    hparams: Hparams
    params: Params
    unrolled: Unrolled
    info: BackwardInfo


def value_and_hypergradient(
    objective: Objective,
    run: Run,
    params: Params,
    hparams: Hparams,
    data: Data,
    outer_data: Data = None,
    *,
    key: Array | None = None,
) -> Hypergradient:
    """Trains as `unroll` does and returns the objective of the result with its hypergradient.

    The same as `jax.value_and_grad` of the composition with `unroll`, and besides it tells what
    happened on the way back. A pure function: it runs under `jit` and `vmap`.

    Args:
      objective: `objective(params, hparams, outer_data) -> floating-point scalar`, of the trained
        parameters and of the hyperparameters as they are passed here, schedules whole.
      run: as `unroll`; what it records is in `unrolled`, and the objective does not see it.
      params: as `unroll`.
      hparams: as `unroll`.
      data: as `unroll`.
      outer_data: pytree of arrays for the objective, say the validation set.
      key: as `unroll`.

    Returns:
      The Hypergradient. Its flags are not read here: pass its `info` to `hg.check`.

    Raises:
      ValueError: the objective is not a floating-point scalar; else as `unroll`.
      TypeError: as `unroll`.

    Example:
      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return jnp.sum((params - 3.0) ** 2) + hparams["l2"] * jnp.sum(params**2)
      >>> def objective(params, hparams, target):
      ...     return jnp.sum((params - target) ** 2) + 0.1 * hparams["l2"]
      >>> hparams = {"l2": 0.5, "learning_rate": 0.1, "momentum": 0.5}
      >>> run = hg.Run(hg.heavy_ball(loss), num_steps=200, adjoint=hg.Checkpointed())
      >>> found = hg.value_and_hypergradient(
      ...     objective, run, jnp.zeros(2), hparams, None, jnp.ones(2)
      ... )
      >>> bool(hg.check(found.info).is_finite)
      True

      The minimum is at w = 3 / (1 + l2) = 2, where dw/dl2 = -4/3, so the value is 2.05 and its
      derivative 2 * 2 * (-4/3) + 0.1:

      >>> print(f"{found.value:.3f} {found.hparams['l2']:.3f}")
      2.050 -5.233
    """
    require_function(
        objective, "objective(params, hparams, outer_data)", "a function that returns a scalar"
    )
    require_run(run)
    require_arrays(outer_data, "outer_data")
    trajectory = trajectory_of(run, hparams)
    params = validate.floating(params, "params")
    hparams = validate.floating(hparams, "hparams")
    _require_scalar(objective, trajectory, params, hparams, outer_data)

    unrolled, pullback = vjp(run, params, hparams, data, key=key)
    value, pull = jax.vjp(lambda p, h: objective(p, h, outer_data), unrolled.params, hparams)
    params_bar, direct = pull(jnp.ones_like(value))
    bars, info = pullback(params_bar)
    total = jax.tree.map(jnp.add, bars.hparams, direct)
    info = info._replace(is_finite=info.is_finite & all_finite((value, total)))
    return Hypergradient(value, total, bars.params, unrolled, info)


def _require_scalar(
    objective: Objective,
    trajectory: Trajectory,
    params: Params,
    hparams: Hparams,
    outer_data: Data,
) -> None:
    """Raises if the objective is not a floating-point scalar, before the training, not after it."""

    def before_training(params: Params, hparams: Hparams, outer_data: Data) -> Array:
        state = first_state(trajectory, params, inputs(trajectory, hparams, None, None))
        return objective(trajectory.transition.params(state), hparams, outer_data)

    with traced("objective"):
        value = jax.eval_shape(before_training, params, hparams, outer_data)
    is_array = isinstance(value, jax.ShapeDtypeStruct)
    if not is_array or value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
        what = f"{value.dtype} of shape {value.shape}" if is_array else f"a {type(value).__name__}"
        raise ValueError(
            f"objective returned {what}; it must return one floating-point number: average over "
            "the examples inside the objective."
        )
