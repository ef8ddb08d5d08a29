"""Nesterov's accelerated gradient."""

from hgrad_jax.inputs.arguments import taken
from hgrad_jax.rules.arithmetic import elementwise
from hgrad_jax.rules.forward_only import Slots, forward_only
from hgrad_jax.rules.gradients import GradientProvider, backpropagation
from hgrad_jax.rules.source import Source, field, read
from hgrad_jax.types import Array, Hparams, Loss, Params, Transition


def nesterov(
    loss: Loss,
    *,
    learning_rate: Source = field("learning_rate"),
    momentum: Source = field("momentum"),
    gradient: GradientProvider = backpropagation,
) -> Transition:
    """Nesterov's momentum: v' = m v - lr grad, x' = x - m v + (1 + m) v' = x + m v' - lr grad.

    Nesterov (1983) as Bengio et al. (2013), equations 6 and 7, rewrite it with the gradient at the
    parameters; at a constant learning rate the trajectory of `optax.sgd(nesterov=True)`, whose
    velocity is not yet multiplied by lr. Not reversible: `heavy_ball` is.

    Args:
      loss: `loss(params, hparams, batch, key) -> scalar`.
      learning_rate: lr, a number or a function of hparams; its value is a tree prefix of params: a
        scalar, one per tensor, or one per number.
      momentum: m, likewise.
      gradient: where the gradient comes from, `gradient(loss)(params, hparams, batch, key)`:
        `backpropagation`, or `forward_gradient(...)`, or `modified(...)`.

    Returns:
      A Transition with the slot "velocity".

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return jnp.sum(params**2) / 2
      >>> rule = hg.nesterov(loss, momentum=0.5)
      >>> hg.unroll(hg.Run(rule, num_steps=1), jnp.ones(1), {"learning_rate": 0.5}, None).params
      Array([0.25], dtype=float32)
    """
    learning_rate, momentum = taken(learning_rate=learning_rate, momentum=momentum)

    def increment(gradient: Params, slots: Slots, hparams: Hparams) -> tuple[Slots, Params]:
        settings = {
            "learning_rate": read(learning_rate, hparams, "learning_rate"),
            "momentum": read(momentum, hparams, "momentum"),
        }

        def ahead(g: Array, v: Array, learning_rate: Array, momentum: Array) -> Array:
            return momentum * v - learning_rate * g

        velocity = elementwise(ahead, gradient, slots["velocity"], **settings)
        return {"velocity": velocity}, elementwise(ahead, gradient, velocity, **settings)

    return forward_only(
        loss,
        increment=increment,
        slots=("velocity",),
        gradient=gradient,
        why_not=(
            "Nesterov's step adds the gradient at the old parameters to the new velocity, and a "
            "run backwards does not have those parameters yet"
        ),
    )
