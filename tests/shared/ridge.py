"""Ridge regression, whose implicit hypergradient has a closed form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import hgrad_jax as hg
from hgrad_jax.adjoints.implicit.implicit import Implicit
from hgrad_jax.solvers.conjugate_gradient import ConjugateGradient
from tests.shared.runs import run_and_rest

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(24, 4))
TARGETS = INPUTS @ [1.0, -2.0, 0.5, 0.0] + 0.3 * RNG.normal(size=24)
VALID = RNG.normal(size=(16, 4))
VALID_TARGETS = VALID @ [1.0, -2.0, 0.5, 0.0]
NUM_STEPS = 300
DATA = (INPUTS, TARGETS)


def ridge(params, hparams, batch, key):
    inputs, targets = batch
    penalty = hparams["l2"] * jnp.sum(params["w"] ** 2)
    return (jnp.mean((inputs @ params["w"] - targets) ** 2) + penalty) / 2


def logistic(params, hparams, batch, key):
    inputs, targets = batch
    margins = jnp.sign(targets) * (inputs @ params["w"])
    return jnp.mean(jax.nn.softplus(-margins)) + hparams["l2"] * jnp.sum(params["w"] ** 2) / 2


def ridge_step(params, hparams, batch, key):
    grads = jax.grad(ridge)(params, hparams, batch, key)
    return jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)


def outer(params):
    return jnp.mean((VALID @ params["w"] - VALID_TARGETS) ** 2)


def ridge_closed_form(l2=0.1, weights=None):
    """E'(w) . dw/dl2 with w = (X^T X / n + l2)^-1 X^T y / n, and l2 per number or one."""
    hessian = INPUTS.T @ INPUTS / 24 + l2 * np.eye(4)
    w = np.linalg.solve(hessian, INPUTS.T @ TARGETS / 24)
    outer_bar = 2 * VALID.T @ (VALID @ w - VALID_TARGETS) / 16
    return -np.linalg.solve(hessian, w) @ outer_bar


DEFAULT = Implicit()
TIGHT = ConjugateGradient(tolerance=1e-11)


def given(adjoint: Any = DEFAULT, rule=None, num_steps=NUM_STEPS, **changes):
    """Arguments of `unroll` and `vjp`."""
    rule = rule or hg.heavy_ball(ridge, learning_rate=0.2, momentum=0.7)
    start = {"w": jnp.zeros(4)}
    data = tuple(jnp.asarray(x) for x in DATA)
    named = {"params": start, "hparams": {"l2": jnp.asarray(0.1)}, "data": data} | changes
    arrays = [named.pop(name) for name in ("params", "hparams", "data")]
    run, rest = run_and_rest(rule, {"num_steps": num_steps, "adjoint": adjoint} | named)
    return [run, *arrays], rest


def solved(adjoint: Any = DEFAULT, objective=outer, **changes):
    """`Bars` and info of the pullback."""
    positional, settings = given(adjoint, **changes)

    @jax.jit
    def run(params, hparams):
        arguments = [positional[0], params, hparams, positional[3]]
        out, pullback = hg.vjp(*arguments, **settings)
        return pullback(jax.grad(objective)(out.params))

    return run(positional[1], positional[2])


def norms(state, data):
    return jnp.sum(state.params["w"] ** 2)
