"""Losses beyond layers: control flow, linear algebra, indexing, derivative rules of one's own."""

import functools

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl

from tests.campaign.campaign_layers import Net, register, squares, wide

PROGRAMS: dict[str, Net] = {}


@register(PROGRAMS, a=(6, 4), b=(4, 2))
def sorting(p, x, y, s, key):
    return squares(jnp.sort(x @ p["a"], -1) @ p["b"], y)


@register(PROGRAMS, a=(6, 5), b=(3, 2))
def top_k(p, x, y, s, key):
    return squares(jnp.tanh(jax.lax.top_k(x @ p["a"], 3)[0]) @ p["b"], y)


@register(PROGRAMS, a=(6, 5), b=(5, 2))
def median_and_quantile(p, x, y, s, key):
    hidden = wide(x @ p["a"])
    middle = jnp.median(hidden, -1, keepdims=True)
    upper = jnp.quantile(hidden, 0.8, axis=-1, keepdims=True)
    return squares((hidden - middle).astype(x.dtype) @ p["b"] + upper, y)


@register(PROGRAMS, a=(6, 2), b=(6, 2))
def conditional(p, x, y, s, key):
    def one(x):
        return jax.lax.cond(jnp.sum(x @ p["b"]) > 0, jnp.tanh, jnp.sin, x @ p["a"])

    outs = jax.lax.map(one, x)
    return squares(outs, y) + jax.lax.cond(x[0, 0] > 0, lambda b: jnp.sum(b * b), jnp.sum, p["b"])


@register(PROGRAMS, a=(6, 2))
def switch(p, x, y, s, key):
    branches = (jnp.tanh, jnp.sin, lambda z: z * jax.nn.sigmoid(z))
    index = jnp.int32(jnp.floor(jnp.abs(x[0, 0]) * 4)) % 3
    return squares(jax.lax.switch(index, branches, x @ p["a"]), y)


@register(PROGRAMS, a=(6, 3), h=(3, 3), b=(3, 2))
def static_loop(p, x, y, s, key):
    hidden = jax.lax.fori_loop(0, 3, lambda i, z: jnp.tanh(z @ p["h"] + i), x @ p["a"])
    return squares(hidden @ p["b"], y)


@register(PROGRAMS, a=(6, 4), h=(4, 4), b=(4, 2))
def rematerialized(p, x, y, s, key):
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
    def block(z, h):
        return z + jnp.tanh(z @ h)

    hidden = jax.checkpoint(lambda z: block(block(z, p["h"]), p["h"]))(x @ p["a"])
    return squares(hidden @ p["b"], y)


@register(PROGRAMS, filter=(6,), b=(6, 2))
def fourier(p, x, y, s, key):
    spectrum = jnp.fft.rfft(wide(x)) * jnp.fft.rfft(wide(p["filter"]))
    return squares(jnp.fft.irfft(spectrum, 6).astype(x.dtype) @ p["b"], y)


@register(PROGRAMS, a=(6, 3), angle=(3,), b=(3, 2))
def complex_numbers(p, x, y, s, key):
    turned = wide(x @ p["a"]) * jnp.exp(1j * wide(p["angle"]))
    both = jnp.abs(turned + 0.5) + jnp.real(turned * jnp.conj(turned) / (2 + 1j))
    return squares(both.astype(x.dtype) @ p["b"], y)


def covariance(factor, ridge):
    wide_factor = wide(factor)
    return wide_factor @ wide_factor.T + (1 + ridge) * jnp.eye(
        factor.shape[0], dtype=wide_factor.dtype
    )


@register(PROGRAMS, factor=(6, 3), mean=(6,))
def cholesky(p, x, y, s, key):
    lower = jnp.linalg.cholesky(covariance(p["factor"], s))
    white = jsl.solve_triangular(lower, wide(x - p["mean"]).T, lower=True)
    return jnp.mean(white**2) / 2 + jnp.mean(jnp.log(jnp.diag(lower)))


@register(PROGRAMS, factor=(6, 6), b=(6, 2))
def triangular_solve(p, x, y, s, key):
    upper = jnp.triu(wide(p["factor"])) + 2 * jnp.eye(6, dtype=wide(p["factor"]).dtype)
    return squares(jsl.solve_triangular(upper, wide(x).T).T.astype(x.dtype) @ p["b"], y)


@register(PROGRAMS, factor=(6, 6), b=(6, 2))
def linear_solve(p, x, y, s, key):
    matrix = wide(p["factor"]) + 3 * jnp.eye(6, dtype=wide(p["factor"]).dtype)
    solved = jnp.linalg.solve(matrix, wide(x).T).T.astype(x.dtype)
    return squares(solved @ p["b"], y) + 0.1 * jnp.linalg.slogdet(matrix)[1]


@register(PROGRAMS, factor=(3, 3))
def eigenvalues(p, x, y, s, key):
    spread = jnp.diag(jnp.arange(3, dtype=wide(p["factor"]).dtype))
    values, vectors = jnp.linalg.eigh(covariance(p["factor"] / 2, s) + spread)
    projected = (wide(x[:, :3]) @ vectors) ** 2 / values
    return squares(projected[:, :2], y)


@register(PROGRAMS, factor=(3, 3))
def singular_values(p, x, y, s, key):
    spread = jnp.diag(jnp.arange(1.0, 4.0)).astype(wide(x).dtype)
    values = jnp.linalg.svd(wide(p["factor"]) / 3 + spread, compute_uv=False)
    return squares(jnp.tanh(values[:2] * wide(x[:, :2])), y) + jnp.sum(jnp.log1p(values)) / 10


@register(PROGRAMS, factor=(6, 6), b=(6, 2))
def conjugate_gradients(p, x, y, s, key):
    """An implicit layer: JAX differentiates the linear solve, not its loop."""
    matrix = covariance(p["factor"] / 2, s)
    solved, _ = jax.scipy.sparse.linalg.cg(lambda v: matrix @ v, wide(x).T, tol=0.0, maxiter=12)
    return squares(solved.T.astype(x.dtype) @ p["b"], y)


@register(PROGRAMS, a=(6, 3), b=(3, 2))
def segments(p, x, y, s, key):
    """Messages along the edges of a graph of examples, summed where they arrive."""
    source, target = jnp.array([0, 1, 2, 3, 0]), jnp.array([1, 2, 3, 0, 2])
    messages = jnp.tanh(x @ p["a"])[source]
    summed = jax.ops.segment_sum(messages, target, num_segments=x.shape[0])
    largest = jax.ops.segment_max(messages, target, num_segments=x.shape[0])
    return squares((summed + jnp.where(jnp.isfinite(largest), largest, 0)) @ p["b"], y)


@register(PROGRAMS, a=(6, 3))
def scattering(p, x, y, s, key):
    hidden = jnp.tanh(x @ p["a"])
    grid = jnp.zeros((x.shape[0], 4), x.dtype).at[:, jnp.array([0, 1, 1])].add(hidden)
    grid = grid.at[:, 3].set(hidden[:, 0]).at[:, 2].multiply(0.5)
    return squares(grid[:, 1:3] + grid[:, ::3], y)


@register(PROGRAMS, a=(6, 4), b=(4, 2))
def cumulative(p, x, y, s, key):
    hidden = jnp.tanh(x @ p["a"])
    products = jax.lax.associative_scan(jnp.multiply, 1 + hidden / 4, axis=1)
    return squares((jnp.cumsum(hidden, 1) * products) @ p["b"], y)


@register(PROGRAMS, a=(6, 6), b=(6, 2))
def dynamic_slices(p, x, y, s, key):
    hidden = jnp.roll(jnp.tanh(x @ p["a"]), 2, 1)
    place = jnp.int32(jnp.abs(x[0, 0]) * 3) % 3
    part = jax.lax.dynamic_slice_in_dim(hidden, place, 2, 1)
    hidden = jax.lax.dynamic_update_slice_in_dim(hidden, 2 * part, 0, 1)
    return squares(hidden @ p["b"], y)


@register(PROGRAMS, knots=(5,), a=(6, 2))
def interpolation(p, x, y, s, key):
    at = jnp.linspace(-2, 2, 5, dtype=wide(x).dtype)
    return squares(jnp.interp(jnp.tanh(wide(x @ p["a"])), at, wide(p["knots"])), y)


@register(PROGRAMS, a=(6, 3), b=(6, 3), c=(3, 3, 2))
def einsum(p, x, y, s, key):
    return squares(jnp.einsum("bi,ij,bk,kl,jlo->bo", x, p["a"], x, p["b"], p["c"]) / 4, y)


@register(PROGRAMS, a=(6, 2))
def mapped(p, x, y, s, key):
    def one(x, y):
        return jax.vmap(lambda column, y: (jnp.sin(column @ x) - y) ** 2, (1, 0))(p["a"], y)

    return jnp.mean(wide(jax.vmap(one)(x, y)))


@register(PROGRAMS, a=(6, 3), b=(3, 2))
def gradient_penalty(p, x, y, s, key):
    """A derivative of the net is part of its loss."""

    def out(x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    slopes = jax.vmap(jax.grad(lambda x: jnp.sum(out(x))))(x)
    _, bent = jax.jvp(out, (x,), (jnp.ones_like(x),))
    return squares(out(x), y) + s * jnp.mean(wide(slopes) ** 2) + jnp.mean(wide(bent) ** 2) / 10


@register(PROGRAMS, a=(6, 2))
def inner_step(p, x, y, s, key):
    """Meta-learning: the loss after a gradient step whose rate is the hyperparameter."""

    def inner(a):
        return squares(jnp.tanh(x[:2] @ a), y[:2])

    adapted = p["a"] - (s * jax.grad(inner)(p["a"])).astype(x.dtype)
    return squares(jnp.tanh(x[2:] @ adapted), y[2:])


@jax.custom_jvp
def softplus(x):
    return jnp.logaddexp(x, 0)


softplus.defjvps(lambda dot, out, x: jax.nn.sigmoid(x) * dot)


@register(PROGRAMS, a=(6, 4), b=(4, 2))
def true_custom_jvp(p, x, y, s, key):
    return squares(softplus(x @ p["a"]) @ p["b"], y)


@jax.custom_jvp
def scaled_gradient(x, s):
    return x


scaled_gradient.defjvp(
    lambda primals, tangents: (primals[0], (primals[1] * tangents[0]).astype(primals[0].dtype))
)


@register(PROGRAMS, a=(6, 4), b=(4, 2))
def custom_jvp_of_no_function(p, x, y, s, key):
    return squares(jnp.tanh(scaled_gradient(x @ p["a"], s)) @ p["b"], y)


@jax.custom_vjp
def clipped_gradient(x):
    return x


clipped_gradient.defvjp(lambda x: (x, None), lambda _, bar: (jnp.clip(bar, -0.05, 0.05),))


@register(PROGRAMS, is_forward=False, a=(6, 4), b=(4, 2))
def custom_vjp_of_no_function(p, x, y, s, key):
    return squares(clipped_gradient(jnp.tanh(x @ p["a"])) @ p["b"], y)


@register(PROGRAMS, a=(6, 4), b=(4, 2))
def straight_through(p, x, y, s, key):
    """Weights of eight levels, as integers, whose rounding has the derivative 1."""
    levels = jnp.round(p["a"] * 4).astype(jnp.int8)
    weights = p["a"] + jax.lax.stop_gradient(levels.astype(x.dtype) / 4 - p["a"])
    return squares(jnp.tanh(x @ weights) @ p["b"], y)


@register(PROGRAMS, a=(6, 5), b=(5, 2))
def power_iteration(p, x, y, s, key):
    """Spectral normalization: the vectors are constants to the derivative."""
    matrix = jax.lax.stop_gradient(wide(p["a"]))

    def step(_, v):
        v = matrix.T @ (matrix @ v)
        return v / jnp.linalg.norm(v)

    v = jax.lax.fori_loop(0, 5, step, jnp.ones(5, matrix.dtype))
    u = matrix @ v / jnp.linalg.norm(matrix @ v)
    norm = (u @ wide(p["a"]) @ v).astype(x.dtype)
    return squares(jnp.tanh(x @ (p["a"] / norm)) @ p["b"], y)


@register(PROGRAMS, a=(6, 3))
def pairwise_distances(p, x, y, s, key):
    points = wide(x @ p["a"])
    apart = points[:, None] - points[None]
    distances = jnp.sqrt(jnp.sum(apart**2, -1) + 0.1)
    targets = jnp.sqrt(jnp.sum((wide(y)[:, None] - wide(y)[None]) ** 2, -1))
    return jnp.mean((distances - targets) ** 2)


@register(PROGRAMS, a=(6, 3), h=(3, 3), b=(3, 2))
def differential_equation(p, x, y, s, key):
    """Four steps of Runge and Kutta's method of order two."""

    def step(z, _):
        middle = z + jnp.tanh(z @ p["h"]) / 8
        return z + jnp.tanh(middle @ p["h"]) / 4, None

    return squares(jax.lax.scan(step, x @ p["a"], None, length=4)[0] @ p["b"], y)
