"""Reversible update rules and the forms of their hyperparameters, as the campaign draws them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import hgrad_jax as hg


class Form(NamedTuple):
    """A hyperparameter in one of its forms.

    Attributes:
      source: what the rule is given.
      value: its part of `hparams`; None where the rule has a fixed number.
      axes: its part of `hparams_axes`.
    """

    source: Any
    value: Any
    axes: Any


def factors(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers a little below one, which keep a decay a decay."""
    return np.asarray(1 - 0.1 * random.random(shape))


def scalar(name, base, params, num_steps, random):
    return Form(hg.field(name), base, None)


def fixed(name, base, params, num_steps, random):
    return Form(base, None, None)


def rational(name, base, params, num_steps, random):
    """A sixteenth of a whole number (a decay's numerator is exact), or a power of two."""
    value = round(16 * base) / 16 if base > 0.1 else 2.0 ** round(np.log2(base))
    return Form(hg.field(name), value, None)


def per_step(name, base, params, num_steps, random):
    return Form(hg.field(name), base * factors(random, (num_steps,)), 0)


def per_leaf(name, base, params, num_steps, random):
    value = jax.tree.map(lambda x: base * factors(random, ()), params)
    return Form(hg.field(name), value, None)


def per_number(name, base, params, num_steps, random):
    value = jax.tree.map(lambda x: base * factors(random, x.shape), params)
    return Form(hg.field(name), value, None)


def per_number_and_step(name, base, params, num_steps, random):
    value = jax.tree.map(lambda x: base * factors(random, (num_steps, *x.shape)), params)
    return Form(hg.field(name), value, 0)


def transformed(name, base, params, num_steps, random):
    """A logit for what is below one half of one, and a logarithm for what is small."""
    if base > 0.1:
        value = np.log(base / (1 - base))
        return Form(lambda hparams: jax.nn.sigmoid(hparams[name]), value, None)
    return Form(lambda hparams: jnp.exp(hparams[name]), np.log(base), None)


def product(name, base, params, num_steps, random):
    """A scalar times one for each step times one for each tensor."""

    def source(hparams):
        h = hparams[name]
        return jax.tree.map(lambda scale: h["scalar"] * h["step"] * scale, h["scale"])

    value = {
        "scalar": base,
        "step": factors(random, (num_steps,)),
        "scale": jax.tree.map(lambda x: factors(random, ()), params),
    }
    return Form(source, value, {"scalar": None, "step": 0, "scale": None})


FORMS: dict[str, Callable[..., Form]] = {
    form.__name__: form
    for form in (
        *(scalar, fixed, rational, per_step, per_leaf, per_number),
        *(per_number_and_step, transformed, product),
    )
}


@jax.custom_jvp
def rounded(x: jax.Array, digits: int) -> jax.Array:
    """To a multiple of 2**-digits, with the derivative 1."""
    return jnp.round(x * 2.0**digits) * 2.0**-digits


rounded.defjvp(lambda primals, tangents: (rounded(*primals), tangents[0]))


def to_fraction(name: str, source: Any) -> Callable[[Any], Any]:
    """Returns a source whose decays, and products of a rate and a weight decay, 48 bits hold."""
    digits = 24 if name in ("learning_rate", "weight_decay", "noise_scale") else 48

    def read(hparams):
        value = source(hparams) if callable(source) else jnp.asarray(source)
        return jax.tree.map(lambda x: rounded(x, digits), value)

    return read


NINE_TENTHS, NINETEEN_TWENTIETHS = float(np.float32(0.9)), float(np.float32(0.95))
"""Fixed decays that are fractions of 2**24, as `Reversible()` has them."""


class Kind(NamedTuple):
    """A rule.

    Attributes:
      make: `make(loss, **sources) -> Transition`.
      values: what its hyperparameters are around, the learning rate first and a decay second.
      is_forward: whether it takes derivatives of the loss in forward mode.
    """

    make: Callable[..., hg.Transition]
    values: dict[str, float]
    is_forward: bool = False


def adam(loss, *, learning_rate, b1, b2):
    return hg.adam(loss, learning_rate=learning_rate, b1=b1, b2=b2, eps=1e-2)


def adamw(loss, *, learning_rate, b1, weight_decay):
    settings = {"learning_rate": learning_rate, "weight_decay": weight_decay, "b1": b1}
    return hg.adamw(loss, **settings, b2=NINETEEN_TWENTIETHS, eps=1e-2)


def rmsprop_momentum(loss, *, learning_rate, momentum, decay):
    settings = {"learning_rate": learning_rate, "momentum": momentum, "decay": decay}
    return hg.rmsprop_momentum(loss, **settings, eps=1e-1)


def average(loss, *, learning_rate, momentum, average_decay):
    ball = hg.heavy_ball(loss, learning_rate=learning_rate, momentum=momentum)
    return hg.average(ball, decay=average_decay)


def polyak_average(loss, *, learning_rate, momentum):
    return hg.polyak_average(hg.momentum(loss, learning_rate=learning_rate, momentum=momentum))


def bounded(loss, *, learning_rate, momentum):
    """A rule of one's own: no step is longer than the learning rate, and there are two slots."""

    def kick(gradient, hparams, count):
        return {"velocity": jax.tree.map(jnp.negative, gradient)}

    def couple(gradient, slots, hparams, count):
        return {"size": jax.tree.map(lambda v: 0.1 * v**2, slots["velocity"])}

    def drift(slots, hparams, count):
        rate: Any = learning_rate(hparams) if callable(learning_rate) else learning_rate

        def step(v, size):
            return (rate * jnp.tanh(v / (0.1 + size))).astype(v.dtype)

        return jax.tree.map(step, slots["velocity"], slots["size"])

    def decays(hparams, count):
        decay = momentum(hparams) if callable(momentum) else momentum
        return {"velocity": decay, "size": NINE_TENTHS, "params": float(np.float32(0.99))}

    return hg.kick_drift(
        loss,
        kick=kick,
        couple=couple,
        coupled=("size",),
        drift=drift,
        decays=decays,
        slots={"velocity": hg.Slot(), "size": hg.Slot(smallest_decay=0.9)},
        params=hg.Slot(smallest_decay=0.9),
        is_elementwise=True,
    )


def modified(loss, *, learning_rate, momentum, noise_scale):
    gradient = hg.modified(
        hg.backpropagation,
        hg.clip_by_norm(1.0),
        hg.add_weight_decay(0.01),
        hg.add_noise(noise_scale),
    )
    return hg.momentum(loss, learning_rate=learning_rate, momentum=momentum, gradient=gradient)


def estimated(loss, *, learning_rate, momentum):
    gradient = hg.forward_gradient(hg.Rademacher())
    return hg.heavy_ball(loss, learning_rate=learning_rate, momentum=momentum, gradient=gradient)


RULES: dict[str, Kind] = {
    "heavy_ball": Kind(hg.heavy_ball, {"learning_rate": 0.05, "momentum": 0.8}),
    "momentum": Kind(hg.momentum, {"learning_rate": 0.2, "momentum": 0.8}),
    "classical_momentum": Kind(hg.classical_momentum, {"learning_rate": 0.05, "momentum": 0.8}),
    "adam": Kind(adam, {"learning_rate": 0.02, "b1": 0.8, "b2": 0.95}),
    "adamw": Kind(adamw, {"learning_rate": 0.02, "b1": 0.8, "weight_decay": 0.2}),
    "rmsprop_momentum": Kind(
        rmsprop_momentum, {"learning_rate": 0.01, "momentum": 0.7, "decay": 0.9}
    ),
    "average": Kind(average, {"learning_rate": 0.05, "momentum": 0.8, "average_decay": 0.9}),
    "polyak_average": Kind(polyak_average, {"learning_rate": 0.2, "momentum": 0.8}),
    "bounded": Kind(bounded, {"learning_rate": 0.02, "momentum": 0.8}),
    "modified": Kind(modified, {"learning_rate": 0.2, "momentum": 0.8, "noise_scale": 0.05}),
    "estimated": Kind(estimated, {"learning_rate": 0.02, "momentum": 0.8}, is_forward=True),
}
SCALAR_RATE = ("bounded",)
"""Rules whose learning rate is one number a step."""
