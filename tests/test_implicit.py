"""Implicit hypergradients against closed forms and unrolling, and all that they refuse."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg
from hgrad_jax.adjoints.conditions import FixedPoint, Root, Stationary
from hgrad_jax.adjoints.implicit import Implicit
from hgrad_jax.data import minibatches
from hgrad_jax.linear_solvers import GMRES, ConjugateGradient, Neumann

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


def hypergradient(
    loss, adjoint, l2: Any = 0.1, num_steps=NUM_STEPS, data=DATA, rule=None, **settings
):
    rule = rule or hg.heavy_ball(loss, learning_rate=0.2, momentum=0.7)

    def value(hparams):
        start = {"w": jnp.zeros(4)}
        run = {"num_steps": num_steps, "adjoint": adjoint} | settings
        return outer(hg.unroll(rule, start, hparams, data, **run).params)

    return jax.jit(jax.grad(value))({"l2": jnp.asarray(l2)})["l2"]


def ridge_closed_form(l2=0.1, weights=None):
    """E'(w) . dw/dl2 with w = (X^T X / n + l2)^-1 X^T y / n, and l2 per number or one."""
    hessian = INPUTS.T @ INPUTS / 24 + l2 * np.eye(4)
    w = np.linalg.solve(hessian, INPUTS.T @ TARGETS / 24)
    outer_bar = 2 * VALID.T @ (VALID @ w - VALID_TARGETS) / 16
    return -np.linalg.solve(hessian, w) @ outer_bar


DEFAULT = Implicit()
TIGHT = ConjugateGradient(tolerance=1e-11)
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
    settings = {"num_steps": 150, "adjoint": Implicit()}
    rule = hg.heavy_ball(ridge, learning_rate=0.2, momentum=0.7)

    def value(l2):
        return outer(hg.unroll(rule, {"w": jnp.zeros(4)}, {"l2": l2}, DATA, **settings).params)

    l2 = jnp.array([0.1, 0.3, 1.0])
    one_by_one = jax.jit(jax.grad(value))
    for found in (
        jax.jit(jax.vmap(jax.grad(value))),
        jax.jit(jax.grad(lambda l2: jnp.sum(jax.vmap(value)(l2)))),
        jax.grad(jax.jit(lambda l2: jnp.sum(jax.vmap(value)(l2)))),
    ):
        np.testing.assert_allclose(found(l2), [one_by_one(x) for x in l2], rtol=1e-4)


def given(adjoint: Any = DEFAULT, rule=None, num_steps=NUM_STEPS, **changes):
    """Arguments of `unroll` and `vjp`."""
    rule = rule or hg.heavy_ball(ridge, learning_rate=0.2, momentum=0.7)
    start = {"w": jnp.zeros(4)}
    data = tuple(jnp.asarray(x) for x in DATA)
    named = {"params": start, "hparams": {"l2": jnp.asarray(0.1)}, "data": data} | changes
    settings = {"num_steps": num_steps, "adjoint": adjoint}
    positional = [rule, *(named.pop(name) for name in ("params", "hparams", "data"))]
    return positional, settings | named


def solved(adjoint: Any = DEFAULT, objective=outer, **changes):
    """`Bars` and info of the pullback."""
    positional, settings = given(adjoint, **changes)

    @jax.jit
    def run(params, hparams):
        arguments = [positional[0], params, hparams, positional[3]]
        out, pullback = hg.vjp(*arguments, **settings)
        return pullback(jax.grad(objective)(out.params))

    return run(positional[1], positional[2])


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
    positional, settings = given()
    transition, params, hparams, data = positional
    found = jax.jit(
        lambda params, hparams: hg.value_and_hypergradient(
            lambda params, hparams, valid: outer(params) + hparams["l2"] ** 2,
            transition,
            params,
            hparams,
            data,
            **settings,
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


def refuse_at_run_time(match, adjoint=DEFAULT, objective=outer, **changes):
    """Checks that every cotangent is NaN and that `check` says why."""
    positional, settings = given(adjoint, **changes)
    rule, params, hparams, data = positional

    def value(hparams):
        return objective(hg.unroll(rule, params, hparams, data, **settings).params)

    @jax.jit
    def run(hparams):
        out, pullback = hg.vjp(rule, params, hparams, data, **settings)
        return jax.grad(value)(hparams), *pullback(jax.grad(objective)(out.params))

    by_grad, bars, info = run(hparams)
    for leaf in jax.tree.leaves((by_grad, bars)):
        assert np.all(np.isnan(leaf))
    with pytest.raises(hg.HypergradientError, match=match):
        hg.check(info)
    return info.solve


def test_an_end_that_is_not_stationary():
    found = refuse_at_run_time("off by about .* train longer", num_steps=8)
    assert bool(~found.is_stationary & found.is_converged & ~found.is_indefinite)
    assert found.stationarity > 1e-2


def test_a_rule_that_does_not_rest_at_its_loss():
    """Decoupled weight decay."""
    rule = hg.adamw(ridge, learning_rate=0.03, b1=0.9, b2=0.99, weight_decay=1.0)
    refuse_at_run_time("the one that this rule comes to rest at", rule=rule, num_steps=1000)


def test_too_few_steps_of_the_solver():
    found = refuse_at_run_time(
        "did not reach its tolerance: relative residual .* after 2 steps; raise its max_steps",
        Implicit(solver=ConjugateGradient(max_steps=2)),
    )
    assert int(found.num_steps) == 2
    assert bool(found.is_stationary & ~found.is_converged & ~found.is_indefinite)


def test_a_series_that_diverges():
    refuse_at_run_time("another step_size", Implicit(solver=Neumann(100.0)))


def saddle(params, hparams, batch, key):
    """Stationary at zero, where training from zero stays."""
    return jnp.sum(jnp.array([1.0, -0.5, 1.0, 1.0]) * params["w"] ** 2) + hparams["l2"] * jnp.prod(
        params["w"]
    )


SADDLE = hg.heavy_ball(saddle, learning_rate=0.2, momentum=0.7)


@pytest.mark.parametrize("solver", [ConjugateGradient(), ConjugateGradient(damping=0.5), GMRES()])
def test_negative_curvature(solver):
    found = refuse_at_run_time(
        "negative curvature where the training ended, which is no minimum then: -",
        Implicit(solver=solver),
        rule=SADDLE,
        objective=lambda params: jnp.sum(params["w"] * jnp.array([0.1, 1.0, 0.2, 0.3])),
    )
    assert bool(found.is_indefinite)
    assert -1.001 < found.curvature < 0


def test_enough_damping_answers_at_a_saddle_and_reports_the_curvature():
    adjoint = Implicit(solver=ConjugateGradient(damping=1.5))
    _, info = solved(adjoint, rule=SADDLE, objective=lambda p: jnp.sum(p["w"]))
    hg.check(info)
    assert not bool(info.solve.is_indefinite)
    assert info.solve.curvature < 2  # 1.25, the mean over the cotangent's direction


def test_the_first_run_concerned_is_named_under_vmap():
    def run(l2):
        positional, settings = given(num_steps=60, hparams={"l2": l2})
        out, pullback = hg.vjp(*positional, **settings)
        return pullback(jax.grad(outer)(out.params))

    bars, info = jax.jit(jax.vmap(run))(jnp.array([0.1, -1.0]))
    assert np.isfinite(bars.hparams["l2"][0])
    assert np.isnan(bars.hparams["l2"][1])
    with pytest.raises(hg.HypergradientError, match=r"run \(1,\) of \(2,\)"):
        hg.check(info)


def test_a_cotangent_that_is_not_finite_is_not_the_solvers_fault():
    _, info = solved(objective=lambda params: jnp.sqrt(jnp.sum(0 * params["w"])))
    with pytest.raises(hg.HypergradientError, match="outer loss is not differentiable"):
        hg.check(info)


def norms(state, data):
    return jnp.sum(state.params["w"] ** 2)


def test_the_run_and_its_trace_are_those_of_the_other_adjoints():
    ends = []
    for adjoint in (Implicit(), hg.Direct()):
        positional, settings = given(adjoint, record=norms, num_steps=20)
        out = hg.unroll(*positional, **settings)
        ends.append((out.params, out.state, out.trace))
    for a, b in zip(jax.tree.leaves(ends[0]), jax.tree.leaves(ends[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def differentiated(read, **changes):
    positional, settings = given(**changes)
    rule, params, hparams, data = positional
    return jax.jit(jax.grad(lambda h: read(hg.unroll(rule, params, h, data, **settings))))(hparams)


def test_only_the_parameters_are_differentiated():
    with pytest.raises(ValueError, match="the trace of record is differentiated, but Implicit"):
        differentiated(lambda out: jnp.sum(out.trace), record=norms)
    with pytest.raises(ValueError, match=r"part of Unrolled\.state is differentiated"):
        differentiated(lambda out: jnp.sum(out.state.slots["velocity"]["w"]))
    for read in (lambda out: outer(out.params), lambda out: outer(out.state.params)):
        got = differentiated(read, record=norms)["l2"]
        np.testing.assert_allclose(got, ridge_closed_form(), rtol=1e-3)


def test_a_cotangent_of_the_trace_is_not_dropped_silently():
    positional, settings = given(record=norms)

    @jax.jit
    def run(trace_bar):
        out, pullback = hg.vjp(*positional, **settings)
        return pullback(out.params, trace_bar)

    hg.check(run(jnp.zeros(NUM_STEPS))[1])
    bars, info = run(jnp.ones(NUM_STEPS))
    assert np.isnan(bars.hparams["l2"])
    with pytest.raises(hg.HypergradientError, match="cotangent of the trace was given"):
        hg.check(info)


RATE = {"l2": 0.1, "rate": {"first": 0.2}}


def read_rate(hparams):
    return hparams["rate"]["first"]


def test_hyperparameters_that_do_not_enter_the_condition():
    rule = hg.heavy_ball(ridge, learning_rate=read_rate, momentum=0.7)
    message = r"hparams\['rate'\]\['first'\]: differentiated, but not in the condition"
    with pytest.raises(ValueError, match=message):
        differentiated(lambda out: outer(out.params), rule=rule, hparams=RATE)
    with pytest.raises(ValueError, match=message):
        solved(rule=rule, hparams=RATE)
    rates = {"l2": 0.1, "rate": {"first": jnp.full(NUM_STEPS, 0.2)}}
    axes = {"l2": None, "rate": 0}
    with pytest.raises(ValueError, match=message):
        differentiated(lambda o: outer(o.params), rule=rule, hparams=rates, hparams_axes=axes)


def test_one_that_is_not_differentiated_may_be_absent():
    rule = hg.heavy_ball(ridge, learning_rate=read_rate, momentum=0.7)

    def value(l2):
        positional, settings = given(rule=rule, hparams=RATE | {"l2": l2})
        return outer(hg.unroll(*positional, **settings).params)

    for gradient in (jax.jit(jax.grad(value)), jax.grad(jax.jit(value))):
        np.testing.assert_allclose(gradient(0.1), ridge_closed_form(), rtol=1e-3)


def test_what_the_gradient_does_not_see_is_absent():
    """The loss depends on all of these, its gradient on `scale` alone, and on that through scan."""

    def loss(params, hparams, batch, key):
        def add(total, x):
            return total + hparams["scale"] * x**2, None

        frozen = jax.lax.stop_gradient(hparams["frozen"]) * jnp.sum(params["w"] ** 2)
        total, _ = jax.lax.scan(add, jnp.zeros(()), params["w"])
        return total + frozen + jax.jit(jnp.sin)(hparams["offset"])

    hparams = {"scale": 1.0, "frozen": 1.0, "offset": 0.3}
    rule = hg.heavy_ball(loss, learning_rate=0.1, momentum=0.5)
    with pytest.raises(ValueError, match=r"^hparams\['frozen'\], hparams\['offset'\]: differ"):
        solved(rule=rule, hparams=hparams)


def test_no_further_derivatives():
    positional, settings = given()
    rule, params, hparams, data = positional

    def value(h):
        return outer(hg.unroll(rule, params, h, data, **settings).params)

    with pytest.raises(ValueError, match=r"Implicit\(\), whose hypergradient has no further"):
        jax.grad(lambda h: jax.grad(value)(h)["l2"])(hparams)

    def pulled(target):
        _, pullback = hg.vjp(rule, params, hparams, data, **settings)
        return pullback({"w": target})[0].hparams["l2"]

    with pytest.raises(ValueError, match="no further derivatives"):
        jax.grad(pulled)(jnp.ones(4))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Implicit(ridge), TypeError, "condition is <function ridge.*pass Stationary"),  # pyright: ignore
        (lambda: Implicit(solver="cg"), TypeError, "solver is 'cg'; .* Conj"),  # pyright: ignore
        (lambda: Implicit(Root(ridge_step)), ValueError, "Root is not; pass GMRES"),
        (lambda: Implicit(FixedPoint(ridge_step)), ValueError, "needs a symmetric condition"),
        (lambda: Implicit(batches=0), ValueError, "batches is 0; it must be a positive int"),
        (lambda: Implicit(batches=1.5), ValueError, "batches is 1.5"),  # pyright: ignore
        (lambda: Implicit(stationarity_tolerance=0.0), ValueError, "tolerance is 0.0; .* positive"),
    ],
)
def test_settings_out_of_range(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rule": hg.sgd(ridge, learning_rate=0.1)}, "without a condition, .*Stationary"),
        (
            {"rule": hg.momentum(ridge, learning_rate=0.1, momentum=0.5, gradient=jax.grad)},
            "does not say which loss",
        ),
        ({"adjoint": Implicit(batches=7), "num_steps": 6}, "batches is 7, but num_steps is 6"),
        (
            {
                "data": (jnp.asarray(INPUTS.T), jnp.asarray(TARGETS)),
                "batch_fn": lambda data, t, key: (data[0].T[:5], data[1][:5]),
            },
            r"batches is None, .* pass Implicit\(batches=k\)",
        ),
        (
            {"adjoint": Implicit(Root(lambda p, h, b, k: p["w"]), GMRES())},
            "the function of Root returned a tree of shapes .* like params",
        ),
        (
            {"adjoint": Implicit(FixedPoint(lambda p, h, b, k: {"w": p["w"][:2]}), GMRES())},
            "the function of FixedPoint returned",
        ),
        (
            {"adjoint": Implicit(Stationary(lambda p, h, b, k: p["w"]))},
            "loss returned float32 of shape",
        ),
        (
            {
                "rule": hg.sgd(ridge, learning_rate=0.1)._replace(
                    params=lambda state: jax.tree.map(lambda x: 2 * x, state.params)
                ),
                "adjoint": Implicit(Stationary(ridge)),
            },
            "transition.params computes the parameters",
        ),
    ],
)
def test_what_does_not_fit_together(changes, match):
    changes = {"data": DATA} | changes
    positional, settings = given(**changes)
    for function in (hg.unroll, hg.vjp):
        with pytest.raises(ValueError, match=match):
            function(*positional, **settings)


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
            out = hg.unroll(rule, start, l2, None, num_steps=num_steps, adjoint=adjoint)
            return jnp.sum((out.params - 1) ** 2)

        memory = jax.jit(jax.grad(value)).lower(0.1).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    short, long = (temp_bytes(n, Implicit()) for n in (50, 500))
    assert long <= short + 64
    assert long < temp_bytes(500, hg.Direct()) / 10
