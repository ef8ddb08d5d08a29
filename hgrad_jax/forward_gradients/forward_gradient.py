"""Gradients without backpropagation (Baydin, Pearlmutter, Syme, Wood and Torr, 2022).

The derivative of the loss along a random direction v takes one pass forward and no memory beyond a
layer's; times v it is an unbiased estimate of the gradient, if E[v v^T] = I. Its error grows with
the number of weights, which is why a layer's pre-activations are better perturbed where they are
fewer: `hgrad_jax.forward_gradients.activity_forward_gradient`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hgrad_jax.forward_gradients.directions import Directions, Rademacher
from hgrad_jax.forward_gradients.dual import value_and_slope
from hgrad_jax.inputs.arguments import taken
from hgrad_jax.inputs.functions import as_int, positive_int
from hgrad_jax.rules.gradients import GradientProvider, scalar
from hgrad_jax.tools.while_loops import LOSS, marked
from hgrad_jax.types import Array, Params

DIRECTION_ROLE = 0x0D12EC70
"""What a step's key is folded with; large, since a loss may number its layers from 0."""


def forward_gradient(
    directions: Directions = Rademacher(), *, num_directions: int = 1, is_joint: bool = True
) -> GradientProvider:
    """Returns a gradient provider that estimates from directional derivatives alone.

        estimate = 1/k sum_i (grad L . v_i) v_i

    Directions are drawn from `fold_in(key, DIRECTION_ROLE)` of the step's key, so that a step that
    is evaluated again, as on the way back, has the same ones, and that dropout, which uses the key
    itself, is independent of them. The estimate is a differentiable function of parameters and
    hyperparameters like any gradient, and its hypergradients are exact for the directions drawn.

    The step that descent can bear shrinks with the error: some k / d of backpropagation's learning
    rate, for d weights.

    Args:
      directions: how they are drawn; `hgrad_jax.forward_gradients.directions` says what each costs.
      num_directions: k, at least 1. They are mapped over side by side: k times the memory of one
        pass, and k copies of the parameters.
      is_joint: whether one direction is drawn for all tensors together. If not, each tensor has k
        of its own and a derivative for each, the others held still: as many passes as tensors (the
        later layers' are shorter), and an error of the sum over tensors j of (d_j - 1) |g_j|^2 / k
        in place of (d - 1) |g|^2 / k.

    Returns:
      `provider(loss) -> gradient(params, hparams, batch, key)`. That raises ValueError when it is
      traced without a key.

    Raises:
      TypeError: `directions` is no value such as `Gaussian()`.
      ValueError: `num_directions` is not a positive integer.

    Example:
      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return jnp.sum((params - jnp.arange(4.0)) ** 2)
      >>> rule = hg.sgd(loss, learning_rate=0.1, gradient=hg.forward_gradient())
      >>> run = hg.Run(rule, num_steps=100)
      >>> out = hg.unroll(run, jnp.zeros(4), {}, None, key=jax.random.key(0))
      >>> bool(jnp.allclose(out.params, jnp.arange(4.0), atol=1e-3))
      True
    """
    (is_joint,) = taken(is_joint=is_joint)
    if not isinstance(directions, Directions):
        raise TypeError(f"directions is {directions!r}; it must be a value such as hg.Gaussian().")
    num_directions = check_count(num_directions)

    def provider(loss):
        def gradient(params, hparams, batch, key):
            drawing_key = direction_key(key, "forward_gradient")

            def of_params(params):
                return scalar(loss)(params, hparams, batch, key)

            if is_joint:
                drawn = directions.draw(drawing_key, params, num_directions)
                return _estimate(of_params, params, drawn, num_directions)
            return _tensor_by_tensor(of_params, params, directions, num_directions, drawing_key)

        return gradient

    return provider


def _estimate(
    function: Callable[[Params], Array], params: Params, drawn: Params, count: int
) -> Params:
    """Returns the mean over directions `[k, *shape]` of slope * direction."""
    if count == 1:
        v = jax.tree.map(lambda x: x[0], drawn)
        _, slope = value_and_slope(function, params, v)
        return jax.tree.map(lambda x: slope.astype(x.dtype) * x, v)
    function = marked(function, LOSS)
    # Mapped over directions only, so the loss itself is evaluated once.
    slopes = jax.vmap(lambda v: jax.jvp(function, (params,), (v,))[1])(drawn)
    return jax.tree.map(lambda x: jnp.tensordot(slopes.astype(x.dtype) / count, x, 1), drawn)


def _tensor_by_tensor(
    function: Callable[[Params], Array],
    params: Params,
    directions: Directions,
    count: int,
    key: Array,
) -> Params:
    """Returns the estimate whose tensors were each moved alone."""
    leaves, treedef = jax.tree.flatten(params)
    function = marked(function, LOSS)
    estimates = []
    for j, leaf in enumerate(leaves):
        drawn = directions.draw(jax.random.fold_in(key, j), leaf, count)

        def slope(v, leaf=leaf, j=j):
            def of_leaf(moved):
                return function(jax.tree.unflatten(treedef, [*leaves[:j], moved, *leaves[j + 1 :]]))

            return jax.jvp(of_leaf, (leaf,), (v,))[1]

        slopes = jax.vmap(slope)(drawn).astype(leaf.dtype)
        estimates.append(jnp.tensordot(slopes / count, drawn, 1))
    return jax.tree.unflatten(treedef, estimates)


def direction_key(key: Array | None, name: str) -> Array:
    """Returns the key for a step's directions.

    Raises:
      ValueError: there is no key.
    """
    if key is None:
        raise ValueError(
            f"key is None, but {name} draws its directions by it: pass key=jax.random.key(0)."
        )
    return jax.random.fold_in(key, DIRECTION_ROLE)


def check_count(num_directions: int) -> int:
    """Returns the number of directions, and raises ValueError if it is not a positive integer."""
    found = as_int(num_directions)
    if found is None:
        raise ValueError(f"num_directions is {num_directions!r}; it must be an int of at least 1.")
    if found < 1:
        raise ValueError(f"num_directions is {num_directions}; an estimate needs at least 1.")
    return positive_int("num_directions", found)
