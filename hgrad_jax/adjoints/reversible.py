"""Reverse mode by running the training backwards, exactly (Maclaurin, Duvenaud and Adams 2015)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hgrad_jax.bits import bit_store
from hgrad_jax.bits.decay import SMALLEST_DECAY
from hgrad_jax.exact import encoding
from hgrad_jax.exact.backward import run_backward
from hgrad_jax.exact.forward import run_forward
from hgrad_jax.inputs.arguments import take_fields
from hgrad_jax.inputs.functions import is_number
from hgrad_jax.runs.adjoint import Adjoint, Pullback, Run, Work
from hgrad_jax.runs.closures import entered, instantiated, opened, rejoined
from hgrad_jax.runs.trajectory import Inputs, Trajectory, first_state, hparams_of, steps
from hgrad_jax.tools.guard import differentiated_once
from hgrad_jax.tools.vectors import Layout, layout
from hgrad_jax.types import Params, State, Transition


@dataclasses.dataclass(frozen=True)
class Reversible(Adjoint):
    """Runs the steps backwards, restoring each state bit for bit, and pulls the cotangents along.

    Memory: some states, in fixed point and with one integer per number and decayed variable (80
    bytes a weight with momentum, 52 without `share_gradient`), and log2(1 / decay) bits per
    number and step: 0.15 at decay 0.9, a hundredth of what `Direct()` stores. Time: the plain
    steps, a gradient with Hessian-vector product per step back, and the integer arithmetic. The
    trajectory is rounded to fixed point with 44 fraction bits instead of float32's 24, which moves
    the hypergradient by rounding only; it is the exact hypergradient of the run it returns.

    Applies to rules in kick-and-drift form, and to first derivatives. Not when decays are below
    2**-7, or where the compiler cannot be kept from computing different bits twice: the run back
    checks that it ends at the bits it should, and if not, every cotangent is NaN and the info of
    `vjp` says why. What is added to a variable is rounded to 5.7e-14: where gradients are tiny and
    the learning rate is huge instead, rescale the loss.

    Attributes:
      smallest_decay: sets the capacity of the bit stores: they hold a run whose decays are, in
        geometric mean over the steps, at least this. A number for all variables, or a mapping by
        variable; None takes the rule's own (0.5 for velocities: one bit per number and step). With
        several decays in a variable the smallest of each step counts.
      share_gradient: take the gradient on the way back from the pass that computes its
        Hessian-vector product. Where the compiler gives it other bits there, as it may in losses
        without matrix products, the way back is taken again without sharing, by all runs of a
        `vmap`, and the info's `is_repeated` says so; the state it starts from is kept for that.
        False evaluates it apart from the start, one gradient a step slower.
      trace_norms: whether `vjp` returns the norms of the cotangents before every step.

    Raises:
      ValueError: `smallest_decay` is outside (0, 1].
    """

    is_reverse_only: ClassVar[bool] = True

    smallest_decay: float | Mapping[str, float] | tuple[tuple[str, float], ...] | None = None
    share_gradient: bool = True
    trace_norms: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.smallest_decay, Mapping):
            # A tuple, so that the object can be hashed.
            bounds = tuple(sorted(self.smallest_decay.items()))
            object.__setattr__(self, "smallest_decay", bounds)
        take_fields(self)
        for bound in self.bounds().values():
            if not is_number(bound) or not 0 < bound <= 1:
                raise ValueError(
                    f"smallest_decay is {bound!r}; it must be in (0, 1]: 0.9 where momentum is 0.9."
                )

    def bounds(self) -> dict[Any, float]:
        """Returns the given bounds by variable; under None the one for all others."""
        given = self.smallest_decay
        if given is None:
            return {}
        return dict(given) if isinstance(given, tuple) else {None: given}  # pyright: ignore

    def require(self, transition: Transition) -> None:
        """Raises a ValueError if the rule has no exact map, or has no variable of a given name."""
        if transition.exact is None:
            raise ValueError(
                "adjoint=Reversible() needs an update rule that can be run backwards, and this one "
                f"cannot: {transition.why_not}; use Checkpointed(), or a rule such as momentum, "
                "heavy_ball or adam."
            )
        known = list(transition.exact.slots)
        for name in self.bounds():
            if name is not None and name not in known:
                raise ValueError(
                    f"smallest_decay names {name!r}, which is no variable of the rule: {known}."
                )

    def require_inputs(self, trajectory: Trajectory, params: Params, inputs: Inputs) -> None:
        """Raises a ValueError if a decay is outside [2**-7, 1]; traced ones are flagged instead."""
        del params
        if any(
            isinstance(x, Tracer) for x in jax.tree.leaves((inputs.constants, inputs.schedules))
        ):
            return
        rule = trajectory.transition.exact

        def at_step(t, slices):
            return rule.decays(hparams_of(trajectory, inputs.constants, slices), t)

        # Under jit constants are values too, but only as long as nothing computed from them is
        # traced.
        with jax.ensure_compile_time_eval():
            decays_of_run = jax.vmap(at_step)(steps(trajectory), inputs.schedules)
        for name, decays in decays_of_run.items():
            for leaf in jax.tree.leaves(decays):
                if isinstance(leaf, Tracer):  # a source that closes over a traced value
                    continue
                values = np.asarray(leaf)
                is_bad = ~((values >= SMALLEST_DECAY) & (values <= 1))
                if is_bad.any():
                    value = float(values[is_bad].reshape(-1)[0])
                    raise ValueError(
                        f"the decay of {name!r} is {value:g}; Reversible() needs decays in "
                        "[2**-7, 1], which exact multiplication can undo: use Direct() or "
                        "Checkpointed() for others."
                    )

    def run(self, trajectory: Trajectory, params: Params, inputs: Inputs) -> Run:
        """Returns the last state, the info, and the trace `[T]`."""
        state = first_state(trajectory, params, inputs)

        @jax.custom_vjp
        def unrolled(state, inputs):
            return self._forward(opened(trajectory, inputs), state, inputs)[0]

        def forward(state, inputs):
            state, inputs = _differentiated_once(entered(trajectory, state, inputs, "Reversible()"))
            return self._forward(opened(trajectory, inputs), state, inputs)

        def backward(residuals, bars):
            state_bar, _, trace_bar = instantiated(bars)
            start_bar, inputs_bar, _ = self._backward(trajectory, residuals, state_bar, trace_bar)
            return start_bar, rejoined(inputs_bar, residuals.inputs)

        # The custom rule goes around the whole trajectory: inside a scan its residuals would be
        # stacked T times.
        unrolled.defvjp(forward, backward, symbolic_zeros=True)
        return unrolled(state, inputs)

    def work(self, num_steps: int, num_hparams: int) -> Work:
        """Returns a gradient and a product per step; two gradients if they are not shared.

        Rules whose kick is not linear in the gradient evaluate it apart in any case.
        """
        del num_hparams
        return Work(True, (1 + (not self.share_gradient)) * num_steps, num_steps)

    def vjp(self, trajectory: Trajectory, params: Params, inputs: Inputs) -> tuple[Run, Pullback]:
        """Returns what `run` returns, and its pullback."""

        def start(params, constants, schedules):
            given = inputs._replace(constants=constants, schedules=schedules)
            return first_state(trajectory, params, given)

        state, pull_start = jax.vjp(start, params, inputs.constants, inputs.schedules)

        # The guard is on what the functions close over, too.
        state, inputs = _differentiated_once((state, inputs))
        outputs, residuals = self._forward(opened(trajectory, inputs), state, inputs)

        def pullback(state_bar, trace_bar):
            start_bar, through_run, info = self._backward(
                trajectory, residuals, state_bar, trace_bar
            )
            params_bar, *through_start = pull_start(_with_float0(start_bar, state))
            constants_bar, schedules_bar = jax.tree.map(
                jnp.add, tuple(through_start), (through_run.constants, through_run.schedules)
            )
            return params_bar, Inputs(constants_bar, schedules_bar, None, None), info

        return outputs, pullback

    def _forward(self, trajectory, state, inputs):
        like = layout(state.params)
        return run_forward(
            trajectory, state, inputs, lambda name: self._rows(trajectory, name, like)
        )

    def _backward(self, trajectory, residuals, state_bar, trace_bar):
        inputs = _differentiated_once(residuals.inputs)
        return run_backward(
            opened(trajectory, inputs),
            residuals._replace(inputs=inputs),
            _differentiated_once(state_bar),
            _differentiated_once(trace_bar),
            share_gradient=self.share_gradient,
            trace_norms=self.trace_norms,
        )

    def _rows(self, trajectory: Trajectory, name: str, like: Layout) -> int:
        """Capacity of a variable's bit store in rows of one byte (two for 128-bit numbers)."""
        bounds = self.bounds()
        rule = trajectory.transition.exact
        own: float = rule.slots[name].smallest_decay
        bound = bounds.get(name, bounds.get(None, own))
        # The schedule counts a little more than the entropy: rounding s // n, and its own units.
        bits = trajectory.num_steps * (-np.log2(bound) * (1 + 2e-6) + 3e-5) + 2
        return bit_store.rows_needed(bits, encoding.kind_of(rule, name, like))


def _differentiated_once(tree: Any) -> Any:
    return differentiated_once(tree, "Reversible()", "whose integers have no further derivatives")


def _with_float0(bar: State, state: State) -> State:
    """Puts JAX's zero cotangent where an adjoint returned None for an integer of the state."""
    leaves, treedef = jax.tree.flatten(state)
    bars = treedef.flatten_up_to(bar)
    filled = [
        np.zeros(x.shape, jax.dtypes.float0) if b is None else b
        for b, x in zip(bars, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, filled)
