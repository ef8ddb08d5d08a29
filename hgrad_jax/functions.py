"""Checks of the functions that users pass: that they are functions, of the arguments they get."""

import inspect
from typing import Any


def require_function(function: Any, call: str, way_out: str) -> None:
    """Raises if something is no function, or takes other arguments than it will be given.

    Args:
      function: what the user passed.
      call: how it will be called, `loss(params, hparams, batch, key)`.
      way_out: what to pass instead, after "pass".

    Raises:
      TypeError: it is not callable, or its signature does not fit.

    >>> require_function(0.1, "loss(params, hparams, batch, key)", "a function")
    Traceback (most recent call last):
    TypeError: loss is 0.1, but is called as loss(params, hparams, batch, key); pass a function.
    """
    name, _, arguments = call.partition("(")
    if not callable(function):
        shown = repr(function)
        shown = shown if len(shown) <= 60 else type(function).__name__
        raise TypeError(f"{name} is {shown}, but is called as {call}; pass {way_out}.")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # of some functions written in C nothing is known
        return
    try:
        signature.bind(*arguments.rstrip(")").split(", "))
    except TypeError:
        raise TypeError(
            f"{name} takes {signature}, but is called as {call}; pass {way_out}."
        ) from None
