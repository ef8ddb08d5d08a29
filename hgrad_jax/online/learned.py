"""The hyperparameters that a transition learns: their place in its state, and their update.

Every online method is told the names of some entries of `hparams`. `init` copies those into the
state, where `step` updates them: what is given is where they start, and of a schedule only the
first value would count. The other entries are read from `hparams` at every step, so that they may
be schedules.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hgrad_jax.inputs.functions import is_array, is_concrete, require_function
from hgrad_jax.rules.gradients import scalar
from hgrad_jax.rules.source import Source, read
from hgrad_jax.tools.prefixes import spread
from hgrad_jax.types import Array, Hparams, Loss, State, Transition

Learned = dict[str, Any]
"""The learned entries of the hyperparameters, by name."""

MakeTx = Callable[[Hparams], optax.GradientTransformation]
"""`make_tx(hparams) -> optax transformation`, which updates what is learned."""

Bounds = Mapping[str, tuple[Source | None, Source | None]]
"""`{name: (lower, upper)}`: numbers, functions of hparams, or None for no bound."""

WHY_NOT = (
    "its hyperparameters change on the way, by a hypergradient that a run backwards cannot know yet"
)


class OnlineState(NamedTuple):
    """Parameters and hyperparameters that are trained together.

    Attributes:
      inner: the inner rule's own state.
      hparams: `{name: value}`, the learned hyperparameters.
      opt_state: of the transformation that updates them.
      hypergradient: like hparams, the last one; zero before the first.
      count: int32 scalar, steps of the transition taken.
    """

    inner: State
    hparams: Learned
    opt_state: Any
    hypergradient: Learned
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]


class Learner(NamedTuple):
    """What is learned, and how; checked by `learner`.

    Attributes:
      names: the learned entries of hparams.
      make_tx: what updates them.
      bounds: where they may be.
    """

    names: tuple[str, ...]
    make_tx: MakeTx
    bounds: Bounds

    def start(self, hparams: Hparams) -> Learned:
        """Returns the learned entries of the given hyperparameters, inside their bounds."""
        return self.clipped(entries(hparams, self.names), hparams)

    def init(self, learned: Learned, hparams: Hparams) -> Any:
        """Returns the state of the transformation."""
        return self._made(hparams).init(learned)

    def update(
        self, learned: Learned, hypergradient: Learned, opt_state: Any, hparams: Hparams
    ) -> tuple[Learned, Any]:
        """Returns the learned entries after an update, inside their bounds, and its state."""
        updates, opt_state = self._made(hparams).update(hypergradient, opt_state, learned)
        new: Any = optax.apply_updates(learned, updates)
        return self.clipped(new, hparams), opt_state

    def clipped(self, learned: Learned, hparams: Hparams) -> Learned:
        """Returns the learned entries, those outside of their bounds put onto them."""
        new = dict(learned)
        for name, (lower, upper) in self.bounds.items():
            for bound, clip, which in ((lower, jnp.maximum, 0), (upper, jnp.minimum, 1)):
                if bound is not None:
                    what = f"bounds[{name!r}][{which}]"
                    full = spread(read(bound, hparams, what), new[name], what)
                    new[name] = jax.tree.map(
                        lambda x, b, clip=clip: clip(x, jnp.asarray(b, x.dtype)), new[name], full
                    )
        return new

    def _made(self, hparams: Hparams) -> optax.GradientTransformation:
        tx = self.make_tx(hparams)
        if not isinstance(tx, optax.GradientTransformation):
            raise TypeError(
                f"make_tx returned {tx!r}; it must return an optax transformation, such as "
                "optax.adam(0.01)."
            )
        return tx


def learner(learned: Sequence[str], make_tx: MakeTx, bounds: Bounds | None) -> Learner:
    """Returns a Learner of arguments that users pass.

    Raises:
      TypeError, ValueError: they are not what they should be.
    """
    require_function(
        make_tx,
        "make_tx(hparams)",
        "a function that returns an optax transformation, such as lambda hparams: optax.adam(0.01)",
    )
    bounds = {} if bounds is None else bounds
    names = checked_names(learned)
    if not isinstance(bounds, Mapping):
        raise TypeError(
            f"bounds is {bounds!r}; it must be a dict of pairs (lower, upper) by name, such as "
            '{"learning_rate": (0.0, 1.0)}, or None.'
        )
    for name in bounds:
        if name not in names:
            raise ValueError(
                f"bounds has {name!r}, which is not learned; learned is {list(names)}."
            )
        if not isinstance(bounds[name], tuple) or len(bounds[name]) != 2:
            raise ValueError(
                f"bounds[{name!r}] is {bounds[name]!r}; it must be a pair (lower, upper), with "
                "None for no bound."
            )
        _require_order(name, *bounds[name])
    return Learner(names, make_tx, dict(bounds))


def _require_order(name: str, lower: Any, upper: Any) -> None:
    """Raises if bounds are neither numbers nor functions, or a lower one is above the upper."""
    for bound in (lower, upper):
        if not callable(bound) and not all(map(is_array, jax.tree.leaves(bound))):
            raise TypeError(
                f"bounds[{name!r}] has {bound!r}; a bound is a number, a function of hparams, or "
                "None for none."
            )
    if is_concrete(lower) and is_concrete(upper) and np.any(np.asarray(lower) > np.asarray(upper)):
        raise ValueError(
            f"bounds[{name!r}] is {(lower, upper)!r}, whose lower bound is above the upper one; "
            "pass (lower, upper)."
        )


def checked_names(learned: Any) -> tuple[str, ...]:
    """Returns the names of what is learned.

    Raises:
      TypeError: they are no names.
      ValueError: there are none, or one comes twice.
    """
    is_sequence = isinstance(learned, Sequence) and not isinstance(learned, str)
    if not is_sequence or not all(isinstance(name, str) for name in learned):
        raise TypeError(
            f"learned is {learned!r}; it must be a tuple of names of entries of hparams, such as "
            '("learning_rate",).'
        )
    names = tuple(learned)
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"learned is {learned!r}; name at least one entry of hparams, and each once."
        )
    return names


def entries(hparams: Hparams, names: tuple[str, ...]) -> Learned:
    """Returns the named entries of the hyperparameters.

    Raises:
      TypeError: hparams is no dict.
      ValueError: it has no such entry.
    """
    if not isinstance(hparams, Mapping):
        raise TypeError(
            f"hparams is a {type(hparams).__name__}, but online methods learn entries of a dict by "
            "name; pass a dict."
        )
    for name in names:
        if name not in hparams:
            raise ValueError(
                f"hparams has no {name!r} (it has {sorted(hparams)}), which is to be learned; put "
                "in the value that it starts from."
            )
    # Of a Python number's type ("weak") an update would make another type than it started from.
    return {
        name: jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), sub)
        for name, sub in ((name, hparams[name]) for name in names)
    }


def current(hparams: Hparams, learned: Learned) -> Hparams:
    """Returns the hyperparameters with the learned entries as they are now."""
    return {**hparams, **learned}


def require_rule(inner: Any) -> Transition:
    """Returns the inner rule.

    Raises:
      TypeError: it is none.
    """
    if not isinstance(inner, Transition):
        raise TypeError(f"inner is {inner!r}; pass a rule such as hg.sgd(loss).")
    return inner


def validation(valid_loss: Loss) -> Loss:
    """Returns the validation loss, checked.

    Raises:
      TypeError: it is no such function.
    """
    require_function(
        valid_loss,
        "valid_loss(params, hparams, batch, key)",
        "a function that returns a floating-point scalar",
    )
    return scalar(valid_loss, "valid_loss")
