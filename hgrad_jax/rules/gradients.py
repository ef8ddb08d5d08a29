"""Where an update rule's gradient comes from: backpropagation, or whatever else its user provides.

A provider makes a gradient function of a loss, `provider(loss)(params, hparams, batch, key)`. Every
rule takes one as `gradient=`; a gradient written by hand is `gradient=lambda loss: by_hand`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.functions import is_array, require_function
from hgrad_jax.types import Array, Batch, Hparams, Loss, Params

GradientFn = Callable[[Params, Hparams, Batch, Array | None], Params]
"""`gradient(params, hparams, batch, key) -> tree like params`, pure and deterministic."""

GradientProvider = Callable[[Loss], GradientFn]
"""`provider(loss) -> gradient function`."""


def backpropagation(loss: Loss) -> GradientFn:
    """Returns `jax.grad(loss)` in the parameters, which checks that the loss is a float scalar.

    Args:
      loss: `loss(params, hparams, batch, key) -> scalar`.

    Returns:
      `gradient(params, hparams, batch, key)`, a tree like params. It raises ValueError when it is
      traced if the loss is no floating-point scalar.

    >>> backpropagation(lambda params, hparams, batch, key: params**2)(3.0, {}, None, None)
    Array(6., dtype=float32, weak_type=True)
    """
    _require_loss(loss)

    def gradient(params, hparams, batch, key):
        return jax.grad(scalar(loss))(params, hparams, batch, key)

    return gradient


def gradient_from(provider: GradientProvider, loss: Loss) -> GradientFn:
    """Returns `provider(loss)`, after checking that each is what it should be.

    Raises:
      TypeError: the loss is no function, or the provider is none or does not return one.
    """
    _require_loss(loss)
    require_function(
        provider,
        "gradient(loss)",
        "hg.backpropagation, or gradient=lambda loss: a_function_of_yours",
    )
    gradient = provider(loss)
    returned = "what_gradient_returned(params, hparams, batch, key)"
    way_out = "as gradient= a provider that returns such a function"
    require_function(gradient, returned, way_out)
    return gradient


def _require_loss(loss: Loss) -> None:
    require_function(
        loss, "loss(params, hparams, batch, key)", "a function that returns a floating-point scalar"
    )


def scalar(loss: Callable[..., Any], name: str = "loss") -> Callable[..., Array]:
    """Returns the loss, raising when it is traced if it is not a floating-point scalar.

    Args:
      loss: `loss(params, hparams, batch, key)`, or of other arguments.
      name: what the message calls it.
    """

    def checked(*args):
        value = loss(*args)
        if len(jax.tree.leaves(value)) != 1 or isinstance(value, tuple | list | dict):
            raise ValueError(
                f"{name} returned a {type(value).__name__}; it must return one floating-point "
                "number and nothing beside it: what else it computes, `record` can compute after "
                "the step."
            )
        if not is_array(value):
            raise ValueError(
                f"{name} returned a {type(value).__name__}; it must return one floating-point "
                "number."
            )
        shape, dtype = jnp.shape(value), jnp.result_type(value)
        if shape != () or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{name} returned {dtype} of shape {shape}; it must return one floating-point "
                "number: average over the batch inside the loss."
            )
        return value

    return checked
