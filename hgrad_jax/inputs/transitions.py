"""Whether what a run was given as its transition is one."""

from typing import Any

import optax

from hgrad_jax.inputs.functions import require_function
from hgrad_jax.types import Transition

PIECES = {"init": "params, hparams", "step": "state, hparams, batch, key", "params": "state"}


def require_transition(value: Any) -> None:
    """Raises if something is no transition, such as the loss of one, or what makes one.

    Raises:
      TypeError: it is none.
    """
    if isinstance(value, optax.GradientTransformation | optax.MultiSteps):
        raise TypeError(
            "transition is an optax transformation, which has no loss; make a rule of it: "
            'hg.from_optax(lambda hparams: optax.adam(hparams["learning_rate"]), loss).'
        )
    if isinstance(getattr(value, "transition", None), Transition):
        raise TypeError(
            f"transition is {value!r}, where an update rule is meant; pass run.transition."
        )
    if not isinstance(value, Transition):
        raise TypeError(
            f"transition is {value!r}; build one with hg.momentum(loss), hg.adam(loss), ..."
        )
    for name, arguments in PIECES.items():
        call = f"transition.{name}({arguments})"
        require_function(getattr(value, name), call, "a function, as Transition tells")
