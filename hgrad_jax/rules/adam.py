"""Adam (Kingma and Ba 2015) and AdamW (Loshchilov and Hutter 2019), exactly reversible.

The gradient kicks both moments, and the parameters drift by a function of the new moments alone.
Running backwards costs log2(1 / b1) + log2(1 / b2) bits per number and step, and for AdamW's
weight decay log2(1 / (1 - lr wd)) more.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.inputs.arguments import taken
from hgrad_jax.rules.arithmetic import elementwise, merge, root
from hgrad_jax.rules.form import PARAMS
from hgrad_jax.rules.gradients import GradientProvider, backpropagation
from hgrad_jax.rules.kick_drift import kick_drift
from hgrad_jax.rules.source import Source, field, read
from hgrad_jax.tools.dtypes import wide
from hgrad_jax.types import Array, Hparams, Loss, Params, Slot, Transition

SECOND_MOMENT = Slot(fraction_bits=50, smallest_decay=0.9, is_double=True)
"""How second moments are kept: within +-1.7e7 and to 7.9e-31, the square of a gradient of 1e-15."""


def adam(
    loss: Loss,
    *,
    learning_rate: Source = field("learning_rate"),
    b1: Source = 0.9,
    b2: Source = 0.999,
    eps: Source = 1e-8,
    gradient: GradientProvider = backpropagation,
    first_moment: Slot = Slot(),
    second_moment: Slot = SECOND_MOMENT,
) -> Transition:
    """Adam: moments of the gradient g, corrected for their start at zero.

        m' = b1 m + (1 - b1) g        v' = b2 v + (1 - b2) g**2
        x' = x - lr (m' / (1 - b1**(t+1))) / (sqrt(v' / (1 - b2**(t+1))) + eps)

    Kingma and Ba (2015), algorithm 1; the trajectory of `optax.adam`. The hypergradient is finite
    also where a gradient is exactly zero; a step is there 1 / eps times as sensitive as the
    gradient.

    The first step is lr g / (|g| + eps), nearly a sign: where |g| is not far from eps, rounding of
    g moves a derivative by the initial parameters much. In float32, 1,000 steps of an MLP on images
    with eps = 1e-8 leave it 1.7e-2 off (relative, to float64); 1e-6 leaves 4.9e-4, 1e-5 8.8e-5,
    1e-4 4.7e-6. (By an L2 coefficient it is 2.4e-4 at 1e-8; by rates and decays below 1e-5 in
    all.) Choose a larger eps, or train in float64, where that derivative matters;
    `check_hypergradient` warns of it.

    As in optax the correction of step t knows that step's decays only: where b1 or b2 is a schedule
    it is b_t**(t+1), not the product b_0 ... b_t, and a derivative with respect to b_t contains
    that power's.

    Under `Reversible()` second moments are kept in 128 bits: a step divides by their root, so that
    it feels squares far below those that 64 bits can hold next to large ones. A mean square above
    1.7e7 is an overflow, which is flagged. First moments are kept to 5.7e-14: with an eps below
    1e-10 and gradients as small, pass `first_moment=Slot(is_double=True)`.

    Args:
      loss: `loss(params, hparams, batch, key) -> scalar`.
      learning_rate: lr, a number or a function of hparams; its value is a tree prefix of params: a
        scalar, one per tensor, or one per number.
      b1: decay of the first moment, likewise, in [0, 1); for `Reversible()` at least 2**-7.
      b2: decay of the second moment, likewise.
      eps: likewise, positive; added outside the root.
      gradient: where the gradient comes from, `gradient(loss)(params, hparams, batch, key)`:
        `backpropagation`, or `forward_gradient(...)`, or `modified(...)`.
      first_moment: fixed point and capacity of the first moment for `Reversible()`.
      second_moment: of the second; its smallest_decay of 0.9 allows 0.15 bits per number and step.

    Returns:
      A Transition with slots "first_moment" and "second_moment".

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.adam(lambda params, hparams, batch, key: jnp.sum(params**2))
      >>> run = hg.Run(rule, num_steps=1)
      >>> hg.unroll(run, jnp.array([1.0, -3.0]), {"learning_rate": 0.25}, None).params
      Array([ 0.75, -2.75], dtype=float32)
    """
    slots = {"first_moment": first_moment, "second_moment": second_moment}
    return _adam(
        loss, learning_rate, b1, b2, eps, lambda hparams, count: {}, gradient, slots, Slot()
    )


def adamw(
    loss: Loss,
    *,
    learning_rate: Source = field("learning_rate"),
    weight_decay: Source = field("weight_decay"),
    b1: Source = 0.9,
    b2: Source = 0.999,
    eps: Source = 1e-8,
    gradient: GradientProvider = backpropagation,
    first_moment: Slot = Slot(),
    second_moment: Slot = SECOND_MOMENT,
    position: Slot = Slot(smallest_decay=0.9),
) -> Transition:
    """Adam with decoupled weight decay: x' = (1 - lr wd) x - lr (Adam's direction).

    Loshchilov and Hutter (2019), algorithm 2, in the convention of `optax.adamw` and PyTorch, where
    the learning rate multiplies the weight decay too. In float32 the factor 1 - lr wd is a multiple
    of 2**-24, the one above or the one below in turn (`one_minus`), so that the decay over many
    steps is right also where lr wd is no larger than that. (Two roundings are left: a float32
    weight that nothing else moves cannot shrink by less than its own spacing, except under
    `Reversible()`, which keeps it finer; and float64 rates with float32 parameters make a factor
    that is rounded alike in every step.) What `adam` says of a small eps in float32 is true here
    too.

    Args: as `adam`, and
      weight_decay: wd, a number or a function of hparams; its value is a tree prefix of params: 0
        for biases, say. Of the structures of lr and wd one must be a prefix of the other. For
        `Reversible()` 1 - lr wd is in [2**-7, 1].
      position: fixed point and capacity of the parameters, which decay by 1 - lr wd.

    Raises:
      ValueError: neither of lr and wd is a tree prefix of the other.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.adamw(lambda params, hparams, batch, key: jnp.sum(params**2), weight_decay=0.5)
      >>> run = hg.Run(rule, num_steps=1)
      >>> hg.unroll(run, jnp.array([1.0, -4.0]), {"learning_rate": 0.25}, None).params
      Array([ 0.625, -3.25 ], dtype=float32)
    """
    learning_rate, weight_decay = taken(learning_rate=learning_rate, weight_decay=weight_decay)

    def kept(hparams: Hparams, count: Array) -> dict[str, Any]:
        rate, strength = (
            read(learning_rate, hparams, "learning_rate"),
            read(weight_decay, hparams, "weight_decay"),
        )
        lost = merge(lambda lr, wd: lr * wd, learning_rate=rate, weight_decay=strength)
        return {PARAMS: jax.tree.map(lambda x: one_minus(x, count), lost)}

    slots = {"first_moment": first_moment, "second_moment": second_moment}
    return _adam(loss, learning_rate, b1, b2, eps, kept, gradient, slots, position)


def _adam(
    loss: Loss,
    learning_rate: Source,
    b1: Source,
    b2: Source,
    eps: Source,
    kept: Callable[[Hparams, Array], dict[str, Any]],
    gradient: GradientProvider,
    slots: dict[str, Slot],
    position: Slot,
) -> Transition:
    """Builds both rules; `kept(hparams, count)` is the decay of the parameters, if any."""
    learning_rate, b1, b2, eps = taken(learning_rate=learning_rate, b1=b1, b2=b2, eps=eps)
    (position,) = taken(position=position)

    def kick(gradient: Params, hparams: Hparams, count: Array) -> dict[str, Params]:
        first = elementwise(lambda g, b1: (1 - b1) * g, gradient, b1=read(b1, hparams, "b1"))
        second = elementwise(lambda g, b2: (1 - b2) * g**2, gradient, b2=read(b2, hparams, "b2"))
        return {"first_moment": first, "second_moment": second}

    def drift(slots: dict[str, Params], hparams: Hparams, count: Array) -> Params:
        def increment(
            m: Array, v: Array, learning_rate: Array, b1: Array, b2: Array, eps: Array
        ) -> Array:
            mean, square = m / correction(b1, count), v / correction(b2, count)
            return -learning_rate * mean / (root(square) + eps)

        return elementwise(
            increment,
            slots["first_moment"],
            slots["second_moment"],
            learning_rate=read(learning_rate, hparams, "learning_rate"),
            b1=read(b1, hparams, "b1"),
            b2=read(b2, hparams, "b2"),
            eps=read(eps, hparams, "eps"),
        )

    def decays(hparams: Hparams, count: Array) -> dict[str, Any]:
        moments = {
            "first_moment": read(b1, hparams, "b1"),
            "second_moment": read(b2, hparams, "b2"),
        }
        return moments | kept(hparams, count)

    return kick_drift(
        loss,
        kick=kick,
        drift=drift,
        decays=decays,
        slots=slots,
        gradient=gradient,
        params=position,
        is_elementwise=True,
    )


@jax.custom_jvp
def correction(decay: Array, count: Array) -> Array:
    """Returns 1 - decay**(count + 1) to a few units of the last place.

    The formula itself cancels: at 0.999 in float32 it is off by up to 7e-6, this by 3e-7.

    Args:
      decay: floats in [0, 1), any shape.
      count: int32 scalar, steps taken before.
    """
    return -jnp.expm1((count + 1).astype(jnp.result_type(decay)) * jnp.log(decay))


@correction.defjvp
def _correction_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # The derivative of the power itself, which is right at a decay of zero too.
    decay, count = primals
    slope = -(count + 1).astype(decay.dtype) * decay ** count.astype(decay.dtype)
    return correction(decay, count), slope * tangents[0]


def one_minus(lost: Any, count: Array) -> Array:
    """Returns 1 - lost, rounded up in some steps and down in others so that no error adds up.

    A float32 next to 1 is off by up to 2**-25: rounded alike in every step, a weight decay lr wd of
    1e-8 would never act, and one of 1e-7 be a fifth too strong. Here step t adds the fraction
    of 1/2 + t / golden ratio before it rounds down, a sequence whose sums stay within a few units
    of t / 2 (Weyl), and which a run backwards knows again. The derivative is -1. In float64 it
    is 1 - lost as it is.

    Args:
      lost: floats, any shape; what a step takes away, meant to be in [0, 1].
      count: int32 scalar, steps taken before.

    >>> f"{sum(1 - float(one_minus(1e-8, t)) for t in range(1000)):.1e}"
    '1.0e-05'
    """
    lost = jnp.asarray(lost)
    lost = lost.astype(wide(lost.dtype))
    if lost.dtype == jnp.float64:
        return 1 - lost
    return _one_minus(lost, count)


@jax.custom_jvp
def _one_minus(lost: Array, count: Array) -> Array:
    turn = jnp.asarray(count).astype(jnp.uint32) * np.uint32(2654435769) + np.uint32(2**31)
    threshold = (turn >> 8).astype(jnp.float32) * np.float32(2.0**-24)
    return 1 - jnp.floor(lost * 2**24 + threshold) * np.float32(2.0**-24)


@_one_minus.defjvp
def _one_minus_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return _one_minus(*primals), -tangents[0]
