"""RMSProp (Tieleman and Hinton 2012), plain and with momentum; the latter is exactly reversible.

The plain rule moves the parameters by the gradient itself. With momentum they move by the velocity
alone, which a run backwards still has.
"""

from typing import Any

from hgrad_jax.inputs.arguments import taken
from hgrad_jax.rules.adam import SECOND_MOMENT
from hgrad_jax.rules.arithmetic import elementwise, root
from hgrad_jax.rules.forward_only import Slots, forward_only
from hgrad_jax.rules.gradients import GradientProvider, backpropagation
from hgrad_jax.rules.kick_drift import kick_drift
from hgrad_jax.rules.source import Source, field, read
from hgrad_jax.types import Array, Hparams, Loss, Params, Slot, Transition


def rmsprop(
    loss: Loss,
    *,
    learning_rate: Source = field("learning_rate"),
    decay: Source = 0.99,
    eps: Source = 1e-8,
    gradient: GradientProvider = backpropagation,
) -> Transition:
    """RMSProp: a' = d a + (1 - d) grad**2, x' = x - lr grad / (sqrt(a') + eps).

    Tieleman and Hinton (2012), lecture 6.5, in the convention and with the defaults of PyTorch; the
    trajectory of `optax.rmsprop(lr, decay, eps, eps_in_sqrt=False)`, whose own defaults are decay
    0.9 and eps inside the root. The hypergradient is finite also where a gradient is exactly zero.
    Not reversible: `rmsprop_momentum` is.

    Args:
      loss: `loss(params, hparams, batch, key) -> scalar`.
      learning_rate: lr, a number or a function of hparams; its value is a tree prefix of params: a
        scalar, one per tensor, or one per number.
      decay: d, likewise, in [0, 1].
      eps: likewise, positive.
      gradient: where the gradient comes from, `gradient(loss)(params, hparams, batch, key)`:
        `backpropagation`, or `forward_gradient(...)`, or `modified(...)`.

    Returns:
      A Transition with the slot "second_moment".

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.rmsprop(lambda params, hparams, batch, key: jnp.sum(params**2), decay=0.75)
      >>> run = hg.Run(rule, num_steps=1)
      >>> hg.unroll(run, jnp.array([1.0, -4.0]), {"learning_rate": 0.25}, None).params
      Array([ 0.5, -3.5], dtype=float32)
    """
    learning_rate, decay, eps = taken(learning_rate=learning_rate, decay=decay, eps=eps)

    def increment(gradient: Params, slots: Slots, hparams: Hparams) -> tuple[Slots, Params]:
        squares = elementwise(
            lambda g, a, decay: decay * a + (1 - decay) * g**2,
            gradient,
            slots["second_moment"],
            decay=read(decay, hparams, "decay"),
        )
        added = elementwise(
            lambda g, learning_rate: -learning_rate * g,
            _divided(gradient, squares, read(eps, hparams, "eps")),
            learning_rate=read(learning_rate, hparams, "learning_rate"),
        )
        return {"second_moment": squares}, added

    return forward_only(
        loss,
        increment=increment,
        slots=("second_moment",),
        gradient=gradient,
        why_not=(
            "RMSProp without momentum moves the parameters by the gradient at the very ones that a "
            "run backwards is looking for (rmsprop_momentum can be reversed)"
        ),
    )


def rmsprop_momentum(
    loss: Loss,
    *,
    learning_rate: Source = field("learning_rate"),
    momentum: Source = field("momentum"),
    decay: Source = 0.99,
    eps: Source = 1e-8,
    gradient: GradientProvider = backpropagation,
    second_moment: Slot = SECOND_MOMENT,
    velocity: Slot = Slot(),
) -> Transition:
    """RMSProp whose steps are summed: v' = m v + grad / (sqrt(a') + eps), x' = x - lr v'.

    With a' as in `rmsprop`. The rule of `torch.optim.RMSprop(momentum=m)`; at a constant learning
    rate the trajectory of `optax.rmsprop(lr, decay, eps, eps_in_sqrt=False, momentum=m)`, whose
    velocity is already multiplied by lr.

    Args: as `rmsprop`, and
      momentum: m, a number or a function of hparams; its value is a tree prefix of params. For
        `Reversible()` m and d are in [2**-7, 1].
      second_moment: fixed point and capacity of a for `Reversible()`; `adam` says when to change
        them.
      velocity: of v.

    Returns:
      A Transition with slots "second_moment" and "velocity".

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return jnp.sum(params**2)
      >>> rule = hg.rmsprop_momentum(loss, decay=0.75)
      >>> hparams = {"learning_rate": 0.25, "momentum": 0.5}
      >>> hg.unroll(hg.Run(rule, num_steps=1), jnp.array([1.0, -4.0]), hparams, None).params
      Array([ 0.5, -3.5], dtype=float32)
    """
    learning_rate, momentum, decay, eps = taken(
        learning_rate=learning_rate, momentum=momentum, decay=decay, eps=eps
    )

    def kick(gradient: Params, hparams: Hparams, count: Array) -> dict[str, Params]:
        squares = elementwise(
            lambda g, decay: (1 - decay) * g**2, gradient, decay=read(decay, hparams, "decay")
        )
        return {"second_moment": squares}

    def drift(slots: dict[str, Params], hparams: Hparams, count: Array) -> Params:
        rate = read(learning_rate, hparams, "learning_rate")
        return elementwise(
            lambda v, learning_rate: -learning_rate * v, slots["velocity"], learning_rate=rate
        )

    return kick_drift(
        loss,
        is_elementwise=True,
        kick=kick,
        couple=lambda gradient, slots, hparams, count: {
            "velocity": _divided(gradient, slots["second_moment"], read(eps, hparams, "eps"))
        },
        coupled=("velocity",),
        drift=drift,
        decays=lambda hparams, count: {
            "second_moment": read(decay, hparams, "decay"),
            "velocity": read(momentum, hparams, "momentum"),
        },
        slots={"second_moment": second_moment, "velocity": velocity},
        gradient=gradient,
    )


def _divided(gradient: Params, squares: Params, eps: Any) -> Params:
    """Returns gradient / (sqrt(squares) + eps)."""
    return elementwise(lambda g, a, eps: g / (root(a) + eps), gradient, squares, eps=eps)
