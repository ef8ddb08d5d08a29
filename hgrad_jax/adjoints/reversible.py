"""Reverse mode by running the training backwards, exactly (Maclaurin, Duvenaud and Adams 2015)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from hgrad_jax.exact import bit_store, engine
from hgrad_jax.exact.backward import run_backward
from hgrad_jax.exact.forward import run_forward
from hgrad_jax.guard import differentiated_once
from hgrad_jax.trajectory import Inputs, Trajectory
from hgrad_jax.trees import Layout, layout
from hgrad_jax.types import BackwardInfo, RunInfo, State


@dataclasses.dataclass(frozen=True)
class Reversible:
    """Runs the steps backwards, restoring each state bit for bit, and pulls the cotangents along.

    Memory: two states, one integer per number and decayed variable, and log2(1 / decay) bits per
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
        Hessian-vector product. False computes it apart: one gradient a step slower, and robust
        where a compiler gives the shared one other bits.
      trace_norms: whether `vjp` returns the norms of the cotangents before every step.

    Raises:
      ValueError: `smallest_decay` is outside (0, 1].
    """

    smallest_decay: float | Mapping[str, float] | tuple[tuple[str, float], ...] | None = None
    share_gradient: bool = True
    trace_norms: bool = False

    def __post_init__(self):
        if isinstance(self.smallest_decay, Mapping):
            # A tuple, so that the object can be hashed.
            bounds = tuple(sorted(self.smallest_decay.items()))
            object.__setattr__(self, "smallest_decay", bounds)
        for bound in self.bounds().values():
            if not 0 < bound <= 1:
                raise ValueError(
                    f"smallest_decay is {bound}; it must be in (0, 1]: 0.9 where momentum is 0.9."
                )

    def bounds(self) -> dict[Any, float]:
        """Returns the given bounds by variable; under None the one for all others."""
        given = self.smallest_decay
        if given is None:
            return {}
        return dict(given) if isinstance(given, Mapping | tuple) else {None: given}

    def run(
        self, trajectory: Trajectory, state: State, inputs: Inputs
    ) -> tuple[State, RunInfo, object]:
        """Returns the last state, the info, and the trace `[T]`."""

        @jax.custom_vjp
        def unrolled(state, inputs):
            return self._forward(trajectory, state, inputs)[0]

        def forward(state, inputs):
            return self._forward(trajectory, *differentiated_once((state, inputs)))

        def backward(residuals, bars):
            state_bar, _, trace_bar = bars
            start_bar, inputs_bar, _ = self._backward(trajectory, residuals, state_bar, trace_bar)
            return start_bar, inputs_bar

        # The custom rule goes around the whole trajectory: inside a scan its residuals would be
        # stacked T times.
        unrolled.defvjp(forward, backward)
        return unrolled(state, inputs)

    def vjp(
        self, trajectory: Trajectory, state: State, inputs: Inputs
    ) -> tuple[tuple[State, RunInfo, Any], Callable[..., tuple[State, Inputs, BackwardInfo]]]:
        """Returns what `run` returns, and its pullback.

        Returns:
          `(state, info, trace)`, and `pullback(state_bar, trace_bar) -> (start_bar, inputs_bar,
          BackwardInfo)`.
        """

        @jax.custom_vjp
        def forward(state, inputs):
            return self._forward(trajectory, state, inputs)

        # Behind a custom rule, so that what the loss closes over cannot be differentiated either;
        # the guard raises before the rule is ever used.
        forward.defvjp(
            lambda state, inputs: (forward(state, inputs), None), lambda _, bars: (None, None)
        )
        outputs, residuals = forward(*differentiated_once((state, inputs)))

        def pullback(state_bar, trace_bar):
            return self._backward(trajectory, residuals, state_bar, trace_bar)

        return outputs, pullback

    def _forward(self, trajectory, state, inputs):
        like = layout(state.params)
        return run_forward(
            trajectory, state, inputs, lambda name: self._rows(trajectory, name, like)
        )

    def _backward(self, trajectory, residuals, state_bar, trace_bar):
        inputs = differentiated_once(residuals.inputs)
        return run_backward(
            trajectory,
            residuals._replace(inputs=inputs),
            differentiated_once(state_bar),
            differentiated_once(trace_bar),
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
        return bit_store.rows_needed(bits, engine.kind_of(rule, name, like))
