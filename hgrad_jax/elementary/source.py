"""Where an update rule finds its hyperparameters."""

from collections.abc import Callable, Mapping
from typing import Any

from hgrad_jax.types import Hparams

Source = Callable[[Hparams], Any] | float
"""A function of the hyperparameters, or a fixed number."""


def field(name: str) -> Callable[[Hparams], Any]:
    """Returns a function that reads one entry of the hyperparameters: a key or an attribute.

    >>> field("momentum")({"momentum": 0.9})
    0.9
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}; it must be that of an entry of hparams, a str.")

    def read_field(hparams):
        if isinstance(hparams, Mapping) and name in hparams:
            return hparams[name]
        if not isinstance(hparams, Mapping) and hasattr(hparams, name):
            return getattr(hparams, name)
        has = f"it has {sorted(hparams)}" if isinstance(hparams, Mapping) else "it is no dict"
        raise ValueError(
            f"hparams has no {name!r} ({has}); put it in, or pass {name}= to the rule (to a "
            "modifier, bound=, strength= or scale=): a number, or a function of hparams."
        )

    return read_field


def read(source: Source, hparams: Hparams) -> Any:
    """Returns the value of a source: a tree prefix of the parameters.

    Raises:
      TypeError: it is a string or None.
    """
    value = source(hparams) if callable(source) else source
    if value is None or isinstance(value, str):
        raise TypeError(
            f"a hyperparameter of the rule is {value!r}; pass a number, or a function of hparams, "
            'such as hg.field("learning_rate").'
        )
    return value
