"""Forward gradients of pre-activations: a direction for each example, of one number a unit.

A layer's weights act on an example through its pre-activation z = W x + b alone, and the gradient
in them is a sum over examples of (dl / dz) x^T. So it is enough to estimate dl_b / dz_b, by the
derivative of that example's loss l_b along a direction e_b of its own (Ren, Kornblith, Liao and
Hinton, 2023, "Scaling forward gradient with local losses"): there are fewer units than weights,
and what is wrong for one example averages out over the batch.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from hgrad_jax.forward_gradients.directions import Directions, Rademacher
from hgrad_jax.forward_gradients.forward_gradient import check_count, direction_key
from hgrad_jax.forward_gradients.independence import is_mixing
from hgrad_jax.forward_gradients.perturbed import (
    Losses,
    chosen,
    losses_through,
    perturbed_units,
    replaced,
    which_are_other,
)
from hgrad_jax.inputs.functions import require_function
from hgrad_jax.rules.gradients import GradientProvider, scalar
from hgrad_jax.tools.trees import shown
from hgrad_jax.types import Array


def activity_forward_gradient(
    example_losses: Callable[..., Array],
    *,
    penalty: Callable[[Any, Any], Array] | None = None,
    layers: tuple[type[nn.Module], ...] = (nn.Dense, nn.Conv),
    directions: Directions = Rademacher(),
    num_directions: int = 1,
) -> GradientProvider:
    """Returns a gradient provider that estimates from the derivatives of each example's loss.

        c_b = 1/k sum_i (dl_b along e_bi) e_bi        estimate = 1/B sum_b (dz_b / dparams)^T c_b

    over all perturbed layers together; the last product is a layer's own, no pass goes back through
    the network. With signs for directions and the weights and biases of dense layers, n_l units and
    inputs x_l, the mean square error is

        1 / B^2 sum_b sum_l (|x_bl|^2 + 1) (n_l sum_m |dl_b / dz_bm|^2 - |dl_b / dz_bl|^2) / k.

    Parameters of other layers, a normalization's or an embedding's, are perturbed themselves, in
    the same pass: their error is that of `forward_gradient`. So are the layers' own that `layers`
    leaves out: a convolution has more units than weights, and is at times better off so.

    Mapping one estimate over keys at the same parameters (`vmap`, not `lax.map`) is wrong with
    jaxlib 0.10 on a CPU for a network of one layer: its compiler gets the sum of a * e, times e,
    wrong where e has one more axis than a and 32,768 numbers. Trainings side by side are not
    affected, since their parameters differ; jaxlib 0.11 is right.

    Args:
      example_losses: `example_losses(params, hparams, batch, key) -> [B]`, which applies flax
        modules; `hgrad_jax.forward_gradients.example_losses(model)` is that of a classifier.
        Example b's loss depends on no other example's pre-activations, as it does by batch
        normalization (this is tried out, with made-up numbers), and every perturbed layer has
        the examples on its leading axis, and stands in no `jit`, `scan` or `vmap` of its own.
      penalty: `penalty(params, hparams) -> scalar`, whose exact gradient is added: what the loss
        has beside the mean over examples. The provider does not look at the loss it is given, which
        should be `mean(example_losses) + penalty`.
      layers: which modules' outputs are perturbed.
      directions: how they are drawn, for the pre-activations of all examples.
      num_directions: k, at least 1, mapped over side by side.

    Returns:
      `provider(loss) -> gradient(params, hparams, batch, key)`. That raises ValueError when it is
      traced, on what does not hold of the above.

    Raises:
      TypeError: `directions` is no value such as `Rademacher()`, or `example_losses` no function.
      ValueError: `num_directions` is not a positive integer.

    Example:
      >>> import hgrad_jax as hg
      >>> from hgrad_jax.forward_gradients import example_losses
      >>> from hgrad_jax.models import MLP, classification_loss
      >>> model, x, y = MLP((8, 3)), jnp.eye(3), jnp.arange(3)
      >>> gradient = activity_forward_gradient(example_losses(model))
      >>> rule = hg.sgd(classification_loss(model), learning_rate=0.2, gradient=gradient)
      >>> params = model.init(jax.random.key(0), x, train=False)["params"]
      >>> out = hg.unroll(hg.Run(rule, num_steps=200), params, {}, (x, y), key=jax.random.key(1))
      >>> bool(classification_loss(model)(out.params, {}, (x, y), None) < 0.1)
      True
    """
    if not isinstance(directions, Directions):
        raise TypeError(f"directions is {directions!r}; it must be a value such as hg.Gaussian().")
    num_directions = check_count(num_directions)
    if isinstance(example_losses, nn.Module):
        raise TypeError(
            "example_losses is a model; pass hgrad_jax.forward_gradients.example_losses(model), or "
            "a function example_losses(params, hparams, batch, key) -> [B]."
        )
    call = "example_losses(params, hparams, batch, key)"
    require_function(example_losses, call, "a function that returns one loss for each example")
    if penalty is not None:
        require_function(penalty, "penalty(params, hparams)", "a function, or None")
    is_modules = isinstance(layers, tuple) and all(isinstance(x, type) for x in layers)
    if not is_modules:
        raise TypeError(
            f"layers is {layers!r}; it must be a tuple of classes of flax modules, such as "
            "(flax.linen.Dense,)."
        )
    found_separate = set()  # shapes for which examples were found not to mix

    def provider(loss):
        del loss

        def estimate(params, hparams, batch, key):
            unit_key, other_key = jax.random.split(direction_key(key, "activity_forward_gradient"))
            losses = functools.partial(losses_through, layers, example_losses, hparams, batch, key)
            units, num_examples = perturbed_units(losses, params)
            is_other = which_are_other(losses, params, units)
            given = (params, hparams, batch, key)
            shapes = shown(given, lambda x: (jnp.shape(x), jnp.result_type(x)))
            if shapes not in found_separate:
                _require_separate(layers, example_losses, given)
                found_separate.add(shapes)
            others = chosen(params, is_other)
            drawn = (
                directions.draw(unit_key, units, num_directions),
                directions.draw(other_key, others, num_directions) if others else [],
            )
            slopes, inputs = _slopes(losses, params, is_other, units, drawn)
            slopes /= num_directions * num_examples
            z_bars = [jnp.einsum("kb,kb...->b...", slopes.astype(e.dtype), e) for e in drawn[0]]
            other_bars = [jnp.tensordot(jnp.sum(slopes, 1).astype(v.dtype), v, 1) for v in drawn[1]]
            found = _pulled_back(losses, params, inputs, z_bars)
            found = replaced(found, is_other, other_bars)
            if penalty is None:
                return found
            return jax.tree.map(
                jnp.add, found, jax.grad(scalar(penalty, "penalty"))(params, hparams)
            )

        def gradient(params, hparams, batch, key):
            try:
                return estimate(params, hparams, batch, key)
            except jax.errors.UnexpectedTracerError as error:
                raise ValueError(
                    "a perturbed layer stands in a jit, scan, vmap or remat of its own: leave its "
                    "type out of layers=, or use forward_gradient(...)."
                ) from error

        return gradient

    return provider


def _require_separate(
    layers: tuple[type[nn.Module], ...], example_losses: Callable[..., Array], given: tuple
) -> None:
    """Raises a ValueError if an example's loss depends on another's pre-activations."""

    def losses(spoil, given):
        params, hparams, batch, key = given
        through = functools.partial(losses_through, layers, example_losses, hparams, batch, key)
        return through(lambda index, apply, x: spoil(apply(x)), params)

    if is_mixing(losses, jax.tree.map(jnp.asarray, given)):
        raise ValueError(
            "an example's loss depends on the pre-activations of other examples, as by a "
            "normalization over the batch: use forward_gradient(...), or a model without."
        )


def _slopes(
    losses: Losses, params: Any, is_other: list[bool], units: list[Any], drawn: tuple[list, list]
) -> tuple[Array, list[Array]]:
    """Returns each example's derivative along each direction [k, B], and the layers' inputs."""

    def perturbed(moved, others):
        inputs = []

        def layer(index, apply, x):
            inputs.append(x)
            return apply(x) + moved[index]

        return losses(layer, replaced(params, is_other, others)), inputs

    still = ([jnp.zeros(z.shape, z.dtype) for z in units], chosen(params, is_other))

    def along(direction):
        _, slopes, inputs = jax.jvp(perturbed, still, direction, has_aux=True)
        return slopes, inputs

    # What does not depend on the direction is not mapped, and computed once.
    return jax.vmap(along, out_axes=(0, None))(drawn)


def _pulled_back(losses: Losses, params: Any, inputs: list[Array], z_bars: list[Array]) -> Any:
    """Returns the cotangent of the parameters for those of the layers' outputs."""

    def paired(params):
        total = []

        def layer(index, apply, x):
            # The input from the pass forward, a constant here: so nothing goes further back.
            z = apply(inputs[index])
            total.append(jnp.sum(z * z_bars[index]))
            return z

        losses(layer, params)
        return sum(total)

    return jax.grad(paired)(params)
