"""The way forward: training in fixed point, with a bit store per decayed variable."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.bits import bit_store, decay
from hgrad_jax.bits.bit_store import Spill
from hgrad_jax.exact import encoding, engine, products
from hgrad_jax.exact.engine import Exact
from hgrad_jax.exact.stages import stage_view, stages_of
from hgrad_jax.rules.form import PARAMS, KickDriftState
from hgrad_jax.runs.trajectory import (
    Inputs,
    Trajectory,
    all_finite,
    batch_and_key,
    hparams_of,
    recorded,
    steps,
)
from hgrad_jax.tools.vectors import Layout, layout, unravel
from hgrad_jax.types import Array, RunInfo


class Residuals(NamedTuple):
    """What the way back starts from: two states, and the stores.

    Attributes:
      start: the floating-point state before the first step.
      end: integers after the last step, and the bit stores.
      offsets: rows spilled before each step, int32 `[T + 1]`, of each variable that decays.
      inputs: hyperparameters, data and key.
      info: of the way forward.
    """

    start: KickDriftState
    end: Exact
    offsets: dict[str, Array]
    inputs: Inputs
    info: RunInfo


class StepInputs(NamedTuple):
    """What both scans run over.

    Attributes:
      t: int32 `[T]`.
      slices: schedules `[T, ...]`.
      before: rows spilled before each step, int32 `[T]` by variable.
      after: rows spilled after each step.
    """

    t: Array
    slices: tuple[Any, ...]
    before: dict[str, Array]
    after: dict[str, Array]

    def spills(self) -> dict[str, Spill]:
        """Returns where and whether each store spills at this step."""
        return {name: Spill(row, self.after[name] > row) for name, row in self.before.items()}


class Decays(NamedTuple):
    """What is known of the decays before the run.

    Attributes:
      growth: bits that each step adds to the fullest number's store, float32 `[T]` by variable.
      entropy: bits that it adds on average over the numbers, the same shapes.
      is_storable: bool scalar, every decay is in [2**-7, 1].
    """

    growth: dict[str, Array]
    entropy: dict[str, Array]
    is_storable: Array


def decays_over_time(trajectory: Trajectory, inputs: Inputs, like: Layout) -> Decays:
    """Evaluates the decays of all steps, reduced over the numbers of each variable."""
    rule = trajectory.transition.exact
    kinds = {name: encoding.kind_of(rule, name, like) for name in rule.slots}

    def at_step(t, slices):
        hparams = hparams_of(trajectory, inputs.constants, slices)
        decays = engine.decays_of(rule, hparams, t, like)
        numerators = {name: decay.numerator(a, kinds[name]) for name, a in decays.items()}
        growth = {name: decay.largest_growth(n, kinds[name]) for name, n in numerators.items()}
        entropy = {name: jnp.mean(decay.growth(n, kinds[name])) for name, n in numerators.items()}
        in_range = (
            jnp.all(jnp.stack([decay.is_storable(a) for a in decays.values()])) if decays else True
        )
        return growth, entropy, jnp.asarray(in_range)

    growth, entropy, in_range = jax.vmap(at_step)(steps(trajectory), inputs.schedules)
    return Decays(growth, entropy, jnp.all(in_range))


def step_inputs(trajectory: Trajectory, inputs: Inputs, offsets: dict[str, Array]) -> StepInputs:
    """Returns what the scans run over."""
    before = {name: rows[:-1] for name, rows in offsets.items()}
    after = {name: rows[1:] for name, rows in offsets.items()}
    return StepInputs(steps(trajectory), inputs.schedules, before, after)


def first_hparams(trajectory: Trajectory, inputs: Inputs) -> Any:
    """Returns the hyperparameters of step 0."""
    return hparams_of(trajectory, inputs.constants, jax.tree.map(lambda x: x[0], inputs.schedules))


def batches(trajectory: Trajectory) -> Callable[[Any, Any, Array], tuple[Any, Array | None]]:
    """Returns `(hparams, (data, key), t) -> batch, loss key`."""

    def batch_at(hparams, where, t):
        data, key = where
        return batch_and_key(trajectory, hparams, data, key, t)

    return batch_at


def poison(tree: Any, is_right: Array) -> Any:
    """Returns the tree with NaN in place of every floating-point number unless `is_right`."""

    def one(x):
        return (
            jnp.where(is_right, x, jnp.nan)
            if jnp.issubdtype(jnp.result_type(x), jnp.inexact)
            else x
        )

    return jax.tree.map(one, tree)


def run_forward(
    trajectory: Trajectory, state: KickDriftState, inputs: Inputs, rows: Callable[[str], int]
) -> tuple[tuple[KickDriftState, RunInfo, Any], Residuals]:
    """Runs all steps.

    Args:
      trajectory: with an exact rule.
      state: floating-point start.
      inputs: hyperparameters, data and key.
      rows: capacity of the bit store of a variable, by name.

    Returns:
      The last state, info and trace `[T]`; and what the way back needs.
    """
    rule, like = trajectory.transition.exact, layout(state.params)
    kinds = {name: encoding.kind_of(rule, name, like) for name in rule.slots}
    decays = decays_over_time(trajectory, inputs, like)
    offsets = {
        name: bit_store.spill_schedule(growth, kinds[name])
        for name, growth in decays.growth.items()
    }
    stores = {name: bit_store.create(kinds[name], like.size, rows(name)) for name in offsets}
    stages = stages_of(rule)
    view = stage_view(rule, first_hparams(trajectory, inputs), like)
    no = jnp.zeros((), bool)

    def step(carry: tuple, xs: StepInputs) -> tuple[tuple, Any]:
        exact, (overflow, nonfinite, damaged_at), vector = carry
        hparams = hparams_of(trajectory, inputs.constants, xs.slices)
        where = (inputs.data, inputs.key)

        def advance(exact, stage, source):
            updates = engine.isolated_stage(rule, stage, source, hparams, xs.t, view)
            return engine.do_stage(rule, stage, exact, updates, xs.spills(), like)

        def seen(name):
            return encoding.read_tree(rule, exact.values, name, view)

        params = encoding.read_tree(rule, exact.values, PARAMS, like)
        vector = products.gradient_at(
            rule, batches(trajectory), params, hparams, where, xs.t, like, vector
        )
        gradient = unravel(vector, view)
        exact = advance(exact, stages.kick, gradient)
        if rule.coupled:
            exact = advance(
                exact, stages.couple, (gradient, {name: seen(name) for name in rule.kicked})
            )
        exact = advance(exact, stages.drift, {name: seen(name) for name in rule.driving})
        if rule.trailing:
            exact = advance(exact, stages.trail, seen(PARAMS))

        # Every variable: a drift may make a harmless number of an infinite slot.
        damages = [kinds[name].damage(value) for name, value in exact.values.items()]
        is_over = jnp.any(jnp.stack([damage.overflow for damage in damages]))
        # Where a slot left the range, what follows from it is infinite and not the cause.
        is_nan = jnp.any(jnp.stack([damage.nonfinite for damage in damages])) & ~is_over
        # Only the first step at which anything happened tells the cause; what follows is garbage.
        is_whole = ~(overflow | nonfinite)
        is_over, is_nan = is_over & is_whole, is_nan & is_whole
        damaged_at = jnp.where(is_over | is_nan, xs.t, damaged_at)
        flags = (overflow | is_over, nonfinite | is_nan, damaged_at)
        state = encoding.decode_state(rule, exact.values, like, xs.t + 1)
        return (exact, flags, vector), recorded(trajectory, state, inputs.data)

    start = Exact(encoding.encode_state(rule, state, like), stores)
    is_finite = all_finite(state)
    is_over = (
        jnp.any(
            jnp.stack([kinds[name].damage(value).overflow for name, value in start.values.items()])
        )
        & is_finite
    )
    flags = (
        is_over,
        ~is_finite,
        jnp.where(is_over | ~is_finite, 0, trajectory.num_steps).astype(jnp.int32),
    )
    xs = step_inputs(trajectory, inputs, offsets)
    carry = (start, flags, jnp.zeros((like.size,), like.dtype))
    (end, (overflow, nonfinite, damaged_at), _), trace = jax.lax.scan(step, carry, xs)

    used = {name: offset[-1] for name, offset in offsets.items()}
    info = RunInfo(
        overflow=overflow,
        nonfinite=nonfinite,
        damaged_at=damaged_at,
        decay_out_of_range=~decays.is_storable,
        store_overflow=jnp.any(jnp.stack([used[name] > rows(name) for name in used]))
        if used
        else no,
        bits_per_step={
            name: bit_store.bits_held(kinds[name], end.stores[name], used[name], like.size)
            / trajectory.num_steps
            for name in used
        },
        entropy_per_step={name: jnp.mean(entropy) for name, entropy in decays.entropy.items()},
    )
    is_right = ~(overflow | nonfinite | info.decay_out_of_range)
    end_state = encoding.decode_state(rule, end.values, like, jnp.int32(trajectory.num_steps))
    outputs = (poison(end_state, is_right), info, poison(trace, is_right))
    return outputs, Residuals(state, end, offsets, inputs, info)
