"""Checks of the functions and numbers that users pass as settings."""

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

ASKED_FOR_VALUE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
"""What JAX raises where a traced array is asked for its value."""

INT32_END = 2**31
"""Steps and places are counted in int32, below this."""


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
        signature = _signature(function)
    except (ValueError, TypeError):  # of some functions written in C nothing is known
        if isinstance(function, type):
            raise TypeError(
                f"{name} is the class {function.__name__}, but is called as {call}; pass {way_out}."
            ) from None
        return
    try:
        signature.bind(*arguments.rstrip(")").split(", "))
    except TypeError:
        raise TypeError(
            f"{name} takes {signature}, but is called as {call}; pass {way_out}."
        ) from None


def _signature(function: Any) -> inspect.Signature:
    """Returns what a function takes itself, not what one takes that `functools.wraps` names."""
    own = types.FunctionType | types.MethodType | functools.partial
    is_own = isinstance(function, own) or isinstance(type(function).__call__, types.FunctionType)
    if not is_own and hasattr(function, "__wrapped__"):  # jitted, say: it takes what that takes
        return _signature(function.__wrapped__)
    return inspect.signature(function, follow_wrapped=False)


def require_hashable(function: Any, name: str) -> None:
    """Raises if a function cannot be the key that its compiled programs are kept by.

    Raises:
      TypeError: it cannot: an object that holds arrays or lists and compares by them.

    >>> require_hashable([], "run")
    Traceback (most recent call last):
    TypeError: run is a list that cannot be hashed, but ...; wrap it once in a function: ...
    """
    try:
        hash(function)
    except TypeError as error:
        raise TypeError(
            f"{name} is a {type(function).__name__} that cannot be hashed, but what is compiled of "
            f"it is kept by it; wrap it once in a function: {name} = lambda *args: it(*args)."
        ) from error


@contextlib.contextmanager
def traced(name: str) -> Iterator[None]:
    """Raises in plain words if what is called inside asks a traced array for its value.

    Args:
      name: what the message calls the function.

    Raises:
      TypeError: it does, or returns what is no array.
    """
    try:
        yield
    except ASKED_FOR_VALUE as error:
        raise TypeError(
            f"{name} asks a traced array for its value, as Python's `if`, `float`, `range`, an "
            "index into a list and numpy do; write jnp.where or jax.lax.cond for `if`, jnp for np, "
            "and jnp.asarray(values)[i] for values[i]."
        ) from error
    except TypeError as error:
        if "is not a valid JAX type" not in str(error):
            raise
        raise TypeError(f"{name} returned something other than arrays: {error}") from error


def is_more_better(name: str, is_maximized: bool | None) -> bool:
    """Returns the choice, and without one whether the name ends in "accuracy".

    >>> [is_more_better(*x) for x in (("valid_accuracy", None), ("loss", None), ("loss", True))]
    [True, False, True]
    """
    return name.endswith("accuracy") if is_maximized is None else is_maximized


def is_array(value: Any) -> bool:
    """Returns whether JAX takes a value for an array: no text, None, function, or list.

    >>> [is_array(x) for x in (2, np.ones(3), "2", None, len)]
    [True, True, False, False, False]
    """
    # Which numpy takes for dtypes.
    if value is None or isinstance(value, str | bytes | type | np.dtype):
        return False
    try:
        jnp.result_type(value)
    except TypeError:
        return False
    return True


def is_real(value: Any) -> bool:
    """Returns whether JAX takes a value for real numbers: no bools, complex ones, or PRNG keys.

    >>> [is_real(x) for x in (2, np.ones(3), True, 1j, jax.random.key(0), "2")]
    [True, True, False, False, False, False]
    """
    if not is_array(value):
        return False
    dtype = jnp.result_type(value)
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def require_arrays(tree: Any, name: str) -> None:
    """Raises if a pytree has a leaf that is no array.

    Raises:
      TypeError: it has, such as the name of a data set.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        where = name + jax.tree_util.keystr(path)
        if not is_array(leaf):
            raise TypeError(f"{where} is {leaf!r}; {name} must be a pytree of arrays, or None.")
        if isinstance(leaf, int) and abs(leaf) >= INT32_END:
            raise TypeError(f"{where} is {leaf!r}, which int32 cannot hold; pass {float(leaf)!r}.")


def returning_arrays(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a user's function, which raises TypeError where it returns no array."""

    @functools.wraps(function)
    def checked(*args: Any, **named: Any) -> Any:
        found = function(*args, **named)
        if not is_array(found):
            raise TypeError(f"{name} returned {found!r}; it must return an array.")
        return found

    return checked


def is_concrete(value: Any) -> bool:
    """Returns whether a value is a number or an array whose numbers are known, not traced.

    >>> is_concrete(2.0), is_concrete(None)
    (True, False)
    """
    return is_array(value) and not isinstance(value, Tracer)


def as_int(value: Any) -> int | None:
    """Returns an integer of Python or numpy as one of Python, and None for all else, bools too.

    >>> [as_int(x) for x in (2, np.int64(2), 2.0, True, "2", None)]
    [2, 2, None, None, None, None]
    """
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return int(value) if is_int else None


def positive_int(name: str, value: Any, what: str = "") -> int:
    """Returns a positive integer of Python or numpy as one of Python.

    Args:
      name: what the message calls it.
      value: what the user passed.
      what: what the message says besides that it must be a positive int.

    Raises:
      ValueError: it is something else.

    >>> positive_int("every", 0)
    Traceback (most recent call last):
    ValueError: every is 0; it must be a positive int.
    """
    found = as_int(value)
    if found is None or found < 1:
        raise ValueError(f"{name} is {value!r}; it must be a positive int{what}.")
    if found >= INT32_END:
        raise ValueError(f"{name} is {value!r}; it must be a positive int below 2**31{what}.")
    return found


def is_number(value: Any) -> bool:
    """Returns whether a setting is a number: of Python or numpy, no bool, text, or None.

    >>> [is_number(x) for x in (2, 0.5, True, "2", None)]
    [True, True, False, False, False]
    """
    is_real = isinstance(value, int | float | np.integer | np.floating)
    return is_real and not isinstance(value, bool)
