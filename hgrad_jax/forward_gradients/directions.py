"""Random directions for forward gradients.

A forward gradient (grad . v) v has the mean E[v v^T] grad: it is unbiased if E[v v^T] is the
identity. With d numbers, k directions and g the gradient, its mean square error E|estimate - g|^2
is, when the directions are drawn jointly for all tensors,

| directions | error |
|---|---|
| `Gaussian()` | (d + 1) / k |g|^2 |
| `Rademacher()` | (d - 1) / k |g|^2 |
| `Standardized()` | (d - 1) / k |g|^2 |
| `Orthogonal()` | (d / k - 1) |g|^2 |

The least that a single direction can have is (d - 1) |g|^2, since E|v|^2 = d. There are no
antithetic pairs: a derivative is linear in its direction, so v and -v give the same estimate, and
the second tells nothing. (They help finite differences, whose second-order error they cancel;
there are none here.) What helps instead is to make the next direction orthogonal.
"""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.arguments import take_fields
from hgrad_jax.tools.dtypes import wide
from hgrad_jax.tools.vectors import layout, unravel
from hgrad_jax.types import Array, Params

WORD = 32


class Directions(abc.ABC):
    """How directions are drawn: a value, equal to any other with the same settings."""

    @abc.abstractmethod
    def draw(self, key: Array, like: Params, count: int) -> Params:
        """Returns `count` directions: a tree like `like`, with a leading axis `[count]`.

        Args:
          key: PRNG key; the same one draws the same directions.
          like: pytree of floating-point arrays, or of their shapes and dtypes.
          count: k, at least 1.

        Raises:
          ValueError: there are no such directions for these shapes.
        """


@dataclasses.dataclass(frozen=True)
class Gaussian(Directions):
    """Independent standard normal numbers (Baydin, Pearlmutter, Syme, Wood and Torr, 2022).

    The slowest to draw but for `Orthogonal()`, and not better than `Rademacher()`.
    """

    def draw(self, key: Array, like: Params, count: int) -> Params:
        """Returns directions; see `Directions.draw`."""
        leaves, treedef = jax.tree.flatten(like)
        keys = jax.random.split(key, len(leaves))
        drawn = [
            jax.random.normal(key, (count, *leaf.shape), leaf.dtype)
            for key, leaf in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, drawn)


@dataclasses.dataclass(frozen=True)
class Rademacher(Directions):
    """Independent signs: the least error of one direction, and 32 numbers from one random word.

    >>> import jax, jax.numpy as jnp
    >>> Rademacher().draw(jax.random.key(0), jnp.zeros(4), 2).tolist()
    [[...1.0, ...1.0, ...1.0, ...1.0], [...1.0, ...1.0, ...1.0, ...1.0]]
    """

    def draw(self, key: Array, like: Params, count: int) -> Params:
        """Returns directions; see `Directions.draw`."""
        leaves, treedef = jax.tree.flatten(like)
        lengths = [-(-math.prod(leaf.shape) // WORD) for leaf in leaves]
        # One call: each is a loop of its own, which costs more than the words that a tensor wastes.
        words = jax.random.bits(key, (count, sum(lengths)), jnp.uint32)
        drawn, start = [], 0
        for leaf, length in zip(leaves, lengths, strict=True):
            signs = _signs(words[:, start : start + length], leaf.dtype)
            drawn.append(signs[:, : math.prod(leaf.shape)].reshape(count, *leaf.shape))
            start += length
        return jax.tree.unflatten(treedef, drawn)


@dataclasses.dataclass(frozen=True)
class Standardized(Directions):
    """Normal numbers brought to mean zero and variance one within each tensor, then shifted.

    With u_i = (z_i - mean z) / std z over the n numbers of a tensor, the variance taken with n - 1,
    E[u u^T] = I - 1 1^T / n: such a direction is blind to the mean of a tensor's gradient. The
    shift v = u + s / sqrt(n) by a random sign s gives that back: E[v v^T] = I, and |v|^2 = n.

    Attributes:
      is_shifted: whether the sign is added. Without it these are directions of mean 0 and variance
        1, and the estimate is biased: its mean is the gradient less its mean in each tensor. A
        tensor of one number has no such direction. (Where a softmax follows, the gradient's mean
        over the last layer's weights is zero, and nothing is lost.)
    """

    is_shifted: bool = True

    def __post_init__(self) -> None:
        take_fields(self)

    def draw(self, key: Array, like: Params, count: int) -> Params:
        """Returns directions; see `Directions.draw`.

        Raises:
          ValueError: a tensor has one number, and directions are not shifted.
        """
        leaves, treedef = jax.tree.flatten(like)
        keys = jax.random.split(key, len(leaves))
        drawn = [self._of_tensor(key, leaf, count) for key, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(treedef, drawn)

    def _of_tensor(self, key: Array, leaf: Array, count: int) -> Array:
        n = math.prod(leaf.shape)
        if n == 1 and not self.is_shifted:
            raise ValueError(
                "Standardized(is_shifted=False) met a tensor of one number, which cannot have mean "
                "0 and variance 1: use Standardized()."
            )
        dtype = wide(leaf.dtype)
        normal_key, sign_key = jax.random.split(key)
        v = jnp.zeros((count, n), dtype)
        if n > 1:
            z = jax.random.normal(normal_key, (count, n), dtype)
            z -= jnp.mean(z, axis=1, keepdims=True)
            v = z * jax.lax.rsqrt(jnp.sum(z**2, axis=1, keepdims=True) / (n - 1))
        if self.is_shifted:
            v += jax.random.rademacher(sign_key, (count, 1), dtype) / math.sqrt(n)
        return v.reshape(count, *leaf.shape).astype(leaf.dtype)


@dataclasses.dataclass(frozen=True)
class Orthogonal(Directions):
    """k directions orthogonal to each other, each uniform on the sphere of radius sqrt(d).

    Their estimate is d / k times the projection of the gradient on a random subspace: with k = d it
    is the gradient itself. Worth its price, O(d k^2) for a QR decomposition, where k is not small
    against d: the error is by (1 - 1 / k) |g|^2 less than that of signs.
    """

    def draw(self, key: Array, like: Params, count: int) -> Params:
        """Returns directions; see `Directions.draw`.

        Raises:
          ValueError: there are more directions than numbers.
        """
        flat = layout(like)
        if count > flat.size:
            raise ValueError(
                f"num_directions is {count}, but {flat.size} numbers have no more than {flat.size} "
                "orthogonal directions: draw fewer, or independent ones with Rademacher()."
            )
        normal = jax.random.normal(key, (flat.size, count), flat.dtype)
        q, _ = jnp.linalg.qr(normal)
        return jax.vmap(lambda v: unravel(v, flat))(math.sqrt(flat.size) * q.T)


def _signs(words: Array, dtype: jnp.dtype) -> Array:
    """Returns the bits of words `[k, w]` as numbers +-1, `[k, 32 w]`."""
    bits = (words[..., None] >> jnp.arange(WORD, dtype=jnp.uint32)[None, None]) & 1
    one = jnp.ones((), dtype)
    return jnp.where(bits == 0, one, -one).reshape(*words.shape[:-1], -1)
