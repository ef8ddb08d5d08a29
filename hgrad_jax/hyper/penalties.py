"""Penalties whose coefficients are hyperparameters, for the loss."""

from typing import Any

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.functions import is_array
from hgrad_jax.runs.validate import floating
from hgrad_jax.tools.dtypes import common
from hgrad_jax.tools.prefixes import spread
from hgrad_jax.types import Array, Params


def l2(params: Params, coefficients: Any) -> Array:
    """Returns the sum of c w**2 / 2 over all numbers w, each with its coefficient c.

    Args:
      params: pytree of floating-point arrays.
      coefficients: tree prefix of params: a scalar, one per tensor, one per number, or any shape
        that broadcasts to a tensor's, such as a `Sharing`'s small tree.

    Returns:
      Scalar.

    Raises:
      TypeError: params holds something other than floats, or coefficients than numbers and arrays.
      ValueError: params is empty, coefficients is no prefix, or a shape does not broadcast.

    >>> l2({"w": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}, {"w": 2.0, "b": 0.0}).item()
    5.0
    """
    return _sum(lambda c, w: c * w**2 / 2, coefficients, params)


def l1(params: Params, coefficients: Any) -> Array:
    """Returns the sum of c |w| over all numbers w, each with its coefficient c; as `l2`.

    >>> l1({"w": jnp.array([1.0, -2.0])}, 0.5).item()
    1.5
    """
    return _sum(lambda c, w: c * jnp.abs(w), coefficients, params)


def _sum(formula: Any, coefficients: Any, params: Params) -> Array:
    params = floating(params, "params")
    full = spread(coefficients, params, "coefficients")

    def term(c: Any, w: Array) -> Array:
        dtype = common(c, w)
        return jnp.sum(formula(jnp.asarray(c, dtype), w.astype(dtype)))

    terms = jax.tree.leaves(jax.tree.map(term, full, params))
    dtype = common(*terms)
    return jnp.sum(jnp.stack([x.astype(dtype) for x in terms]))


def weighted_mean(losses: Array, weights: Array) -> Array:
    """Returns sum_i w_i l_i / N of N examples: weights in [0, 1] that clean the data.

    Data hyper-cleaning (Franceschi et al. 2017, section 5.1). Not divided by the sum of weights: a
    weight lowered must not raise the others.

    Args:
      losses: `[B]`, of one batch.
      weights: `[B]`, those of the same examples: let batches carry the examples' indices.

    Raises:
      TypeError: one of them is no array.
      ValueError: the shapes differ.

    >>> weighted_mean(jnp.array([1.0, 3.0]), jnp.array([1.0, 0.5])).item()
    1.25
    """
    for name, values in (("losses", losses), ("weights", weights)):
        if not is_array(values):
            raise TypeError(
                f"{name} is a {type(values).__name__}; it must be an array [B], one number for "
                "each example: jnp.asarray makes one of a list."
            )
    if jnp.shape(losses) != jnp.shape(weights):
        raise ValueError(
            f"losses have the shape {jnp.shape(losses)} and weights {jnp.shape(weights)}; pass the "
            "weights of the batch's examples, one each."
        )
    dtype = common(losses, weights)
    return jnp.mean(jnp.asarray(losses, dtype) * jnp.asarray(weights, dtype))
