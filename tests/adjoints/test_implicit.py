"""Implicit hypergradients against closed forms and unrolling, and what they tell of themselves."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg
from hgrad_jax.adjoints.implicit.conditions import FixedPoint, Root, Stationary
from hgrad_jax.adjoints.implicit.implicit import Implicit
from hgrad_jax.data import minibatches
from hgrad_jax.solvers.conjugate_gradient import ConjugateGradient
from hgrad_jax.solvers.gmres import GMRES
from hgrad_jax.solvers.neumann import Neumann
from tests.shared.ridge import (
    DATA,
    INPUTS,
    NUM_STEPS,
    TARGETS,
    TIGHT,
    VALID,
    VALID_TARGETS,
    given,
    logistic,
    norms,
    outer,
    ridge,
    ridge_closed_form,
    ridge_step,
    solved,
)


def hypergradient(
    loss, adjoint, l2: Any = 0.1, num_steps=NUM_STEPS, data=DATA, rule=None, key=None, **settings
):
    rule = rule or hg.heavy_ball(loss, learning_rate=0.2, momentum=0.7)
    run = hg.Run(rule, num_steps=num_steps, adjoint=adjoint, **settings)

    def value(hparams):
        return outer(hg.unroll(run, {"w": jnp.zeros(4)}, hparams, data, key=key).params)

    return jax.jit(jax.grad(value))({"l2": jnp.asarray(l2)})["l2"]


EXACT = [
    Implicit(solver=TIGHT),
    Implicit(solver=Neumann(0.5, tolerance=1e-11)),
    Implicit(Stationary(ridge), solver=GMRES(tolerance=1e-11)),
    Implicit(Root(jax.grad(ridge)), solver=GMRES(tolerance=1e-11)),
    Implicit(FixedPoint(ridge_step), solver=Neumann(1.0, tolerance=1e-11)),
]


@pytest.mark.parametrize("adjoint", EXACT, ids=lambda adjoint: type(adjoint.solver).__name__)
def test_ridge_as_its_closed_form(adjoint):
    with jax.enable_x64(True):
        got = hypergradient(ridge, adjoint)
        np.testing.assert_allclose(got, ridge_closed_form(), rtol=1e-9)


def test_ridge_in_float32():
    np.testing.assert_allclose(hypergradient(ridge, Implicit()), ridge_closed_form(), rtol=1e-3)


@pytest.mark.parametrize(("loss", "l2"), [(ridge, 0.5), (logistic, 0.01), (logistic, 0.5)])
def test_unrolling_to_convergence(loss, l2):
    with jax.enable_x64(True):
        run = {"l2": l2, "num_steps": 1500}
        got = hypergradient(loss, Implicit(solver=TIGHT), **run)
        want = hypergradient(loss, hg.Checkpointed(), **run)
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_any_rule_with_a_condition():
    """Where the run ends is what counts, not the rule that led there."""
    for rule in (
        hg.sgd(ridge, learning_rate=0.4),
        hg.adam(ridge, learning_rate=0.03, b1=0.9, b2=0.99),
        hg.nesterov(ridge, learning_rate=0.2, momentum=0.7),
        hg.average(hg.heavy_ball(ridge, learning_rate=0.2, momentum=0.7), decay=0.9),
    ):
        got = hypergradient(ridge, Implicit(Stationary(ridge)), rule=rule, num_steps=1000)
        np.testing.assert_allclose(got, ridge_closed_form(), rtol=5e-3)


def test_the_batches_of_an_epoch_make_up_the_data():
    """Of both the mean loss is the same, and so are condition, Hessian and hypergradient."""
    with jax.enable_x64(True):
        got = [
            hypergradient(
                ridge,
                Implicit(Stationary(ridge), TIGHT, batches, stationarity_tolerance=math.inf),
                num_steps=40,
                batch_fn=minibatches(6),
                data=(jnp.asarray(INPUTS), jnp.asarray(TARGETS)),
            )
            for batches in (4, None)
        ]
        np.testing.assert_allclose(got[0], got[1], rtol=1e-9)


def test_one_batch_is_that_of_the_last_step():
    """After its 39th step, minibatches of 6 are at the fourth quarter of the data again."""
    with jax.enable_x64(True):
        last = Implicit(Stationary(ridge), TIGHT, 1, stationarity_tolerance=math.inf)
        batch_fn = minibatches(6)
        data = (jnp.asarray(INPUTS), jnp.asarray(TARGETS))
        batch = batch_fn(data, jnp.int32(39), None)

        def on_that_batch(params, hparams, _, key):
            return jax.grad(ridge)(params, hparams, batch, key)

        given = Implicit(Root(on_that_batch), GMRES(tolerance=1e-11), 4, math.inf)
        settings = {"num_steps": 40, "batch_fn": batch_fn, "data": data}
        got, want = (hypergradient(ridge, choice, **settings) for choice in (last, given))
        np.testing.assert_allclose(got, want, rtol=1e-9)


def test_the_loss_key_is_that_of_the_last_step():
    def noisy(params, hparams, batch, key):
        shift = jax.random.normal(key, (4,))
        return ridge(params, hparams, batch, key) + shift @ params["w"]

    def seen(key):
        def on_that_key(params, hparams, batch, _):
            return jax.grad(noisy)(params, hparams, batch, key)

        return Root(on_that_key)

    key = jax.random.key(3)
    last = jax.random.fold_in(jax.random.fold_in(key, 39), 1)
    settings = {"num_steps": 40, "key": key}
    loose = functools.partial(Implicit, stationarity_tolerance=math.inf)
    got = hypergradient(noisy, loose(), **settings)
    want = hypergradient(noisy, loose(seen(last), GMRES()), **settings)
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_a_schedule_has_its_hypergradient_in_the_last_row():
    schedule = np.append(np.linspace(1.0, 0.1, NUM_STEPS // 2), np.full(NUM_STEPS // 2, 0.1))
    with jax.enable_x64(True):
        axes = {"l2": 0}
        got = hypergradient(ridge, Implicit(solver=TIGHT), schedule, hparams_axes=axes)
        np.testing.assert_allclose(got[-1], ridge_closed_form(), rtol=1e-9)
        np.testing.assert_array_equal(got[:-1], np.zeros(NUM_STEPS - 1))


@jax.custom_vjp
def square(x):
    return x**2


square.defvjp(lambda x: (x**2, x), lambda x, bar: (2 * x * bar,))


def sum_in_a_loop(x):
    return jax.lax.scan(lambda total, each: (total + square(each), None), jnp.zeros(()), x)[0]


@pytest.mark.parametrize("sum_of_squares", [lambda x: jnp.sum(square(x)), sum_in_a_loop])
def test_a_loss_with_a_custom_vjp(sum_of_squares):
    def loss(params, hparams, batch, key):
        inputs, targets = batch
        errors = sum_of_squares(inputs @ params["w"] - targets) / 24
        return (errors + hparams["l2"] * sum_of_squares(params["w"])) / 2

    with jax.enable_x64(True):
        got = hypergradient(loss, Implicit(solver=TIGHT))
        np.testing.assert_allclose(got, ridge_closed_form(), rtol=1e-9)


def test_damping_regularizes_the_system():
    """It stands for the same amount of l2 in the Hessian, and in nothing else."""
    hessian = INPUTS.T @ INPUTS / 24 + 0.1 * np.eye(4)
    w = np.linalg.solve(hessian, INPUTS.T @ TARGETS / 24)
    outer_bar = 2 * VALID.T @ (VALID @ w - VALID_TARGETS) / 16
    want = -np.linalg.solve(hessian + 0.3 * np.eye(4), w) @ outer_bar
    with jax.enable_x64(True):
        got = hypergradient(ridge, Implicit(solver=ConjugateGradient(tolerance=1e-11, damping=0.3)))
        np.testing.assert_allclose(got, want, rtol=1e-9)


def test_the_transformations_agree():
    rule = hg.heavy_ball(ridge, learning_rate=0.2, momentum=0.7)
    run = hg.Run(rule, num_steps=150, adjoint=Implicit())

    def value(l2):
        return outer(hg.unroll(run, {"w": jnp.zeros(4)}, {"l2": l2}, DATA).params)

    l2 = jnp.array([0.1, 0.3, 1.0])
    one_by_one = jax.jit(jax.grad(value))
    for found in (
        jax.jit(jax.vmap(jax.grad(value))),
        jax.jit(jax.grad(lambda l2: jnp.sum(jax.vmap(value)(l2)))),
        jax.grad(jax.jit(lambda l2: jnp.sum(jax.vmap(value)(l2)))),
    ):
        np.testing.assert_allclose(found(l2), [one_by_one(x) for x in l2], rtol=1e-4)


def test_vjp_reports_how_it_solved():
    bars, info = solved()
    np.testing.assert_allclose(bars.hparams["l2"], ridge_closed_form(), rtol=1e-3)
    np.testing.assert_array_equal(bars.params["w"], np.zeros(4))
    assert hg.check(info) is info
    found = info.solve
    eigenvalues = np.linalg.eigvalsh(INPUTS.T @ INPUTS / 24 + 0.1 * np.eye(4))
    assert eigenvalues[0] * 0.999 < found.curvature < eigenvalues[-1]
    assert 1 <= int(found.num_steps) <= 4
    assert found.residual < 1e-4
    assert found.stationarity < 1e-3
    assert bool(found.is_stationary & found.is_converged & ~found.is_indefinite)


def test_value_and_hypergradient():
    (run, params, hparams, data), _ = given()
    found = jax.jit(
        lambda params, hparams: hg.value_and_hypergradient(
            lambda params, hparams, valid: outer(params) + hparams["l2"] ** 2,
            run,
            params,
            hparams,
            data,
        )
    )(params, hparams)
    hg.check(found.info)
    np.testing.assert_allclose(found.hparams["l2"], ridge_closed_form() + 0.2, rtol=1e-3)


@pytest.mark.parametrize("num_steps", [20, 40, 80])
def test_stationarity_estimates_the_distance_of_the_parameters(num_steps):
    """Within a factor of 3 of what it stands for, where the objective sees the error."""
    w = np.linalg.solve(INPUTS.T @ INPUTS / 24 + 0.1 * np.eye(4), INPUTS.T @ TARGETS / 24)
    with jax.enable_x64(True):
        adjoint = Implicit(solver=TIGHT, stationarity_tolerance=math.inf)
        positional, settings = given(adjoint, num_steps=num_steps)
        end = hg.unroll(*positional, **settings).params["w"]
        distance = np.linalg.norm(end - w) / np.linalg.norm(end)
        _, info = solved(adjoint, num_steps=num_steps)
    assert distance / 3 < info.solve.stationarity < 3 * distance


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_stationarity_has_no_units(scale):
    """Neither those of the training loss, nor of the objective, nor of the parameters."""

    def scaled_loss(params, hparams, batch, key):
        params = jax.tree.map(lambda x: x / scale, params)
        return scale * ridge(params, hparams, batch, key)

    rule = hg.heavy_ball(scaled_loss, learning_rate=0.2 * scale, momentum=0.7)
    want = solved(num_steps=40)[1].solve
    got = solved(num_steps=40, rule=rule, objective=lambda p: outer({"w": p["w"] / scale}))[1].solve
    np.testing.assert_allclose(got.stationarity, want.stationarity, rtol=0.05)


def test_the_run_and_its_trace_are_those_of_the_other_adjoints():
    ends = []
    for adjoint in (Implicit(), hg.Direct()):
        positional, settings = given(adjoint, record=norms, num_steps=20)
        out = hg.unroll(*positional, **settings)
        ends.append((out.params, out.state, out.trace))
    for a, b in zip(jax.tree.leaves(ends[0]), jax.tree.leaves(ends[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_is_hashable():
    assert hash(Implicit(Stationary(ridge))) == hash(Implicit(Stationary(ridge)))
    assert Implicit(solver=GMRES()) != Implicit()


def test_memory_does_not_grow_with_the_run():
    def wide(params, hparams, batch, key):
        return jnp.sum(jnp.cosh(params)) + hparams * jnp.sum(params**2)

    def temp_bytes(num_steps, adjoint):
        rule = hg.heavy_ball(wide, learning_rate=0.1, momentum=0.5)

        def value(l2):
            start = jnp.linspace(-1.0, 1.0, 1000)
            out = hg.unroll(hg.Run(rule, num_steps=num_steps, adjoint=adjoint), start, l2, None)
            return jnp.sum((out.params - 1) ** 2)

        memory = jax.jit(jax.grad(value)).lower(0.1).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    short, long = (temp_bytes(n, Implicit()) for n in (50, 500))
    assert long <= short + 64
    assert long < temp_bytes(500, hg.Direct()) / 10
