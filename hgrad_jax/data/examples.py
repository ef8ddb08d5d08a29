"""A check of labelled examples on the host, before anything is trained on them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.data.dataset import num_examples
from hgrad_jax.inputs.arguments import taken
from hgrad_jax.inputs.functions import positive_int, require_arrays


def validate_examples(data: Any, num_classes: int, name: str = "data") -> Any:
    """Returns the data if a classifier can be trained on them, and raises if not.

    Args:
      data: a `Dataset` or a pair (inputs [N, *shape], integer labels [N]), as arrays.
      num_classes: C; labels are to be in 0..C-1.
      name: what the message calls the data.

    Raises:
      ValueError: there are no examples, an input is infinite or NaN, or a label is no class; the
        message names the first such example.
      TypeError: labels are not integers.

    >>> validate_examples((np.eye(2), np.array([0, 2])), num_classes=2)
    Traceback (most recent call last):
    ...
    ValueError: data has the label 2 at example 1; the classes are 0..1: correct it, ...
    """
    (name,) = taken(name=name)
    positive_int("num_classes", num_classes)
    if not isinstance(data, tuple | list) or len(data) != 2:
        what = f"{len(data)} parts" if isinstance(data, tuple | list) else "no parts"
        raise ValueError(f"{name} has {what}; it must be the pair (inputs, labels).")
    inputs, labels = (np.asarray(part) for part in data)
    num_examples((inputs, labels))
    if labels.ndim != 1:
        raise ValueError(
            f"{name} has labels of shape {list(labels.shape)}; a label is one integer: take "
            "np.argmax(labels, -1) of distributions."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(
            f"{name} has labels of dtype {labels.dtype}; a class is an integer: convert them."
        )
    is_class = (labels >= 0) & (labels < num_classes)
    if not is_class.all():
        first = int(np.argmin(is_class))
        raise ValueError(
            f"{name} has the label {labels[first]} at example {first}; the classes are "
            f"0..{num_classes - 1}: correct it, or train a model with more classes."
        )
    validate_finite(inputs, name)
    return data


def validate_finite(data: Any, name: str = "data") -> Any:
    """Returns the data if every floating-point number in them is finite, and raises if not.

    Args:
      data: pytree of arrays [N, *shape].
      name: what the message calls the data.

    Raises:
      TypeError: they hold something other than arrays.
      ValueError: a number is infinite or NaN; the message names the first such example.
    """
    (name,) = taken(name=name)
    require_arrays(data, name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            continue
        is_finite = np.asarray(jnp.isfinite(leaf))
        if not is_finite.all():
            count = int(is_finite.size - is_finite.sum())
            places = np.argwhere(~is_finite)[0]
            first = f", first at example {places[0]}" if places.size else ""
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has {count} numbers that are infinite or "
                f"NaN{first}; remove or replace them."
            )
    return data
