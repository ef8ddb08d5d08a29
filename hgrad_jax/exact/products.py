"""The gradient of a step on the way back, together with its second-order products, in one pass.

With u the cotangent of the gradient, the adjoint of a step needs the gradient g itself (to undo the
kick), the Hessian-vector product H u and the mixed product d<u, g>/dhparams. Mixed partial
derivatives are symmetric, so `jax.jvp` of `grad(loss, (params, hparams))` along (u, 0) returns all
three: forward over reverse, about the time of two gradients, where reverse over reverse takes more
and stores the inner graph (Pearlmutter 1994; MixFlow-MG, Kemaev et al. 2025).

The gradient must come out with the bits it had on the way forward. Where the kick is linear in it,
it is evaluated in the isolated branch of `bitwise.isolate` and differentiated through that branch.
Whether the compiler keeps its bits there is measured, in every run, by the check of the restored
start; `Reversible(share_gradient=False)` evaluates it apart, by the very function of the way
forward, at the price of one more gradient a step. Other kicks always pay that price.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.elementary.gradients import scalar
from hgrad_jax.elementary.kick_drift import KickDrift
from hgrad_jax.exact.bitwise import isolate
from hgrad_jax.exact.engine import gradient_pullback, ignores_first
from hgrad_jax.trees import Layout, ravel, ravel_in_place, unravel
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
        return rule.gradient(params, hparams, *batch_and_key(where, t))

    return ravel_in_place(isolate(evaluate, t)(params, hparams, where, t), like)


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

    If the kick is linear in the gradient, u is known before the gradient is, and one `jvp` returns
    all. If it is not (Adam squares the gradient), the gradient is evaluated first, apart: out of
    `jax.linearize` it comes with other bits (measured: in all weights of a convolutional net with
    batch normalization). So it is before `vjp`, which serves where the gradient is a user's
    estimator, whose Jacobian need not be symmetric, or where the loss contains a `custom_vjp`,
    which forbids `jvp`.
    """
    slots = {name: slots[name] for name in rule.kicked}
    slot_bars = {name: bars[name] for name in rule.driving}
    pull_kick = gradient_pullback(rule, slots, hparams, t, view)

    def direction(gradient):
        return unravel(ravel(pull_kick(unravel(gradient, view), slot_bars), view), like)

    def gradients(params, hparams, where, t):
        return _gradients(rule, params, hparams, *batch_and_key(where, t))

    def along(tangent, function):
        return jax.jvp(lambda p: function(p, hparams, where, t), (params,), (tangent,))

    is_forward = is_twice_forward(rule, batch_and_key, params, hparams, where, t)
    zeros = jnp.zeros((like.size,), like.dtype)
    if share_gradient and is_forward and ignores_first(direction, zeros):
        # The kick's adjoint is the same at any gradient.
        (gradient, _), (product, mixed) = along(direction(zeros), isolate(gradients, t))
        return Products(ravel_in_place(gradient, like), ravel_in_place(product, like), mixed)

    gradient = gradient_at(rule, batch_and_key, params, hparams, where, t, like)
    tangent = direction(gradient)
    if is_forward:
        product, mixed = along(tangent, isolate(gradients, t))[1]
        return Products(gradient, ravel_in_place(product, like), mixed)

    def estimate(params, hparams):
        return ravel(rule.gradient(params, hparams, *batch_and_key(where, t)), like)

    _, pull = jax.vjp(estimate, params, hparams)
    params_bar, hparams_bar = pull(ravel(tangent, like))
    return Products(gradient, ravel_in_place(params_bar, like), hparams_bar)


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

    # A derivative of a custom_vjp is traced as this primitive, which has no value: it raises only
    # when it is compiled, and inside a scan it is compiled even if nothing needs it.
    jaxpr = jax.make_jaxpr(tangent)(params, hparams, where, t).jaxpr
    return "custom_lin" not in _primitives(jaxpr)


def _primitives(jaxpr: Any) -> set[str]:
    """Returns the names of all primitives in a jaxpr, nested ones included."""
    names = {equation.primitive.name for equation in jaxpr.eqns}
    for equation in jaxpr.eqns:
        for leaf in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(leaf, "jaxpr", leaf)
            if hasattr(inner, "eqns"):
                names |= _primitives(inner)
    return names
