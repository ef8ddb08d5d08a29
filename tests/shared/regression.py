"""A tiny regression with every kind of hyperparameter, for comparing adjoints number by number."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg

NUM_STEPS = 7
KEY = np.array([0, 3], np.uint32)

RULES = {
    "momentum": hg.momentum,
    "heavy_ball": hg.heavy_ball,
    "adam": lambda loss: hg.adam(loss, b1=hg.field("momentum"), b2=0.9, eps=1e-3),
    "rmsprop_momentum": lambda loss: hg.rmsprop_momentum(loss, decay=0.8, eps=1e-3),
}
ALL_RULES = RULES | {
    "adamw": lambda loss: hg.adamw(
        loss, b1=hg.field("momentum"), b2=0.9, eps=1e-3, weight_decay=hg.field("learning_rate")
    ),
    "classical_momentum": hg.classical_momentum,
    "average": lambda loss: hg.average(hg.momentum(loss), decay=0.8),
    "polyak_average": lambda loss: hg.polyak_average(hg.momentum(loss)),
    "sgd": hg.sgd,
    "nesterov": hg.nesterov,
    "rmsprop": lambda loss: hg.rmsprop(loss, decay=0.8, eps=1e-3),
    "from_optax": lambda loss: hg.from_optax(
        lambda hparams: optax.adam(hparams["learning_rate"], hparams["momentum"], 0.9, eps=1e-3),
        loss,
    ),
}
ADJOINTS = [
    hg.Direct(),
    hg.Checkpointed(),
    hg.Checkpointed(branching=2),
    hg.ForwardMode(),
    hg.ForwardMode(memory=3000),
    hg.Reversible(),
]


def start():
    return {"w": jnp.asarray([0.3, -0.1, 0.2]), "b": jnp.asarray(0.1)}


def data():
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
    return inputs, inputs @ jnp.asarray([1.0, -2.0, 0.5]) + 0.1


def batch_fn(data, t, key):
    """One random example and one in turn."""
    rows = jnp.stack([jax.random.randint(key, (), 0, 6), t % 6])
    return jax.tree.map(lambda x: x[rows], data)


def residual(params, batch):
    return batch[0] @ params["w"] + params["b"] - batch[1]


def loss(params, hparams, batch, key):
    noise = 0.1 * jax.random.normal(key, params["w"].shape)
    noisy = params | {"w": params["w"] + noise}
    l2 = jnp.exp(hparams["log_l2"]) * jnp.sum(params["w"] ** 2)
    return jnp.mean(jnp.cosh(residual(noisy, batch))) + l2


def hparams_and_axes(kind):
    """Hyperparameters by the kind of their rate and momentum: one, per step, tensor, number."""
    over_time = jnp.linspace(0.0, 0.15, NUM_STEPS)
    each = jnp.asarray([0.0, 0.05, 0.1])
    wide = over_time[:, None] + each
    rate, decay = {
        "one": (0.0, 0.0),
        "per step": (over_time, -over_time),
        "per tensor": ({"w": 0.0, "b": 0.1}, {"w": 0.0, "b": -0.2}),
        "per number and step": ({"w": wide, "b": over_time}, {"w": -wide, "b": over_time}),
    }[kind]
    add = lambda base, tree: jax.tree.map(lambda x: jnp.asarray(base + x), tree)  # noqa: E731
    hparams = {
        "log_l2": jnp.asarray(-2.0),
        "learning_rate": add(0.1, rate),
        "momentum": add(0.7, decay),
    }
    axis = 0 if "step" in kind else None
    return hparams, {"log_l2": None, "learning_rate": axis, "momentum": axis}


def each(cases, slow):
    """Parameters of a test, some of which only `make test-slow` takes."""
    return [pytest.param(c, marks=pytest.mark.slow) if c in slow else c for c in cases]


def record(state, data):
    return {"loss": jnp.mean(residual(state.params, data) ** 2), "b": state.params["b"]}


def objective(rule, adjoint, axes):
    """`(params, hparams) -> scalar` of the end, of the whole trace and of the hyperparameters."""

    def value(params, hparams):
        out = hg.unroll(
            hg.Run(
                ALL_RULES[rule](loss),
                num_steps=NUM_STEPS,
                batch_fn=batch_fn,
                hparams_axes=axes,
                record=record,
                adjoint=adjoint,
            ),
            params,
            hparams,
            data(),
            key=jnp.asarray(KEY),
        )
        weights = jnp.linspace(1.0, 2.0, NUM_STEPS)
        path = jnp.sum(weights * (out.trace["loss"] + out.trace["b"] ** 3))
        return jnp.sum(out.params["w"] ** 3) + out.params["b"] + 0.1 * path

    return value
