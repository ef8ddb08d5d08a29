"""Checks of what classifiers are made with, and of the batches that they are called with."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from hgrad_jax.inputs.functions import (
    INT32_END,
    as_int,
    is_number,
    positive_int,
    require_function,
    returning_arrays,
)


def require_widths(name: str, widths: Any) -> tuple[int, ...]:
    """Returns the widths of layers as ints.

    Raises:
      ValueError: they are not a sequence of positive ints.
    """
    is_sequence = isinstance(widths, Sequence) and not isinstance(widths, str)
    found = [as_int(width) for width in widths] if is_sequence else [None]
    if any(width is None or not 1 <= width < INT32_END for width in found):
        raise ValueError(f"{name} is {widths!r}; give widths of layers, positive ints: (50, 10).")
    return tuple(width for width in found if width is not None)


def require_num_classes(num_classes: Any) -> int:
    """Returns the number of classes as an int.

    Raises:
      ValueError: it is no positive int.
    """
    return positive_int("num_classes", num_classes)


def require_callables(**functions: Any) -> tuple[Callable[..., Any], ...]:
    """Returns activations and initializers, which raise TypeError where they return no array.

    Raises:
      TypeError: it is something else, such as a name.
    """
    found = []
    for name, function in functions.items():
        example = "hgrad_jax.models.he_normal()" if "init" in name else "flax.linen.relu"
        if not callable(function):
            raise TypeError(f"{name} is {function!r}; pass a function such as {example}.")
        arguments = "(key, shape, dtype)" if "init" in name else "(x)"
        require_function(function, name + arguments, f"a function such as {example}")
        found.append(returning_arrays(name, function))
    return tuple(found)


def require_rate(dropout_rate: Any) -> None:
    """Raises if a rate of dropout is none.

    Raises:
      ValueError: it is no number in [0, 1).
    """
    if not is_number(dropout_rate) or not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate is {dropout_rate!r}; it must be in [0, 1).")


def require_model(model: Any) -> None:
    """Raises if something is no flax module that is ready to be called.

    Raises:
      TypeError: it is something else, such as a class of them.
    """
    # Flax itself has an `apply`, too.
    is_none = isinstance(model, type | ModuleType)
    if is_none or not callable(getattr(model, "apply", None)):
        raise TypeError(
            f"model is {model!r}; pass a flax module such as hgrad_jax.models.MLP((50, 10))."
        )


def pair(batch: Any) -> tuple[Any, Any]:
    """Returns inputs and labels.

    Raises:
      TypeError: the batch is no pair of them.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        what = f"{len(batch)} parts" if isinstance(batch, tuple | list) else "no parts"
        raise TypeError(
            f"the batch has {what}; it must be the pair (inputs, labels), and so must the data "
            "that a batch_fn makes it from."
        )
    inputs, labels = batch
    return inputs, labels
