"""Hypergradient descent on learning rates (Baydin, Cornish, Rubio, Schmidt and Wood 2018).

A step x' = x + u(rate) has a derivative by its rate, du/drate. The next step takes the gradient of
the loss at x' anyway, and their inner product says how the loss there would have changed with the
rate: the hypergradient. It costs a tree like the parameters, to remember du/drate, and no gradient
more. Almeida et al. (1998) had it for gradient descent.

du/drate comes from the rule's own update by forward mode: -g for gradient descent, -v for momentum,
-m / (sqrt(v) + eps) of the corrected moments for Adam, as in the paper's SGD-HD and Adam-HD. Slots
from before the step count as given. So where a rule keeps the rate in its velocity
(`hg.nesterov`, `hg.classical_momentum`) only the step's own gradient counts, -(1 + m) g; the
paper's SGDN-HD, -(g + m v), has the rate outside: it is `optax.sgd(rate, m, nesterov=True)` in
`hg.from_optax`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.arguments import taken
from hgrad_jax.inputs.functions import require_function, returning_arrays
from hgrad_jax.online.batches import VALID_ROLE, folded, split_step
from hgrad_jax.online.learned import (
    WHY_NOT,
    Bounds,
    Learned,
    checked_names,
    current,
    learner,
    validation,
)
from hgrad_jax.rules.arithmetic import elementwise, root
from hgrad_jax.rules.form import KickDriftState
from hgrad_jax.rules.gradients import GradientProvider, backpropagation, gradient_from
from hgrad_jax.rules.optax_bridge import OptaxState
from hgrad_jax.rules.sgd import sgd
from hgrad_jax.rules.source import Source, field, read
from hgrad_jax.tools.prefixes import spread
from hgrad_jax.types import Array, Batch, Hparams, Loss, Params, State, Transition

Change = Callable[[Array, Array, Array, Array], Array]
"""`change(rate, hyper_rate, product, norms) -> rate`, for one rate and whoever shares it."""


def additive(rate: Array, hyper_rate: Array, product: Array, norms: Array) -> Array:
    """Returns rate - hyper_rate * product, as Baydin et al. (2018) have it by default.

    >>> additive(0.5, 0.25, -1.0, 4.0)
    0.75
    """
    del norms
    return rate - hyper_rate * product


def multiplicative(rate: Array, hyper_rate: Array, product: Array, norms: Array) -> Array:
    """Returns rate * (1 - hyper_rate * product / norms), their other rule.

    The quotient is a cosine, in [-1, 1]: a rate changes by no more than the factor
    1 + hyper_rate, whatever the scale of the loss, and stays positive if hyper_rate is below 1.
    Where a norm is zero, the rate stays.

    >>> multiplicative(jnp.float32(0.5), 0.5, jnp.float32(-1.0), jnp.float32(4.0))
    Array(0.5625, dtype=float32)
    """
    is_positive = norms > 0
    cosine = jnp.where(is_positive, product / jnp.where(is_positive, norms, 1), 0)
    return rate * (1 - hyper_rate * cosine)


class DescentState(NamedTuple):
    """Parameters and their learning rates.

    Attributes:
      inner: the rule's own state, a `KickDriftState` or `OptaxState`.
      hparams: `{name: rate}`, what the last step used.
      direction: like the parameters, du/drate of the last step; zero before the first.
      hypergradient: like hparams, the inner products that it was last changed by.
      count: int32 scalar, steps taken.
    """

    inner: State
    hparams: Learned
    direction: Params
    hypergradient: Learned
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]


def hypergradient_descent(
    loss: Loss,
    *,
    rule: Callable[[Loss], Transition] = sgd,
    valid_loss: Loss | None = None,
    learned: str = "learning_rate",
    hyper_rate: Source = field("hyper_rate"),
    change: Change = additive,
    bounds: Bounds | None = None,
    gradient: GradientProvider = backpropagation,
) -> Transition:
    """Trains by any rule, whose learning rates descend their own hypergradient at every step.

        h_t = <grad at x_{t-1}, du_{t-1}/drate>      rate_t = rate_{t-1} - hyper_rate h_t

    and then the step with rate_t; the first step keeps the rate it is given. The gradient is the
    training batch's, or with `valid_loss` the validation batch's (St. Jules 2017, chapter 1), which
    costs one gradient a step more. One scalar rate, as in the paper, or one per tensor or number:
    each has the inner product over those that share it.

    The hypergradient is of one step, noisy and greedy: the hyper rate is a new setting, if a less
    sensitive one. `additive` needs one that fits the gradients' scale squared and can make a rate
    negative; `multiplicative` does not.

    Args:
      loss: `loss(params, hparams, batch, key) -> scalar`.
      rule: makes the rule of a loss: `hg.sgd`, `hg.heavy_ball`, `hg.momentum`, `hg.nesterov`,
        `hg.adam`, `functools.partial(hg.adam, b1=0.8)`, or a function of yours; a rule of this
        library, made by `kick_drift`, or by `from_optax`.
      valid_loss: `valid_loss(params, hparams, batch, key) -> scalar`; None for the training loss.
      learned: the entry of hparams that is the learning rate, or its logarithm, or whatever the
        rule reads there: a tree prefix of params, each value for the numbers it stands at.
      hyper_rate: the rate of the rate, a number or a function of hparams; its value is a tree
        prefix of the entry.
      change: `additive`, `multiplicative`, or `change(rate, hyper_rate, product, norms)`, where
        norms is the product of both vectors' Euclidean norms.
      bounds: `{learned: (lower, upper)}`, numbers or functions of hparams, None for no bound: the
        rate is clipped to them.
      gradient: where the gradient of the steps comes from.

    Returns:
      A Transition whose state is a `DescentState`: `out.state.hparams` has the last rate, and
      `record=lambda state, data: state.hparams` traces it. Its batches are the rule's own, and
      with a `valid_loss` they are `Batches`: use `paired`.

    Raises:
      TypeError, ValueError: an argument is not what it should be.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.online.hypergradient_descent(lambda x, hparams, batch, key: x**2 / 2)
      >>> hparams = {"learning_rate": 0.5, "hyper_rate": 0.25}
      >>> rates = lambda state, data: state.hparams["learning_rate"]
      >>> hg.unroll(hg.Run(rule, num_steps=2, record=rates), jnp.float32(1), hparams, None).trace
      Array([0.5  , 0.625], dtype=float32)
    """
    (hyper_rate,) = taken(hyper_rate=hyper_rate)
    at = gradient_from(gradient, loss)
    require_function(rule, "rule(loss)", "hg.sgd or hg.adam, without calling it")
    inner = rule(loss)
    if not isinstance(inner, Transition):
        raise TypeError(
            f"rule returned {inner!r}; pass what makes a rule of a loss, such as hg.sgd."
        )
    judge = None if valid_loss is None else jax.grad(validation(valid_loss))
    if not isinstance(learned, str):
        raise TypeError(
            f"learned is {learned!r}; it must be the name of an entry of hparams, such as "
            '"learning_rate".'
        )
    require_function(
        change, "change(rate, hyper_rate, product, norms)", "hg.online.additive, or multiplicative"
    )
    meta = learner(checked_names((learned,)), _no_tx, bounds)

    def init(params: Params, hparams: Hparams) -> DescentState:
        start = meta.start(hparams)
        state = inner.init(params, current(hparams, start))
        if not isinstance(state, KickDriftState | OptaxState):
            raise TypeError(
                f"rule made a transition whose state is a {type(state).__name__}; pass one of this "
                "library's rules, kick_drift or from_optax, and average around "
                "hypergradient_descent instead of inside."
            )
        spread(start[learned], params, learned)
        zeros = jax.tree.map(jnp.zeros_like, (params, start))
        return DescentState(state, start, zeros[0], zeros[1], jnp.int32(0))

    def step(
        state: DescentState, hparams: Hparams, batch: Batch, key: Array | None
    ) -> DescentState:
        train, valid = (batch, None) if judge is None else split_step(batch)
        params = state.inner.params
        before = current(hparams, state.hparams)
        slope = at(params, before, train, key)
        judged = slope if judge is None else judge(params, before, valid, folded(key, VALID_ROLE))
        rate, products = state.hparams[learned], _products(state, judged, learned)
        changed = elementwise(
            change_of(change), rate, *products, hyper_rate=read(hyper_rate, hparams, "hyper_rate")
        )
        new = meta.clipped({learned: changed}, hparams)

        def moved(rate: Any) -> tuple[Params, Any]:
            now = current(hparams, {learned: rate})
            return inner.update(params, slope, _slots(state.inner), now, state.inner.count)

        # Each number depends on its own rate alone, so one tangent has all derivatives.
        ones = jax.tree.map(jnp.ones_like, new[learned])
        (params, slots), (direction, _) = jax.jvp(moved, (new[learned],), (ones,))
        after = _replaced(state.inner, params, slots)
        return DescentState(after, new, direction, {learned: products[0]}, state.count + 1)

    return Transition(init, step, lambda state: inner.params(state.inner), why_not=WHY_NOT)


def change_of(change: Change) -> Callable[..., Array]:
    """Returns the change as a function of the product and of both sums of squares."""
    checked = returning_arrays("change", change)

    def formula(
        rate: Array, product: Array, square: Array, other: Array, hyper_rate: Array
    ) -> Array:
        return checked(rate, hyper_rate, product, root(square) * root(other))

    return formula


def _products(state: DescentState, slope: Params, learned: str) -> tuple[Any, Any, Any]:
    """Returns <g, d>, <g, g> and <d, d>, each summed over the numbers that share a rate."""

    def summed(a: Params, b: Params) -> Any:
        rate = state.hparams[learned]

        def spread_out(rate: Any) -> Any:
            full = spread(rate, a, learned)
            return jax.tree.map(lambda r, x: jnp.broadcast_to(r, x.shape), full, a)

        # Broadcasting transposed is summing.
        like, pull = jax.vjp(spread_out, rate)
        return pull(
            jax.tree.map(lambda x, y, r: x.astype(r.dtype) * y.astype(r.dtype), a, b, like)
        )[0]

    return (
        summed(slope, state.direction),
        summed(slope, slope),
        summed(state.direction, state.direction),
    )


def _slots(state: Any) -> Any:
    return state.slots if isinstance(state, KickDriftState) else state.opt_state


def _replaced(state: Any, params: Params, slots: Any) -> Any:
    name = "slots" if isinstance(state, KickDriftState) else "opt_state"
    return state._replace(params=params, count=state.count + 1, **{name: slots})


def _no_tx(hparams: Hparams) -> Any:
    raise TypeError("hypergradient descent changes its rate by change, not by a transformation.")
