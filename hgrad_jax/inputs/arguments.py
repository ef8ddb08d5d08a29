"""What each argument may be: a kind for every name, checked where the library is entered.

The table KINDS says what a setting of a name may be, for rules, adjoints, solvers and models alike;
a function begins with `rate, momentum = taken(learning_rate=rate, momentum=momentum)`, and a frozen
dataclass with `take_fields(self)`. What depends on other arguments is checked where they meet
(`hgrad_jax.runs.validate`). Traced values pass: none is asked for its value.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hgrad_jax.inputs.functions import INT32_END, as_int, is_array, is_number, require_function
from hgrad_jax.types import Slot

SCHEDULES = (
    "a schedule is an entry of hparams, jnp.array([schedule(t) for t in range(num_steps)]), "
    "with 0 for it in hparams_axes"
)
"""What a message says to those who pass a function of the step."""

Kind = Callable[[str, Any], Any]
"""`kind(name, value) -> value`, as the library goes on with it; raises TypeError or ValueError."""


def taken(**given: Any) -> tuple[Any, ...]:
    """Returns settings in the order given, each of the kind that KINDS has for its name.

    Raises:
      TypeError, ValueError: one is not of its kind; the message names it.

    >>> taken(share_gradient=np.bool_(True), learning_rate=0.1)
    (True, 0.1)
    >>> taken(share_gradient=np.ones(2))
    Traceback (most recent call last):
    TypeError: share_gradient is array([1., 1.]); it must be True or False.
    """
    return tuple(KINDS[name](name, value) for name, value in given.items())


def take_fields(settings: Any) -> None:
    """Checks, and sets as they are gone on with, those fields of a frozen dataclass in KINDS."""
    for field in dataclasses.fields(settings):
        if field.name in KINDS:
            value = KINDS[field.name](field.name, getattr(settings, field.name))
            object.__setattr__(settings, field.name, value)


def flag(name: str, value: Any) -> bool:
    """A bool of Python or numpy."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {shown(value)}; it must be True or False.")
    return bool(value)


def flag_or_none(name: str, value: Any) -> bool | None:
    """A bool, or None for what the library finds best."""
    if value is not None and not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {shown(value)}; it must be True, False, or None.")
    return None if value is None else bool(value)


def source(name: str, value: Any, *, is_bound: bool = False) -> Any:
    """A number, a tree of them, or a function of the hyperparameters that returns one.

    What a function returns is looked at when it is called: that it is numbers, not which.
    """
    if not callable(value):
        return numbers(name, value, is_bound=is_bound)
    require_function(value, f"{name}(hparams)", f"a number, or a function of hparams; {SCHEDULES}")

    @functools.wraps(value)
    def read(hparams: Any) -> Any:
        return _numeric(name, value(hparams))

    return read


bound: Kind = functools.partial(source, is_bound=True)
"""As a source; an infinite one never acts."""


def at_least_zero(name: str, value: Any) -> Any:
    """A source whose numbers, where they are known, are not negative."""
    value = source(name, value)
    known = [] if callable(value) else jax.tree.leaves(value)
    if any(np.any(np.asarray(x) < 0) for x in known if not isinstance(x, Tracer)):
        raise ValueError(f"{name} is {shown(value)}; it must be at least 0.")
    return value


def source_or_none(name: str, value: Any) -> Any:
    """A source, or None for what is left out."""
    return None if value is None else source(name, value)


def numbers(name: str, value: Any, *, is_bound: bool = False) -> Any:
    """Numbers, arrays of them, or a tree; finite (bounds may be infinite) where that is known."""
    value = _numeric(name, value)
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if isinstance(leaf, Tracer):
            continue
        known = np.asarray(leaf, np.float64)
        is_wrong = np.isnan(known) if is_bound else ~np.isfinite(known)
        if is_wrong.any():
            where = name + jax.tree_util.keystr(path)
            wanted = "a number, infinite where it is not to act" if is_bound else "finite"
            raise ValueError(f"{where} is {shown(leaf)}; it must be {wanted}.")
    return value


def real(name: str, value: Any) -> float:
    """A finite number of Python or numpy; integers that int32 cannot hold become floats."""
    if not is_number(value):
        raise TypeError(f"{name} is {shown(value)}; it must be a number.")
    if not np.isfinite(value):
        raise ValueError(f"{name} is {value!r}; it must be finite.")
    return narrow(value)


def positive(name: str, value: Any) -> float:
    """A finite number above zero."""
    if is_number(value) and not 0 < value < np.inf:
        raise ValueError(f"{name} is {value!r}; it must be a positive number.")
    return real(name, value)


def limit(name: str, value: Any) -> float:
    """A number above zero; infinite where it never refuses."""
    if not is_number(value) or not value > 0:
        raise ValueError(f"{name} is {value!r}; it must be a positive float.")
    return narrow(value)


def steps(name: str, value: Any) -> int:
    """The length of a run: an int from 1 on that int32 can hold, known when it is traced."""
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name} is traced; it sets the length of a scan: make it a static argument of jit."
        )
    if callable(value):
        raise TypeError(
            f"{name} is a function, but a Run has one length; pass an int, and to hg.tune the "
            "function as lengths=."
        )
    found = as_int(value)
    if found is None:
        raise TypeError(f"{name} is {value!r}; it must be an int.")
    if found < 1:
        raise ValueError(f"{name} is {value}; a run has at least one step.")
    if found >= INT32_END:
        raise ValueError(f"{name} is {value}; steps are counted in int32, below 2**31.")
    return found


def prng_key(name: str, value: Any) -> Any:
    """One PRNG key, typed or raw, or None."""
    if value is None:
        return None
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    is_raw = dtype is not None and dtype == jnp.uint32 and shape is not None and len(shape) == 1
    if not (is_typed and shape == ()) and not is_raw:
        what = f"{dtype}{list(shape)}" if shape is not None else repr(value)
        raise TypeError(
            f"{name} is {what}, not one PRNG key; pass jax.random.key(0), and many keys through "
            "vmap."
        )
    return value


def array(name: str, value: Any) -> jax.Array:
    """An array of numbers, or what `jnp.asarray` makes one of."""
    try:
        found = jnp.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name} is {shown(value)}; it must be an array of numbers.") from error
    if not any(jnp.issubdtype(found.dtype, kind) for kind in (np.floating, np.integer)):
        raise TypeError(f"{name} is of {found.dtype}; it must be an array of real numbers.")
    return found


def text(name: str, value: Any) -> str:
    """A name."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {shown(value)}; it must be a name, a str.")
    return value


def slot(name: str, value: Any) -> Any:
    """An `hg.Slot` whose settings are in range."""
    if not isinstance(value, Slot):
        raise TypeError(f"{name} is {shown(value)}; it must be an hg.Slot(), with its settings.")
    bits = as_int(value.fraction_bits)
    if bits is None or not 0 < bits < 63:
        raise ValueError(
            f"{name} has fraction_bits={shown(value.fraction_bits)}; it must be an int from 1 to "
            "62, of a 64-bit number with its sign."
        )
    if not is_number(value.smallest_decay) or not 0 < value.smallest_decay <= 1:
        raise ValueError(
            f"{name} has smallest_decay={shown(value.smallest_decay)}; it must be in (0, 1]: 0.9 "
            "where momentum is 0.9."
        )
    return value._replace(is_double=flag("is_double", value.is_double))


def shown(value: Any) -> str:
    """Returns how a message shows a value: no page-long arrays, no addresses of functions."""
    text = repr(value)
    if len(text) <= 60 and "\n" not in text:
        return text
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + ("" if shape is None else f" of shape {tuple(shape)}")


def _numeric(name: str, value: Any) -> Any:
    """Returns a tree of real numbers, integers that int32 cannot hold made floats."""

    def one(path: Any, leaf: Any) -> Any:
        is_real = is_array(leaf) and not isinstance(leaf, bool)
        dtype = jnp.result_type(leaf) if is_real else None
        if not any(dtype and jnp.issubdtype(dtype, kind) for kind in (np.floating, np.integer)):
            if path:
                where = name + jax.tree_util.keystr(path)
                raise TypeError(f"{where} is {shown(leaf)}; it must be a number or an array.")
            raise TypeError(
                f"{name}: a hyperparameter of the rule is {shown(leaf)}; pass a number, or a "
                f"function of hparams, such as hg.field({name!r})."
            )
        return narrow(leaf)

    # None is a leaf here: a value that somebody forgot.
    return jax.tree_util.tree_map_with_path(one, value, is_leaf=lambda x: x is None)


def narrow(value: Any) -> Any:
    """Returns a Python number that 32 bits can hold, or an array as it is."""
    is_wide = isinstance(value, int) and abs(value) >= INT32_END
    return float(value) if is_wide else value


KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("learning_rate", "momentum", "decay", "b1", "b2"), source),
    "eps": at_least_zero,
    **dict.fromkeys(("weight_decay", "strength", "scale", "hyper_rate", "discount"), source),
    **dict.fromkeys(("log_scale",), source),
    "log_penalty": source_or_none,
    **dict.fromkeys(("bound", "lower", "upper"), bound),
    **dict.fromkeys(("first_moment", "second_moment", "velocity", "position", "slot"), slot),
    **dict.fromkeys(("share_gradient", "trace_norms", "is_elementwise", "is_joint"), flag),
    **dict.fromkeys(("is_shifted", "is_timed", "is_restarted", "is_whole"), flag),
    **dict.fromkeys(("fresh_seeds", "fresh_splits", "download"), flag),
    **dict.fromkeys(("batch_norm", "use_bias", "max_pool"), flag),
    "progress": flag_or_none,
    **dict.fromkeys(("damping", "step_size", "tolerance", "step", "low", "high"), real),
    **dict.fromkeys(("key", "coordinate_key"), prng_key),
    **dict.fromkeys(("logits", "labels", "inputs"), array),
    "epsilon": positive,
    "stationarity_tolerance": limit,
    "num_steps": steps,
    "name": text,
}
"""The kind of each setting, by its name."""
