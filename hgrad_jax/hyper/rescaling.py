"""Weights trained in units of their own: w = exp(s) z.

The hyperparameters s set the scale of the weights at the start, and by the penalty on z how strong
their regularization is, together: a weight that may be large starts large (St. Jules 2017, section
2.4). In z a step of gradient descent moves w by exp(2 s) times as much.
"""

from typing import Any

import jax
import jax.numpy as jnp

from hgrad_jax.hyper.penalties import l2
from hgrad_jax.inputs.arguments import numbers, taken
from hgrad_jax.inputs.functions import require_function
from hgrad_jax.rules.gradients import scalar
from hgrad_jax.rules.source import Source, field, read
from hgrad_jax.runs.validate import floating
from hgrad_jax.tools.prefixes import multiply, spread
from hgrad_jax.types import Array, Batch, Hparams, Loss, Params


def rescaled(
    loss: Loss,
    *,
    log_scale: Source = field("log_scale"),
    log_penalty: Source | None = field("log_penalty"),
) -> Loss:
    """Returns the loss of z: loss(exp(s) z) + exp(lambda) |z|**2.

    Train z with it, from a start that is z itself, and read the weights with `weights_of`.

    Args:
      loss: `loss(params, hparams, batch, key) -> scalar`, of the weights.
      log_scale: s, a number or a function of hparams; its value is a tree prefix of params: a
        scalar, per tensor, per unit, or per number.
      log_penalty: lambda, likewise; None for no penalty.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return jnp.sum(params)
      >>> hparams = {"log_scale": jnp.log(2.0), "log_penalty": 0.0}
      >>> hg.hyper.rescaled(loss)(jnp.array([3.0]), hparams, None, None).item()
      15.0
    """
    require_function(
        loss, "loss(params, hparams, batch, key)", "a function that returns a floating-point scalar"
    )
    log_scale, log_penalty = taken(log_scale=log_scale, log_penalty=log_penalty)

    def of_z(params: Params, hparams: Hparams, batch: Batch, key: Array | None) -> Array:
        value = scalar(loss)(
            weights_of(params, read(log_scale, hparams, "log_scale")), hparams, batch, key
        )
        if log_penalty is None:
            return value
        strength = read(log_penalty, hparams, "log_penalty")
        spread(strength, params, "log_penalty")  # which says what is wrong with it, if anything
        coefficients = jax.tree.map(lambda x: 2 * jnp.exp(x), strength)
        return value + l2(params, coefficients)

    return of_z


def weights_of(params: Params, log_scale: Any) -> Params:
    """Returns the weights exp(s) z.

    Args:
      params: z.
      log_scale: s, a tree prefix of z.
    """
    params = floating(params, "params")
    spread(log_scale, params, "log_scale")  # which says what is wrong with it, if anything
    log_scale = numbers("log_scale", log_scale, is_bound=True)  # a weight may be off: -inf
    return multiply(jax.tree.map(jnp.exp, log_scale), params, "log_scale")
