"""Matrix-free solvers against dense solves, and what they report when they fail."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from hgrad_jax.solvers.conjugate_gradient import ConjugateGradient
from hgrad_jax.solvers.gmres import GMRES
from hgrad_jax.solvers.neumann import Neumann
from hgrad_jax.solvers.vectors import norm

TIGHT = 1e-10


def with_eigenvalues(values, seed):
    """A random symmetric matrix."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    return basis * values @ basis.T


def as_tree(vector):
    """A pytree of three leaves, one of them a scalar."""
    half = (vector.size - 1) // 2
    return {"a": vector[:half], "b": (vector[half:-1].reshape(1, -1), vector[-1])}


@functools.cache
def compiled(solver):
    @jax.jit
    def solve(matrix, vector):
        def matvec(tree):
            return as_tree(matrix @ ravel_pytree(tree)[0])

        x, info = solver.solve(matvec, as_tree(vector))
        return ravel_pytree(x)[0], info

    return solve


CG = ConjugateGradient(max_steps=1000, tolerance=1e-11)
RESTARTED = GMRES(max_steps=4000, restart=40, tolerance=1e-11)
SERIES = Neumann(1.0, max_steps=100_000, tolerance=TIGHT)


@pytest.mark.parametrize(
    ("solver", "size", "condition_number"),
    [
        *[(CG, *case) for case in [(3, 10.0), (12, 1e3), (40, 10.0), (40, 1e5)]],
        *[(RESTARTED, *case) for case in [(12, 1e3), (40, 1e5)]],
        *[(SERIES, *case) for case in [(3, 10.0), (12, 1e3)]],
    ],
)
def test_positive_definite_systems_as_a_dense_solve(solver, size, condition_number):
    with jax.enable_x64(True):
        for seed in range(3):
            matrix = with_eigenvalues(np.geomspace(1 / condition_number, 1, size), seed)
            b = np.random.default_rng(seed + 100).normal(size=size)
            x, info = compiled(solver)(matrix, b)
            want = np.linalg.solve(matrix, b)
            assert np.linalg.norm(x - want) < 1e-6 * np.linalg.norm(want)
            assert bool(info.is_converged)
            assert not bool(info.is_indefinite)
            assert info.curvature >= 1 / condition_number * (1 - 1e-6)
            residual = np.linalg.norm(b - matrix @ x) / np.linalg.norm(b)
            np.testing.assert_allclose(info.residual, residual, rtol=1e-2, atol=1e-12)


@pytest.mark.parametrize("solver", [Neumann(0.3, tolerance=TIGHT), GMRES(tolerance=TIGHT)])
def test_systems_that_are_not_symmetric(solver):
    with jax.enable_x64(True):
        noise = np.random.default_rng(0).normal(size=(11, 11)) / 11
        matrix, b = np.eye(11) + noise, np.ones(11)
        x, info = compiled(solver)(matrix, b)
        np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-8)
        assert bool(info.is_converged)


def test_the_series_has_the_terms_it_promises():
    matrix = with_eigenvalues(np.linspace(0.2, 1, 7), 0).astype(np.float32)
    x, info = compiled(Neumann(0.7, max_steps=5, tolerance=0.9))(matrix, np.ones(7, np.float32))
    # The tolerance of 0.9 is met at once, to a half of it.
    terms = int(info.num_steps)
    power, want = np.ones(7), np.zeros(7)
    for _ in range(terms):
        want, power = want + 0.7 * power, power - 0.7 * matrix @ power
    np.testing.assert_allclose(x, want, rtol=1e-5)


def test_conjugate_gradients_take_a_step_per_distinct_eigenvalue():
    matrix = with_eigenvalues(np.repeat([1.0, 2.0, 5.0], 7), 0).astype(np.float32)
    _, info = compiled(ConjugateGradient())(matrix, np.ones(21, np.float32))
    assert int(info.num_steps) == 3


def test_damping_is_added_to_the_diagonal():
    matrix = with_eigenvalues(np.linspace(0.1, 1, 9), 0).astype(np.float32)
    b = np.arange(9, dtype=np.float32)
    x, info = compiled(ConjugateGradient(damping=0.5, tolerance=1e-6))(matrix, b)
    np.testing.assert_allclose(x, np.linalg.solve(matrix + 0.5 * np.eye(9), b), rtol=1e-4)
    assert bool(info.is_converged)
    assert 0.1 * 0.999 < info.curvature < 1  # without the damping


INDEFINITE = with_eigenvalues(np.array([-0.4, 0.5, 1.0, 2.0, 3.0]), 0).astype(np.float32)
ONES = np.ones(5, np.float32)


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_negative_curvature_is_seen_and_stops(damping):
    _, info = compiled(ConjugateGradient(damping=damping))(INDEFINITE, ONES)
    assert bool(info.is_indefinite)
    assert not bool(info.is_converged)
    assert -0.4001 < info.curvature <= -damping
    assert int(info.num_steps) <= 5


def test_enough_damping_solves_and_still_reports_the_curvature():
    solver = ConjugateGradient(damping=0.6, tolerance=1e-5)
    x, info = compiled(solver)(INDEFINITE, ONES)
    want = np.linalg.solve(INDEFINITE + 0.6 * np.eye(5), ONES)
    np.testing.assert_allclose(x, want, rtol=1e-3)
    assert bool(info.is_converged)
    assert not bool(info.is_indefinite)


def test_gmres_solves_it_anyway():
    x, info = compiled(GMRES(tolerance=1e-5))(INDEFINITE, ONES)
    np.testing.assert_allclose(x, np.linalg.solve(INDEFINITE, ONES), rtol=1e-3)
    assert bool(info.is_converged)


def test_the_series_diverges_and_says_so():
    _, info = compiled(Neumann(0.3, max_steps=2000))(INDEFINITE, ONES)
    assert info.residual > 1e6
    assert not bool(info.is_converged)
    assert bool(info.is_indefinite)


@pytest.mark.parametrize(
    "solver",
    [ConjugateGradient(max_steps=3), Neumann(1.0, max_steps=3), GMRES(max_steps=3, restart=3)],
)
def test_too_few_steps_are_reported(solver):
    matrix = with_eigenvalues(np.geomspace(1e-3, 1, 21), 0).astype(np.float32)
    x, info = compiled(solver)(matrix, np.ones(21, np.float32))
    assert int(info.num_steps) == 3
    assert not bool(info.is_converged)
    assert not bool(info.is_indefinite)
    residual = np.linalg.norm(1 - matrix @ x) / np.sqrt(21)
    np.testing.assert_allclose(info.residual, residual, rtol=1e-3)


SOLVERS = [ConjugateGradient(), Neumann(0.9), GMRES()]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_scale_of_the_right_hand_side(solver, scale):
    matrix = with_eigenvalues(np.linspace(0.5, 1, 5), 0).astype(np.float32)
    x, info = compiled(solver)(matrix, np.full(5, scale, np.float32))
    want = np.linalg.solve(matrix, np.ones(5))
    np.testing.assert_allclose(x / np.float32(scale), want, rtol=1e-3)
    assert bool(info.is_converged)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_right_hand_side_of_zero(solver):
    x, info = compiled(solver)(np.eye(5, dtype=np.float32), np.zeros(5, np.float32))
    np.testing.assert_array_equal(x, np.zeros(5))
    assert (float(info.residual), int(info.num_steps)) == (0, 0)
    assert bool(info.is_converged)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_right_hand_side_that_is_not_finite(solver, value):
    b = np.array([1, value, 1, 1, 1], np.float32)
    _, info = compiled(solver)(np.eye(5, dtype=np.float32), b)
    assert np.isnan(info.residual)
    assert not bool(info.is_converged)


@pytest.mark.parametrize("solver", SOLVERS)
def test_under_vmap_as_one_by_one(solver):
    matrices = np.stack(
        [with_eigenvalues(np.linspace(low, 1, 5), 1) for low in (0.5, 0.01, 1.0)]
    ).astype(np.float32)
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    found = jax.vmap(compiled(solver))(matrices, vectors)
    for i in range(3):
        alone = compiled(solver)(matrices[i], vectors[i])
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_half_precision_is_solved_in_single(solver):
    b = jnp.ones(5, jnp.bfloat16)
    diagonal = jnp.array([1.0, 1.0, 1.0, 0.5, 0.5], jnp.bfloat16)
    x, info = solver.solve(lambda x: diagonal * x, b)
    assert x.dtype == jnp.bfloat16
    assert info.residual.dtype == jnp.float32


def test_norm_of_nothing_much():
    tree = {"a": jnp.zeros((0, 3)), "b": jnp.float32(3e30), "c": jnp.array([4e30])}
    np.testing.assert_allclose(norm(tree), 5e30, rtol=1e-6)
    assert norm(jnp.zeros(3)) == 0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ConjugateGradient(max_steps=0), "max_steps is 0; it must be a positive int"),
        (lambda: ConjugateGradient(tolerance=0.0), "tolerance is 0.0; .* between 0 and 1"),
        (lambda: ConjugateGradient(damping=-1.0), "damping is -1.0; .* at least 0"),
        (lambda: Neumann(0.0), "step_size is 0.0; .* positive float"),
        (lambda: Neumann(1.0, max_steps=2.5), "max_steps is 2.5"),  # pyright: ignore
        (lambda: Neumann(1.0, tolerance=-1.0), "tolerance is -1.0"),
        (lambda: GMRES(restart=0), "restart is 0; it must be a positive int"),
        (lambda: GMRES(max_steps=True), "max_steps is True"),
        (lambda: GMRES(tolerance=float("nan")), "tolerance is nan"),
    ],
)
def test_settings_out_of_range(make, match):
    with pytest.raises(ValueError, match=match):
        make()
