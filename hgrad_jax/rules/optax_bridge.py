"""Transformations of optax as differentiable update rules."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from hgrad_jax.inputs.functions import require_function
from hgrad_jax.rules.gradients import (
    GradientProvider,
    backpropagation,
    gradient_from,
    scalar,
)
from hgrad_jax.rules.optax_update import initial_slots, updated
from hgrad_jax.rules.source import of_optax
from hgrad_jax.rules.stepping import floats, require_like
from hgrad_jax.types import Array, Batch, Hparams, Loss, Params, Transition


class OptaxState(NamedTuple):
    """State of an optax transformation.

    Attributes:
      params: a pytree of floating-point arrays.
      opt_state: the transformation's own state.
      count: int32 scalar, steps taken.
    """

    params: Params
    opt_state: Any
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]


def from_optax(
    make_tx: Callable[[Hparams], optax.GradientTransformation],
    loss: Loss,
    *,
    gradient: GradientProvider = backpropagation,
) -> Transition:
    """Returns the rule of an optax transformation, differentiable in its hyperparameters.

    The transformation is made anew at every step, from the hyperparameters of that step; it costs
    nothing, since all of it is traced. Schedules go into `hparams` (`hparams_axes`), not into the
    transformation, though those work too. Not reversible.

    What a transformation asks for is handed over: the loss's `value`, its `grad`, `value_fn` or
    `obj_fn(params)`, and `grad_fn(params, i)`, all of this step's batch and key. Line searches
    (`optax.lbfgs`) are loops, which only `ForwardMode()` goes through. What wraps the parameters
    (`optax.lookahead`), or asks for something else, is refused by name.

    The derivatives are those of optax's formulas, infinite ones included: `optax.adam` has a NaN
    hypergradient where a gradient is exactly zero, unless `eps_root` is positive; `adam` has not.
    `optax.radam` takes the root of a negative number in the branch of its first steps that is not
    taken, so that reverse modes are NaN: `ForwardMode()`, which leaves that branch out, is right.

    Args:
      make_tx: `make_tx(hparams) -> optax.GradientTransformation`, pure. The shape of its state must
        not depend on the values of hparams.
      loss: `loss(params, hparams, batch, key) -> scalar`.
      gradient: where the gradient comes from, `gradient(loss)(params, hparams, batch, key)`:
        `backpropagation`, or `forward_gradient(...)`, or `modified(...)`.

    Returns:
      A Transition whose state is an OptaxState.

    Raises:
      TypeError: `make_tx` is optax's own function; or at the first step, it did not return a
        transformation, or one that cannot be served.

    Example:
      >>> import jax, jax.numpy as jnp, optax, hgrad_jax as hg
      >>> def make_tx(hparams):
      ...     return optax.chain(optax.clip(hparams["clip"]), optax.sgd(hparams["rate"]))
      >>> rule = hg.from_optax(make_tx, lambda params, hparams, batch, key: params**2 / 2)
      >>> def end(hparams):
      ...     start, axes = jnp.float32(4), {"rate": 0, "clip": None}
      ...     run = hg.Run(rule, num_steps=2, hparams_axes=axes)
      ...     return hg.unroll(run, start, hparams, None).params
      >>> bars = jax.grad(end)({"rate": jnp.array([0.5, 0.25]), "clip": jnp.float32(3)})
      >>> bars["clip"], bars["rate"]
      (Array(-0.375, dtype=float32), Array([-2.25, -2.5 ], dtype=float32))
    """
    require_function(
        make_tx,
        "make_tx(hparams)",
        "a function that returns an optax transformation, such as lambda hparams: "
        "optax.sgd(hparams['learning_rate'])",
    )
    if (name := of_optax(make_tx)) is not None:
        raise TypeError(
            f"make_tx is optax's {name}, but is called as make_tx(hparams); pass a function of "
            f'hparams, lambda hparams: optax.{name}(hparams["learning_rate"]).'
        )
    gradient_at = gradient_from(gradient, loss)

    def made(hparams: Hparams) -> optax.GradientTransformation:
        tx = make_tx(hparams)
        if not isinstance(tx, optax.GradientTransformation):
            raise TypeError(
                f"make_tx returned {tx!r}; it must return an optax transformation (of a MultiSteps "
                "its gradient_transformation()), such as "
                'optax.sgd(hparams["learning_rate"]).'
            )
        return tx

    def init(params: Params, hparams: Hparams) -> OptaxState:
        return OptaxState(params, initial_slots(made(hparams), params), jnp.int32(0))

    def update(
        params: Params, gradient: Params, slots: Any, hparams: Hparams, count: int = 0
    ) -> tuple[Params, Any]:
        del count  # optax keeps its own in the slots
        params, gradient = floats(params, "params"), floats(gradient, "gradient")
        require_like(gradient, params, "gradient")
        tx = made(hparams)
        slots = initial_slots(tx, params) if slots is None else slots
        return updated(tx, gradient, slots, params, {})

    def step(state: OptaxState, hparams: Hparams, batch: Batch, key: Array | None) -> OptaxState:
        at = floats(gradient_at(state.params, hparams, batch, key), "the gradient")
        require_like(at, state.params, "the gradient")

        def value_at(params: Params) -> Array:
            return scalar(loss)(params, hparams, batch, key)

        offered = {
            "value": lambda: value_at(state.params),
            "grad": lambda: at,
            "value_fn": lambda: value_at,
            "obj_fn": lambda: value_at,
            "grad_fn": lambda: lambda params, i: gradient_at(params, hparams, batch, key),
        }
        params, opt_state = updated(made(hparams), at, state.opt_state, state.params, offered)
        return OptaxState(params, opt_state, state.count + 1)

    return Transition(
        init,
        step,
        lambda state: state.params,
        why_not="an optax transformation does not say how its update is undone",
        update=update,
    )
