"""Second derivatives of a loss, and the Jacobian of a whole training, by forward mode.

`jax.jvp` of a gradient costs about two gradients and stores no graph of the gradient itself, as
reverse over reverse does (Pearlmutter 1994). Where a rule inside the loss need not be a derivative
(`foreign_rules.has_foreign_rule`), what `jax.grad` returns has no symmetric Jacobian: the products
are then those with its transpose, which hypergradients are made of, by reverse over reverse.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.adjoints.direct import Direct
from hgrad_jax.inputs.functions import ASKED_FOR_VALUE, require_function
from hgrad_jax.rules.gradients import scalar
from hgrad_jax.run import Run, require_run
from hgrad_jax.runs import validate
from hgrad_jax.tools.foreign_rules import has_foreign_rule
from hgrad_jax.tools.trees import is_like, require_like, shown
from hgrad_jax.types import Array, Data, Hparams, Params
from hgrad_jax.unroll import unroll


def hvp(loss: Callable[..., Array], params: Params, direction: Params, *args: Any) -> Params:
    """Returns the Hessian-vector product H u, with H the Hessian of the loss in `params`.

    Where the loss contains a `custom_vjp`, or a rule of a user that need not be a derivative, H is
    the Jacobian of `jax.grad(loss)`, transposed.

    Args:
      loss: `loss(params, *args) -> floating-point scalar`.
      params: pytree of floating-point arrays.
      direction: u, like `params`.
      *args: the loss's other arguments.

    Returns:
      A tree like `params`.

    Raises:
      TypeError: the loss is no function, or params are no floats.
      ValueError: the direction is not like params.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> hg.hvp(lambda w: jnp.sum(w**3), jnp.array([1.0, 2.0]), jnp.array([1.0, -1.0]))
      Array([  6., -12.], dtype=float32)
    """
    _require(loss, params, direction, args)
    loss = _fitting(loss)

    def gradient(p: Params) -> Params:
        return jax.grad(loss)(p, *args)

    if has_foreign_rule(lambda p: loss(p, *args), params):
        return jax.vjp(gradient, params)[1](direction)[0]
    return jax.jvp(gradient, (params,), (direction,))[1]


def mixed_product(
    loss: Callable[..., Array], params: Params, hparams: Hparams, direction: Params, *args: Any
) -> Hparams:
    """Returns d<u, g>/dhparams, with g the gradient of the loss in `params`.

    What a step of gradient descent contributes to a hypergradient (Maclaurin, Duvenaud and Adams
    2015, algorithm 2, line 12). Mixed partial derivatives commute, so it is the derivative along u
    of the gradient in `hparams`; not where the loss contains a `custom_vjp` or a rule of a user,
    where it is taken as it is written.

    Args:
      loss: `loss(params, hparams, *args) -> floating-point scalar`.
      params: pytree of floating-point arrays.
      hparams: pytree of floating-point arrays.
      direction: u, like `params`.
      *args: the loss's other arguments.

    Returns:
      A tree like `hparams`.

    Raises:
      TypeError, ValueError: as `hvp`.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> def loss(params, l2):
      ...     return jnp.sum(l2 * params**2) / 2
      >>> l2 = jnp.array([0.1, 0.2])
      >>> hg.mixed_product(loss, jnp.array([3.0, 5.0]), l2, jnp.array([1.0, -1.0]))
      Array([ 3., -5.], dtype=float32)
    """
    _require(loss, params, direction, (hparams, *args))
    hparams = validate.floating(hparams, "hparams")
    loss = _fitting(loss, "hparams")
    if has_foreign_rule(lambda p, h: loss(p, h, *args), params, hparams):
        _, pull = jax.vjp(lambda h: jax.grad(loss)(params, h, *args), hparams)
        return pull(direction)[0]

    def in_hparams(p: Params) -> Hparams:
        return jax.grad(loss, argnums=1)(p, hparams, *args)

    return jax.jvp(in_hparams, (params,), (direction,))[1]


def _require(loss: Any, params: Params, direction: Params, args: tuple[Any, ...]) -> None:
    """Raises if the loss is no function, or the direction is not like the parameters."""
    if not callable(loss):
        raise TypeError(f"loss is {loss!r}; pass a function that returns a scalar.")
    validate.floating(params, "params")
    require_like(direction, params, "direction", "params")
    if not is_like(direction, params, jnp.result_type):
        raise ValueError(
            f"direction has the dtypes {shown(direction, jnp.result_type)}; it must have those of "
            f"params, {shown(params, jnp.result_type)}."
        )
    call = f"loss({', '.join(('params', *(f'arg{i}' for i in range(len(args)))))})"
    require_function(loss, call, "a function of these that returns a scalar")


def _fitting(loss: Any, second: str = "arg0") -> Callable[..., Array]:
    """Returns the loss, which says so where what it reads of its arguments is not there."""

    def called(*args: Any) -> Any:
        try:
            return loss(*args)
        except ASKED_FOR_VALUE:  # TypeErrors too, but of arguments that fit
            raise
        except (TypeError, AttributeError, LookupError) as error:
            given = ", ".join(shown(x, np.shape) for x in args[:2])
            raise TypeError(
                f"loss failed when it was called with params and {second} of the shapes {given} "
                f"({type(error).__name__}: {error}); pass it those that it reads."
            ) from error

    return scalar(called)


def jacobian_of_final_params(
    run: Run, params: Params, hparams: Hparams, data: Data, *, key: Array | None = None
) -> Params:
    """Returns the derivatives of the trained parameters with respect to every hyperparameter.

    Forward mode (Franceschi, Donini, Frasconi and Pontil 2017, Forward-HG): one tangent of the
    whole state for each number in `hparams` is carried along the training. Memory for as many
    states, whatever the number of steps; time in proportion to it. For a few hyperparameters, then;
    not for schedules, each step of which is a hyperparameter.

    Args:
      run: as `unroll`; its adjoint is not used, which forward mode does not need.
      params: as `unroll`.
      hparams: as `unroll`.
      data: as `unroll`.
      key: as `unroll`.

    Returns:
      A tree like `params` whose leaves are trees like `hparams`, of arrays `[*param, *hparam]`.

    Raises:
      ValueError: hparams is empty; else as `unroll`.
      TypeError: as `unroll`.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.sgd(lambda params, hparams, batch, key: jnp.sum(params**2) / 2)
      >>> hg.jacobian_of_final_params(
      ...     hg.Run(rule, num_steps=2), jnp.array([1.0, 2.0]), {"learning_rate": 0.5}, None
      ... )
      {'learning_rate': Array([-1., -2.], dtype=float32)}
    """
    require_run(run)
    if not jax.tree.leaves(hparams):
        raise ValueError("hparams is an empty tree; there is nothing to differentiate with.")

    direct = dataclasses.replace(run, adjoint=Direct())

    def end(hparams: Hparams) -> Params:
        return unroll(direct, params, hparams, data, key=key).params

    return jax.jacfwd(end)(validate.floating(hparams, "hparams"))
