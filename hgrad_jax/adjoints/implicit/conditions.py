"""Conditions that trained parameters satisfy: what `Implicit()` differentiates.

A condition is a function c(params, hparams, batch, key) that is zero where training comes to rest,
and its products with a direction u: (dc/dparams)^T u and (dc/dhparams)^T u. Solving with them is
`hgrad_jax.solvers`', and the hypergradient `hgrad_jax.adjoints.implicit.implicit`'s.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.functions import require_function
from hgrad_jax.rules.gradients import scalar
from hgrad_jax.runs.traced_once import TracedOnce
from hgrad_jax.tools.foreign_rules import has_foreign_rule
from hgrad_jax.tools.trees import is_like, shown
from hgrad_jax.types import Batch, Hparams, Loss, Params

VectorField = Callable[[Params, Hparams, Batch, Any], Params]
"""`function(params, hparams, batch, key) -> tree like params`."""


class Condition:
    """What holds where training comes to rest: c(params, hparams, batch, key) = 0.

    Subclasses are frozen dataclasses and define `residual`.

    Attributes:
      is_symmetric: whether dc/dparams is, as a Hessian is.
    """

    is_symmetric: ClassVar[bool] = False

    def residual(self, params: Params, hparams: Hparams, batch: Batch, key: Any) -> Params:
        """Returns c, a tree like params."""
        raise NotImplementedError

    def product(
        self, params: Params, hparams: Hparams, batch: Batch, key: Any
    ) -> Callable[[Params], Params]:
        """Returns the function u -> (dc/dparams)^T u."""
        _, pull = jax.vjp(lambda p: self.residual(p, hparams, batch, key), params)
        return lambda direction: pull(direction)[0]

    def hparams_product(
        self, params: Params, hparams: Hparams, batch: Batch, key: Any, direction: Params
    ) -> Hparams:
        """Returns (dc/dhparams)^T u for the direction u."""
        _, pull = jax.vjp(lambda h: self.residual(params, h, batch, key), hparams)
        return pull(direction)[0]


@dataclasses.dataclass(frozen=True)
class Stationary(Condition):
    """The gradient of a loss in the parameters is zero.

    Products are taken forward over reverse; reverse over reverse if the loss has a `custom_vjp`
    inside, since the Jacobian of its gradient need not be symmetric then: `GMRES()` solves what
    `ConjugateGradient()` says it cannot.

    Attributes:
      loss: `loss(params, hparams, batch, key) -> floating-point scalar`, twice differentiable.

    Raises:
      ValueError: when it is traced, the loss is no floating-point scalar.
    """

    loss: Loss

    def __post_init__(self) -> None:
        call = "loss(params, hparams, batch, key)"
        require_function(self.loss, call, "a function that returns a floating-point scalar")

    is_symmetric: ClassVar[bool] = True

    def residual(self, params: Params, hparams: Hparams, batch: Batch, key: Any) -> Params:
        """Returns the gradient of the loss."""
        return jax.grad(scalar(self.loss))(params, hparams, batch, key)

    def product(
        self, params: Params, hparams: Hparams, batch: Batch, key: Any
    ) -> Callable[[Params], Params]:
        """Returns the function u -> H u, with H the Hessian of the loss."""
        if not self._is_symmetric(params, hparams, batch, key):
            return super().product(params, hparams, batch, key)
        return jax.linearize(lambda p: self.residual(p, hparams, batch, key), params)[1]

    def hparams_product(
        self, params: Params, hparams: Hparams, batch: Batch, key: Any, direction: Params
    ) -> Hparams:
        """Returns d<u, grad loss>/dhparams for the direction u."""
        if not self._is_symmetric(params, hparams, batch, key):
            return super().hparams_product(params, hparams, batch, key, direction)
        gradients = self._gradients(batch, key)
        return jax.jvp(lambda p: gradients(p, hparams)[1], (params,), (direction,))[1]

    def _gradients(
        self, batch: Batch, key: Any
    ) -> Callable[[Params, Hparams], tuple[Params, Hparams]]:
        return lambda params, hparams: jax.grad(scalar(self.loss), argnums=(0, 1))(
            params, hparams, batch, key
        )

    def _is_symmetric(self, params: Params, hparams: Hparams, batch: Batch, key: Any) -> bool:
        return not has_foreign_rule(self.loss, params, hparams, batch, key)


@dataclasses.dataclass(frozen=True)
class Root(Condition):
    """A function of the parameters is zero.

    Attributes:
      function: `function(params, hparams, batch, key) -> tree like params`, differentiable.

    Raises:
      ValueError: when it is traced, the function returns something else.
    """

    function: VectorField

    def __post_init__(self) -> None:
        call = "function(params, hparams, batch, key)"
        require_function(self.function, call, "a function that returns a tree like params")

    def residual(self, params: Params, hparams: Hparams, batch: Batch, key: Any) -> Params:
        """Returns the function's value."""
        return _like(params, self.function(params, hparams, batch, key), "Root")


@dataclasses.dataclass(frozen=True)
class FixedPoint(Condition):
    """The parameters are what a function maps them to: c = params - function(params, ...).

    If the function is a training step, then its learning rate does enter the condition, and its
    hypergradient is computed: zero, up to the distance from the fixed point, which it does not
    move.

    Attributes:
      function: `function(params, hparams, batch, key) -> tree like params`, differentiable.

    Raises:
      ValueError: when it is traced, the function returns something else.
    """

    function: VectorField

    def __post_init__(self) -> None:
        call = "function(params, hparams, batch, key)"
        require_function(self.function, call, "a function that returns a tree like params")

    def residual(self, params: Params, hparams: Hparams, batch: Batch, key: Any) -> Params:
        """Returns params - function(params, hparams, batch, key)."""
        mapped = _like(params, self.function(params, hparams, batch, key), "FixedPoint")
        return jax.tree.map(jnp.subtract, params, mapped)


def _like(params: Params, value: Any, name: str) -> Params:
    if not is_like(value, params):
        raise ValueError(
            f"the function of {name} returned a tree of shapes {shown(value)}; it must return one "
            f"like params, of shapes {shown(params)}."
        )
    return value


def with_functions(condition: Condition, change: Callable[[Any], Any]) -> Condition:
    """Returns the condition with its functions changed, where it is a dataclass of such."""
    if not dataclasses.is_dataclass(condition):
        return condition
    values = {field.name: getattr(condition, field.name) for field in dataclasses.fields(condition)}
    functions = {name: change(value) for name, value in values.items() if callable(value)}
    return dataclasses.replace(condition, **functions)


def bound_to(condition: Condition, closed: Any) -> Condition:
    """Returns the condition whose functions, where traced once, have what they close over."""
    return with_functions(condition, lambda x: x.bound(closed) if isinstance(x, TracedOnce) else x)
