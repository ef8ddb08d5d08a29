"""What `bench` times: the floor and the isolation, written by hand, and the library's methods.

Every program is a function `program(params, hparams, train, valid)` of a problem's `args`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import hgrad_jax as hg
from experiments.bench.cases import Problem
from hgrad_jax.bits.bitwise import isolate

PLAIN, ISOLATED, PRODUCTS = "plain steps", "plain steps, isolated", "gradient + HVP"
RIVALS = (PLAIN, ISOLATED, PRODUCTS)
"""Programs that compute no hypergradient; the first and the last make the floor."""


def programs(problem: Problem) -> dict[str, Callable[..., Any]]:
    """Returns what is timed by name: the two halves of the floor, the isolation, the methods."""
    methods = {
        "Direct()": hg.Direct(),
        "Checkpointed()": hg.Checkpointed(),
        "Checkpointed(branching=2)": hg.Checkpointed(branching=2),
        "Reversible()": hg.Reversible(smallest_decay=problem.smallest_decay),
    }
    return {
        PLAIN: functools.partial(train_plainly, problem, is_isolated=False),
        ISOLATED: functools.partial(train_plainly, problem, is_isolated=True),
        PRODUCTS: functools.partial(differentiate_twice, problem),
    } | {name: functools.partial(hypergradient, problem, m) for name, m in methods.items()}


def train_plainly(
    problem: Problem, params: Any, hparams: Any, train: Any, valid: Any, *, is_isolated: bool
) -> Any:
    """Returns the parameters after T steps of the rule written by hand.

    With `is_isolated` the gradient is compiled apart, as exact reversal needs it.
    """
    del valid

    def gradient(params: Any, t: Array) -> Any:
        batch = problem.batch_fn(train, t, None)
        return jax.grad(problem.loss)(params, hparams, batch, None)

    def step(state: Any, t: Array) -> tuple[Any, None]:
        evaluate = isolate(gradient, t) if is_isolated else gradient
        return problem.update(evaluate(state[0], t), *state, hparams, t), None

    start = (params, problem.start(params))
    return jax.lax.scan(step, start, jnp.arange(problem.run.num_steps))[0][0]


def differentiate_twice(
    problem: Problem, params: Any, hparams: Any, train: Any, valid: Any
) -> tuple[Any, Any]:
    """Returns parameters and direction after T gradients with Hessian-vector products."""
    del valid

    def step(state: Any, t: Array) -> tuple[Any, None]:
        def gradient(params: Any) -> Any:
            batch = problem.batch_fn(train, t, None)
            return jax.grad(problem.loss)(params, hparams, batch, None)

        params, direction = state
        moved = jax.jvp(gradient, (params,), (direction,))
        return jax.tree.map(lambda x, g: x - hparams["learning_rate"][t] * g, state, moved), None

    # A direction of its own: along the parameters themselves XLA merges the first layer's two
    # products of inputs and weights, and the floor comes out 15 % too low.
    start = (params, jax.tree.map(lambda p: jnp.cos(100.0 * p), params))
    return jax.lax.scan(step, start, jnp.arange(problem.run.num_steps))[0]


def hypergradient(
    problem: Problem, adjoint: Any, params: Any, hparams: Any, train: Any, valid: Any
) -> dict[str, Any]:
    """Returns the hypergradient by name of what it is with respect to, and whether it is sound."""
    run = dataclasses.replace(problem.run, adjoint=adjoint)
    found = hg.value_and_hypergradient(problem.validation_loss, run, params, hparams, train, valid)
    return {
        "bars": {**found.hparams, "params": found.params},
        "is_finite": found.info.is_finite,
        "is_restored": None if found.info.mismatches is None else found.info.is_restored,
    }
