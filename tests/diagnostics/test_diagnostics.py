"""Diagnostics of training paths: closed forms, unrolling, their figures, and what they refuse."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import hgrad_jax as hg
from hgrad_jax.diagnostics.cotangents import cotangent_norms
from hgrad_jax.diagnostics.distances import distances_to
from hgrad_jax.diagnostics.projections import projections
from hgrad_jax.diagnostics.reversal import reversal_errors
from tests.shared import regression
from tests.shared.runs import run_with

NUM_STEPS, RATE, MOMENTUM, CURVATURE = 30, 0.1, 0.5, 1.3


def bowl(params, hparams, batch, key):
    return CURVATURE * sum_of(jax.tree.map(jnp.square, params), hparams, batch) / 2


def heavy_ball(loss=bowl, rate=RATE, momentum=MOMENTUM):
    return hg.heavy_ball(loss, learning_rate=rate, momentum=momentum)


def sum_of(params, hparams, outer_data):
    return sum((jnp.sum(x) for x in jax.tree.leaves(params)), jnp.float32(0))


def norm(tree):
    squares = [np.sum(np.square(np.asarray(x, np.float64))) for x in jax.tree.leaves(tree)]
    return np.sqrt(sum(squares))


def regression_run(kind="per step", rule="momentum"):
    """A run with batches, keys and schedules: the arguments, and the key."""
    hparams, axes = regression.hparams_and_axes(kind)
    run = hg.Run(
        regression.RULES[rule](regression.loss),
        num_steps=regression.NUM_STEPS,
        batch_fn=regression.batch_fn,
        hparams_axes=axes,
    )
    key = jnp.asarray(regression.KEY)
    return (run, regression.start(), hparams, regression.data()), key


def drawn(found, tmp_path, axes=None):
    """Draws, writes and reads nothing back: returns the axes of the figure."""
    figure = found.plot(axes)
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    for ax in figure.axes:
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        assert ax.get_title()
    return figure.axes


# Norms of the cotangents.


def test_cotangents_by_hand(tmp_path):
    """The adjoint recursion of heavy ball in a bowl, whose cotangents are the same everywhere."""
    found = cotangent_norms(
        sum_of, hg.Run(heavy_ball(), num_steps=NUM_STEPS), jnp.arange(1.0, 5.0), {}, None
    )
    x_bar, v_bar, want = 1.0, 0.0, []
    for _ in range(NUM_STEPS):
        v_bar -= RATE * x_bar
        x_bar += CURVATURE * v_bar
        v_bar *= MOMENTUM
        want.insert(0, (2 * abs(x_bar), 2 * abs(v_bar)))
    np.testing.assert_allclose(found.norms["params"], [x for x, _ in want], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.norms["velocity"], [v for _, v in want], rtol=1e-5)
    np.testing.assert_array_equal(found.steps, np.arange(NUM_STEPS))
    (ax,) = drawn(found, tmp_path)
    assert len(ax.lines) == 3
    assert ax.get_yscale() == "log"


def test_cotangents_at_the_start_are_the_hypergradient():
    """Through the training: what the objective has of the hyperparameters itself is not in it."""

    def objective(params, hparams, outer_data):
        return outer_data * sum_of(params, hparams, None) ** 2 + 7.0 * hparams["log_l2"]

    (run, start, hparams, data), key = regression_run("per number and step")
    found = cotangent_norms(objective, run, start, hparams, data, jnp.float32(0.5), key=key)
    value = lambda p, h: (  # noqa: E731
        sum_of(hg.unroll(run, p, h, data, key=key).params, h, None) ** 2 / 2
    )
    params_bar, hparams_bar = jax.jit(jax.grad(value, argnums=(0, 1)))(start, hparams)
    np.testing.assert_allclose(found.norms["params"][0], norm(params_bar), rtol=1e-5)
    np.testing.assert_allclose(found.norms["hparams"][0], norm(hparams_bar), rtol=1e-5)
    assert set(found.norms) == {"params", "velocity", "hparams"}


def test_accumulated_schedules_are_those_of_the_steps_so_far():
    (run, start, _, data), key = regression_run()
    rates = jnp.linspace(0.05, 0.2, regression.NUM_STEPS)
    rule = hg.momentum(lambda p, h, b, k: regression.loss(p, {"log_l2": -2.0}, b, k), momentum=0.7)
    run = dataclasses.replace(run, transition=rule, hparams_axes=0)
    hparams = {"learning_rate": rates}
    found = cotangent_norms(sum_of, run, start, hparams, data, key=key)
    value = lambda h: sum_of(hg.unroll(run, start, h, data, key=key).params, h, None)  # noqa: E731
    bars = np.asarray(jax.jit(jax.grad(value))(hparams)["learning_rate"], np.float64)
    want = [np.linalg.norm(bars[t:]) for t in range(regression.NUM_STEPS)]
    np.testing.assert_allclose(found.norms["hparams"], want, rtol=1e-5)


def test_cotangents_that_overflow_are_shown(tmp_path):
    """On top of a hill the run stands still, and its cotangents grow elevenfold a step."""
    rule = heavy_ball(lambda p, h, b, k: -jnp.sum(p**2) / 2, rate=10.0)
    found = cotangent_norms(sum_of, hg.Run(rule, num_steps=40), jnp.zeros(2), {}, None)
    finite = found.norms["params"][np.isfinite(found.norms["params"])]
    assert np.isinf(found.norms["params"][0])
    assert 1.8e18 < finite.max() < 1.9e19
    assert found.info.is_restored
    (ax,) = drawn(found, tmp_path)
    assert len(ax.lines) == 3


# Reversal.


def test_undoing_parts_as_the_eigenvalues_say(tmp_path):
    """In a bowl, undone errors grow by the smaller eigenvalue of a step, the path by the larger."""
    rate, num_steps = 0.02, 60
    run = hg.Run(heavy_ball(rate=rate), num_steps=num_steps)
    found = reversal_errors(run, jnp.ones(50), {}, None)
    assert found.exact_mismatches == 0
    assert found.parting_step is not None
    trace = 1 + MOMENTUM - rate * CURVATURE
    larger, smaller = np.roots([1, -trace, MOMENTUM])
    first, last = found.parting_step + 1, found.parting_step + 11
    for errors in found.errors.values():
        assert errors[num_steps] == 0
        growth = (errors[first] / errors[last]) ** (1 / 10)
        np.testing.assert_allclose(growth, larger / smaller, rtol=0.03)
    # The first division is off by half a unit of the last place, 2**-24; the tolerance is 2**-3.
    bits = np.log2(larger / smaller)
    assert abs(found.num_undone - 21 / bits) <= 5
    # The budget guesses three times the bits.
    assert found.budget == 6
    assert 3 * found.budget <= found.num_undone <= 3 * found.budget + 8
    assert np.all(found.errors["velocity"][found.parting_step + 1 :] <= found.tolerance)

    (ax,) = drawn(found, tmp_path)
    assert len(ax.lines) == 5
    assert "0 numbers" in ax.get_title()
    places = [np.asarray(line.get_xdata())[0] for line in ax.lines[3:]]
    assert places == [found.parting_step, num_steps - found.budget]


def test_without_decay_it_does_not_part(tmp_path):
    found = reversal_errors(hg.Run(heavy_ball(momentum=1.0), num_steps=40), jnp.ones(3), {}, None)
    assert found.parting_step is None
    assert found.num_undone == found.budget == 40
    assert found.exact_mismatches == 0
    assert max(np.max(errors) for errors in found.errors.values()) < 1e-4
    (ax,) = drawn(found, tmp_path)
    assert len(ax.lines) == 4


def test_batches_keys_and_schedules_are_those_of_the_steps():
    """In float64, where seven steps are undone to ten digits."""
    with jax.enable_x64(True):
        arguments, key = regression_run(rule="adam")
        found = reversal_errors(*arguments, key=key)
        assert found.exact_mismatches == 0
        assert set(found.errors) == set(arguments[0].transition.exact.slots)
        for errors in found.errors.values():
            assert errors[-1] == 0
            assert 0 < np.max(errors) < 1e-9


def test_a_stride_skips_comparisons_not_steps():
    rule = heavy_ball(lambda p, h, b, k: jnp.sum(jnp.cosh(p)), rate=0.02)
    dense, sparse = (
        reversal_errors(hg.Run(rule, num_steps=20), jnp.ones(3), {}, None, every=every)
        for every in (1, 7)
    )
    np.testing.assert_array_equal(sparse.steps, [0, 7, 14, 20])
    for name, errors in sparse.errors.items():
        # Velocities at the start are zero, so relative to the largest norm that was kept.
        np.testing.assert_allclose(errors, dense.errors[name][sparse.steps], rtol=0.2, atol=1e-7)


def test_errors_beyond_the_floating_point_range(tmp_path):
    """An undone path that overflows has parted, and is drawn as far as it goes."""
    rule = heavy_ball(lambda p, h, b, k: jnp.sum(jnp.cosh(p)), rate=0.02)
    found = reversal_errors(hg.Run(rule, num_steps=60), jnp.linspace(-1, 1, 5), {}, None)
    assert not np.isfinite(found.errors["params"][0])
    assert found.exact_mismatches == 0
    assert 20 <= found.num_undone <= 30
    assert len(drawn(found, tmp_path)[0].lines) == 5


# Distances.


def test_distances_in_a_bowl(tmp_path):
    """x_t = x_0 (1 - rate curvature)**t, in two tensors."""
    start = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}
    target = jax.tree.map(lambda x: -0.5 * x, start)
    rule = hg.sgd(bowl, learning_rate=RATE)
    found = distances_to(hg.Run(rule, num_steps=NUM_STEPS), start, {}, None, target)
    want = 5 * (0.5 + (1 - RATE * CURVATURE) ** np.arange(NUM_STEPS + 1))
    np.testing.assert_allclose(found.distances, want, rtol=1e-5)
    (ax,) = drawn(found, tmp_path)
    assert len(ax.lines) == 1
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), np.arange(NUM_STEPS + 1))


def test_distance_from_its_own_end():
    """With batches, keys and schedules: the last distance is zero, the first the displacement."""
    (run, start, hparams, data), key = regression_run()
    end = jax.jit(lambda: hg.unroll(run, start, hparams, data, key=key).params)()
    found = distances_to(run, start, hparams, data, end, key=key)
    apart = jax.tree.map(jnp.subtract, start, end)
    np.testing.assert_allclose(found.distances[0], norm(apart), rtol=1e-6)
    assert found.distances[-1] < 1e-6 < np.min(found.distances[:-1])


# Projections.


def test_a_straight_line_has_one_component(tmp_path):
    """A linear loss: equal steps along its slope."""
    slope = jnp.array([0.5, -1.0, 2.0])
    rule = hg.sgd(lambda params, hparams, batch, key: params @ slope, learning_rate=RATE)
    found = projections(
        hg.Run(rule, num_steps=20), jnp.ones(3), {}, None, num_random=3, num_components=3
    )
    np.testing.assert_allclose(found.explained_variance, [1, 0, 0], atol=1e-9)
    want = RATE * np.linalg.norm(slope) * (np.arange(21) - 10)
    np.testing.assert_allclose(found.components[:, 0], want, atol=1e-5)
    assert set(found.names) == {"params[0]", "params[1]", "params[2]"}
    rows = [int(name[7]) for name in found.names]
    line = 1 - RATE * np.arange(21)[:, None] * np.asarray(slope)[rows]
    np.testing.assert_allclose(found.coordinates, line, atol=1e-5)

    left, middle, right = drawn(found, tmp_path)
    assert [len(ax.lines) for ax in (left, middle, right)] == [3, 3, 3]
    assert "100 %" in right.get_xlabel()
    assert middle.get_xlabel() == found.names[0]


def test_components_as_the_singular_vectors():
    """More points than parameters, and the last step beside every second; as `record` sees it."""
    (run, start, hparams, data), key = regression_run()
    flat = lambda params: jnp.concatenate([params["b"][None], params["w"]])  # noqa: E731
    record = lambda state, data: flat(state.params)  # noqa: E731
    recorded = dataclasses.replace(run, record=record)
    trace = jax.jit(lambda: hg.unroll(recorded, start, hparams, data, key=key).trace)
    path = np.vstack([flat(start), trace()]).astype(np.float64)[[0, 2, 4, 6, 7]]
    counts: dict[str, Any] = {"every": 2, "num_random": 4, "num_components": 3}
    found = projections(run, start, hparams, data, key=key, **counts)
    left, values, _ = np.linalg.svd(path - path.mean(axis=0), full_matrices=False)
    explained = values**2 / np.sum(values**2)
    np.testing.assert_allclose(found.explained_variance, explained[:3], rtol=1e-4)
    np.testing.assert_allclose(np.abs(found.components), np.abs(left * values)[:, :3], atol=1e-5)
    assert np.all(found.components[-1] >= found.components[0])
    names = ["params['b']", *(f"params['w'][{i}]" for i in range(3))]
    assert sorted(found.names) == names
    columns = [names.index(name) for name in found.names]
    np.testing.assert_allclose(found.coordinates, path[:, columns], atol=1e-6)


def test_fewer_points_than_parameters():
    start = jnp.linspace(-1.0, 2.0, 40)
    rule = heavy_ball(lambda p, h, b, k: jnp.sum(jnp.cosh(p)))
    found = projections(hg.Run(rule, num_steps=8), start, {}, None, num_components=2)
    record = lambda state, data: state.params  # noqa: E731
    trace = jax.jit(
        lambda: hg.unroll(hg.Run(rule, num_steps=8, record=record), start, {}, None).trace
    )()
    path = np.vstack([start, trace]).astype(np.float64)
    left, values, _ = np.linalg.svd(path - path.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.components), np.abs(left * values)[:, :2], atol=1e-4)
    assert found.explained_variance.sum() <= 1 + 1e-9


def test_the_key_draws_the_coordinates():
    rule, start = hg.sgd(bowl, learning_rate=RATE), jnp.ones((20, 30))
    names = [
        projections(
            hg.Run(rule, num_steps=2),
            start,
            {},
            None,
            num_random=5,
            coordinate_key=key,
            num_components=1,
        ).names
        for key in (None, jax.random.key(0), jax.random.key(1))
    ]
    assert names[0] == names[1] != names[2]
    assert len(set(names[0])) == 5


def test_a_path_that_stands_still_and_single_curves(tmp_path):
    """One coordinate and one component are drawn against the step."""
    rule = hg.sgd(bowl, learning_rate=0.0)
    run = hg.Run(rule, num_steps=3)
    found = projections(run, jnp.ones(2), {}, None, num_random=1, num_components=1)
    np.testing.assert_array_equal(found.explained_variance, [0])
    np.testing.assert_array_equal(found.components, 0)
    left, middle, right = drawn(found, tmp_path)
    assert [len(ax.lines) for ax in (left, middle, right)] == [1, 3, 3]
    assert middle.get_xlabel() == right.get_xlabel() == "step t"


def test_figures_are_drawn_on_given_axes(tmp_path):
    rule = hg.sgd(bowl, learning_rate=RATE)
    figure = Figure(figsize=(12, 3))
    axes = figure.subplots(1, 4)
    distances_to(hg.Run(rule, num_steps=4), jnp.ones(2), {}, None, jnp.zeros(2)).plot(axes[0])
    found = projections(hg.Run(rule, num_steps=4), jnp.ones(2), {}, None)
    assert len(drawn(found, tmp_path, axes[1:])) == 4
    assert found.plot(axes[1:]) is figure


# Bad input.


def call(diagnostic, rule=None, start=None, **settings):
    rule = heavy_ball() if rule is None else rule
    start = jnp.ones(2) if start is None else start
    return run_with(diagnostic, rule, start, {}, None, **{"num_steps": 5} | settings)


def norms_of(*args, **settings):
    return cotangent_norms(sum_of, *args, **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: call(reversal_errors, every=0), r"every is 0; .* 1 to 5 \(num_steps\)"),
        (lambda: call(projections, every=6), r"every is 6; .* 1 to 5 \(num_steps\)"),
        (lambda: call(projections, every=2.0), r"every is 2.0; .* an int"),
        (lambda: call(projections, every=True), r"every is True; .* an int"),
        (lambda: call(projections, num_random=3), r"num_random is 3; .* 1 to 2 \(the number of"),
        (lambda: call(projections, num_components=0), r"num_components is 0; .* 1 to 2"),
        (lambda: call(projections, every=5), r"num_components is 2; .* 1 to 1 \(which determine"),
        (lambda: call(reversal_errors, tolerance=0), r"tolerance is 0; .* a positive float"),
        (lambda: call(reversal_errors, tolerance=True), r"tolerance is True"),
        (lambda: call(reversal_errors, hg.sgd(bowl)), r"Reversible\(\) needs an update rule that"),
        (lambda: call(norms_of, hg.sgd(bowl)), r"Reversible\(\) needs an update rule that"),
        (lambda: call(norms_of, hparams_axes=1, num_steps=0), r"num_steps is 0"),
        (
            lambda: distances_to(
                hg.Run(heavy_ball(), num_steps=2), {"w": jnp.ones(2)}, {}, None, {"w": jnp.ones(3)}
            ),
            r"target_params has the shapes \{'w': \(3,\)\}; .* like params, \{'w': \(2,\)\}",
        ),
        (
            lambda: cotangent_norms(
                lambda params, hparams, _: params,
                hg.Run(heavy_ball(), num_steps=2),
                jnp.ones(2),
                {},
                None,
            ),
            r"objective returned float32 of shape \(2,\)",
        ),
        (
            lambda: call(projections, heavy_ball(rate=1e3), num_steps=30),
            r"the path is infinite or NaN; lower the learning rate",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("diagnostic", [norms_of, reversal_errors])
def test_damaged_runs(diagnostic):
    with pytest.raises(hg.HypergradientError, match="fixed-point range at step"):
        call(diagnostic, heavy_ball(rate=1e3), num_steps=30)
    with pytest.raises(hg.HypergradientError, match="bit store was too small"):
        call(
            diagnostic,
            start=jnp.ones(50),
            num_steps=90,
            adjoint=hg.Reversible(smallest_decay=0.99),
        )
