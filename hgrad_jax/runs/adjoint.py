"""What every adjoint is: a way to run a trajectory, and to differentiate it, at what cost."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax

from hgrad_jax.runs.trajectory import Inputs, Trajectory, all_finite
from hgrad_jax.tools.guard import LOSS_WITHOUT_FORWARD_MODE
from hgrad_jax.types import BackwardInfo, Params, RunInfo, State, Transition

Run = tuple[State, RunInfo, Any]
"""The last state, the info, and the trace `[T]`."""

Pullback = Callable[[State, Any], tuple[Params, Inputs, BackwardInfo]]
"""`pullback(state_bar, trace_bar) -> (params_bar, inputs_bar, BackwardInfo)`."""


class Work(NamedTuple):
    """What an adjoint computes for one hypergradient, by its definition; None for what is unknown.

    Attributes:
      is_exact: whether its hypergradient is exact up to rounding.
      gradients: evaluations of the loss's gradient, but for those within products.
      products: derivatives of a gradient along one direction or cotangent, each about as costly as
        another gradient. Where the way back meets states of its own (`Reversible`, `Waypoints`),
        it evaluates the gradient in the same pass: two gradients' cost.
    """

    is_exact: bool | None
    gradients: int | None
    products: int | None

    @property
    def total(self) -> int | None:
        """Gradients and products together."""
        if self.gradients is None or self.products is None:
            return None
        return self.gradients + self.products


class Adjoint:
    """How a trajectory is differentiated. Subclasses are frozen dataclasses and define `run`.

    Attributes:
      is_reverse_only: whether it has a reverse-mode rule of its own, which `jax.jvp` and
        `jax.jacfwd` cannot differentiate.
    """

    is_reverse_only: ClassVar[bool] = False

    def require(self, transition: Transition) -> None:
        """Raises a ValueError if this adjoint cannot differentiate the transition."""

    def traced_once(self, keep: Callable[[Any], Any]) -> "Adjoint":
        """Returns the adjoint with the functions that it holds traced once, by `keep`."""
        del keep
        return self

    def require_inputs(self, trajectory: Trajectory, params: Params, inputs: Inputs) -> None:
        """Raises a ValueError if it cannot differentiate this run; traced values may pass."""

    @property
    def without_forward_mode(self) -> str:
        """What to do where forward mode meets a `custom_vjp`: the adjoint's own, or the loss's."""
        name = f"{type(self).__name__}()"
        if self.is_reverse_only:
            return (
                f"adjoint is {name}, which is differentiated in reverse mode only, by jax.grad or "
                "jax.vjp; for jax.jvp, jax.jacfwd or jax.hessian take Direct(), Checkpointed() or "
                "ForwardMode()."
            )
        return (
            f"adjoint is {name}, which is differentiated in forward mode here, but "
            f"{LOSS_WITHOUT_FORWARD_MODE} differentiate by jax.grad with Direct(), Checkpointed() "
            "or Reversible()."
        )

    def run(self, trajectory: Trajectory, params: Params, inputs: Inputs) -> Run:
        """Returns the end of the run, differentiable in `params` and `inputs`."""
        raise NotImplementedError

    def work(self, num_steps: int, num_hparams: int) -> Work:
        """Returns what a hypergradient takes: by default unknown.

        Args:
          num_steps: T.
          num_hparams: how many numbers are differentiated, steps of schedules counted apart.
        """
        del num_steps, num_hparams
        return Work(None, None, None)

    def vjp(self, trajectory: Trajectory, params: Params, inputs: Inputs) -> tuple[Run, Pullback]:
        """Returns what `run` returns, and its pullback: by default the one that JAX finds."""

        def run(params, constants, schedules):
            end, info, trace = self.run(
                trajectory, params, inputs._replace(constants=constants, schedules=schedules)
            )
            return (end, trace), info

        (end, trace), pull, info = jax.vjp(
            run, params, inputs.constants, inputs.schedules, has_aux=True
        )

        def pullback(state_bar, trace_bar):
            bars = pull((state_bar, trace_bar))
            params_bar, constants_bar, schedules_bar = bars
            found = BackwardInfo(info, None, all_finite(bars))
            return params_bar, Inputs(constants_bar, schedules_bar, None, None), found

        return (end, info, trace), pullback
