"""The way back: every step undone bit for bit, the cotangents pulled through it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.exact import encoding, engine, products
from hgrad_jax.exact.engine import Exact
from hgrad_jax.exact.forward import (
    Residuals,
    StepInputs,
    batches,
    first_hparams,
    poison,
    step_inputs,
)
from hgrad_jax.exact.stages import stage_view, stages_of
from hgrad_jax.many.data_parallel import worst_part
from hgrad_jax.rules.form import PARAMS, KickDriftState
from hgrad_jax.runs.trajectory import Inputs, Trajectory, all_finite, hparams_of, recorded
from hgrad_jax.tools.vectors import Layout, layout, ravel, unravel, write_into
from hgrad_jax.types import Array, BackwardInfo


def run_backward(
    trajectory: Trajectory,
    residuals: Residuals,
    state_bar: KickDriftState,
    trace_bar: Any,
    *,
    share_gradient: bool,
    trace_norms: bool,
) -> tuple[KickDriftState, Inputs, BackwardInfo]:
    """Undoes all steps.

    Args:
      trajectory: as on the way forward.
      residuals: from the way forward.
      state_bar: cotangent of the last state, like the state.
      trace_bar: cotangent of the trace `[T]`, or None.
      share_gradient: see `Reversible`; tried first, and repeated without if the start is missed.
      trace_norms: see `Reversible`.

    Returns:
      Cotangents of the start and of the inputs (None for what is not differentiable), all NaN
      unless the start was restored; and the info.
    """
    info, like = residuals.info, layout(residuals.start.params)

    def undone(is_shared: bool) -> _Undone:
        return _undo(trajectory, residuals, state_bar, trace_bar, is_shared, trace_norms)

    is_shared = share_gradient and _can_share(trajectory, residuals, like)
    found, is_repeated = undone(is_shared), jnp.zeros((), bool)
    is_sound = ~(info.overflow | info.nonfinite | info.decay_out_of_range | info.store_overflow)
    if is_shared:
        is_repeated = _in_any_run(is_sound & (found.mismatches > 0))
        found = jax.lax.cond(is_repeated, lambda _: undone(False), lambda found: found, found)

    trees = {name: unravel(bar, like) for name, bar in found.bars.items()}
    params_bar = trees.pop(PARAMS)
    floats = poison(
        (params_bar, trees, found.constants_bar, found.schedules_bar),
        is_sound & (found.mismatches == 0),
    )
    params_bar, slots_bar, constants_bar, schedules_bar = floats
    backward_info = BackwardInfo(
        info, found.mismatches, all_finite(floats), found.norms, is_repeated=is_repeated
    )
    # None: the cotangent of an integer.
    start_bar = KickDriftState(params_bar, slots_bar, None)  # pyright: ignore[reportArgumentType]
    return start_bar, Inputs(constants_bar, schedules_bar, None, None), backward_info


@jax.custom_batching.custom_vmap
def _in_any_run(flag: Array) -> Array:
    """Returns a flag; under `vmap`, whether it is raised in any run.

    So that a conditional on it stays one, where `vmap` would evaluate both branches for all runs.
    """
    return flag


@_in_any_run.def_vmap
def _(axis_size, is_batched, flag):  # pyright: ignore[reportUnusedFunction]
    return _in_any_run(jnp.any(flag, axis=0) if is_batched[0] else flag), False


class _Undone(NamedTuple):
    """What undoing all steps found.

    Attributes:
      mismatches: int32 scalar, numbers of the start that were not restored.
      bars: cotangents of the variables at the start, vectors by name.
      constants_bar, schedules_bar: of the hyperparameters.
      norms: see `BackwardInfo`.
    """

    mismatches: Array
    bars: dict[str, Array]
    constants_bar: tuple
    schedules_bar: tuple
    norms: dict[str, Array] | None


def _can_share(trajectory: Trajectory, residuals: Residuals, like: Layout) -> bool:
    rule, inputs = trajectory.transition.exact, residuals.inputs
    hparams = first_hparams(trajectory, inputs)
    view = stage_view(rule, hparams, like)
    slots = {
        name: encoding.read_tree(rule, residuals.end.values, name, view) for name in rule.kicked
    }
    where = (inputs.data, inputs.key)
    return products.can_share(
        rule, batches(trajectory), residuals.start.params, hparams, where, like, view, slots
    )


def _undo(
    trajectory: Trajectory,
    residuals: Residuals,
    state_bar: KickDriftState,
    trace_bar: Any,
    is_shared: bool,
    trace_norms: bool,
) -> _Undone:
    """Undoes all steps in one scan; `is_shared` is `products_at`'s."""
    rule, inputs = trajectory.transition.exact, residuals.inputs
    like = layout(residuals.start.params)
    stages = stages_of(rule)
    view = stage_view(rule, first_hparams(trajectory, inputs), like)
    where = (inputs.data, inputs.key)

    def step(carry, xs_and_trace_bar):
        exact, bars, constants_bar, (vector, other) = carry
        xs, trace_bar_t = xs_and_trace_bar
        xs: StepInputs
        hparams = hparams_of(trajectory, inputs.constants, xs.slices)
        spills = xs.spills()
        hparams_bars = []

        if trajectory.record is not None:
            state = encoding.decode_state(rule, exact.values, like, xs.t + 1)
            bars = _add_record_bar(trajectory, state, inputs.data, trace_bar_t, bars, like)

        def retreat(exact, bars, stage, source):
            updates = engine.isolated_stage(rule, stage, source, hparams, xs.t, view)
            exact = engine.undo_stage(rule, stage, exact, updates, spills, like)
            before = {name: encoding.read(rule, exact.values, name, like) for name in stage.names}
            pulled = engine.pull_stage(
                rule, stage, source, hparams, xs.t, view, before, bars, updates[1]
            )
            source_bar, hparams_bar, bars = pulled
            hparams_bars.append(hparams_bar)
            return exact, bars, source_bar

        def seen(name):
            return encoding.read_tree(rule, exact.values, name, view)

        if rule.trailing:
            exact, bars, params_bar = retreat(exact, bars, stages.trail, seen(PARAMS))
            bars = _add(bars, {PARAMS: ravel(params_bar, view)})

        # The drift first: it is a function of the slots after the kick, which are what we have.
        exact, bars, slots_bar = retreat(
            exact, bars, stages.drift, {name: seen(name) for name in rule.driving}
        )
        bars = _add(bars, {name: ravel(bar, view) for name, bar in slots_bar.items()})

        slots = {name: seen(name) for name in rule.kicked}
        product = products.products_at(
            rule,
            batches(trajectory),
            encoding.read_tree(rule, exact.values, PARAMS, like),
            hparams,
            where,
            xs.t,
            like,
            view,
            slots,
            bars,
            vector,
            is_shared=is_shared,
        )
        hparams_bars.append(product.hparams_bar)
        gradient = unravel(product.gradient, view)
        if rule.coupled:
            exact, bars, (_, slots_bar) = retreat(exact, bars, stages.couple, (gradient, slots))
            bars = _add(bars, {name: ravel(bar, view) for name, bar in slots_bar.items()})
        exact, bars, _ = retreat(exact, bars, stages.kick, gradient)
        # Not added leaf by leaf to what the loop carries: XLA would copy that, twice.
        other = write_into(other, product.params_bar, like)
        bars = _add(bars, {PARAMS: other})

        hparams_bar = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *hparams_bars)
        leaves = jax.tree.leaves(hparams_bar)
        schedules_bar = tuple(
            bar if s else None for bar, s in zip(leaves, trajectory.is_schedule, strict=True)
        )
        constants_bar = tuple(
            None if total is None else total + bar
            for total, bar in zip(constants_bar, leaves, strict=True)
        )
        norms = _norms(bars, constants_bar) if trace_norms else None
        scratch = (product.gradient, other)
        return (exact, bars, constants_bar, scratch), (schedules_bar, norms)

    bars = {PARAMS: ravel(state_bar.params, like)}
    bars |= {name: ravel(state_bar.slots[name], like) for name in rule.slots if name != PARAMS}
    constants_bar = tuple(None if c is None else jnp.zeros_like(c) for c in inputs.constants)
    xs = (step_inputs(trajectory, inputs, residuals.offsets), trace_bar)
    zeros = jnp.zeros((like.size,), like.dtype)
    carry = (residuals.end, bars, constants_bar, (zeros, zeros))
    (start, bars, constants_bar, _), (schedules_bar, norms) = jax.lax.scan(
        step, carry, xs, reverse=True
    )

    # Of all devices that share the batches: what is decided by it, all must decide alike.
    return _Undone(
        worst_part(count_mismatches(start, residuals, trajectory, like)),
        bars,
        constants_bar,
        schedules_bar,
        norms,
    )


def count_mismatches(
    start: Exact, residuals: Residuals, trajectory: Trajectory, like: Layout
) -> Array:
    """Returns how many numbers differ from the encoded start, stores included: int32 scalar."""
    rule = trajectory.transition.exact
    expected = encoding.encode_state(rule, residuals.start, like)
    total = jnp.int32(0)
    for name, value in start.values.items():
        kind = encoding.kind_of(rule, name, like)
        is_wrong = kind.differ(value, expected[name])
        if name in start.stores:
            is_wrong |= kind.differ(start.stores[name].integer, kind.start(like.size))
        total += jnp.sum(is_wrong, dtype=jnp.int32)
    return total


def _add_record_bar(trajectory, state, data, trace_bar, bars, like):
    """Adds what the trace of this state contributes to its cotangent."""

    def read(params, slots):
        return recorded(trajectory, KickDriftState(params, slots, state.count), data)

    _, pull = jax.vjp(read, state.params, state.slots)
    params_bar, slots_bar = pull(trace_bar)
    more = {PARAMS: ravel(params_bar, like)} | {
        name: ravel(bar, like) for name, bar in slots_bar.items()
    }
    return _add(bars, more)


def _add(bars: dict[str, Array], more: dict[str, Array]) -> dict[str, Array]:
    return bars | {name: bars[name] + bar for name, bar in more.items()}


def _norms(bars: dict[str, Array], constants_bar: tuple) -> dict[str, Array]:
    norms = {name: jnp.linalg.norm(bar).astype(jnp.float32) for name, bar in bars.items()}
    squares = [
        jnp.sum(jnp.square(bar.astype(jnp.float32))) for bar in constants_bar if bar is not None
    ]
    return norms | {"hparams": jnp.sqrt(sum(squares, jnp.float32(0)))}
