"""Update rules as kicks and drifts: the form in which training can be run backwards bit for bit.

One step of such a rule, with positions x (the parameters) and slots s (velocities, second moments):

    kick    s_i' = a_i * s_i + k_i(gradient at x, hparams, t)
    couple  r_i' = b_i * r_i + c_i(gradient at x, s', hparams, t)   (slots that need others, if any)
    drift   x'   = a_x * x   + f(s', r', hparams, t)
    trail   y'   = a_y * y   + h(x', hparams, t)                    (averages of x, if any)

Every line adds to a variable something that does not depend on it, so the lines can be undone in
reverse order: subtract h(x'), then f(s', r'), recompute the gradient at x, subtract c and k, and
divide by the decays, which `hgrad_jax.bits.decay` does exactly. Plain SGD, RMSProp without
momentum and Nesterov's method are not of this form: their drift needs the gradient at the previous
position, which is what a run backwards does not have yet.

The user writes k, f and the decays in ordinary floating point; `kick_drift` builds both the
floating-point step and what `Reversible()` needs.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.inputs import arguments
from hgrad_jax.inputs.functions import is_array, require_function
from hgrad_jax.rules.gradients import (
    GradientFn,
    GradientProvider,
    backpropagation,
    gradient_from,
)
from hgrad_jax.tools.dtypes import wide
from hgrad_jax.tools.trees import is_like, shown, spread
from hgrad_jax.types import Array, Hparams, Loss, Params, Slot, Transition, Update

PARAMS = "params"
"""The name under which the positions stand among the variables of a rule."""


class KickDrift(NamedTuple):
    """A rule in kick-and-drift form; what `Transition.exact` holds.

    Attributes:
      gradient: `gradient(params, hparams, batch, key) -> tree like params`.
      loss: the loss whose exact gradient that is, else None (an estimator, whose Jacobian need not
        be symmetric).
      kick: `kick(gradient, hparams, count) -> {slot: increment}`.
      couple: `couple(gradient, kicked slots, hparams, count) -> {slot: increment}`.
      drift: `drift(slots, hparams, count) -> increment of the parameters`.
      trail: `trail(params, hparams, count) -> {slot: increment}`, from the new parameters.
      decays: `decays(hparams, count) -> {variable: tree prefix of params}`; a variable that is not
        named is not decayed.
      slots: how each variable is kept, the parameters under "params".
      kicked, coupled, trailing: names of the slots that `kick`, `couple` and `trail` return.
      is_elementwise: whether kick, couple, drift and trail treat each number by itself, but for
        factors spread over tensors.
    """

    gradient: GradientFn
    loss: Loss | None
    kick: Callable[[Params, Hparams, Array], dict[str, Params]]
    couple: Callable[[Params, dict[str, Params], Hparams, Array], dict[str, Params]]
    drift: Callable[[dict[str, Params], Hparams, Array], Params]
    trail: Callable[[Params, Hparams, Array], dict[str, Params]]
    decays: Callable[[Hparams, Array], dict[str, Any]]
    slots: dict[str, Slot]
    kicked: tuple[str, ...]
    coupled: tuple[str, ...] = ()
    trailing: tuple[str, ...] = ()
    is_elementwise: bool = False

    @property
    def driving(self) -> tuple[str, ...]:
        """Names of the slots that the drift reads."""
        return self.kicked + self.coupled


class KickDriftState(NamedTuple):
    """State of a kick-and-drift rule.

    Attributes:
      params: positions, a pytree of floating-point arrays.
      slots: one tree like params per slot.
      count: int32 scalar, steps taken.
    """

    params: Params
    slots: dict[str, Params]
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]


def kick_drift(
    loss: Loss,
    *,
    kick: Callable[[Params, Hparams, Array], dict[str, Params]],
    drift: Callable[[dict[str, Params], Hparams, Array], Params],
    decays: Callable[[Hparams, Array], dict[str, Any]],
    slots: Mapping[str, Slot],
    couple: Callable[[Params, dict[str, Params], Hparams, Array], dict[str, Params]] | None = None,
    coupled: tuple[str, ...] = (),
    init: Callable[[Params, Hparams], dict[str, Params]] | None = None,
    gradient: GradientProvider = backpropagation,
    params: Slot = Slot(),
    is_elementwise: bool = False,
) -> Transition:
    """Builds a transition from kicks and a drift, for every adjoint, `Reversible()` included.

    Args:
      loss: `loss(params, hparams, batch, key) -> scalar`.
      kick: `kick(gradient, hparams, count) -> {slot: increment}`, trees like params; elementwise or
        not, but of the gradient only.
      drift: `drift(slots, hparams, count) -> increment`, a tree like params; of the new slots only.
      decays: `decays(hparams, count) -> {name: decay}` in [2**-7, 1], each a tree prefix of params:
        a scalar, one per tensor, or one per number. "params" names the positions (decoupled weight
        decay).
      slots: `{name: Slot(...)}` for every slot.
      couple: `couple(gradient, slots, hparams, count) -> {slot: increment}` for the slots named in
        `coupled`, whose kick needs the other slots just kicked (RMSProp's momentum).
      coupled: names of those slots.
      init: `init(params, hparams) -> {slot: start}`; zeros by default.
      gradient: where the gradient comes from: `gradient(loss)(params, hparams, batch, key)`.
      params: how the positions are kept.
      is_elementwise: a promise that kick, couple and drift treat each number by itself (no norms
        over a tensor); where all factors are scalars too, `Reversible()` then hands them one long
        vector instead of many tensors, which is faster. Nothing checks it: broken, the numbers are
        wrong.

    Returns:
      A Transition whose state is a KickDriftState.

    Example:
      Momentum whose velocity is also clipped before it moves the parameters:

      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.kick_drift(
      ...     lambda params, hparams, batch, key: jnp.sum(params**2),
      ...     kick=lambda gradient, hparams, count: {"velocity": -gradient},
      ...     drift=lambda slots, hparams, count: (
      ...         hparams["rate"] * jnp.clip(slots["velocity"], -1, 1)
      ...     ),
      ...     decays=lambda hparams, count: {"velocity": 0.9},
      ...     slots={"velocity": hg.Slot()},
      ... )
      >>> def end(rate):
      ...     settings = {"num_steps": 3, "adjoint": hg.Reversible()}
      ...     return jnp.sum(hg.unroll(rule, jnp.ones(2), {"rate": rate}, None, **settings).params)
      >>> print(f"{jax.grad(end)(jnp.float32(0.01)):.4f}")
      -6.0000
    """
    _require_pieces(slots, coupled, kick=kick, drift=drift, decays=decays, couple=couple, init=init)
    if not set(coupled) <= set(slots):
        raise ValueError(f"coupled is {coupled!r}, but slots has {list(slots)}; name some of them.")
    coupled = tuple(coupled)
    is_elementwise = arguments.flag("is_elementwise", is_elementwise)
    params = arguments.slot("params", params)
    slots = {name: arguments.slot(name, each) for name, each in slots.items()}
    if PARAMS in slots:
        raise ValueError(
            f"slots has {PARAMS!r}, the name of the positions; call the slot otherwise."
        )
    exact = KickDrift(
        gradient=gradient_from(gradient, loss),
        loss=loss if gradient is backpropagation else None,
        kick=kick,
        couple=couple or (lambda gradient, slots, hparams, count: {}),
        drift=drift,
        trail=lambda params, hparams, count: {},
        decays=decays,
        slots={PARAMS: params, **slots},
        kicked=tuple(name for name in slots if name not in coupled),
        coupled=coupled,
        is_elementwise=is_elementwise,
    )

    def start(params, hparams):
        given = {name: jax.tree.map(jnp.zeros_like, params) for name in slots}
        if init is not None:
            given = named("init", init(params, hparams), tuple(slots))
            for name, slot in given.items():
                require_like(slot, params, f"what init returned for {name!r}")
        return KickDriftState(params, given, jnp.int32(0))

    return from_exact(exact, start)


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


def _require_pieces(
    slots: Any, coupled: Any, *, kick: Any, drift: Any, decays: Any, couple: Any, init: Any
) -> None:
    """Raises a TypeError if a piece of a rule is not of the kind it must be."""
    require_function(kick, "kick(gradient, hparams, count)", "a function that returns a dict")
    require_function(drift, "drift(slots, hparams, count)", "a function")
    require_function(decays, "decays(hparams, count)", "a function that returns a dict")
    if couple is not None:
        call = "couple(gradient, slots, hparams, count)"
        require_function(couple, call, "a function that returns a dict, or None")
    if init is not None:
        require_function(init, "init(params, hparams)", "a function that returns a dict, or None")
    is_names = isinstance(coupled, tuple | list) and all(isinstance(x, str) for x in coupled)
    if not is_names:
        raise TypeError(f"coupled is {coupled!r}; it must be a tuple of names of slots.")
    wrong = [repr(slots)]
    if isinstance(slots, Mapping):
        wrong = [f"{x!r} for {name!r}" for name, x in slots.items() if not isinstance(x, Slot)]
    if wrong:
        raise TypeError(
            f"slots has {wrong[0]}; it must be a dict of names and hg.Slot(), such as "
            '{"velocity": hg.Slot()}.'
        )


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


def undo(
    exact: KickDrift, state: KickDriftState, hparams: Hparams, batch: Any, key: Array | None
) -> KickDriftState:
    """Returns the state before a step, in ordinary floating point: dividing by the decays.

    Each division returns as many wrong bits as the multiplication lost, log2(1 / decay), and they
    grow from step to step as the training amplifies them backwards. For a few dozens of steps, then
    (St. Jules 2017, section 3.1); `Reversible()` undoes all.

    Args:
      exact: the rule.
      state: after the step.
      hparams: hyperparameters of the step.
      batch: of the step.
      key: the loss's key of the step.
    """
    count = state.count - 1
    decays = exact.decays(hparams, count)

    def retreat(name, variable, increment):
        if name not in decays:
            return jax.tree.map(jnp.subtract, variable, increment)
        full = spread(decays[name], variable, f"the decay of {name!r}")

        def at_leaf(a, x, y):
            dtype = wide(x.dtype)  # as in `scale_and_add`
            return ((x - y).astype(dtype) / jnp.asarray(a, dtype)).astype(x.dtype)

        return jax.tree.map(at_leaf, full, variable, increment)

    slots = dict(state.slots)
    trails = exact.trail(state.params, hparams, count)
    driving = {name: slots[name] for name in exact.driving}
    params = retreat(PARAMS, state.params, exact.drift(driving, hparams, count))
    gradient = exact.gradient(params, hparams, batch, key)
    kicked = {name: slots[name] for name in exact.kicked}
    increments = {
        **trails,
        **exact.couple(gradient, kicked, hparams, count),
        **exact.kick(gradient, hparams, count),
    }
    before = {name: retreat(name, slots[name], increments[name]) for name in slots}
    return KickDriftState(params, before, count)


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
