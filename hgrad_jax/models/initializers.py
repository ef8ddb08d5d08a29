"""How weights start: what flax has under its names, and what it has not.

Initializers are functions `init(key, shape, dtype) -> array`, made by the functions here and passed
as `kernel_init=` and `bias_init=`. A kernel's last axis is the layer's outputs, those before it its
inputs. `scaled_normal(s)` is s times a standard normal; He's and Glorot's, cut off at two standard
deviations, choose s by the number of inputs and outputs (He, Zhang, Ren and Sun, 2015; Glorot and
Bengio, 2010).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.initializers import glorot_normal as glorot_normal
from flax.linen.initializers import glorot_uniform as glorot_uniform
from flax.linen.initializers import he_normal as he_normal
from flax.linen.initializers import he_uniform as he_uniform
from flax.linen.initializers import lecun_normal as lecun_normal
from flax.linen.initializers import normal as scaled_normal
from flax.linen.initializers import zeros as zeros
from jax import Array

from hgrad_jax.inputs.arguments import real, taken

Initializer = Callable[..., Array]
"""`init(key, shape, dtype) -> array`."""

__all__ = [
    "Initializer",
    "cosine",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "scaled_normal",
    "uniform",
    "zeros",
]


def uniform(low: float, high: float) -> Initializer:
    """Returns an initializer that draws from [low, high); flax's own draws from [0, scale).

    Args:
      low: least value.
      high: what all values are below, more than `low`.

    Raises:
      ValueError: not low < high.

    >>> weights = uniform(-0.5, 0.5)(jax.random.key(0), (1000,))
    >>> bool((weights >= -0.5).all() and (weights < 0.5).all())
    True
    """
    low, high = taken(low=low, high=high)
    if not low < high:
        raise ValueError(f"uniform draws from [low, high): low is {low!r} and high {high!r}.")

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, tuple(shape), dtype, low, high)

    return init


def cosine(scale: float = 0.1, *, offset: int = 0) -> Initializer:
    """Returns an initializer without chance: scale * cos(offset + i) for the i-th weight.

    Weights are counted input by input: row by row through a kernel [inputs, outputs], which is
    column by column through the matrix [outputs, inputs] of the textbooks. With `offset` one layer
    goes on where the one before it ended: `cosine(offset=2560)` after a kernel of 256 x 10.

    Args:
      scale: the largest size of a weight.
      offset: number of the first weight.

    Raises:
      TypeError: scale is no number.
      ValueError: offset is not an integer of at least 0, or scale is not finite.

    >>> [f"{weight:.3f}" for weight in cosine()(None, (4,))]
    ['0.100', '0.054', '-0.042', '-0.099']
    """
    scale = real("scale", scale)
    if isinstance(offset, bool) or not isinstance(offset, int | np.integer) or offset < 0:
        raise ValueError(f"offset is {offset!r}; it must be an integer of at least 0.")

    def init(key: Array | None, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        del key
        # In float64 on the host: large angles have few digits after the point in float32.
        angles = offset + np.arange(np.prod(shape, dtype=int)).reshape(shape)
        return jnp.asarray(scale * np.cos(angles), dtype)

    return init
