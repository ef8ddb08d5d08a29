"""Update rules and their hyperparameters in all forms, which several test modules train."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hgrad_jax as hg

KEY = jax.random.key(0)
T = 12
DATA = (
    jax.random.normal(jax.random.fold_in(KEY, 1), (6, 3)),
    jax.random.normal(jax.random.fold_in(KEY, 2), (6, 2)),
)
PARAMS = {
    "w": jax.random.normal(jax.random.fold_in(KEY, 3), (3, 2)) / 2,
    "b": jnp.array([0.1, -0.3]),
}
END_BAR = {"w": jnp.arange(6.0).reshape(3, 2) - 2.5, "b": jnp.array([1.0, -2.0])}
ADJOINTS = [hg.Direct(), hg.Checkpointed(), hg.Checkpointed(branching=2), hg.Reversible()]


def batch_fn(data, t, key):
    return jax.tree.map(lambda x: jnp.roll(x, t, axis=0)[:4], data)


def loss(params, hparams, batch, key):
    x, y = batch
    error = jnp.tanh(x @ params["w"] + params["b"]) - y
    return jnp.mean(error**2) + hparams["penalty"] * jnp.sum(params["w"] ** 2)


def everywhere(name):
    """A hyperparameter in all its forms at once: scalar * per step * (per number, per tensor)."""

    def source(hparams):
        h = hparams[name]
        return jax.tree.map(lambda scale: h["scalar"] * h["step"] * scale, h["scale"])

    return source


def below_one(seed, shape):
    """Factors that keep a decay below one."""
    return 1 - 0.05 * jax.random.uniform(jax.random.fold_in(KEY, seed), shape)


LEARNING_RATE = {
    "scalar": jnp.float32(0.05),
    "step": below_one(4, (T,)),
    "scale": {"w": below_one(5, (3, 2)), "b": below_one(6, ())},
}
PER_STEP = below_one(7, (T,))
PER_TENSOR = {"w": below_one(8, ()), "b": below_one(9, ())}
PER_NUMBER = {"w": below_one(10, (3, 2)), "b": below_one(11, (2,))}


def scaled(value, forms):
    return jax.tree.map(lambda x: value * x, forms)


# Each rule with the hyperparameters that it is differentiated in besides the learning rate, in all
# their forms: a scalar, per step (named step_...), per tensor, per number.
RATE = everywhere("learning_rate")
RMSPROP_VALUES = {"decay": scaled(0.95, PER_NUMBER), "step_eps": 1e-2 * PER_STEP}
BALL = hg.heavy_ball(loss, learning_rate=RATE, momentum=0.8)
RULES = {
    "sgd": (hg.sgd(loss, learning_rate=RATE), {}),
    "nesterov": (
        hg.nesterov(loss, learning_rate=RATE, momentum=hg.field("step_momentum")),
        {"step_momentum": 0.8 * PER_STEP},
    ),
    "rmsprop": (
        hg.rmsprop(loss, learning_rate=RATE, decay=hg.field("decay"), eps=hg.field("step_eps")),
        RMSPROP_VALUES,
    ),
    "rmsprop_momentum": (
        hg.rmsprop_momentum(
            loss, learning_rate=RATE, decay=hg.field("decay"), eps=hg.field("step_eps")
        ),
        RMSPROP_VALUES | {"momentum": scaled(0.8, PER_TENSOR)},
    ),
    "adam": (
        hg.adam(
            loss, learning_rate=RATE, b1=hg.field("step_b1"), b2=hg.field("b2"), eps=hg.field("eps")
        ),
        {
            "step_b1": 0.9 * PER_STEP,
            "b2": scaled(0.99, PER_NUMBER),
            "eps": jnp.float32(1e-2),
        },
    ),
    "adamw": (
        hg.adamw(
            loss, learning_rate=RATE, b1=hg.field("b1"), b2=hg.field("step_b2"), eps=hg.field("eps")
        ),
        {
            "b1": scaled(0.9, PER_NUMBER),
            "step_b2": 0.99 * PER_STEP,
            "eps": scaled(1e-2, PER_TENSOR),
            "weight_decay": {"w": 0.3 * PER_NUMBER["w"], "b": jnp.float32(0.1)},
        },
    ),
    "average": (
        hg.average(BALL, decay=hg.field("step_decay")),
        {"step_decay": 0.9 * PER_STEP},
    ),
    "polyak_average": (hg.polyak_average(BALL), {}),
    "average_of_sgd": (
        hg.average(hg.sgd(loss, learning_rate=RATE), decay=hg.field("decay")),
        {"decay": scaled(0.9, PER_NUMBER)},
    ),
    "from_optax": (
        hg.from_optax(
            lambda h: optax.sgd(
                h["learning_rate"]["scalar"] * h["learning_rate"]["step"],
                momentum=h["momentum"],
                nesterov=True,
            ),
            loss,
        ),
        {"momentum": jnp.float32(0.8)},
    ),
}
IRREVERSIBLE = ("sgd", "nesterov", "rmsprop", "average_of_sgd", "from_optax")


def hparams_of(name):
    values = {"penalty": jnp.float32(0.03), "learning_rate": LEARNING_RATE} | RULES[name][1]
    axes = {key: 0 if key.startswith("step_") else None for key in values}
    return values, axes | {"learning_rate": {"scalar": None, "step": 0, "scale": None}}


def assert_close(a, b, rtol):
    """Leaf by leaf, relative to the leaf's norm."""
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        scale = np.linalg.norm(np.asarray(y))
        error = np.linalg.norm(np.asarray(x) - np.asarray(y))
        assert error <= rtol * scale, f"{jax.tree_util.keystr(path)}: {error / scale:.2e}"


def simulate(rule, hparams, num_steps=100, axes=None, params=PARAMS):
    """Parameters after every step `[T, ...]`, in ordinary floating point."""

    @jax.jit
    def trained(params, hparams):
        return hg.unroll(
            hg.Run(
                rule,
                num_steps=num_steps,
                batch_fn=batch_fn,
                hparams_axes=axes,
                record=lambda state, data: rule.params(state),
            ),
            params,
            hparams,
            DATA,
        ).trace

    return trained(params, hparams)
