"""The gradient of a step on the way back, together with its second-order products, in one pass.

With u the cotangent of the gradient, the adjoint of a step needs the gradient g itself (to undo the
kick), the Hessian-vector product H u and the mixed product d<u, g>/dhparams. Mixed partial
derivatives are symmetric, so `jax.jvp` of `grad(loss, (params, hparams))` along (u, 0) returns all
three: forward over reverse, about the time of two gradients, where reverse over reverse takes more
and stores the inner graph (Pearlmutter 1994; MixFlow-MG, Kemaev et al. 2025).

The gradient must come out with the bits it had on the way forward. It is evaluated in the isolated
branch of `bitwise.isolate` and differentiated through that branch. Whether the compiler keeps its
bits there is measured, in every run, by the check of the restored start;
`Reversible(share_gradient=False)` evaluates it apart, by the very function of the way forward, at
the price of one more gradient a step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.elementary.kick_drift import KickDrift, scalar
from hgrad_jax.exact.bitwise import isolate
from hgrad_jax.exact.engine import gradient_pullback, ignores_first
from hgrad_jax.trees import Layout, ravel, unravel
from hgrad_jax.types import Array, Batch, Hparams, Params

BatchAndKey = Callable[[Any, Array], tuple[Batch, Array | None]]
"""`(where, t) -> batch, key`, with data and key in the pytree `where`."""


class Products(NamedTuple):
    """What a backward step needs of the loss.

    Attributes:
      gradient: vector `[N]`, the bits of the way forward.
      params_bar: H u, vector `[N]`.
      hparams_bar: d<u, g>/dhparams, tree like hparams.
    """

    gradient: Array
    params_bar: Array
    hparams_bar: Hparams


def gradient_at(
    rule: KickDrift,
    batch_and_key: BatchAndKey,
    params: Params,
    hparams: Hparams,
    where: Any,
    t: Array,
    like: Layout,
) -> Array:
    """Returns the gradient of step t as a vector `[N]`, isolated together with the batch's making.

    Args:
      rule: the rule.
      batch_and_key: `(where, t) -> batch, key`.
      params: positions, a pytree.
      hparams: hyperparameters of this step.
      where: data and key, a pytree.
      t: int32 scalar, the step.
      like: layout of the positions.
    """

    def evaluate(params, hparams, where, t):
        return ravel(rule.gradient(params, hparams, *batch_and_key(where, t)), like)

    return isolate(evaluate, t)(params, hparams, where, t)


def products_at(
    rule: KickDrift,
    batch_and_key: BatchAndKey,
    params: Params,
    hparams: Hparams,
    where: Any,
    t: Array,
    like: Layout,
    view: Layout,
    slots: dict[str, Params],
    bars: dict[str, Array],
    *,
    share_gradient: bool,
) -> Products:
    """Returns gradient and products of step t, for cotangents `bars` `[N]` of the slots.

    The fastest of three ways that applies: `jvp` if the kick is linear in the gradient, so that u
      is known before the gradient is;
    `linearize` if it is not (Adam squares the gradient); `vjp` if the gradient is a user's
    estimator, whose Jacobian need not be symmetric, or if the loss contains a `custom_vjp`, which
    forbids `jvp`.
    """
    slots = {name: slots[name] for name in rule.kicked}
    slot_bars = {name: bars[name] for name in rule.driving}
    pull_kick = gradient_pullback(rule, slots, hparams, t, view)

    def direction(gradient):
        return unravel(ravel(pull_kick(unravel(gradient, view), slot_bars), view), like)

    def evaluate(params):
        def gradients(params, hparams, where, t):
            params_part, hparams_part = _gradients(rule, params, hparams, *batch_and_key(where, t))
            return ravel(params_part, like), hparams_part

        return (isolate(gradients, t) if share_gradient else gradients)(params, hparams, where, t)

    def apart(params, hparams):
        return gradient_at(rule, batch_and_key, params, hparams, where, t, like)

    if not is_twice_forward(rule, batch_and_key, params, hparams, where, t):
        gradient, pull = jax.vjp(apart, params, hparams)
        params_bar, hparams_bar = pull(ravel(direction(gradient), like))
        return Products(gradient, ravel(params_bar, like), hparams_bar)

    gradient = None if share_gradient else apart(params, hparams)
    if ignores_first(direction, jnp.zeros((like.size,), like.dtype)):
        # The kick's adjoint is the same at any gradient.
        tangent = direction(jnp.zeros((like.size,), like.dtype))
        (own, _), products = jax.jvp(evaluate, (params,), (tangent,))
        return Products(own if gradient is None else gradient, *products)

    (own, _), along = jax.linearize(evaluate, params)
    gradient = own if gradient is None else gradient
    return Products(gradient, *along(direction(gradient)))


def _gradients(
    rule: KickDrift, params: Params, hparams: Hparams, batch: Batch, key: Array | None
) -> tuple[Params, Hparams]:
    assert rule.loss is not None
    return jax.grad(scalar(rule.loss), argnums=(0, 1))(params, hparams, batch, key)


def is_twice_forward(
    rule: KickDrift,
    batch_and_key: BatchAndKey,
    params: Params,
    hparams: Hparams,
    where: Any,
    t: Array,
) -> bool:
    """Returns whether the gradient is that of a loss that `jvp` differentiates after `grad`."""
    if rule.loss is None:
        return False

    def tangent(params, hparams, where, t):
        return jax.jvp(
            lambda p: _gradients(rule, p, hparams, *batch_and_key(where, t)), (params,), (params,)
        )

    try:
        jax.eval_shape(tangent, params, hparams, where, t)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        return False
    return True
