"""Plain gradient descent."""

from hgrad_jax.inputs.arguments import taken
from hgrad_jax.rules.arithmetic import elementwise
from hgrad_jax.rules.forward_only import Slots, forward_only
from hgrad_jax.rules.gradients import GradientProvider, backpropagation
from hgrad_jax.rules.source import Source, field, read
from hgrad_jax.types import Hparams, Loss, Params, Transition


def sgd(
    loss: Loss,
    *,
    learning_rate: Source = field("learning_rate"),
    gradient: GradientProvider = backpropagation,
) -> Transition:
    """Gradient descent: x' = x - lr grad. Not reversible: `heavy_ball` with a small momentum is.

    Robbins and Monro (1951); the trajectory of `optax.sgd`.

    Args:
      loss: `loss(params, hparams, batch, key) -> scalar`.
      learning_rate: lr, a number or a function of hparams; its value is a tree prefix of params: a
        scalar, one per tensor, or one per number.
      gradient: where the gradient comes from, `gradient(loss)(params, hparams, batch, key)`:
        `backpropagation`, or `forward_gradient(...)`, or `modified(...)`.

    Returns:
      A Transition without slots.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.sgd(lambda params, hparams, batch, key: jnp.sum(params**2) / 2)
      >>> hg.unroll(hg.Run(rule, num_steps=2), jnp.ones(1), {"learning_rate": 0.5}, None).params
      Array([0.25], dtype=float32)
    """
    (learning_rate,) = taken(learning_rate=learning_rate)

    def increment(gradient: Params, slots: Slots, hparams: Hparams) -> tuple[Slots, Params]:
        rate = read(learning_rate, hparams, "learning_rate")
        return slots, elementwise(
            lambda g, learning_rate: -learning_rate * g, gradient, learning_rate=rate
        )

    return forward_only(
        loss,
        increment=increment,
        gradient=gradient,
        why_not=(
            "plain gradient descent keeps no velocity, so that undoing a step takes the gradient "
            "at the very parameters that are sought"
        ),
    )
