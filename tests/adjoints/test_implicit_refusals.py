"""What implicit hypergradients refuse, before a run and after it, instead of a wrong number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg
from hgrad_jax.adjoints.implicit.conditions import FixedPoint, Root, Stationary
from hgrad_jax.adjoints.implicit.implicit import Implicit
from hgrad_jax.solvers.conjugate_gradient import ConjugateGradient
from hgrad_jax.solvers.gmres import GMRES
from hgrad_jax.solvers.neumann import Neumann
from tests.shared.ridge import (
    DATA,
    DEFAULT,
    INPUTS,
    NUM_STEPS,
    TARGETS,
    given,
    norms,
    outer,
    ridge,
    ridge_closed_form,
    ridge_step,
    solved,
)


def made(function, **changes):
    positional, rest = given(**changes)
    return function(*positional, **rest)


def refuse_at_run_time(match, adjoint=DEFAULT, objective=outer, **changes):
    """Checks that every cotangent is NaN and that `check` says why."""
    (run, params, hparams, data), rest = given(adjoint, **changes)

    def value(hparams):
        return objective(hg.unroll(run, params, hparams, data, **rest).params)

    @jax.jit
    def both(hparams):
        out, pullback = hg.vjp(run, params, hparams, data, **rest)
        return jax.grad(value)(hparams), *pullback(jax.grad(objective)(out.params))

    by_grad, bars, info = both(hparams)
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


def differentiated(read, **changes):
    (run, params, hparams, data), rest = given(**changes)
    return jax.jit(jax.grad(lambda h: read(hg.unroll(run, params, h, data, **rest))))(hparams)


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
    (run, params, hparams, data), _ = given()

    def value(h):
        return outer(hg.unroll(run, params, h, data).params)

    with pytest.raises(ValueError, match=r"Implicit\(\), whose hypergradient has no further"):
        jax.grad(lambda h: jax.grad(value)(h)["l2"])(hparams)

    def pulled(target):
        _, pullback = hg.vjp(run, params, hparams, data)
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
    for function in (hg.unroll, hg.vjp):
        with pytest.raises(ValueError, match=match):
            made(function, **changes)
