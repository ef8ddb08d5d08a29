"""What is done to a gradient before the update rule sees it: weight decay, clipping, noise.

`modified` puts any number of them behind a gradient provider. Every bound and coefficient is a
hyperparameter like a learning rate: a number, or a function of hparams, differentiated with the
rest of the step.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.inputs.arguments import taken
from hgrad_jax.inputs.functions import is_concrete, require_function
from hgrad_jax.rules.arithmetic import elementwise, root
from hgrad_jax.rules.gradients import GradientFn, GradientProvider, gradient_from
from hgrad_jax.rules.source import Source, field, read
from hgrad_jax.rules.stepping import floats
from hgrad_jax.tools.dtypes import common, wide
from hgrad_jax.types import Array, Batch, Hparams, Loss, Params

GradientModifier = Callable[[Params, Params, Hparams], Params]
"""`modifier(gradient, params, hparams) -> gradient`, pure; all trees alike."""

NOISE_ROLE = 0x4E015E
"""What a step's key is folded with; large, since a loss may number its layers from 0."""


class RandomModifier(NamedTuple):
    """A gradient modifier that draws random numbers, such as `add_noise` makes.

    Attributes:
      modify: `modify(gradient, params, hparams, key) -> gradient`, pure; all trees alike. The key
        is this step's and this modifier's own: `fold_in(fold_in(key, NOISE_ROLE), i)` of the key
        that the loss gets, for the i-th modifier. Never None.

    Example:
      Half of the gradient's numbers, doubled (unbiased):

      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> def modify(gradient, params, hparams, key):
      ...     return 2 * gradient * jax.random.bernoulli(key, shape=gradient.shape)
      >>> half = hg.modified(hg.backpropagation, hg.RandomModifier(modify))
      >>> rule = hg.sgd(lambda params, hparams, batch, key: jnp.sum(params), gradient=half)
      >>> run, hparams = hg.Run(rule, num_steps=1), {"learning_rate": 0.5}
      >>> out = hg.unroll(run, jnp.zeros(100), hparams, None, key=jax.random.key(0))
      >>> jnp.unique(out.params).tolist()
      [-1.0, 0.0]
    """

    modify: Callable[[Params, Params, Hparams, Array], Params]


def modified(
    provider: GradientProvider, *modifiers: GradientModifier | RandomModifier
) -> GradientProvider:
    """Returns a provider whose gradients pass through the modifiers, the first one first.

    The result is no longer the gradient of the loss, so `Reversible()` pulls it back in reverse
    mode, which costs about one more gradient a step than the loss's own: weight decay that you
    write into the loss is faster. `Implicit()` needs its condition spelled out.

    Args:
      provider: where the gradient comes from: `backpropagation`, `forward_gradient(...)`.
      modifiers: those below, any `modifier(gradient, params, hparams) -> gradient`, or a
        `RandomModifier`.

    Returns:
      A provider for the `gradient=` of an update rule.

    Raises:
      TypeError: the provider or a modifier is no function.
      ValueError: when it is traced, a random modifier without a key.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return jnp.sum(params**2) / 2
      >>> gradient = hg.modified(hg.backpropagation, hg.clip_by_norm(2.5), hg.add_weight_decay(0.5))
      >>> rule = hg.sgd(loss, gradient=gradient)
      >>> run = hg.Run(rule, num_steps=1)
      >>> hg.unroll(run, jnp.array([3.0, 4.0]), {"learning_rate": 0.5}, None).params
      Array([1.5, 2. ], dtype=float32)
    """
    require_function(provider, "provider(loss)", "hg.backpropagation, first, and then modifiers")
    for modifier in modifiers:
        if isinstance(modifier, RandomModifier):
            call = "modify(gradient, params, hparams, key)"
            require_function(modifier.modify, call, "a function of these four")
        else:
            call = "modifier(gradient, params, hparams)"
            require_function(modifier, call, "one such as hg.clip_by_norm(1.0)")
    if isinstance(provider, _Modified):  # as one list, so that every modifier has its own key
        provider, modifiers = provider.provider, (*provider.modifiers, *modifiers)
    return _Modified(provider, modifiers)


@dataclasses.dataclass(frozen=True)
class _Modified:
    provider: GradientProvider
    modifiers: tuple[GradientModifier | RandomModifier, ...]

    def __call__(self, loss: Loss) -> GradientFn:
        gradient_at = gradient_from(self.provider, loss)

        def gradient(params: Params, hparams: Hparams, batch: Batch, key: Array | None) -> Params:
            found = gradient_at(params, hparams, batch, key)
            for i, modifier in enumerate(self.modifiers):
                if isinstance(modifier, RandomModifier):
                    changed = modifier.modify(found, params, hparams, _key_of(i, key))
                    found = floats(changed, "what modify returned")
                else:
                    found = floats(modifier(found, params, hparams), "what the modifier returned")
            return found

        return gradient


def add_weight_decay(strength: Source = field("weight_decay")) -> GradientModifier:
    """Returns the modifier g + wd x: the gradient of an added wd / 2 |x|**2.

    Coupled to the rule, as in PyTorch's SGD: Adam divides it by its second moment. `adamw` has the
    decoupled form. As `optax.add_decayed_weights`.

    Args:
      strength: wd, by default `hparams["weight_decay"]`: a number or a function of hparams; its
        value is a tree prefix of params: 0 for biases, say.
    """
    (strength,) = taken(strength=strength)

    def modify(gradient: Params, params: Params, hparams: Hparams) -> Params:
        return elementwise(
            lambda g, x, strength: g + strength * x,
            gradient,
            params,
            strength=read(strength, hparams, "strength"),
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
    (bound,) = taken(bound=bound)

    def limit(g: Array, bound: Array) -> Array:
        return jnp.where(jnp.abs(g) > bound, jnp.sign(g) * bound, g)

    def modify(gradient: Params, params: Params, hparams: Hparams) -> Params:
        return elementwise(limit, gradient, bound=read(bound, hparams, "bound"))

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
    (bound,) = taken(bound=bound)

    def modify(gradient: Params, params: Params, hparams: Hparams) -> Params:
        c = read(bound, hparams, "bound")
        if not jax.tree_util.all_leaves([c]) or jnp.shape(c) != ():
            raise ValueError(
                f"bound is {c!r}, but clip_by_norm bounds one norm over all tensors by one number; "
                "clip_by_value takes a bound for each."
            )
        squares = [jnp.sum(jnp.square(g.astype(wide(g.dtype)))) for g in jax.tree.leaves(gradient)]
        dtype = common(c, *squares)
        norm, c = root(jnp.asarray(sum(x.astype(dtype) for x in squares))), jnp.asarray(c, dtype)
        is_long = norm > c
        factor = jnp.where(is_long, c / jnp.where(is_long, norm, 1), 1)
        return elementwise(lambda g, factor: factor * g, gradient, factor=factor)

    return modify


def add_noise(scale: Source = field("noise_scale")) -> RandomModifier:
    """Returns the modifier g + s e, with e standard normal, drawn anew in every step.

    Neelakantan, Vilnis, Le, Sutskever, Kaiser, Kurach and Martens (2015), who let the variance fall
    as s_t**2 = eta / (1 + t)**gamma: a schedule, named in `hparams_axes`. The noise is a function
    of the step's key, so the way back meets the same one, and the hypergradient is exact for the
    noise that was drawn, through `Reversible()` too. It depends on neither the batch's nor the
    loss's random numbers, nor on those of another modifier. Behind `clip_by_norm` it is not
    clipped, before it it is.

    Args:
      scale: s >= 0, its standard deviation, by default `hparams["noise_scale"]`: a number or a
        function of hparams; its value is a tree prefix of params: a scalar, one per tensor, or one
        per number. Of a negative one in hparams, where none is looked at, the noise has the sign
        changed, and the same distribution.

    Raises:
      ValueError: the scale is a negative number; or, when the modifier is traced, there is no key.

    Example:
      How the end depends on eta and gamma:

      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return jnp.sum(params**2) / 2
      >>> rule = hg.momentum(loss, gradient=hg.modified(hg.backpropagation, hg.add_noise()))
      >>> axes = {"learning_rate": None, "momentum": None, "noise_scale": 0}
      >>> run = hg.Run(rule, num_steps=50, hparams_axes=axes, adjoint=hg.Reversible())
      >>> def end(eta, gamma):
      ...     scale = jnp.sqrt(eta / (1 + jnp.arange(50)) ** gamma)
      ...     hparams = {"learning_rate": 0.1, "momentum": 0.9, "noise_scale": scale}
      ...     out = hg.unroll(run, jnp.ones(3), hparams, None, key=jax.random.key(0))
      ...     return jnp.sum(out.params**2)
      >>> bars = jax.jit(jax.grad(end, (0, 1)))(0.3, 0.55)
      >>> all(bool(bar != 0) for bar in bars)
      True
    """
    _require_bound(scale, "add_noise", "scale")
    (scale,) = taken(scale=scale)

    def modify(gradient: Params, params: Params, hparams: Hparams, key: Array) -> Params:
        leaves, treedef = jax.tree.flatten(gradient)
        keys = jax.random.split(key, len(leaves))
        drawn = [
            jax.random.normal(each, jnp.shape(g), wide(g.dtype))
            for each, g in zip(keys, leaves, strict=True)
        ]
        noise = jax.tree.unflatten(treedef, drawn)
        return elementwise(
            lambda g, e, noise_scale: g + noise_scale * e,
            gradient,
            noise,
            noise_scale=read(scale, hparams, "scale"),
        )

    return RandomModifier(modify)


def _key_of(place: int, key: Array | None) -> Array:
    if key is None:
        raise ValueError(
            "key is None, but a random modifier of the gradient, such as add_noise, draws by it: "
            "pass key=jax.random.key(0) to unroll."
        )
    return jax.random.fold_in(jax.random.fold_in(key, NOISE_ROLE), place)


def _require_bound(bound: Source, name: str, what: str = "bound") -> None:
    is_real = is_concrete(bound) and jnp.issubdtype(jnp.result_type(bound), np.number)
    if is_real and not np.all(np.asarray(bound) >= 0):
        raise ValueError(f"{name} has the {what} {bound}; it must be at least 0.")
