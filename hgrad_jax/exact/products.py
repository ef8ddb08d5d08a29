"""The gradient of a step on the way back, together with its second-order products, in one pass.

With u the cotangent of the gradient, the adjoint of a step needs the gradient g itself (to undo the
kick), the Hessian-vector product H u and the mixed product d<u, g>/dhparams. Mixed partial
derivatives are symmetric, so `jax.jvp` of `grad(loss, (params, hparams))` along (u, 0) returns all
three: forward over reverse, about the time of two gradients, where reverse over reverse takes more
and stores the inner graph (Pearlmutter 1994; MixFlow-MG, Kemaev et al. 2025).

The gradient must come out with the bits it had on the way forward. Where the kick is linear in it,
it is evaluated in the isolated branch of `bitwise.isolate` and differentiated through that branch.
Whether the compiler keeps its bits there is measured, in every run, by the check of the restored
start. It does in networks, where matrix products lie between the two; in losses that are
elementwise up to the last sum (cosh(exp(s) x)) it may not. Then the whole way back is taken again,
with the gradient evaluated apart, by the very function of the way forward, at the price of one more
gradient a step: `Reversible(share_gradient=False)` from the start. Other kicks always pay it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.bits.bitwise import isolate
from hgrad_jax.exact.engine import gradient_pullback, ignores_first
from hgrad_jax.rules.form import KickDrift
from hgrad_jax.rules.gradients import scalar
from hgrad_jax.tools.foreign_rules import has_foreign_rule
from hgrad_jax.tools.vectors import Layout, ravel, unravel, write_into
from hgrad_jax.types import Array, Batch, Hparams, Params

BatchAndKey = Callable[[Hparams, Any, Array], tuple[Batch, Array | None]]
"""`(hparams, where, t) -> batch, key`, with data and key in the pytree `where`."""


class Products(NamedTuple):
    """What a backward step needs of the loss.

    Attributes:
      gradient: vector `[N]`, the bits of the way forward.
      params_bar: H u, tree like params.
      hparams_bar: d<u, g>/dhparams, tree like hparams.
    """

    gradient: Array
    params_bar: Params
    hparams_bar: Hparams


def gradient_at(
    rule: KickDrift,
    batch_and_key: BatchAndKey,
    params: Params,
    hparams: Hparams,
    where: Any,
    t: Array,
    like: Layout,
    vector: Array,
) -> Array:
    """Returns the gradient of step t as a vector `[N]`, isolated together with the batch's making.

    Args:
      rule: the rule.
      batch_and_key: `(hparams, where, t) -> batch, key`.
      params: positions, a pytree.
      hparams: hyperparameters of this step.
      where: data and key, a pytree.
      t: int32 scalar, the step.
      like: layout of the positions.
      vector: `[N]`, to be written over.
    """

    def evaluate(params, hparams, where, t):
        return rule.gradient(params, hparams, *batch_and_key(hparams, where, t))

    return write_into(vector, isolate(evaluate, t)(params, hparams, where, t), like)


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
    vector: Array,
    *,
    is_shared: bool,
) -> Products:
    """Returns gradient and products of step t, for cotangents `bars` `[N]` of the slots.

    The gradient is written over `vector`.

    If it `is_shared`, which `can_share` must allow, u is known before the gradient is, and one
    `jvp` returns all. If not, the gradient is evaluated first, apart: out of
    `jax.linearize` it comes with other bits (measured: in all weights of a convolutional net with
    batch normalization). So it is before `vjp`, which serves where the gradient is a user's
    estimator, or the loss contains a `custom_vjp`: of neither the Jacobian need be symmetric.
    """
    direction = _direction(rule, hparams, t, like, view, slots, bars)

    def gradients(params, hparams, where, t):
        def loss(params, hparams):
            # The batch inside: where batch_fn closes over hyperparameters, it depends on them.
            assert rule.loss is not None
            return scalar(rule.loss)(params, hparams, *batch_and_key(hparams, where, t))

        return jax.grad(loss, argnums=(0, 1))(params, hparams)

    def along(tangent, function):
        return jax.jvp(lambda p: function(p, hparams, where, t), (params,), (tangent,))

    if is_shared:
        # The kick's adjoint is the same at any gradient.
        zeros = jnp.zeros((like.size,), like.dtype)
        (gradient, _), (product, mixed) = along(direction(zeros), isolate(gradients, t))
        return Products(write_into(vector, gradient, like), product, mixed)

    gradient = gradient_at(rule, batch_and_key, params, hparams, where, t, like, vector)
    tangent = direction(gradient)
    if is_twice_forward(rule, batch_and_key, params, hparams, where, t):
        product, mixed = along(tangent, isolate(gradients, t))[1]
        return Products(gradient, product, mixed)

    def estimate(params, hparams):
        return ravel(rule.gradient(params, hparams, *batch_and_key(hparams, where, t)), like)

    _, pull = jax.vjp(estimate, params, hparams)
    params_bar, hparams_bar = pull(ravel(tangent, like))
    return Products(gradient, params_bar, hparams_bar)


def can_share(
    rule: KickDrift,
    batch_and_key: BatchAndKey,
    params: Params,
    hparams: Hparams,
    where: Any,
    like: Layout,
    view: Layout,
    slots: dict[str, Params],
) -> bool:
    """Returns whether gradient and products of a step can come from one pass.

    They can if the gradient is that of a loss that can be differentiated by `jvp` after `grad`, and
    the kick is linear in it: Adam squares the gradient.
    """
    bars = {name: jnp.zeros((like.size,), like.dtype) for name in rule.driving}
    direction = _direction(rule, hparams, jnp.int32(0), like, view, slots, bars)
    zeros = jnp.zeros((like.size,), like.dtype)
    is_forward = is_twice_forward(rule, batch_and_key, params, hparams, where, jnp.int32(0))
    return is_forward and ignores_first(direction, zeros)


def _direction(
    rule: KickDrift,
    hparams: Hparams,
    t: Array,
    like: Layout,
    view: Layout,
    slots: dict[str, Params],
    bars: dict[str, Array],
) -> Callable[[Array], Params]:
    """Returns the function from the gradient `[N]` to its cotangent u, a tree like params."""
    slots = {name: slots[name] for name in rule.kicked}
    slot_bars = {name: bars[name] for name in rule.driving}
    pull_kick = gradient_pullback(rule, slots, hparams, t, view)
    return lambda gradient: unravel(
        ravel(pull_kick(unravel(gradient, view), slot_bars), view), like
    )


def is_twice_forward(
    rule: KickDrift,
    batch_and_key: BatchAndKey,
    params: Params,
    hparams: Hparams,
    where: Any,
    t: Array,
) -> bool:
    """Returns whether the gradient is that of a loss whose mixed derivatives are symmetric."""
    loss = rule.loss
    if loss is None:
        return False

    def at_step(params, hparams, where, t):
        return loss(params, hparams, *batch_and_key(hparams, where, t))

    return not has_foreign_rule(at_step, params, hparams, where, t)
