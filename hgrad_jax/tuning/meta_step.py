"""One step of the tuning, as a pure function: trainings, their mean hypergradient, an update.

With hyperparameters h, runs r = 1..R of different seeds and their objectives E_r,

    g = 1/R sum_r dE_r/dh,    h' = h + optimizer(g).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hgrad_jax.hypergradient import Hypergradient, Objective, value_and_hypergradient
from hgrad_jax.inputs.arguments import prng_key
from hgrad_jax.inputs.functions import positive_int, require_arrays, require_function, traced
from hgrad_jax.many.devices import mesh_of, spread
from hgrad_jax.many.placement import replicated
from hgrad_jax.run import Run, require_run
from hgrad_jax.runs import validate
from hgrad_jax.runs.trajectory import all_finite
from hgrad_jax.types import Array, Data, Hparams, Params

RunHparams = Callable[[Hparams, int], Hparams]
"""`run_hparams(hparams, num_steps) -> hparams` of a run, from those that are tuned."""


class MetaStep(NamedTuple):
    """A step of the tuning.

    Attributes:
      hparams: after the step.
      opt_state: the optimizer's state after the step.
      gradient: like the hyperparameters: the mean hypergradient, at those before the step.
      found: what each run gave, a Hypergradient with a leading axis of runs; its `hparams` are the
        hypergradients of what is tuned.
    """

    hparams: Hparams
    opt_state: Any
    gradient: Hparams
    found: Hypergradient


def meta_step(
    objective: Objective,
    run: Run,
    params: Params | Callable[[Array], Params],
    hparams: Hparams,
    data: Data,
    outer_data: Data = None,
    *,
    optimizer: optax.GradientTransformation,
    opt_state: Any,
    key: Array | None = None,
    num_runs: int = 1,
    run_hparams: RunHparams | None = None,
    batch_parts: int | None = None,
    devices: Sequence[Any] | None = None,
) -> MetaStep:
    """Returns new hyperparameters, and what was found at the old ones.

    A pure function, for a loop of your own: it runs under `jit` and `vmap`. It updates whatever it
    has found; look at `found.info`. `tune` is the loop that does.

    Args:
      objective: as `value_and_hypergradient`, of the hyperparameters of a run.
      run: as `unroll`; its `hparams_axes` are of the hyperparameters of a run.
      params: initial parameters, or `params(key)`, a function that makes those of a run.
      hparams: what is tuned, a pytree of floating-point arrays.
      data: as `unroll`.
      outer_data: pytree of arrays for the objective, say the validation set.
      optimizer: any optax transformation; it is given the hyperparameters, and the mean objective
        as `value`.
      opt_state: `optimizer.init(hparams)`, or the last step's.
      key: PRNG key, which gives each run one for its initial parameters and one for its steps.
      num_runs: R, how many run side by side.
      run_hparams: `run_hparams(hparams, num_steps) -> hparams` of a run, differentiable: expands
        windows to schedules, or logarithms to rates. None where a run uses what is tuned.
      batch_parts: how many devices share the batches of a run, where its loss is `data_parallel`;
        None where it is not.
      devices: what the runs are shared among, a multiple of `batch_parts`; None for all that JAX
        sees with `batch_parts`, and without for the one that the program runs on.

    Raises:
      ValueError, TypeError: as `value_and_hypergradient`, or as `over_devices`; or `key` is None
        where it is needed, or the optimizer is none, or `opt_state` another's.

    Example:
      >>> import jax, jax.numpy as jnp, optax, hgrad_jax as hg
      >>> rule = hg.sgd(lambda params, hparams, batch, key: jnp.sum((params - 3.0) ** 2))
      >>> hparams, optimizer = {"learning_rate": jnp.float32(0.05)}, hg.sign_descent(0.01)
      >>> step = hg.meta_step(
      ...     lambda params, hparams, _: jnp.sum((params - 3.0) ** 2), hg.Run(rule, num_steps=5),
      ...     jnp.zeros(2), hparams, None, optimizer=optimizer, opt_state=optimizer.init(hparams),
      ... )
      >>> print(f"{step.hparams['learning_rate']:.2f} {step.found.value[0]:.3f}")
      0.06 6.276
    """
    num_runs = positive_int("num_runs", num_runs)
    require_run(run)
    prng_key("key", key)
    require_optimizer(optimizer)
    for name, arrays in (("data", data), ("outer_data", outer_data)):
        require_arrays(arrays, name)
    if not callable(params):
        validate.floating(params, "params")
    hparams = validate.floating(hparams, "hparams")
    wanted = jax.tree.structure(jax.eval_shape(optimizer.init, hparams))
    if jax.tree.structure(opt_state) != wanted:
        raise ValueError(
            "opt_state is not of this optimizer and these hyperparameters; pass "
            "optimizer.init(hparams), or the opt_state of the last step."
        )
    if run_hparams is not None:
        require_function(run_hparams, "run_hparams(hparams, num_steps)", "a function, or None")
    if key is None and (num_runs > 1 or callable(params)):
        raise ValueError(
            "key is None, but several runs or random initial parameters (params that is a "
            "function) need one; pass key=jax.random.key(0)."
        )

    def one(key: Array | None, hparams: Hparams, init: Any, data: Data, outer_data: Data) -> Any:
        of_run, pull = hparams, None
        if (expand := run_hparams) is not None:
            of_run, pull = jax.vjp(lambda h: expanded(expand, h, run.num_steps), hparams)
        key_init, key_run = (None, None) if key is None else jax.random.split(key)
        if callable(params) and key_init is not None:
            with traced("params"):
                init = params(key_init)
        found = value_and_hypergradient(objective, run, init, of_run, data, outer_data, key=key_run)
        total = found.hparams if pull is None else pull(found.hparams)[0]
        is_finite = found.info.is_finite & all_finite(total)
        return found._replace(hparams=total, info=found.info._replace(is_finite=is_finite))

    keys = None if key is None else jax.random.split(key, num_runs)
    init = None if callable(params) else params
    found = _side_by_side(one, keys, (hparams, init, data, outer_data), batch_parts, devices)
    gradient = jax.tree.map(lambda x: jnp.mean(x, axis=0), found.hparams)
    update, opt_state = optax.with_extra_args_support(optimizer).update(
        gradient, opt_state, hparams, value=jnp.mean(found.value)
    )
    return MetaStep(optax.apply_updates(hparams, update), opt_state, gradient, found)


def require_optimizer(optimizer: Any) -> None:
    """Raises if an optimizer is none.

    Raises:
      TypeError: it is something else.
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"optimizer is {optimizer!r}; it must be an optax transformation, such as "
            "hg.sign_descent(0.1) or optax.adam(0.1)."
        )


def expanded(run_hparams: RunHparams, hparams: Hparams, num_steps: int) -> Hparams:
    """Returns the hyperparameters of a run.

    Raises:
      TypeError: they are no floating-point numbers, or `run_hparams` asks for traced values.
      ValueError: there are none.
    """
    with traced("run_hparams"):
        made = run_hparams(hparams, num_steps)
    call = "run_hparams(hparams, num_steps)"
    if not jax.tree.leaves(made):
        raise ValueError(
            f"{call} returned {made!r}; it must return the hyperparameters of a run, a tree of "
            "floating-point arrays."
        )
    return validate.floating(made, call)


def _side_by_side(
    one: Callable[..., Hypergradient],
    keys: Array | None,
    others: tuple[Any, ...],
    batch_parts: int | None,
    devices: Sequence[Any] | None,
) -> Hypergradient:
    """Returns what each run gave, by its key, with a leading axis of runs."""
    if devices is not None or batch_parts is not None:
        parts = 1 if batch_parts is None else batch_parts
        mesh = mesh_of(1 if keys is None else len(keys), devices, parts)
        if keys is None:
            found = spread(one, (None,) * (1 + len(others)), mesh)(None, *others)
            found = jax.tree.map(lambda x: x[None], found)
        else:
            found = spread(one, (0, *[None] * len(others)), mesh)(keys, *others)
        # Gathered before anything is computed of them, lest sums depend on who has which.
        value, hparams, info = replicated((found.value, found.hparams, found.info), mesh)
        return found._replace(value=value, hparams=hparams, info=info)
    if keys is None or len(keys) == 1:  # vmap would make selects of conditionals
        found = one(None if keys is None else keys[0], *others)
        return jax.tree.map(lambda x: x[None], found)
    return jax.vmap(one, in_axes=(0, *[None] * len(others)))(keys, *others)
