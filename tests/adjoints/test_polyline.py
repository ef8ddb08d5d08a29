"""DrMAD, DrMAD2 and waypoints: values by hand, the exact methods as their limits, their costs."""

# pyright: reportArgumentType=false

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg
from hgrad_jax.adjoints.along_polyline import undoing_budget
from hgrad_jax.adjoints.polyline import _floor_of_fraction
from hgrad_jax.rules.undo import undo
from hgrad_jax.runs.trajectory import Trajectory, inputs
from tests.adjoints.test_adjoints import assert_close
from tests.shared import regression

NUM_STEPS, RATE, CURVATURE, START = 12, 0.11, 1.3, 2.0


def bowl(params, hparams, batch, key):
    return hparams["curvature"] * jnp.sum(params**2) / 2


def by_rates(adjoint, rates=None):
    """d(x_T)/d(rate_t) of gradient descent in one dimension, and d(x_T)/d(curvature), d/dx_0."""
    rates = np.full(NUM_STEPS, RATE) if rates is None else rates

    def end(rates, curvature, start):
        hparams = {"curvature": curvature, "learning_rate": rates}
        axes = {"curvature": None, "learning_rate": 0}
        run = hg.Run(hg.sgd(bowl), num_steps=NUM_STEPS, hparams_axes=axes, adjoint=adjoint)
        return hg.unroll(run, start, hparams, None).params

    gradient = jax.jit(jax.grad(end, argnums=(0, 1, 2)))
    return jax.tree.map(np.asarray, gradient(jnp.asarray(rates, jnp.float32), CURVATURE, START))


def by_hand(visited, points, rates):
    """The adjoint recursion of x' = (1 - rate a) x at given points, in NumPy."""
    bar, rate_bars, curvature_bar = 1.0, np.zeros(NUM_STEPS), 0.0
    for t, x in zip(visited[::-1], points[::-1], strict=True):
        rate_bars[t] = -bar * CURVATURE * x
        curvature_bar -= bar * rates[t] * x
        bar *= 1 - rates[t] * CURVATURE
    return rate_bars, curvature_bar, bar


@pytest.mark.parametrize("num_reverse", [NUM_STEPS, 5, 1])
def test_drmad_by_hand(num_reverse):
    """Points on the line from x_0 to x_T; each reverse step has the rate of its own step."""
    rates = np.linspace(0.05, 0.3, NUM_STEPS)
    end = START * np.prod(1 - rates * CURVATURE)
    visited = np.arange(num_reverse) * NUM_STEPS // num_reverse
    points = START + visited / NUM_STEPS * (end - START)
    for got, want in zip(
        by_rates(hg.DrMAD(num_reverse), rates), by_hand(visited, points, rates), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_waypoints_by_hand():
    corners = np.array([0, 4, 8, 12])
    true = START * (1 - RATE * CURVATURE) ** np.arange(NUM_STEPS + 1)
    points = np.interp(np.arange(NUM_STEPS), corners, true[corners])
    want = by_hand(np.arange(NUM_STEPS), points, np.full(NUM_STEPS, RATE))
    for a, b in zip(by_rates(hg.Waypoints(4)), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_drmad_is_exact_where_the_path_is_a_straight_line():
    """A linear loss: equal steps, whose direction the hyperparameters turn."""

    def loss(params, hparams, batch, key):
        return params @ jnp.tanh(hparams["slope"])

    def end(hparams, adjoint):
        out = hg.unroll(
            hg.Run(hg.sgd(loss), num_steps=20, adjoint=adjoint), jnp.ones(3), hparams, None
        )
        return jnp.sum(jnp.cosh(out.params))

    hparams = {"slope": jnp.array([0.5, -1.0, 2.0]), "learning_rate": jnp.float32(0.1)}
    want = jax.grad(end)(hparams, hg.Direct())
    for adjoint in (hg.DrMAD(), hg.DrMAD(hg.EarlyDisplacement()), hg.Waypoints(3)):
        assert_close(jax.grad(end)(hparams, adjoint), want, 1e-6)
    # A tenth of the steps has a tenth of what they contribute, and nothing makes up for it.
    tenth = jax.grad(end)(hparams, hg.DrMAD(hg.EarlyDisplacement(factor=10)))
    assert_close(jax.tree.map(lambda x: 10 * x, tenth), want, 1e-6)


# The limits: every state kept, or every step undone.

LIMITS = [
    hg.Waypoints(regression.NUM_STEPS + 1),
    hg.Waypoints(3, undone_steps=4),
    hg.DrMAD2(undone_steps=regression.NUM_STEPS),
]


UNDONE = hg.Waypoints(3, undone_steps=2)


@functools.cache
def differentiated(adjoint, rule, kind):
    hparams, axes = regression.hparams_and_axes(kind)
    value = regression.objective(rule, adjoint, axes)
    return jax.jit(jax.grad(value, argnums=(0, 1))), value, hparams


@pytest.mark.parametrize(
    "rule", regression.each(regression.RULES, ["heavy_ball", "adam", "rmsprop_momentum"])
)
def test_limits_are_exact(rule):
    """Also of a trace; in float64, where undoing seven steps costs few of the digits."""
    kind = "per number and step" if rule == "momentum" else "per step"
    with jax.enable_x64(True):
        hparams, axes = regression.hparams_and_axes(kind)
        want, *got = (
            jax.jit(jax.grad(regression.objective(rule, adjoint, axes), argnums=(0, 1)))(
                regression.start(), hparams
            )
            for adjoint in [hg.Direct(), *LIMITS]
        )
        for adjoint, bars in zip(LIMITS, got, strict=True):
            assert_close(bars, want, 1e-12 if adjoint == LIMITS[0] else 1e-6)


@pytest.mark.parametrize(
    "adjoint",
    regression.each([hg.Waypoints(3), UNDONE, hg.DrMAD(4)], [hg.Waypoints(3), UNDONE]),
    ids=repr,
)
def test_transformations_commute(adjoint):
    gradient, value, hparams = differentiated(adjoint, "momentum", "per step")
    starts = jax.tree.map(lambda x: jnp.stack([x, x + 0.1]), regression.start())
    both = jax.tree.map(lambda x: jnp.stack([x, 1.05 * x]), hparams)
    batched = jax.jit(jax.vmap(jax.grad(value, argnums=(0, 1))))(starts, both)
    total = jax.jit(jax.grad(lambda p, h: jnp.sum(jax.vmap(value)(p, h)), argnums=(0, 1)))
    assert_close(total(starts, both), batched, 1e-5)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], (starts, both))
        assert_close(jax.tree.map(lambda x, i=i: x[i], batched), gradient(*one), 1e-5)


def test_two_waypoints_are_drmad():
    for a, b in ((hg.Waypoints(2), hg.DrMAD()), (hg.Waypoints(2, undone_steps=3), hg.DrMAD2(3))):
        one, _, hparams = differentiated(a, "momentum", "per step")
        other, _, _ = differentiated(b, "momentum", "per step")
        start = regression.start()
        assert_close(one(start, hparams), other(start, hparams), 1e-6)


@pytest.mark.parametrize("rule", [*regression.RULES, "adamw", "average", "polyak_average"])
def test_undo_is_the_inverse_of_a_step(rule):
    with jax.enable_x64(True):
        wrapped = {
            "adamw": lambda loss: hg.adamw(loss, b1=0.9, b2=0.95, weight_decay=0.1),
            "average": lambda loss: hg.average(hg.momentum(loss), decay=0.9),
            "polyak_average": lambda loss: hg.polyak_average(hg.momentum(loss)),
        }
        transition = (wrapped | regression.RULES)[rule](regression.loss)
        hparams, _ = regression.hparams_and_axes("per tensor")
        if rule == "adamw":
            hparams["learning_rate"] = jnp.asarray(0.1)
        batch, key = regression.data(), jnp.asarray(regression.KEY)
        state = transition.init(regression.start(), hparams)
        for _ in range(2):
            state = transition.step(state, hparams, batch, key)
        before, state = state, transition.step(state, hparams, batch, key)
        for got, want in zip(
            jax.tree.leaves(undo(transition.exact, state, hparams, batch, key)),
            jax.tree.leaves(before),
            strict=True,
        ):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("adjoint", [hg.DrMAD(2), hg.DrMAD(3), hg.DrMAD(4)])
def test_traces_on_a_straight_line(adjoint):
    """Visited states of the trace are those of the line; the others count as zero."""
    rule = hg.sgd(lambda params, hparams, batch, key: params * hparams, learning_rate=0.1)

    def traced(slope):
        run = hg.Run(rule, num_steps=4, adjoint=adjoint, record=lambda s, _: s.params**2 / 2)
        return hg.unroll(run, jnp.float32(0), slope, None).trace

    visited = np.arange(adjoint.reverse_steps) * 4 // adjoint.reverse_steps
    got = [jax.grad(lambda slope, t=t: traced(slope)[t])(1.0) for t in range(4)]
    # x_t = -0.1 slope t: each visited step s <= t adds 0.1 times x_{t + 1}.
    want = [0.01 * (t + 1) * np.sum(visited <= t) * (t in visited) for t in range(4)]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_visited_steps_of_long_runs_are_spread_exactly():
    lines = np.arange(99_999)
    for steps_there in (100_000, 12_345_678):
        got = _floor_of_fraction(jnp.asarray(lines), steps_there, 99_999)
        np.testing.assert_array_equal(got, lines * steps_there // 99_999)


# What chooses counts and places.


@pytest.mark.parametrize(("decay", "budget"), [(0.5, 6), (0.9, 43), (0.95, 90), (1.0, 200)])
def test_the_budget_of_digits(decay, budget):
    hparams = {"learning_rate": jnp.full(200, 0.1), "momentum": jnp.float32(decay)}
    trajectory = Trajectory(
        hg.momentum(bowl), 200, None, (True, False), jax.tree.structure(hparams), None
    )
    got = undoing_budget(trajectory, inputs(trajectory, hparams, None, None), jnp.zeros(3))
    assert got == budget


def test_early_displacement_measures_the_speed():
    """x_t = x_0 c**t: |x_t - x_0| / t over the whole way, by hand."""
    ratio = 1 - RATE * CURVATURE
    t = np.arange(1, NUM_STEPS + 1)
    speeds = (1 - ratio**t) / t / (1 - ratio**NUM_STEPS)
    want = round(1 / np.average(speeds, weights=NUM_STEPS + 1 - t))
    assert 2 < want < NUM_STEPS
    for a, b in zip(
        by_rates(hg.DrMAD(hg.EarlyDisplacement())), by_rates(hg.DrMAD(want)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("count", [2, 5, 30, 61])
def test_equal_arc_lengths(order, count):
    """A path that slows down geometrically: the places follow, and stay apart."""
    hparams = {"curvature": jnp.float32(CURVATURE), "learning_rate": jnp.float32(RATE)}
    treedef = jax.tree.structure(hparams)
    trajectory = Trajectory(hg.sgd(bowl), 60, None, (False, False), treedef, None)
    given = inputs(trajectory, hparams, None, None)
    start = trajectory.transition.init(jnp.float32(START), hparams)
    at = np.asarray(hg.EqualArcLength(order).place(trajectory, start, given, count))
    assert at[0] == 0
    assert at[-1] == 60
    assert np.all(np.diff(at) >= 1)
    if count == 5:
        # |x_t - x_0| = x_0 (1 - c**t); the square roots of second differences fall half as fast.
        decay = (1 - RATE * CURVATURE) ** (1 / order)
        want = np.log(1 - np.arange(1, 4) / 4 * (1 - decay**60)) / np.log(decay)
        np.testing.assert_allclose(at[1:-1], want, atol=2)


@pytest.mark.parametrize("start", [START, np.nan, 0.0])
def test_equal_arc_lengths_of_long_or_broken_paths_have_both_ends(start):
    hparams = {"curvature": jnp.float32(CURVATURE), "learning_rate": jnp.float32(1e-4)}
    treedef = jax.tree.structure(hparams)
    trajectory = Trajectory(hg.sgd(bowl), 30_000, None, (False, False), treedef, None)
    state = trajectory.transition.init(jnp.float32(start), hparams)
    given = inputs(trajectory, hparams, None, None)
    for count in (2, 7):
        at = np.asarray(hg.EqualArcLength().place(trajectory, state, given, count))
        assert at[0] == 0
        assert at[-1] == 30_000
        assert np.all(np.diff(at) >= 1)


def test_memory_is_of_the_waypoints():
    def wide(params, hparams, batch, key):
        return jnp.sum(jnp.cosh(params))

    def temp_bytes(num_steps, adjoint):
        def value(rate):
            rule = hg.heavy_ball(wide, learning_rate=lambda rate: rate, momentum=0.5)
            start = jnp.linspace(-1.0, 1.0, 1000)
            out = hg.unroll(hg.Run(rule, num_steps=num_steps, adjoint=adjoint), start, rate, None)
            return jnp.sum(out.params**2)

        memory = jax.jit(jax.grad(value)).lower(0.1).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    few, many = (temp_bytes(50, hg.Waypoints(n)) for n in (5, 25))
    assert 20 * 8000 <= many - few <= 1.2 * 20 * 8000  # two variables of 1,000 numbers each
    for adjoint in (hg.Waypoints(5), hg.DrMAD(), hg.DrMAD2()):
        assert temp_bytes(500, adjoint) <= temp_bytes(50, adjoint) + 64 * 500


def test_clipping():
    """States clipped to nothing: the gradient of a bowl there is zero, and so is the rates'."""
    clipped, _, start = by_rates(hg.DrMAD(clip=hg.Clip(state=1e-6)))
    assert np.max(np.abs(clipped)) < 1e-5
    np.testing.assert_allclose(start, (1 - RATE * CURVATURE) ** NUM_STEPS, rtol=1e-5)
    _, _, start = by_rates(hg.Waypoints(3, clip=hg.Clip(cotangents=1e-3)))
    assert start <= 1e-3


# Bad input.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hg.Waypoints(1), r"count is 1; .* at least 2"),
        (lambda: hg.Waypoints(True), r"count is True"),
        (lambda: hg.Waypoints(3, undone_steps=-1), r"undone_steps is -1; .* at least 0"),
        (lambda: hg.DrMAD(0), r"reverse_steps is 0; .* at least 1"),
        (lambda: hg.DrMAD2(0), r"undone_steps is 0; .* at least 1"),
        (lambda: hg.DrMAD2(reverse_steps=2.5), r"reverse_steps is 2.5; .* an int"),
        (lambda: hg.EarlyDisplacement(0), r"factor is 0; .* positive"),
        (lambda: hg.EarlyDisplacement(num_steps=0), r"num_steps is 0"),
        (lambda: hg.EqualArcLength(3), r"order is 3; .* 1 \(length\) or 2"),
        (lambda: hg.Clip(state=0), r"state is 0; .* positive"),
        (lambda: hg.Clip(state="1"), r"state is '1'; .* positive"),
        (lambda: hg.DrMAD(clip=10.0), r"clip is 10.0; write Clip\(state=10.0\)"),
        (lambda: hg.Waypoints(3, placement="even"), r"placement is 'even'; write EvenSteps"),
        (lambda: by_rates(hg.DrMAD(np.int64(13))), r"reverse_steps is 13, but num_steps is 12"),
        (lambda: by_rates(hg.DrMAD(13)), r"reverse_steps is 13, but num_steps is 12"),
        (lambda: by_rates(hg.Waypoints(14)), r"count is 14, but a run of num_steps=12 has 13"),
        (lambda: by_rates(hg.DrMAD2()), r"DrMAD2\(.*undoes steps, and .*backwards"),
        (lambda: by_rates(hg.Waypoints(3, undone_steps=None)), r"Waypoints\(.*undoes steps"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_second_derivatives_are_refused():
    _, value, hparams = differentiated(hg.DrMAD(), "momentum", "one")
    with pytest.raises(ValueError, match=r"DrMAD\(\.\.\.\), whose path is no function"):
        jax.grad(lambda h: jax.grad(value, argnums=1)(regression.start(), h)["momentum"])(hparams)


def test_a_damaged_run_is_flagged():
    """Divergence: the end is not finite, and the info says so."""
    hparams = {"curvature": jnp.float32(1.0), "learning_rate": jnp.float32(1e4)}
    run = hg.Run(hg.sgd(bowl), num_steps=40, adjoint=hg.DrMAD())
    _, pullback = hg.vjp(run, jnp.ones(2), hparams, None)
    _, info = pullback(jnp.ones(2))
    with pytest.raises(hg.HypergradientError, match="infinite or NaN"):
        hg.check(info)


def test_states_that_begin_with_an_infinity():
    """As `reduce_on_plateau` keeps the best value yet to come; between it and a number is none."""

    def loss(params, hparams, batch, key):
        return jnp.sum((params - 1.0) ** 2)

    rule = hg.from_optax(
        lambda h: optax.chain(optax.sgd(h["rate"]), optax.contrib.reduce_on_plateau(patience=1)),
        loss,
    )

    @jax.jit
    def slopes(rate):
        def end(rate, adjoint):
            run = hg.Run(rule, num_steps=6, adjoint=adjoint)
            return loss(hg.unroll(run, jnp.zeros(2), {"rate": rate}, None).params, *[()] * 3)

        return [jax.grad(end)(rate, adjoint) for adjoint in (hg.Direct(), hg.Waypoints(7))]

    found = slopes(jnp.float32(0.05))
    np.testing.assert_allclose(found, -15.0629, rtol=1e-5)
