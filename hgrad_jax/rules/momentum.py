"""Gradient descent with momentum, in the three conventions of the field.

With the settings held constant all three walk one path: `momentum` at the rate lr / (1 - g), the
others at lr. Where the rate is a schedule they part, since only `classical_momentum` weighs each
gradient with the rate of its own step.
"""

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.arguments import taken
from hgrad_jax.rules.gradients import GradientProvider, backpropagation
from hgrad_jax.rules.kick_drift import kick_drift
from hgrad_jax.rules.source import Source, field, read
from hgrad_jax.tools.prefixes import multiply
from hgrad_jax.types import Loss, Slot, Transition


def momentum(
    loss: Loss,
    *,
    learning_rate: Source = field("learning_rate"),
    momentum: Source = field("momentum"),
    gradient: GradientProvider = backpropagation,
    smallest_decay: float = 0.5,
) -> Transition:
    """Momentum whose velocity is an average of gradients: v' = g v - (1 - g) grad, x' = x + lr v'.

    Maclaurin, Duvenaud and Adams (2015), algorithm 1. Against `heavy_ball` with the same rate the
    step is (1 - g) times as long, and the velocity has the opposite sign.

    Args:
      loss: `loss(params, hparams, batch, key) -> scalar`.
      learning_rate: lr, a number or a function of hparams; its value is a tree prefix of params: a
        scalar, one per tensor, or one per number.
      momentum: g, likewise; for `Reversible()` in [2**-7, 1].
      gradient: where the gradient comes from, `gradient(loss)(params, hparams, batch, key)`:
        `backpropagation`, or `forward_gradient(...)`, or `modified(...)`.
      smallest_decay: capacity of the bit store, see `Slot`.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.momentum(lambda params, hparams, batch, key: jnp.sum(params**2) / 2)
      >>> hparams = {"learning_rate": 1.0, "momentum": 0.5}
      >>> hg.unroll(hg.Run(rule, num_steps=1), jnp.ones(1), hparams, None).params
      Array([0.5], dtype=float32)
    """
    rate, decay = taken(learning_rate=learning_rate, momentum=momentum)

    def kick(gradient, hparams, count):
        factor = jax.tree.map(lambda g: g - 1.0, read(decay, hparams, "momentum"))
        return {"velocity": multiply(factor, gradient, "momentum")}

    return kick_drift(
        loss,
        kick=kick,
        drift=lambda slots, hparams, count: multiply(
            read(rate, hparams, "learning_rate"), slots["velocity"], "learning_rate"
        ),
        decays=lambda hparams, count: {"velocity": read(decay, hparams, "momentum")},
        slots={"velocity": Slot(smallest_decay=smallest_decay)},
        gradient=gradient,
        is_elementwise=True,
    )


def heavy_ball(
    loss: Loss,
    *,
    learning_rate: Source = field("learning_rate"),
    momentum: Source = field("momentum"),
    gradient: GradientProvider = backpropagation,
    smallest_decay: float = 0.5,
) -> Transition:
    """Momentum whose velocity is a sum of gradients: v' = m v + grad, x' = x - lr v'.

    Polyak (1964) in the convention of optax.sgd(momentum=...) and PyTorch.

    Args: as `momentum`.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.heavy_ball(
      ...     lambda params, hparams, batch, key: jnp.sum(params**2) / 2,
      ...     learning_rate=0.25,
      ...     momentum=0.5,
      ... )
      >>> hg.unroll(hg.Run(rule, num_steps=2), jnp.ones(1), {}, None).params
      Array([0.4375], dtype=float32)
    """
    rate, decay = taken(learning_rate=learning_rate, momentum=momentum)

    def drift(slots, hparams, count):
        return jax.tree.map(
            jnp.negative,
            multiply(read(rate, hparams, "learning_rate"), slots["velocity"], "learning_rate"),
        )

    return kick_drift(
        loss,
        kick=lambda gradient, hparams, count: {"velocity": gradient},
        drift=drift,
        decays=lambda hparams, count: {"velocity": read(decay, hparams, "momentum")},
        slots={"velocity": Slot(smallest_decay=smallest_decay)},
        gradient=gradient,
        is_elementwise=True,
    )


def classical_momentum(
    loss: Loss,
    *,
    learning_rate: Source = field("learning_rate"),
    momentum: Source = field("momentum"),
    gradient: GradientProvider = backpropagation,
    smallest_decay: float = 0.5,
) -> Transition:
    """Momentum whose velocity is a step of the parameters: v' = m v - lr grad, x' = x + v'.

    Sutskever et al. (2013), equations 1 and 2, the convention of Keras. It is `heavy_ball` with the
    learning rate inside the velocity: the same path at a constant rate.

    Args: as `momentum`.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.classical_momentum(
      ...     lambda params, hparams, batch, key: jnp.sum(params**2) / 2,
      ...     learning_rate=0.25,
      ...     momentum=0.5,
      ... )
      >>> hg.unroll(hg.Run(rule, num_steps=2), jnp.ones(1), {}, None).state
      KickDriftState(params=Array([0.4375], dtype=float32),
                     slots={'velocity': Array([-0.3125], dtype=float32)},
                     count=Array(2, dtype=int32))
    """
    rate, decay = taken(learning_rate=learning_rate, momentum=momentum)

    def kick(gradient, hparams, count):
        step = multiply(read(rate, hparams, "learning_rate"), gradient, "learning_rate")
        return {"velocity": jax.tree.map(jnp.negative, step)}

    return kick_drift(
        loss,
        kick=kick,
        drift=lambda slots, hparams, count: slots["velocity"],
        decays=lambda hparams, count: {"velocity": read(decay, hparams, "momentum")},
        slots={"velocity": Slot(smallest_decay=smallest_decay)},
        gradient=gradient,
        is_elementwise=True,
    )
