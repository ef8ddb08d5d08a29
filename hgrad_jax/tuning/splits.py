"""Training and validation examples divided anew."""

from typing import Any

import jax
import jax.numpy as jnp

from hgrad_jax.data.dataset import num_examples
from hgrad_jax.tools.trees import is_like, shown
from hgrad_jax.types import Array, Data


def resplit(train: Data, valid: Data, key: Array) -> tuple[Data, Data]:
    """Returns parts of the same sizes, drawn at random from both together. Pure.

    Args:
      train: pytree of arrays [N, *shape].
      valid: the same tree, arrays [M, *shape].
      key: PRNG key.

    Raises:
      ValueError: the trees, the shapes of examples or the dtypes differ.

    >>> train, valid = resplit(jnp.arange(3), jnp.arange(3, 5), jax.random.key(0))
    >>> train.shape, valid.shape, sorted([*train.tolist(), *valid.tolist()])
    ((3,), (2,), [0, 1, 2, 3, 4])
    """
    require_alike(train, valid)
    size = num_examples(train)
    order = jax.random.permutation(key, size + num_examples(valid))

    def divide(x: Any, y: Any) -> tuple[Array, Array]:
        both = jnp.concatenate([x, y])
        return both[order[:size]], both[order[size:]]

    leaves, treedef = jax.tree.flatten(train)
    parts = [divide(x, y) for x, y in zip(leaves, jax.tree.leaves(valid), strict=True)]
    first, second = zip(*parts, strict=True)
    return jax.tree.unflatten(treedef, first), jax.tree.unflatten(treedef, second)


def require_alike(train: Data, valid: Data) -> None:
    """Raises if examples of one part could not be in the other.

    Raises:
      ValueError: the trees, the shapes of examples or the dtypes differ, or there are no examples.
    """

    def kind(x: Any) -> str:
        return f"{jnp.result_type(x)}{list(jnp.shape(x)[1:])}"

    for data in (train, valid):
        num_examples(data)
    if not is_like(train, valid, kind):
        raise ValueError(
            f"fresh_splits is True, but an example of data is {shown(train, kind)} and one of "
            f"outer_data {shown(valid, kind)}; give both in the same containers, shapes and dtypes."
        )
