"""One update of an optax transformation, with what it asks for besides the gradient.

Some ask for the loss's value (`polyak_sgd`, `momo`, `reduce_on_plateau`), for its gradient and the
loss itself (line searches, and `lbfgs` by them), or for functions (`sophia`, `sam`). What is asked
for is handed over, and what cannot be is refused by the name of the transformation.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import optax

from hgrad_jax.inputs.functions import ASKED_FOR_VALUE
from hgrad_jax.tools.while_loops import OPTAX, marked
from hgrad_jax.types import Params


def initial_slots(tx: optax.GradientTransformation, params: Params) -> Any:
    """Returns the state that a transformation starts with.

    Raises:
      TypeError: it wraps the parameters, as `optax.lookahead` does.
    """
    with named():
        slots = tx.init(params)
    if any(map(_is_lookahead, jax.tree.leaves(slots, is_leaf=_is_lookahead))):
        raise TypeError(
            "optax's lookahead wraps the parameters in LookaheadParams, which no gradient of the "
            "loss is like; leave it out, or take hg.average(rule) for an average of the path."
        )
    return slots


def updated(
    tx: optax.GradientTransformation,
    gradient: Params,
    slots: Any,
    params: Params,
    offered: Mapping[str, Callable[[], Any]],
) -> tuple[Params, Any]:
    """Returns the parameters and the state after an update.

    Args:
      tx: the transformation.
      gradient: like params.
      slots: its state.
      params: before the update.
      offered: what may be asked for, by name, made when it is.

    Raises:
      TypeError: something else is asked for, or a function of optax fails.
    """
    update, given = tx.update, {}
    while True:
        try:
            with named():
                updates, slots = update(gradient, slots, params)
            return optax.apply_updates(params, updates), slots
        except _AskedForError as error:
            unknown = [name for name in error.names if name not in offered or name in given]
            if unknown:
                has = f"only {list(offered)} can be" if offered else "an update by hand has no loss"
                raise TypeError(
                    f"{error.by} asks for {unknown[0]}, which is not handed over ({has}); use "
                    "another transformation, or write a Transition whose step does."
                ) from error.__cause__
            given |= {name: offered[name]() for name in error.names}
            asked = functools.partial(optax.with_extra_args_support(tx).update, **given)
            update = marked(asked, OPTAX)  # a line search is a loop


class _AskedForError(Exception):
    """A transformation was not given all that it asks for."""

    def __init__(self, by: str, names: list[str]) -> None:
        super().__init__(by, names)
        self.by, self.names = by, names


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Raises a TypeError that names the transformation of optax where it fails inside."""
    try:
        yield
    except ASKED_FOR_VALUE:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        by = _who(error)
        if asked := _asked_for(error):
            raise _AskedForError(by or "the transformation", asked) from error
        if by is None:
            raise
        raise TypeError(f"{by} failed: {type(error).__name__}: {error}") from error


def _asked_for(error: Exception) -> list[str]:
    """Returns the names of what a transformation was not given, if that is what it says."""
    text = str(error)
    if isinstance(error, TypeError) and "missing" in text and "required keyword-only" in text:
        return re.findall(r"'(\w+)'", text.partition("argument")[2])
    found = re.match(r"(\w+) must be provided", text)
    return [found[1]] if found and isinstance(error, ValueError) else []


def _who(error: Exception) -> str | None:
    """Returns the innermost function of optax that an error went through."""
    found = re.match(r"(\w+)\.<locals>\.update_fn\(\) missing", str(error))
    if found:
        return f"optax's {found[1]}"
    by, traceback = None, error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals.get("__name__", "").partition(".")[0] == "optax":
            maker = frame.f_code.co_qualname.partition(".<locals>")
            by = f"optax's {maker[0]}" if maker[1] and maker[0] not in _PLUMBING else by
        traceback = traceback.tb_next
    return by


_PLUMBING = ("chain", "with_extra_args_support", "named_chain")
"""What only hands on to the transformations that it is made of."""


def _is_lookahead(x: Any) -> bool:
    return isinstance(x, optax.LookaheadState)
