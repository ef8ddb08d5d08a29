"""Losses with something added to the layers' pre-activations, and which parameters those meet."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import Var

from hgrad_jax.inputs.functions import traced
from hgrad_jax.models.batch_norm import BatchNorm
from hgrad_jax.types import Array

Layer = Callable[[int, Callable[[Array], Array], Array], Array]
"""`layer(l, apply, x) -> z`: what stands in for the l-th perturbed layer."""

Losses = Callable[[Layer, Any], Array]
"""`losses(layer, params) -> [B]`, with `layer` in place of every perturbed one."""


def losses_through(
    layers: tuple[type[nn.Module], ...],
    example_losses: Callable[..., Array],
    hparams: Any,
    batch: Any,
    key: Array,
    layer: Layer,
    params: Any,
) -> Array:
    """Returns the losses [B] with `layer` in place of every perturbed one."""
    index = 0

    def interceptor(next_function, args, kwargs, context):
        nonlocal index
        module = context.module
        if isinstance(module, BatchNorm | nn.BatchNorm):
            raise ValueError(
                "the model has batch normalization, by which an example's loss depends on the "
                "others: use forward_gradient(...), or a model without."
            )
        if context.method_name != "__call__" or not isinstance(module, layers):
            return next_function(*args, **kwargs)
        (x,) = (*args, *kwargs.values())
        index += 1
        return layer(index - 1, next_function, x)

    with nn.intercept_methods(interceptor):
        return example_losses(params, hparams, batch, key)


def perturbed_units(
    losses: Callable[..., Array], params: Any
) -> tuple[list[jax.ShapeDtypeStruct], int]:
    """Returns shape and dtype of each perturbed layer's output, and the number of examples.

    Raises:
      ValueError: there is no such layer, an output's leading axis is not the examples, or there is
        no loss for each example.
    """
    units = []

    def layer(index, apply, x):
        z = apply(x)
        units.append(jax.ShapeDtypeStruct(z.shape, z.dtype))
        return z

    with traced("example_losses"):
        found = jax.eval_shape(functools.partial(losses, layer), params)
    if not hasattr(found, "shape") or len(found.shape) != 1:
        raise ValueError(
            f"example_losses returned {found}; it must return one loss for each example, [B]."
        )
    if not units:
        raise ValueError(
            "example_losses applies none of the layers to perturb: name others in layers=, or use "
            "forward_gradient(...)."
        )
    for z in units:
        if z.shape[:1] != found.shape:
            raise ValueError(
                f"a perturbed layer's output has shape {z.shape}, but there are {found.shape[0]} "
                "examples, which must be its leading axis: leave its type out of layers=."
            )
    return units, found.shape[0]


def which_are_other(losses: Losses, params: Any, units: list[Any]) -> list[bool]:
    """Returns for each tensor whether the losses depend on it beside the perturbed layers.

    Raises:
      ValueError: a tensor is a perturbed layer's, too.
    """

    def of_others(params, outputs):
        inputs = []

        def layer(index, apply, x):
            inputs.append(x)
            return outputs[index]

        return losses(layer, params), inputs

    def of_layers(params, outputs):
        made = []

        def layer(index, apply, x):
            made.append(apply(jnp.zeros(x.shape, x.dtype)))
            return outputs[index]

        losses(layer, params)
        return made

    is_own = _reaches(of_layers, params, units)
    is_other = _reaches(of_others, params, units)
    for (path, _), *both in zip(
        jax.tree_util.tree_leaves_with_path(params), is_own, is_other, strict=True
    ):
        if all(both):
            raise ValueError(
                f"the example losses depend on params{jax.tree_util.keystr(path)} through a "
                "perturbed layer and otherwise too: move a penalty on it to penalty=, or leave the "
                "layer's type out of layers=."
            )
    return is_other


def _reaches(function: Callable[..., Any], params: Any, *args: Any) -> list[bool]:
    """Returns for each leaf of `params` whether `function(params, *args)` depends on it."""
    jaxpr = jax.make_jaxpr(function)(params, *args).jaxpr
    needed = {v for v in jaxpr.outvars if isinstance(v, Var)}
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            needed.update(v for v in equation.invars if isinstance(v, Var))
    return [v in needed for v in jaxpr.invars[: len(jax.tree.leaves(params))]]


def chosen(tree: Any, is_chosen: list[bool]) -> list[Array]:
    """Returns the chosen leaves."""
    return [x for x, is_it in zip(jax.tree.leaves(tree), is_chosen, strict=True) if is_it]


def replaced(tree: Any, is_chosen: list[bool], leaves: list[Array]) -> Any:
    """Returns the tree with other leaves in place of the chosen ones."""
    rest, (old, treedef) = iter(leaves), jax.tree.flatten(tree)
    new = [next(rest) if is_it else x for x, is_it in zip(old, is_chosen, strict=True)]
    return jax.tree.unflatten(treedef, new)
