"""`unroll` trains as a `Run` says, differentiably; `vjp` does so and returns the pullback.

The pullback of `vjp` also says what happened on the way back, which `jax.grad` cannot return.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.arguments import prng_key
from hgrad_jax.run import Run, require_run, trajectory_of
from hgrad_jax.runs import validate
from hgrad_jax.runs.first_step import forward_mode_explained
from hgrad_jax.runs.traced_once import trace_once
from hgrad_jax.runs.trajectory import inputs
from hgrad_jax.tools.trees import require_like
from hgrad_jax.types import BackwardInfo, Data, Hparams, Params, Unrolled


class Bars(NamedTuple):
    """Cotangents of a run's inputs.

    Attributes:
      params: like the initial parameters; None with `ForwardMode()`.
      hparams: like the hyperparameters.
    """

    params: Params | None
    hparams: Hparams


def unroll(
    run: Run, params: Params, hparams: Hparams, data: Data, *, key: jax.Array | None = None
) -> Unrolled:
    """Trains as `run` says; differentiable in `params` and `hparams` as its adjoint says.

    A program of pure JAX: use it under `jit`, `vmap` and `grad`. Called outside `jit` it compiles
    anew each time. Every function is traced once, whatever passes the adjoint takes, and is
    differentiated in what it closes over, too.

    Args:
      run: what the training is, a `Run`.
      params: initial parameters, a pytree of floating-point arrays.
      hparams: hyperparameters, a pytree of floating-point arrays; the loss, the rule and the
        initial state may use them.
      data: pytree of arrays that batches are made from; never differentiated (put what is to be
        learned into `hparams`).
      key: PRNG key. Step t uses `fold_in(key, t)` and from it one key for the batch and one for the
        loss; None hands None to both.

    Returns:
      The trained parameters, the last state, the info and the trace. Read the info with `check`.

    Raises:
      ValueError, TypeError: on inputs that do not fit together, before any step is computed.

    Example:
      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.heavy_ball(lambda params, hparams, batch, key: jnp.sum((params - 3.0) ** 2))
      >>> run = hg.Run(rule, num_steps=5, adjoint=hg.Reversible())
      >>> def end(rate):
      ...     hparams = {"learning_rate": rate, "momentum": 0.5}
      ...     return jnp.sum(hg.unroll(run, jnp.zeros(2), hparams, None).params)
      >>> print(f"{jax.grad(end)(jnp.float32(0.1)):.3f}")
      29.358
    """
    adjoint, trajectory, params, given = _start(run, params, hparams, data, key)
    with forward_mode_explained(adjoint.without_forward_mode, trajectory, params, given):
        state, info, trace = adjoint.run(trajectory, params, given)
    return Unrolled(run.transition.params(state), state, jax.lax.stop_gradient(info), trace)


def vjp(
    run: Run, params: Params, hparams: Hparams, data: Data, *, key: jax.Array | None = None
) -> tuple[Unrolled, Callable[..., tuple[Bars, BackwardInfo]]]:
    """Trains as `unroll` does, and returns the run with its pullback.

    Args: as `unroll`.

    Returns:
      The Unrolled, and `pullback(params_bar, trace_bar=None) -> (Bars, BackwardInfo)`, which takes
      cotangents like `Unrolled.params` and `Unrolled.trace`, and raises ValueError for others.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.momentum(lambda params, hparams, batch, key: jnp.sum(params**2))
      >>> hparams = {"learning_rate": jnp.float32(0.1), "momentum": jnp.float32(0.9)}
      >>> run = hg.Run(rule, num_steps=9, adjoint=hg.Reversible())
      >>> out, pullback = hg.vjp(run, jnp.ones(2), hparams, None)
      >>> bars, info = pullback(out.params)
      >>> bool(hg.check(info).is_restored)
      True
    """
    adjoint, trajectory, params, given = _start(run, params, hparams, data, key)
    with forward_mode_explained(adjoint.without_forward_mode, trajectory, params, given):
        (end, info, trace), pull_run = adjoint.vjp(trajectory, params, given)
    read, pull_params = jax.vjp(run.transition.params, end)
    unrolled = Unrolled(read, end, info, trace)

    def pullback(params_bar, trace_bar=None):
        require_like(params_bar, read, "params_bar", "the trained params")
        if trace_bar is not None:
            require_like(trace_bar, trace, "trace_bar", "the trace")
        (end_bar,) = pull_params(params_bar)
        zeros = jax.tree.map(jnp.zeros_like, trace) if trace_bar is None else trace_bar
        params_bar, inputs_bar, info = pull_run(end_bar, zeros)
        leaves = [
            c if s is None else s
            for c, s in zip(inputs_bar.constants, inputs_bar.schedules, strict=True)
        ]
        return Bars(params_bar, jax.tree.unflatten(trajectory.treedef, leaves)), info

    return unrolled, pullback


def _start(run: Run, params: Params, hparams: Hparams, data: Data, key: jax.Array | None) -> Any:
    """Checks everything that can be checked before the first step."""
    require_run(run)
    prng_key("key", key)
    trajectory = trace_once(trajectory_of(run, hparams))
    params = validate.floating(params, "params")
    hparams = validate.floating(hparams, "hparams")
    data = validate.not_differentiated(data)
    given = inputs(trajectory, hparams, data, key)
    validate.step(trajectory, params, given)
    if run.hparams_axes is None:
        validate.no_forgotten_schedule(trajectory, params, hparams, given)
    adjoint = run.adjoint.traced_once(trajectory.keep)
    adjoint.require_inputs(trajectory, params, given)
    # By now every function of the run has been traced.
    return adjoint, trajectory, params, given._replace(closed=tuple(trajectory.closed))
