"""Where an update rule finds its hyperparameters."""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from hgrad_jax.inputs.arguments import SCHEDULES
from hgrad_jax.inputs.functions import ASKED_FOR_VALUE
from hgrad_jax.types import Hparams

Source = Callable[[Hparams], Any] | float
"""A function of the hyperparameters, or a fixed number."""


@dataclasses.dataclass(frozen=True)
class Field:
    """A function that reads one entry of the hyperparameters; see `field`."""

    name: str

    def __call__(self, hparams: Hparams) -> Any:
        """Returns the entry, a key or an attribute.

        Raises:
          ValueError: there is none.
        """
        name = self.name
        if isinstance(hparams, Mapping) and name in hparams:
            return hparams[name]
        if not isinstance(hparams, Mapping) and hasattr(hparams, name):
            return getattr(hparams, name)
        has = f"it has {sorted(hparams)}" if isinstance(hparams, Mapping) else "it is no dict"
        raise ValueError(
            f"hparams has no {name!r} ({has}); put it in, or pass {name}= to the rule (to a "
            "modifier, bound=, strength= or scale=): a number, or a function of hparams."
        )

    def __repr__(self) -> str:
        return f"field({self.name!r})"


def field(name: str) -> Field:
    """Returns a function that reads one entry of the hyperparameters: a key or an attribute.

    >>> field("momentum"), field("momentum")({"momentum": 0.9})
    (field('momentum'), 0.9)
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}; it must be that of an entry of hparams, a str.")
    return Field(name)


def read(source: Source, hparams: Hparams, name: str) -> Any:
    """Returns the value of a source: a tree prefix of the parameters.

    Args:
      source: the function or number.
      hparams: what the function is called with.
      name: of the rule's argument, for the messages.

    Raises:
      TypeError: it is a string or None, a schedule of optax, or a function that fails when it is
        called with hparams, as functions of the step do.
    """
    value = _called(source, hparams, name) if callable(source) else source
    if value is None or isinstance(value, str):
        raise TypeError(
            f"{name} of the rule is {value!r}; pass a number, or a function of hparams, "
            'such as hg.field("learning_rate").'
        )
    return value


def of_optax(function: Any) -> str | None:
    """Returns the name by which optax makes a function, or None if it is not optax's.

    >>> import optax
    >>> of_optax(optax.cosine_decay_schedule(0.1, 10)), of_optax(optax.adam), of_optax(field("a"))
    ('cosine_decay_schedule', 'adam', None)
    """
    while isinstance(function, functools.partial):
        function = function.func
    module, name = (getattr(function, key, None) or "" for key in ("__module__", "__qualname__"))
    return name.partition(".")[0] if module.partition(".")[0] == "optax" else None


def _called(function: Callable[[Hparams], Any], hparams: Hparams, name: str) -> Any:
    schedule = of_optax(function)
    if schedule is not None:  # which computes something of hparams that are one array, too
        raise TypeError(
            f"{name} of the rule is optax's {schedule}, a function of the step, but is "
            f"called with hparams; {SCHEDULES}."
        )
    try:
        return function(hparams)
    except ASKED_FOR_VALUE:  # TypeErrors too, but of a function of hparams
        raise
    except (TypeError, AttributeError, LookupError) as error:
        is_dict = isinstance(hparams, Mapping)
        what = f"a dict of {list(hparams)}" if is_dict else f"a {type(hparams).__name__}"
        raise TypeError(
            f"{name} of the rule is {_shown(function)}, which is called with hparams "
            f"({what}), not with the step, and failed ({type(error).__name__}: {error}); pass a "
            f'function of hparams, such as hg.field("learning_rate"); {SCHEDULES}.'
        ) from error


def _shown(function: Any) -> str:
    """Returns what a function is called, and where it is written if that is known."""
    name = getattr(function, "__qualname__", None)
    code = getattr(inspect.unwrap(function), "__code__", None)
    if name is None:
        return repr(function)
    where = f" of {os.path.basename(code.co_filename)}:{code.co_firstlineno}" if code else ""
    return name.rpartition("<locals>.")[2] + where
