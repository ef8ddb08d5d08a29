"""A training path remembered as a polyline: a few states, and straight lines between them.

On the way forward the states before some of the steps are kept, the first and the last among them.
On the way back each step is differentiated at a point of the polyline instead of the true state:
with p(t) the remembered state at step t, s_bar <- (d step_t / ds)^T s_bar at p(t), and likewise for
the hyperparameters, which are those of the matching step. Before each kept state a number of steps
may be undone in ordinary floating point, which loses log2(1 / decay) bits a step and more, and the
line starts from where that has led.

Every floating-point number of the state is interpolated, velocities and moments included: so there
are hypergradients of decays too. Counters are interpolated and rounded, which is right for those
that count evenly and not for those that start over.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.bits.integers import in_64_bits
from hgrad_jax.inputs.arguments import narrow
from hgrad_jax.inputs.functions import is_number
from hgrad_jax.rules.undo import undo
from hgrad_jax.runs.trajectory import (
    Inputs,
    Trajectory,
    batch_and_key,
    float_step,
    hparams_of,
    recorded,
    steps,
)
from hgrad_jax.tools.guard import is_float
from hgrad_jax.types import Array, State


class Polyline(NamedTuple):
    """What is kept of a run.

    Attributes:
      corners: states, each leaf with a leading axis `[K]`.
      at: before which steps they were, int32 `[K]`, increasing from 0 to T.
    """

    corners: State
    at: Array


@dataclasses.dataclass(frozen=True)
class Clip:
    """Bounds on the size of numbers on the way back, against overflow far from the true path.

    Attributes:
      state: of every number of an approximate state; 1e3 in St. Jules (2017). None for no bound.
      cotangents: of every number of a state's cotangent. None for no bound.

    Raises:
      ValueError: a bound is not positive.
    """

    state: float | None = None
    cotangents: float | None = None

    def __post_init__(self) -> None:
        for name in ("state", "cotangents"):
            bound = getattr(self, name)
            if bound is not None and not (is_number(bound) and bound > 0):
                raise ValueError(f"{name} is {bound!r}; it must be a positive number, or None.")
            if bound is not None:
                object.__setattr__(self, name, narrow(bound))


def remember(
    trajectory: Trajectory, state: State, inputs: Inputs, at: Array
) -> tuple[State, Any, Polyline]:
    """Runs all steps and keeps the states before steps `at`.

    Args:
      trajectory: as it is.
      state: before step 0.
      inputs: hyperparameters, data and key.
      at: int32 `[K]`, increasing from 0 to T.

    Returns:
      The last state, the trace `[T]`, and the polyline.
    """
    corners = jax.tree.map(
        lambda x: jnp.zeros((at.size, *jnp.shape(x)), x.dtype).at[0].set(x), state
    )

    def step(carry, t_and_slices):
        state, corners, row = carry
        t, slices = t_and_slices
        state = float_step(trajectory, state, inputs.constants, slices, inputs.data, inputs.key, t)
        # Written in any case, as the next corner until that is reached: under `vmap` a conditional
        # write would copy them all.
        corners = jax.tree.map(
            lambda rows, x: jax.lax.dynamic_update_index_in_dim(rows, x, row, 0), corners, state
        )
        row = row + (at[row] == t + 1).astype(row.dtype)
        return (state, corners, row), recorded(trajectory, state, inputs.data)

    xs = (steps(trajectory), inputs.schedules)
    (end, corners, _), trace = jax.lax.scan(step, (state, corners, jnp.int32(1)), xs)
    return end, trace, Polyline(corners, at)


def pull_back(
    trajectory: Trajectory,
    inputs: Inputs,
    polyline: Polyline,
    state_bar: State,
    trace_bar: Any,
    *,
    num_visited: Array,
    num_undone: Array | None,
    clip: Clip,
) -> tuple[State, Inputs]:
    """Pulls cotangents back along the polyline.

    Args:
      trajectory: as it is.
      inputs: hyperparameters, data and key.
      polyline: from `remember`.
      state_bar: cotangent of the last state; what is no float is ignored.
      trace_bar: cotangent of the trace `[T]`, used at the visited steps; of the others it counts as
        zero.
      num_visited: int32 scalar, 1 to T: how many steps are differentiated, spread evenly over
        the run but for the undone ones at its end, which are all differentiated.
      num_undone: int32 scalar: how many steps before each corner are undone in floating point, by
        a transition with an exact map; None for none.
      clip: bounds.

    Returns:
      Cotangents of the first state (None for what is no float) and of the inputs.
    """
    num_steps, rule = trajectory.num_steps, trajectory.transition.exact
    corners, at = polyline

    def visited(i):
        """The step differentiated i-th on the way back."""
        tail = 0 if num_undone is None else jnp.minimum(num_undone, num_visited)
        lines, steps_there = num_visited - tail, num_steps - tail
        r = lines - 1 - (i - tail)
        spread = _floor_of_fraction(r, steps_there, jnp.maximum(lines, 1))
        is_dense = (i < tail) | (num_visited == num_steps)
        return jnp.where(is_dense, num_steps - 1 - i, spread)

    def body(i, carry):
        after, after_at, anchor, anchor_at, bars, constants_bar, schedules_bar = carry
        t = visited(i)
        slices = _row(inputs.schedules, t)
        segment = jnp.searchsorted(at, t, side="right") - 1
        lower, lower_at = _row(corners, segment), at[segment]
        is_corner = t + 1 == at[segment + 1]
        after = _where(is_corner, _row(corners, segment + 1), after)
        anchor = _where(is_corner, after, anchor)
        anchor_at = jnp.where(is_corner, t + 1, anchor_at)

        def on_the_line(t):
            weight = (t - lower_at) / jnp.maximum(anchor_at - lower_at, 1)
            return _between(lower, anchor, weight)

        if trajectory.record is not None:
            # Where steps are left out, the state after this one has not been visited.
            is_known = is_corner | (after_at == t + 1)
            reached = _where(is_known, after, on_the_line(t + 1))
            bars = _add_record_bar(trajectory, reached, inputs.data, trace_bar, t, bars)

        before = on_the_line(t)
        if num_undone is not None:
            is_undone = at[segment + 1] - t <= num_undone
            hparams = hparams_of(trajectory, inputs.constants, slices)
            batch, loss_key = batch_and_key(trajectory, hparams, inputs.data, inputs.key, t)
            before = jax.lax.cond(
                is_undone,
                lambda before, after: undo(rule, after, hparams, batch, loss_key),
                lambda before, after: before,
                before,
                after,
            )
            anchor = _where(is_undone, before, anchor)
            anchor_at = jnp.where(is_undone, t, anchor_at)
        if clip.state is not None:
            before = jax.tree.map(lambda x: _clipped(x, clip.state), before)

        floats, rest = _split(before)

        def step(floats, constants, slices):
            state = _join(floats, rest, before)
            after = float_step(trajectory, state, constants, slices, inputs.data, inputs.key, t)
            return _split(after)[0]

        _, pull = jax.vjp(step, floats, inputs.constants, slices)
        bars, constants_more, slices_bar = pull(bars)
        if clip.cotangents is not None:
            bars = [_clipped(x, clip.cotangents) for x in bars]
        constants_bar = jax.tree.map(jnp.add, constants_bar, constants_more)
        schedules_bar = jax.tree.map(
            lambda rows, x: jax.lax.dynamic_update_index_in_dim(rows, x, t, 0),
            schedules_bar,
            slices_bar,
        )
        return before, t, anchor, anchor_at, bars, constants_bar, schedules_bar

    end = _row(corners, at.size - 1)
    zeros = jax.tree.map(jnp.zeros_like, (inputs.constants, inputs.schedules))
    bars = [b for b, x in zip(*map(jax.tree.leaves, (state_bar, end)), strict=True) if is_float(x)]
    last = jnp.int32(num_steps)
    carry = (end, last, end, last, bars, *zeros)
    *_, bars, constants_bar, schedules_bar = jax.lax.fori_loop(0, num_visited, body, carry)
    leaves, treedef = jax.tree.flatten(end)
    given = iter(bars)
    start_bar = treedef.unflatten([next(given) if is_float(x) else None for x in leaves])
    return start_bar, Inputs(constants_bar, schedules_bar, None, None)


@in_64_bits
def _floor_of_fraction(factor: Array, numerator: Array | int, denominator: Array | int) -> Array:
    """Returns floor(factor numerator / denominator) of int32 numbers, the product being larger."""
    wide = [jnp.asarray(x).astype(jnp.int64) for x in (factor, numerator, denominator)]
    return (wide[0] * wide[1] // wide[2]).astype(jnp.int32)


def _add_record_bar(trajectory, state, data, trace_bar, t, bars):
    """Adds what the trace after step t contributes to the state's cotangent."""
    floats, rest = _split(state)
    _, pull = jax.vjp(lambda f: recorded(trajectory, _join(f, rest, state), data), floats)
    (more,) = pull(_row(trace_bar, t))
    return jax.tree.map(jnp.add, bars, more)


def _row(tree: Any, row: Array | int) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, row, 0, keepdims=False), tree)


def _where(condition: Array, a: State, b: State) -> State:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def _between(a: State, b: State, weight: Array) -> State:
    """Returns a + weight (b - a); counters rounded, anything else as in `a`.

    At the ends, and where one of the two is not finite, it is the nearer of them: optimizers keep
    an infinity for the best value that is yet to come.
    """

    def one(a, b):
        if is_float(a):
            inside = a + weight.astype(a.dtype) * (b - a)
            is_inside = (weight > 0) & (weight < 1) & jnp.isfinite(a) & jnp.isfinite(b)
            return jnp.where(is_inside, inside, jnp.where(weight < 0.5, a, b))
        if jnp.issubdtype(a.dtype, jnp.integer):
            return a + jnp.round(weight * (b - a).astype(weight.dtype)).astype(a.dtype)
        return a

    return jax.tree.map(one, a, b)


def _clipped(x: Array, bound: float | None) -> Array:
    return jnp.clip(x, -bound, bound) if is_float(x) and bound is not None else x


def _split(state: State) -> tuple[list[Array], list[Array]]:
    """Returns the floats of a state, and its other leaves."""
    leaves = jax.tree.leaves(state)
    return [x for x in leaves if is_float(x)], [x for x in leaves if not is_float(x)]


def _join(floats: list[Array], rest: list[Array], like: State) -> State:
    """Returns the state that `_split` took apart."""
    leaves, treedef = jax.tree.flatten(like)
    floats_left, rest_left = iter(floats), iter(rest)
    return treedef.unflatten([next(floats_left if is_float(x) else rest_left) for x in leaves])
