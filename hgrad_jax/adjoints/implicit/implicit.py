"""Implicit differentiation: the derivative of the point where training comes to rest.

If the trained parameters w solve c(w, lambda) = 0, then dc/dw dw + dc/dlambda dlambda = 0, and the
hypergradient of E(w) is

    -(dc/dlambda)^T u,   (dc/dw)^T u = grad_w E,

one linear system whose matrix is known by its products alone (Pedregosa 2016; Rajeswaran, Finn,
Kakade and Levine 2019 solve it by conjugate gradients, Lorraine, Vicol and Duvenaud 2020 by a
Neumann series). Nothing of the way to w is differentiated. With c the gradient of the training
loss, (dc/dw)^T u is a Hessian-vector product and (dc/dlambda)^T u a mixed one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from hgrad_jax.adjoints.direct import Direct
from hgrad_jax.adjoints.implicit.absence import refuse_absent
from hgrad_jax.adjoints.implicit.conditions import (
    Condition,
    Stationary,
    bound_to,
    with_functions,
)
from hgrad_jax.adjoints.implicit.reading import SymbolicZero, leaves, params_bar, read_at
from hgrad_jax.adjoints.implicit.rest import require_like_data, rest_of
from hgrad_jax.adjoints.implicit.settings import require_settings
from hgrad_jax.adjoints.implicit.solution import ImplicitInfo, bars_of, info_of, solved
from hgrad_jax.inputs.arguments import take_fields
from hgrad_jax.runs.adjoint import Adjoint, Pullback, Run, Work
from hgrad_jax.runs.closures import (
    is_differentiated,
    opened,
    primals,
    rejoined,
    require_given_batches,
    separate,
)
from hgrad_jax.runs.trajectory import (
    Inputs,
    Trajectory,
    all_finite,
    first_state,
)
from hgrad_jax.solvers.conjugate_gradient import ConjugateGradient
from hgrad_jax.solvers.system import LinearSolver
from hgrad_jax.tools.guard import differentiated_once
from hgrad_jax.types import (
    Array,
    BackwardInfo,
    Params,
    State,
    Transition,
)


@dataclasses.dataclass(frozen=True)
class Implicit(Adjoint):
    """Differentiates the condition that the trained parameters satisfy, not the way to them.

    Memory: the run forward keeps no step, so it is that of one Hessian-vector product and the
    solver's vectors, whatever T is. Time: the run forward, and per step of the solver one product,
    about two gradients of the loss on `batches` batches. Exact where the condition holds exactly
    and the system is solved exactly; else the error is, to first order, the distance from the point
    where it holds, times how fast condition and objective bend there, plus the residual times the
    condition number of the Hessian. Only `Unrolled.params` is differentiated.

    In the README's study (MNIST, an MLP, momentum 0.95, a scale for every weight), with damping 0.1
    and `stationarity_tolerance=math.inf`, since the runs are not at rest, its cosine with the exact
    hypergradient was 0.32 after 2,000 steps and 0.09 after 20,000; after 200 the Hessian was
    indefinite and it refused. Not for short runs, nor for losses without a regular Hessian
    at the minimum (a network with more weights than data, unregularized): which minimum is reached
    depends on the way there, and that is not differentiated.

    Learning rates, momenta and the like do not move a stationary point; they are refused when they
    are differentiated. Nor do the initial parameters: their hypergradient is zero.
    `value_and_hypergradient` and `vjp` differentiate every leaf of `hparams`, so pass those
    settings as fixed numbers to the rule there. Decoupled weight decay (`adamw`) and averages of
    the parameters move the point of rest away from the loss's: give a condition that includes it.

    Hyperparameters are those of the last step: of a schedule that enters the condition, the last
    row has the whole hypergradient and the others zero. First derivatives, in reverse mode.

    A damped solve answers another question, and looks closer to rest than the run is: |u| is
    smaller. Its bias is not flagged; keep the damping far below the curvature that matters.

    What goes wrong at run time makes every cotangent NaN, and `hg.check` of the info of `hg.vjp` or
    `value_and_hypergradient` says what. Stationarity is measured as

        (|u| / |b|) |c| / (|w_T| + |w_0|),   A^T u = b,   A = dc/dw,

    with b the cotangent of the parameters. |A^-1 c| would be the Newton step, hence the parameters'
    distance from the stationary point; |u| / |b| stands for |A^-1|, as the direction b sees it,
    which costs no second solve. So it is about the relative error of the parameters, the same in
    all units of loss, objective and parameters, and it does not ask that training began far away,
    as |c| against its start would. It counts the noise of batches as distance.

    Attributes:
      condition: `Stationary(loss)`, `Root(function)` or `FixedPoint(function)`; None for the
        stationary points of the rule's own loss, where the transition knows it.
      solver: `ConjugateGradient(...)` for `Stationary`; `GMRES(...)` or `Neumann(...)` for all.
      batches: how many of the last steps' batches and loss keys the condition is the mean over, a
        positive int: an epoch's, to be stationary. One batch at a time is evaluated. None takes the
        data whole, as one batch, whatever batch_fn is, with the last step's loss key.
      stationarity_tolerance: of that measure, a positive float: 0.01 asks that the parameters are
        within some percent of where the condition holds. `math.inf` never refuses.

    Raises:
      ValueError: a setting is out of range, or the solver needs a symmetric condition; when it is
        traced, there is no condition, it does not return a tree like params, a differentiated
        hyperparameter does not enter it, batches are unlike the data although `batches` is None or
        are more than the steps, or something other than `Unrolled.params` is differentiated.
      TypeError: `condition` or `solver` is none.

    Example:
      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return jnp.sum((params - 3.0) ** 2) + hparams["l2"] * jnp.sum(params**2)
      >>> rule = hg.heavy_ball(loss, learning_rate=0.1, momentum=0.5)
      >>> run = hg.Run(rule, num_steps=100, adjoint=hg.Implicit())
      >>> def end(l2):
      ...     return hg.unroll(run, jnp.float32(0), {"l2": l2}, None).params

      The minimum is at 3 / (1 + l2), whose derivative is -3 / (1 + l2)**2:

      >>> print(f"{jax.grad(end)(0.5):.4f}")
      -1.3333
    """

    is_reverse_only: ClassVar[bool] = True

    condition: Condition | None = None
    solver: LinearSolver = dataclasses.field(default_factory=ConjugateGradient)
    batches: int | None = None
    stationarity_tolerance: float = 1e-2

    def __post_init__(self) -> None:
        require_settings(self.condition, self.solver, self.batches)
        take_fields(self)

    def require(self, transition: Transition) -> None:
        """Raises a ValueError if no condition is given and the transition knows no loss."""
        if self.condition is None and getattr(transition.exact, "loss", None) is None:
            raise ValueError(
                "adjoint is Implicit() without a condition, and this transition does not say which "
                "loss it descends; pass Implicit(condition=Stationary(loss)), or Root or "
                "FixedPoint where a gradient= replaces the loss's."
            )

    def traced_once(self, keep: Callable[[Any], Any]) -> "Implicit":
        """Returns the adjoint with the functions of its condition traced once."""
        if self.condition is None:
            return self
        return dataclasses.replace(self, condition=with_functions(self.condition, keep))

    def require_inputs(self, trajectory: Trajectory, params: Params, inputs: Inputs) -> None:
        """Raises a ValueError if batches or the condition do not fit the run."""
        if self.batches is not None and self.batches > trajectory.num_steps:
            raise ValueError(
                f"batches is {self.batches}, but num_steps is {trajectory.num_steps}; the "
                "condition is the mean over batches of the run's last steps: pass fewer."
            )
        if self.batches is None and trajectory.batch_fn is not None:
            require_like_data(trajectory, inputs)

        def condition_at_the_start(params, inputs):
            state = first_state(trajectory, params, inputs)
            read_at(trajectory.transition, state)
            rest = rest_of(trajectory, state, params, inputs, self.batches)
            batch, key = rest.last_batch()
            condition = self._condition(trajectory, inputs)
            return condition.residual(rest.params, rest.hparams, batch, key)

        jax.eval_shape(condition_at_the_start, params, inputs)

    def run(self, trajectory: Trajectory, params: Params, inputs: Inputs) -> Run:
        """Returns the last state, the info, and the trace `[T]`."""

        @jax.custom_vjp
        def trained(params, inputs):
            return Direct().run(opened(trajectory, inputs), params, inputs)

        def forward(params, inputs):
            moved = is_differentiated(inputs.closed)
            is_asked = [
                any(leaf.perturbed for leaf in jax.tree.leaves((constant, schedule)))
                for constant, schedule in zip(inputs.constants, inputs.schedules, strict=True)
            ]
            params, inputs = primals((params, inputs))
            inputs = separate(inputs, moved)
            run = opened(trajectory, inputs)
            require_given_batches(trajectory, inputs)
            refuse_absent(
                self._condition(run, inputs),
                self.batches,
                run,
                params,
                inputs,
                is_asked + [True] * sum(moved),
            )
            params, inputs = _differentiated_once((params, inputs))
            end, info, trace = Direct().run(run, params, inputs)
            return (end, info, trace), (end, params, inputs)

        def backward(residuals, bars):
            end, params, inputs = residuals
            run = opened(trajectory, inputs)
            state_bar, _, trace_bar = bars
            bar = params_bar(run.transition, end, state_bar)
            if not all(isinstance(bar, SymbolicZero) for bar in leaves(trace_bar)):
                raise ValueError(
                    "the trace of record is differentiated, but Implicit() differentiates "
                    "Unrolled.params only; use Direct() or Checkpointed()."
                )
            (start_bar, inputs_bar), _ = self._pull(run, end, params, inputs, bar)
            return start_bar, rejoined(inputs_bar, inputs)

        # The custom rule goes around the whole trajectory, so that it keeps nothing of a step.
        trained.defvjp(forward, backward, symbolic_zeros=True)
        return trained(params, inputs)

    def work(self, num_steps: int, num_hparams: int) -> Work:
        """Returns the run's gradients; the products are unknown before the system is solved.

        Those are one per step of the solver, up to its `max_steps` if it has them, times the
        batches of the condition. What is evaluated there once, at the end, is not counted.
        """
        del num_hparams
        return Work(False, num_steps, None)

    def vjp(self, trajectory: Trajectory, params: Params, inputs: Inputs) -> tuple[Run, Pullback]:
        """Returns what `run` returns, and its pullback, whose info says how it was solved."""
        condition = self._condition(trajectory, inputs)
        refuse_absent(
            condition, self.batches, trajectory, params, inputs, [True] * len(inputs.constants)
        )
        params, inputs = _differentiated_once((params, inputs))
        end, info, trace = self.run(trajectory, params, inputs)
        run = opened(trajectory, inputs)

        def pullback(state_bar, trace_bar):
            bar = params_bar(run.transition, end, state_bar, is_read_only=True)
            is_dropped = jnp.zeros((), bool)
            for leaf in jax.tree.leaves(trace_bar):
                is_dropped |= jnp.any(leaf != 0)
            bars, solve = self._pull(run, end, params, inputs, bar, is_dropped)
            return *bars, BackwardInfo(info, None, all_finite(bars), solve=solve)

        return (end, info, trace), pullback

    def _pull(
        self,
        trajectory: Trajectory,
        end: State,
        params: Params,
        inputs: Inputs,
        bar: Params,
        is_trace_dropped: Array | None = None,
    ) -> tuple[tuple[Params, Inputs], ImplicitInfo]:
        """Returns the cotangents of the initial parameters and of the inputs, and the info."""
        bar = _differentiated_once(bar)
        rest = rest_of(trajectory, end, params, inputs, self.batches)
        condition = self._condition(trajectory, inputs)
        direction, solve = solved(condition, self.solver, rest, bar)
        is_dropped = jnp.zeros((), bool) if is_trace_dropped is None else is_trace_dropped
        tolerance = self.stationarity_tolerance
        info = info_of(condition, solve, rest, direction, bar, tolerance, is_dropped)
        is_good = info.is_stationary & info.is_converged & ~info.is_indefinite & ~is_dropped
        return bars_of(condition, rest, direction, params, inputs, is_good), info

    def _condition(self, trajectory: Trajectory, inputs: Inputs) -> Condition:
        if self.condition is None:
            return Stationary(trajectory.transition.exact.loss)
        return bound_to(self.condition, inputs.closed)


def _differentiated_once(tree: Any) -> Any:
    return differentiated_once(tree, "Implicit()", "whose hypergradient has no further derivatives")
