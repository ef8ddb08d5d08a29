"""What is done to a gradient before the update rule sees it: weight decay, clipping.

`modified` puts any number of them behind a gradient provider. Every bound and coefficient is a
hyperparameter like a learning rate: a number, or a function of hparams, differentiated with the
rest of the step.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hgrad_jax.elementary.arithmetic import elementwise, root
from hgrad_jax.elementary.gradients import GradientFn, GradientProvider, gradient_from
from hgrad_jax.elementary.source import Source, field, read
from hgrad_jax.functions import is_number, require_function
from hgrad_jax.types import Array, Batch, Hparams, Loss, Params

GradientModifier = Callable[[Params, Params, Hparams], Params]
"""`modifier(gradient, params, hparams) -> gradient`, pure; all trees alike."""


def modified(provider: GradientProvider, *modifiers: GradientModifier) -> GradientProvider:
    """Returns a provider whose gradients pass through the modifiers, the first one first.

    The result is no longer the gradient of the loss, so `Reversible()` pulls it back in reverse
    mode, which costs about one more gradient a step than the loss's own: weight decay that you
    write into the loss is faster. `Implicit()` needs its condition spelled out.

    Args:
      provider: where the gradient comes from: `backpropagation`, `forward_gradient(...)`.
      modifiers: those below, or any `modifier(gradient, params, hparams) -> gradient`.

    Returns:
      A provider for the `gradient=` of an update rule.

    Raises:
      TypeError: a modifier is no function.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return jnp.sum(params**2) / 2
      >>> gradient = hg.modified(hg.backpropagation, hg.clip_by_norm(2.5), hg.add_weight_decay(0.5))
      >>> rule = hg.sgd(loss, gradient=gradient)
      >>> hg.unroll(rule, jnp.array([3.0, 4.0]), {"learning_rate": 0.5}, None, num_steps=1).params
      Array([1.5, 2. ], dtype=float32)
    """
    for modifier in modifiers:
        require_function(
            modifier, "modifier(gradient, params, hparams)", "one such as hg.clip_by_norm(1.0)"
        )

    def provide(loss: Loss) -> GradientFn:
        gradient_at = gradient_from(provider, loss)

        def gradient(params: Params, hparams: Hparams, batch: Batch, key: Array | None) -> Params:
            found = gradient_at(params, hparams, batch, key)
            for modifier in modifiers:
                found = modifier(found, params, hparams)
            return found

        return gradient

    return provide


def add_weight_decay(strength: Source = field("weight_decay")) -> GradientModifier:
    """Returns the modifier g + wd x: the gradient of an added wd / 2 |x|**2.

    Coupled to the rule, as in PyTorch's SGD: Adam divides it by its second moment. `adamw` has the
    decoupled form. As `optax.add_decayed_weights`.

    Args:
      strength: wd, by default `hparams["weight_decay"]`: a number or a function of hparams; its
        value is a tree prefix of params: 0 for biases, say.
    """

    def modify(gradient: Params, params: Params, hparams: Hparams) -> Params:
        return elementwise(
            lambda g, x, weight_decay: g + weight_decay * x,
            gradient,
            params,
            weight_decay=read(strength, hparams),
        )

    return modify


def clip_by_value(bound: Source = field("clip")) -> GradientModifier:
    """Returns the modifier min(max(g, -c), c), number by number; as `optax.clip`.

    Args:
      bound: c >= 0, by default `hparams["clip"]`: a number or a function of hparams; its value is
        a tree prefix of params.

    Raises:
      ValueError: the bound is a negative number.
    """
    _require_bound(bound, "clip_by_value")

    def limit(g: Array, clip: Array) -> Array:
        return jnp.where(jnp.abs(g) > clip, jnp.sign(g) * clip, g)

    def modify(gradient: Params, params: Params, hparams: Hparams) -> Params:
        return elementwise(limit, gradient, clip=read(bound, hparams))

    return modify


def clip_by_norm(bound: Source = field("clip")) -> GradientModifier:
    """Returns the modifier g min(1, c / |g|), with the Euclidean norm over all tensors.

    Pascanu, Mikolov and Bengio (2013), algorithm 1; as `optax.clip_by_global_norm`, but with a
    finite derivative at a gradient of zero.

    Args:
      bound: c >= 0, by default `hparams["clip"]`: a number or a function of hparams; one scalar for
        all tensors.

    Raises:
      ValueError: the bound is a negative number, or, when the modifier is traced, no scalar.
    """
    _require_bound(bound, "clip_by_norm")

    def modify(gradient: Params, params: Params, hparams: Hparams) -> Params:
        c = read(bound, hparams)
        if len(jax.tree.leaves(c)) != 1 or jnp.shape(jax.tree.leaves(c)[0]) != ():
            raise ValueError(
                f"clip_by_norm bounds one norm over all tensors by one number: got {c!r}; "
                "clip_by_value takes a bound for each."
            )
        squares = elementwise(lambda g: g**2, gradient)
        norm = root(jnp.asarray(sum(map(jnp.sum, jax.tree.leaves(squares)))))
        is_long = norm > c
        factor = jnp.where(is_long, c / jnp.where(is_long, norm, 1), 1)
        return elementwise(lambda g, factor: factor * g, gradient, factor=factor)

    return modify


def _require_bound(bound: Source, name: str) -> None:
    if not callable(bound) and is_number(bound) and bound < 0:
        raise ValueError(f"{name} has the bound {bound}; it must be at least 0.")
