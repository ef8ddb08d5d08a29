"""The step of a rule in ordinary floating point, out of its pieces or of an update."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.functions import is_array
from hgrad_jax.rules.form import PARAMS, KickDrift, KickDriftState
from hgrad_jax.rules.gradients import (
    GradientFn,
)
from hgrad_jax.tools.dtypes import wide
from hgrad_jax.tools.prefixes import spread
from hgrad_jax.tools.trees import is_like, shown
from hgrad_jax.types import Array, Hparams, Params, Transition, Update


def from_exact(exact: KickDrift, init: Callable[[Params, Hparams], KickDriftState]) -> Transition:
    """Returns the transition of a kick-and-drift rule: its step in ordinary floating point."""

    def update(params, gradient, slots, hparams, count):
        decays = exact.decays(hparams, count)
        if not isinstance(decays, Mapping):
            raise ValueError(f"decays returned {decays!r}; it must return a dict of decays.")
        for name in decays:
            if name not in exact.slots:
                raise ValueError(
                    f"decays names {name!r}, which is no variable of the rule: {list(exact.slots)}"
                    "; give it a slot in slots."
                )

        def advance(name, variable, increment):
            if name not in decays:
                return jax.tree.map(jnp.add, variable, increment)
            return scale_and_add(decays[name], variable, increment, name)

        kicks = named("kick", exact.kick(gradient, hparams, count), exact.kicked)
        for name, kick in kicks.items():
            require_like(kick, params, f"what kick returned for {name!r}")
        new = {name: advance(name, slots[name], kicks[name]) for name in exact.kicked}
        couples = named("couple", exact.couple(gradient, new, hparams, count), exact.coupled)
        for name, increment in couples.items():
            require_like(increment, params, f"what couple returned for {name!r}")
        new |= {name: advance(name, slots[name], couples[name]) for name in exact.coupled}
        drifted = exact.drift(new, hparams, count)
        require_like(drifted, params, "what drift returned")
        params = advance(PARAMS, params, drifted)
        trails = exact.trail(params, hparams, count)
        new |= {name: advance(name, slots[name], trails[name]) for name in exact.trailing}
        return params, new

    made = from_update(init, update, exact.gradient)
    return made._replace(step=ExactStep(exact, made.step), exact=exact)


SETTINGS = {"velocity": "momentum", PARAMS: "weight_decay", "first_moment": "b1"}
"""The hyperparameters that are decays in the library's rules, for messages."""


@dataclasses.dataclass(frozen=True, eq=False)
class ExactStep:
    """The step of a kick-and-drift rule in ordinary floating point, made by `from_exact`.

    Attributes:
      exact: the rule.
      step: `step(state, hparams, batch, key) -> state`.
    """

    exact: KickDrift
    step: Callable[[KickDriftState, Hparams, Any, Array | None], KickDriftState]

    def __call__(
        self, state: KickDriftState, hparams: Hparams, batch: Any, key: Array | None
    ) -> KickDriftState:
        """Takes a step."""
        return self.step(state, hparams, batch, key)


def from_update(
    init: Callable[[Params, Hparams], KickDriftState], update: Update, gradient: GradientFn
) -> Transition:
    """Returns the transition whose step updates parameters and slots by the gradient there.

    Args:
      init: `init(params, hparams) -> KickDriftState`.
      update: see `Transition`, its slots never None and its count always given.
      gradient: `gradient(params, hparams, batch, key)`.
    """

    def from_start(params, gradient, slots, hparams, count=0):
        params, gradient = floats(params, "params"), floats(gradient, "gradient")
        require_like(gradient, params, "gradient")
        own = init(params, hparams).slots
        if slots is None:
            slots = own
        elif not isinstance(slots, Mapping) or set(slots) != set(own):
            what = list(slots) if isinstance(slots, Mapping) else type(slots).__name__
            raise ValueError(
                f"slots is {what}; it must be a dict of {list(own)}, or None for their start."
            )
        slots = {name: floats(slot, f"slots[{name!r}]") for name, slot in slots.items()}
        for name, slot in slots.items():
            require_like(slot, params, f"slots[{name!r}]")
        if isinstance(count, str) or not jnp.issubdtype(jnp.result_type(count), jnp.integer):
            raise TypeError(f"count is {count!r}; it must be an int, the steps taken before.")
        return update(params, gradient, slots, hparams, jnp.asarray(count, jnp.int32))

    def step(state, hparams, batch, key):
        at = floats(gradient(state.params, hparams, batch, key), "the gradient")
        require_like(at, state.params, "the gradient")
        params, slots = update(state.params, at, state.slots, hparams, state.count)
        return KickDriftState(params, slots, state.count + 1)

    return Transition(init, step, lambda state: state.params, update=from_start)


def floats(tree: Params, name: str) -> Params:
    """Returns the tree as arrays, if they are of floating point.

    Raises:
      TypeError: a leaf is something else.
    """

    def at(path: Any, x: Any) -> Array:
        if not is_array(x) or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            where = name + jax.tree_util.keystr(path)
            raise TypeError(f"{where} is {x!r}, which has no derivative; write it in floats.")
        return jnp.asarray(x)

    return jax.tree_util.tree_map_with_path(at, tree)


def require_like(tree: Params, params: Params, name: str) -> None:
    """Raises a ValueError if a tree has not the structure and shapes of `params`."""
    if not is_like(tree, params):
        raise ValueError(
            f"{name} has the shapes {shown(tree)}, but params {shown(params)}; it must be a tree "
            "like params."
        )


def named(stage: str, increments: Any, names: tuple[str, ...]) -> dict[str, Params]:
    """Returns what a stage returned, after checking that it is a mapping of its slots."""
    if not isinstance(increments, Mapping) or set(increments) != set(names):
        what = list(increments) if isinstance(increments, Mapping) else type(increments).__name__
        raise ValueError(f"{stage} returned {what}; it must return a dict of {list(names)}.")
    return dict(increments)


def scale_and_add(factor: Any, tree: Params, increment: Params, name: str) -> Params:
    """Returns factor * tree + increment in the dtypes of `tree`, the factor being a tree prefix."""
    setting = f" ({SETTINGS[name]})" if name in SETTINGS else ""
    full = spread(factor, tree, f"the decay of {name!r}{setting}")

    def at_leaf(a: Any, x: Array, y: Array) -> Array:
        # In float32 at least: a Python number beside a bfloat16 would be rounded to it, 0.999 to 1.
        a = jnp.asarray(a, wide(x.dtype))
        return (a * x.astype(a.dtype) + jnp.asarray(y, a.dtype)).astype(x.dtype)

    return jax.tree.map(at_leaf, full, tree, increment)
