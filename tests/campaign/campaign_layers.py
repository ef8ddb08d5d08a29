"""Layers of neural networks, each a small net of its own: what the campaign trains.

A net is its loss `loss(p, x, y, s, key)`: parameters, inputs `[B, ...]`, targets `[B, 2]`, a
positive hyperparameter and a key. It computes in the dtype of its parameters, but for the mean at
its end and for what JAX has in float32 and float64 alone.
"""

# flax modules pass where pyright sees narrower types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx


class Net(NamedTuple):
    """A kind of net.

    Attributes:
      loss: `loss(p, x, y, s, key) -> scalar`.
      start: initial parameters, numpy arrays of float64.
      input_shape: of one example.
      is_forward: whether its loss can be differentiated in forward mode.
    """

    loss: Callable[..., jax.Array]
    start: Any
    input_shape: tuple[int, ...]
    is_forward: bool = True


def drawn(name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Normal numbers of variance 1 / inputs, a function of the name."""
    random = np.random.default_rng(list(name.encode()))
    return {
        key: random.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[:-1])))
        for key, shape in shapes.items()
    }


def register(nets: dict[str, Net], input_shape=(6,), *, is_forward=True, start=None, **shapes):
    """Returns a decorator that puts a loss among the nets, under its name."""

    def put(loss):
        name = loss.__name__
        first = drawn(name, shapes) if start is None else start()
        nets[name] = Net(loss, first, input_shape, is_forward)
        return loss

    return put


def wide(x: jax.Array) -> jax.Array:
    """In float32 at least: linear algebra and Fourier transforms have no shorter dtypes."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def squares(out: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((wide(out) - wide(y)) ** 2)


def conv(x, kernel, *, stride=1, dilation=1, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


LAYERS: dict[str, Net] = {}
IMAGE = (5, 5, 2)


@register(LAYERS, a=(6, 5), b=(5,), c=(5, 2))
def dense(p, x, y, s, key):
    return squares(jnp.tanh(x @ p["a"] + p["b"]) @ p["c"], y)


@register(LAYERS, a=(6, 5), c=(5, 2))
def gelu(p, x, y, s, key):
    return squares(jax.nn.gelu(x @ p["a"], approximate=False) @ p["c"], y)


@register(LAYERS, a=(6, 8), c=(4, 2))
def gated_linear_unit(p, x, y, s, key):
    return squares(jax.nn.glu(x @ p["a"]) @ p["c"], y)


@register(LAYERS, IMAGE, a=(3, 3, 2, 3), c=(3, 2))
def convolution(p, x, y, s, key):
    return squares(jnp.tanh(conv(x, p["a"])).mean((1, 2)) @ p["c"], y)


@register(LAYERS, IMAGE, a=(3, 3, 2, 3), c=(3, 2))
def dilated_convolution(p, x, y, s, key):
    hidden = conv(x, p["a"], dilation=2)
    return squares(jax.nn.silu(hidden).sum((1, 2)) @ p["c"] / 5, y)


@register(LAYERS, IMAGE, a=(3, 3, 1, 4), b=(1, 1, 4, 2))
def depthwise_convolution(p, x, y, s, key):
    hidden = jnp.tanh(conv(x, p["a"], stride=2, groups=2))
    return squares(conv(hidden, p["b"]).mean((1, 2)), y)


@register(LAYERS, (3, 3, 2), a=(3, 3, 2, 2))
def transposed_convolution(p, x, y, s, key):
    out = jax.lax.conv_transpose(x, p["a"], (2, 2), "SAME")
    return squares(jnp.sin(out).mean((1, 2)), y)


@register(LAYERS, IMAGE, a=(3, 3, 2, 2))
def max_pooling(p, x, y, s, key):
    pooled = nn.max_pool(conv(x, p["a"]), (2, 2), strides=(2, 2))
    return squares(jnp.tanh(pooled).mean((1, 2)), y)


@register(LAYERS, IMAGE, a=(3, 3, 2, 2))
def average_pooling(p, x, y, s, key):
    pooled = nn.avg_pool(conv(x, p["a"]), (3, 3), strides=(2, 2), padding="SAME")
    return squares(jnp.tanh(pooled).max((1, 2)), y)


@register(LAYERS, a=(6, 5), scale=(5,), c=(5, 2))
def batch_norm(p, x, y, s, key):
    hidden = wide(x @ p["a"])
    normed = (hidden - hidden.mean(0)) * jax.lax.rsqrt(hidden.var(0) + s)
    return squares(jax.nn.relu(normed.astype(x.dtype) * p["scale"]) @ p["c"], y)


@register(LAYERS, a=(6, 5), scale=(5,), c=(5, 2))
def layer_norm(p, x, y, s, key):
    hidden = jnp.tanh(jax.nn.standardize(wide(x @ p["a"]), epsilon=1e-2)).astype(x.dtype)
    return squares(hidden * p["scale"] @ p["c"], y)


@register(LAYERS, IMAGE, a=(1, 1, 2, 4), c=(4, 2))
def group_norm(p, x, y, s, key):
    hidden = wide(conv(x, p["a"])).reshape(*x.shape[:3], 2, 2)
    mean = hidden.mean((1, 2, 4), keepdims=True)
    variance = ((hidden - mean) ** 2).mean((1, 2, 4), keepdims=True)
    normed = ((hidden - mean) / jnp.sqrt(variance + 0.1)).reshape(*x.shape[:3], 4)
    return squares(jnp.tanh(normed).max((1, 2)).astype(x.dtype) @ p["c"], y)


@register(LAYERS, a=(6, 4), direction=(6, 4), length=(4,), c=(4, 2))
def weight_norm(p, x, y, s, key):
    norm = jnp.linalg.norm(wide(p["direction"]), axis=0).astype(x.dtype)
    hidden = x @ p["a"] + x @ (p["direction"] / norm * p["length"])
    return squares(jnp.tanh(hidden) @ p["c"], y)


@register(LAYERS, table=(7, 4), c=(4, 2))
def embedding(p, x, y, s, key):
    tokens = jnp.floor(jnp.abs(x) * 3).astype(jnp.int32) % 7
    return squares(jnp.tanh(p["table"][tokens].mean(1)) @ p["c"], y)


@register(LAYERS, (4, 6), q=(6, 4), k=(6, 4), v=(6, 4), c=(4, 2))
def attention(p, x, y, s, key):
    scores = jnp.einsum("bqd,bkd->bqk", x @ p["q"], x @ p["k"]) / 2
    is_seen = jnp.tril(jnp.ones((4, 4), bool))
    weights = jax.nn.softmax(jnp.where(is_seen, wide(scores), -1e9))
    mixed = weights.astype(x.dtype) @ (x @ p["v"])
    return squares(mixed[:, -1] @ p["c"], y)


@register(LAYERS, (4, 6), a=(6, 3), h=(3, 3), c=(3, 2))
def recurrent(p, x, y, s, key):
    def step(hidden, x_t):
        hidden = jnp.tanh(x_t @ p["a"] + hidden @ p["h"])
        return hidden, hidden

    start = jnp.zeros((x.shape[0], 3), x.dtype)
    _, states = jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))
    return squares(states[-1] @ p["c"] + states[0, :, :2], y)


@register(LAYERS, (4, 6), a=(6, 9), h=(3, 9), c=(3, 2))
def gated_recurrent(p, x, y, s, key):
    def step(hidden, x_t):
        reset, update, new = jnp.split(x_t @ p["a"], 3, -1)
        to_reset, to_update, to_new = jnp.split(hidden @ p["h"], 3, -1)
        reset, update = jax.nn.sigmoid(reset + to_reset), jax.nn.sigmoid(update + to_update)
        new = jnp.tanh(new + reset * to_new)
        return update * hidden + (1 - update) * new, None

    start = jnp.zeros((x.shape[0], 3), x.dtype)
    hidden, _ = jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1), unroll=2)
    return squares(hidden @ p["c"], y)


@register(LAYERS, a=(6, 8), c=(8, 2))
def dropout(p, x, y, s, key):
    is_kept = jax.random.uniform(key, (x.shape[0], 8), jnp.float32) < 0.75
    return squares(jnp.where(is_kept, jnp.tanh(x @ p["a"]) / 0.75, 0) @ p["c"], y)


@register(LAYERS, a=(6, 6), c=(3, 6), d=(6, 2))
def variational(p, x, y, s, key):
    mean, log_scale = jnp.split(wide(x @ p["a"]), 2, -1)
    latent = mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape, jnp.float32)
    divergence = jnp.mean(jnp.exp(2 * log_scale) + mean**2 - 1 - 2 * log_scale) / 2
    hidden = jnp.tanh(latent.astype(x.dtype) @ p["c"])
    return squares(hidden @ p["d"], y) + s * divergence


@register(LAYERS, a=(6, 3))
def cross_entropy(p, x, y, s, key):
    logits = wide(x @ p["a"])
    labels = (y[:, 0] > 0).astype(jnp.int32) + (y[:, 1] > 0)
    right = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, -1) - right)


@register(LAYERS, gate=(6, 3), experts=(3, 6, 2))
def mixture_of_experts(p, x, y, s, key):
    gates, chosen = jax.lax.top_k(jax.nn.softmax(wide(x @ p["gate"])), 2)
    outs = jnp.einsum("bi,eio->beo", x, p["experts"])
    picked = jnp.take_along_axis(outs, chosen[..., None], 1)
    return squares(jnp.sum(gates[..., None] * jnp.tanh(picked), 1), y)


class Flax(nn.Module):
    """Two dense layers with normalization and dropout."""

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Dense(5)(x))
        x = nn.Dropout(0.25, deterministic=False)(nn.gelu(x))
        return nn.Dense(2)(x)


def flax_start():
    variables = Flax().init({"params": jax.random.key(3), "dropout": jax.random.key(4)}, np.ones(6))
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])


@register(LAYERS, start=flax_start)
def flax_linen(p, x, y, s, key):
    return squares(Flax().apply({"params": p}, x, rngs={"dropout": key}), y)


class NnxNet(nnx.Module):
    """Two dense layers as objects."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.silu(self.first(x)))


GRAPH, FIRST_STATE = nnx.split(NnxNet())


def nnx_start():
    pure = nnx.to_pure_dict(FIRST_STATE)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), pure)


@register(LAYERS, start=nnx_start)
def flax_nnx(p, x, y, s, key):
    return squares(nnx.merge(GRAPH, nnx.State(p))(x), y)
