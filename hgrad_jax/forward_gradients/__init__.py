"""Training without backpropagation: directions, derivatives along them, and what they estimate.

`hg.forward_gradient` and the directions need no more than JAX. `activity_forward_gradient` and
`example_losses` are of flax modules, which is imported when one of them is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hgrad_jax.forward_gradients.activity_gradient import (
        activity_forward_gradient as activity_forward_gradient,
    )
    from hgrad_jax.forward_gradients.losses_of_examples import example_losses as example_losses

__all__ = ["activity_forward_gradient", "example_losses"]

_HOMES = {"activity_forward_gradient": "activity_gradient", "example_losses": "losses_of_examples"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
