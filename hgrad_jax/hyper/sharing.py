"""Which parameters share a hyperparameter: maps from a small tree to one value for every number.

The hyperparameters of `unroll` are a small tree; the loss or the rule expands it where it uses it,

    loss:  l2(params, sharing.expand(hparams["log_l2"], params), ...)
    rule:  hg.momentum(loss, learning_rate=lambda hparams: jnp.exp(hparams["log_rate"]))

and the transpose of the expansion, which JAX derives, sums the hypergradients of all numbers that
share a value. A rule's own settings broadcast like a tree prefix already and need no expansion.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.inputs.arguments import taken
from hgrad_jax.inputs.functions import is_array, is_real, require_function
from hgrad_jax.tools.dtypes import common
from hgrad_jax.tools.trees import is_like, shown
from hgrad_jax.types import Array, Params

ShapeMap = Callable[[tuple[int, ...]], tuple[int, ...]]
"""`shape of a tensor -> shape of the values that it shares`, which broadcasts to it."""


class Sharing(NamedTuple):
    """A sharing map, as pure functions. Make one with those below, or of your own.

    Attributes:
      init: `init(params, value) -> small tree`, filled with one number.
      expand: `expand(small tree, params) -> tree like params`; linear, so that its transpose sums.

    Example:
      One value for every column of every matrix:

      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
      >>> sharing = hg.hyper.per_output_unit()
      >>> small = sharing.init(params, 0.5)
      >>> jax.tree.map(jnp.shape, small)
      {'b': (3,), 'w': (1, 3)}
      >>> total = jax.grad(lambda small: jnp.sum(sharing.expand(small, params)["w"]))(small)
      >>> total["w"]
      Array([[2., 2., 2.]], dtype=float32)
    """

    init: Callable[[Params, Any], Any]
    expand: Callable[[Any, Params], Params]


def one_for_all() -> Sharing:
    """Returns the map from one scalar to every number of every tensor."""

    def init(params: Params, value: Any) -> Array:
        _require_floating(params)
        _require_number(value)
        return jnp.full((), value, common(float, *jax.tree.leaves(params)))

    def expand(small: Array, params: Params) -> Params:
        if not is_like(small, 0.0):
            raise ValueError(
                f"one_for_all expands one scalar: got {shown(small)}; make it with its init."
            )
        return jax.tree.map(lambda x: jnp.broadcast_to(small, x.shape).astype(x.dtype), params)

    return Sharing(init, expand)


def per_tensor() -> Sharing:
    """Returns the map from one scalar per tensor: per layer, kernel and bias apart."""
    return by_shape(lambda shape: ())


def per_output_unit() -> Sharing:
    """Returns the map from one value per unit of a layer's output, the last axis.

    A dense kernel `[in, out]` has `[1, out]`, a convolution `[*window, in, out]` one per filter,
    `[1, ..., 1, out]`, a bias `[out]`; a scalar has one.
    """
    return by_shape(lambda shape: (1,) * (len(shape) - 1) + shape[-1:])


def per_input_unit() -> Sharing:
    """Returns the map from one value per unit of a layer's input, the last axis but one.

    A dense kernel `[in, out]` has `[in, 1]`, a convolution `[*window, in, out]` one per channel,
    `[1, ..., in, 1]`; a bias, which has no input, one for all of it.
    """
    return by_shape(
        lambda shape: (1,) * (len(shape) - 2) + (*shape[-2:-1], 1) if len(shape) > 1 else ()
    )


def per_filter() -> Sharing:
    """Returns the map from one value per pair of input and output channel of a convolution.

    A convolution `[*window, in, out]` has `[1, ..., in, out]`: one per plane of its filters. Dense
    kernels have one per output unit, as in `per_output_unit`, biases one per number.
    """
    return by_shape(
        lambda shape: (
            (1,) * (len(shape) - 2) + shape[-2:]
            if len(shape) > 2
            else (1,) * (len(shape) - 1) + shape[-1:]
        )
    )


def per_parameter() -> Sharing:
    """Returns the identity: every number has its own value."""
    return by_shape(lambda shape: shape)


def by_shape(shape_map: ShapeMap) -> Sharing:
    """Returns the map whose values have, for each tensor, the shape that a function says.

    Args:
      shape_map: `shape_map(shape) -> shape`, the second one broadcasting to the first.

    Returns:
      A Sharing. Its functions raise ValueError where a shape does not broadcast, where the small
      tree is not like what `init` makes, and where `init` is given other than one number; and
      TypeError where params are no floats.

    Raises:
      TypeError: `shape_map` is no function of a shape.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> halves = hg.hyper.by_shape(lambda shape: (shape[0], *(1 for _ in shape[1:])))
      >>> halves.init({"w": jnp.ones((2, 3))}, 0.0)["w"].shape
      (2, 1)
    """
    require_function(shape_map, "shape_map(shape)", "a function that returns a shape")

    def shapes(params: Params) -> Any:
        _require_floating(params)

        def at(path: Any, x: Any) -> jax.ShapeDtypeStruct:
            full, small = jnp.shape(x), shape_map(jnp.shape(x))
            if not _is_shape(small) or not _broadcasts(small, full):
                raise ValueError(
                    f"shape_map makes {small!r} of params{jax.tree_util.keystr(path)}, whose shape "
                    f"is {full}; it must return a shape that broadcasts to that, a tuple of ints."
                )
            return jax.ShapeDtypeStruct(tuple(small), jnp.result_type(x))

        return jax.tree_util.tree_map_with_path(at, params)

    def init(params: Params, value: Any) -> Any:
        _require_number(value)
        return jax.tree.map(lambda s: jnp.full(s.shape, value, s.dtype), shapes(params))

    def expand(small: Any, params: Params) -> Params:
        wanted = shapes(params)
        is_numeric = all(map(is_array, jax.tree.leaves(small)))
        if not is_numeric or not is_like(small, wanted):
            raise ValueError(
                f"small: a sharing map expands a tree of shapes {shown(wanted)} for these params: "
                f"got {shown(small) if is_numeric else small}; make it with its init."
            )
        return jax.tree.map(
            lambda s, x: jnp.broadcast_to(s, x.shape).astype(x.dtype), small, params
        )

    return Sharing(init, expand)


def over_windows(values: Any, num_steps: int) -> Any:
    """Returns a schedule of `num_steps` rows out of one row per window of steps.

    Windows are as equal as can be: step t belongs to window t * W // T. Expand with it before
    `unroll`, and name the axis 0 in `hparams_axes`.

    Args:
      values: pytree of arrays `[W, *shape]`, 1 <= W <= T.
      num_steps: T.

    Returns:
      The same tree, arrays `[T, *shape]`.

    Raises:
      ValueError: an array is a scalar, empty, or has more rows than there are steps.
      TypeError: `num_steps` is not a Python int, or is traced.

    Example:
      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> hg.hyper.over_windows(jnp.array([0.5, 0.25]), 5)
      Array([0.5 , 0.5 , 0.5 , 0.25, 0.25], dtype=float32)
    """
    if not isinstance(num_steps, int | np.integer) or isinstance(num_steps, bool):
        raise TypeError(
            f"num_steps is {num_steps!r}; it must be an int, the number of rows of the schedule: "
            "make it a static argument under jit."
        )
    (num_steps,) = taken(num_steps=num_steps)

    def expand(path: Any, x: Any) -> Array:
        if not is_array(x):
            where = "values" + jax.tree_util.keystr(path)
            raise TypeError(f"{where} is {x!r}; it must be an array with one row per window.")
        shape = jnp.shape(x)
        if not shape or not 1 <= shape[0] <= num_steps:
            raise ValueError(
                f"values{jax.tree_util.keystr(path)} has the shape {shape}; it must have one row "
                f"per window, at least one and at most num_steps = {num_steps}."
            )
        # On the host: T * W may be beyond 32 bits.
        return jnp.asarray(x)[np.arange(num_steps, dtype=np.int64) * shape[0] // num_steps]

    return jax.tree_util.tree_map_with_path(expand, values)


def _is_shape(shape: Any) -> bool:
    is_sequence = isinstance(shape, tuple | list)
    return is_sequence and all(isinstance(length, int | np.integer) for length in shape)


def _broadcasts(small: tuple[int, ...], full: tuple[int, ...]) -> bool:
    pairs = zip(small[::-1], full[::-1], strict=False)
    return len(small) <= len(full) and all(a in (1, b) for a, b in pairs)


def _require_floating(params: Params) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        where = f"params{jax.tree_util.keystr(path)}"
        if not is_array(leaf):
            raise TypeError(f"{where} is {leaf!r}, not an array of floats; pass parameters.")
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{where} has dtype {dtype}, of which no hyperparameter can be tuned; convert it "
                "to float32."
            )


def _require_number(value: Any) -> None:
    shape = getattr(value, "shape", ())  # of a traced number too
    if shape != () or not is_real(value):
        shown = repr(value) if jax.tree_util.all_leaves([value]) else f"a {type(value).__name__}"
        shown = f"an array of shape {shape}" if shape else shown
        raise ValueError(
            f"value is {shown}, but init fills the small tree with one number; pass one, and "
            "change the tree it returns."
        )
